"""An MCP server as a user declares it, and its tools, which are tools like others: judged, isolated, on record.

A policy knows the server as `mcp:NAME` (to start it and to read its list) and its tools as `mcp:NAME/TOOL`. What the
server may see of files and network, the rule for the call grants, as for any tool; the least tier is `cold`.

No server is kept from one call to the next. A sandbox belongs to one call: to its grant, limits, secrets, workspace and
end. A server that stayed would carry what it saw under one grant into the next, and outlive a grant that is taken back.
"""

import hashlib
import json
import pickle
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from understudy.actors.environment import Environment
from understudy.actors.errors import CallerError
from understudy.actors.mcp import pins
from understudy.actors.mcp.inside import Ask, breach
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.tool import Tool

if TYPE_CHECKING:
    from understudy.actors.store import Store

Era = Literal["auto", "legacy", "2026-07-28"]
"""How to begin: `legacy` is the handshake of 2025-11-25 and before; the version, the one without a handshake; `auto`
asks for the new one and falls back to the old."""
PRINTED_MAX = 300
"""Characters of what a server has printed that an error tells."""
STEPS_MAX = 20_000_000
"""Parts of a schema, times characters of the arguments."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class McpServer:
    """How a server is started, or where it is."""

    name: str
    command: tuple[str, ...] = ()
    url: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    era: Era = "auto"
    environment: Environment | None = None

    def tool(self, name: str, *, idempotent: bool = False) -> "McpTool":
        """One of its tools. `idempotent`: what you know of it (what the server says of that is not believed).

        The server has the effect's key in the `_meta` of the call, as `understudy/effect-key`.
        """
        return McpTool(self, name, idempotent)

    @property
    def launch(self) -> str:
        """For people: the whole command, or the address."""
        return self.url or shlex.join(self.command)

    def plain(self) -> dict[str, Any]:
        """What the client is told."""
        return {
            "name": self.name,
            "command": list(self.command),
            "url": self.url,
            "variables": dict(self.variables),
            "mode": self.era,
            **({"equipped": True} if self.environment else {}),
        }


def mcp_server(
    name: str,
    *,
    command: Sequence[str] = (),
    url: str = "",
    variables: Mapping[str, str] | None = None,
    era: Era = "auto",
    environment: Environment | None = None,
) -> McpServer:
    """Declare an MCP server; `server.tool(NAME)` is for `ctx.call`, the server itself for `ctx.tools`.

    Args:
        name: under which policies know it, as `mcp:NAME` and `mcp:NAME/TOOL`, and its tools are pinned.
        command: of a server over stdio. It is started in the sandbox of each call, where the interpreter's packages
            (`python` is that one), /usr, and what the policy grants can be seen.
        url: of a server over streamable HTTP. The client is in the sandbox of each call, so the rule has to list the
            place (`network:`), also for `mcp:NAME`; a token is a secret with `hosts`, which the proxy puts into the
            requests. With https the proxy speaks TLS. A server that is lost while it has a call leaves it `unknown`.
        variables: of the server's environment. Not for secrets: they are part of the code that is on record.
        era: see `Era`.
        environment: the packages that a server over stdio finds, in the place of the worker's, so that nobody has to
            install a stranger's server beside the workers; see `tool`. `python` is then the environment's.
    """
    if not _NAME.fullmatch(name):
        raise CallerError(f"MCP server {name!r}: its name is made of letters, digits, '_' and '-', 64 at most")
    if bool(command) == bool(url):
        raise CallerError(f"MCP server {name!r} wants a command (stdio) or a url (streamable HTTP), one of them")
    if isinstance(command, str):
        raise CallerError(f"MCP server {name!r}: its command is a list of words, not a line: {command.split()!r}")
    if url and not url.startswith(("http://", "https://")):
        raise CallerError(f"MCP server {name!r}: {url!r} is no http:// or https:// address")
    if "@" in urlsplit(url).netloc or "#" in url:
        raise CallerError(
            f"MCP server {name!r}: its url holds a password, or '#', and is on record with the code; let the proxy put "
            f"a secret into the requests (`hosts:` in the file of secrets)"
        )
    if url and environment:
        raise CallerError(f"MCP server {name!r} at a url is not started here, and has no use for an environment")
    return McpServer(name, tuple(command), url, dict(variables or {}), era, environment)


class Eye(Protocol):
    """Of a task that looks at servers; see `look.py`."""

    @property
    def store(self) -> "Store": ...

    async def ask(self, listing: "Listing") -> Outcome:
        """Start the server, or connect to it, under the policy's decision, and ask what tools it has."""

    async def tell(self, seen: pins.Pins, first: bool) -> None:
        """Put on record what will be pinned."""


class McpTool(Tool[..., Any]):
    """A tool of a server; unpinned as it is declared, pinned when it is called."""

    resolves = True

    def __init__(self, server: McpServer, tool: str, idempotent: bool = False, told: pins.Told | None = None) -> None:
        self.server = server
        self.told = told
        pinned = pins.digest(server.name, told) if told is not None else ""
        self.fn = ask = Ask(server.plain(), tool, pinned)
        self.name = self.judged_as = f"mcp:{server.name}/{tool}"
        self.idempotent = idempotent
        self.reconcile = None
        self.shell = ()
        self.workspace = "none"
        self.tier = "cold"
        self.tool = tool
        self.refused = ""
        blob = pickle.dumps(ask)
        self.environment = server.environment
        text = server.environment.text if server.environment else ""
        self._shipped = ToolCode(blob=blob, environment=text, beside=bool(text))
        # A vanished or unknown tool has no pin; its refusals are on record under the declaration alone.
        self.__dict__["version"] = hashlib.sha256(pinned.encode() + blob + text.encode()).hexdigest()[:16]

    async def resolve(self, eye: Eye, look: bool = False) -> "McpTool":
        """The tool as it is pinned, and why it is not to be called, where it is not. `look`: at the server, anyway."""
        known = await known_pins(eye, self.server, look)
        ready = McpTool(self.server, self.tool, self.idempotent, known.accepted.get(self.tool))
        ready.refused = pins.refusal(known, self.tool)
        return ready

    def encode(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as JSON values that fit the pinned schema. Raises CallerError."""
        try:
            args: dict[str, Any] = json.loads(json.dumps(dict(given), allow_nan=False, ensure_ascii=False).encode())
        except (TypeError, ValueError) as error:
            raise CallerError(f"tool {self.name!r}: its arguments are to be JSON values: {error}") from None
        if self.told is not None and (problem := misfit(self.told["inputSchema"], args)):
            raise CallerError(f"tool {self.name!r}: {problem}")
        return args

    def decode(self, value: Any) -> Any:
        """JSON values are all that there is to say of it."""
        return value


class Listing(McpTool):
    """Starts a server and asks what tools it has; under the policy's decision on `mcp:NAME`."""

    resolves = False

    def __init__(self, server: McpServer, name: str = "") -> None:
        super().__init__(server, "", idempotent=True)
        self.judged_as = f"mcp:{server.name}"
        self.name = name or self.judged_as


async def known_pins(eye: Eye, server: McpServer, look: bool = False) -> pins.Pins:
    """The server's pins; at first sight, or with `look`, after a look at it. Raises CallerError: it gave no list."""
    from understudy.actors.documents import Overtaken

    store = eye.store
    document = await store.read_document(pins.SHELF, server.name)
    if document is not None and not look:
        return pins.Pins.read(document.data)
    listing = await _listed(server, eye)
    while True:
        document = await store.read_document(pins.SHELF, server.name)
        if document is None:
            after = pins.first_sight(server.name, listing, server.launch)
        else:
            after = pins.seen(pins.Pins.read(document.data), listing, server.launch)
            if after.text() == document.data:
                return after
        await eye.tell(after, first=document is None)
        try:
            await store.write_document(pins.SHELF, server.name, after.text(), document.version if document else 0)
            return after
        except Overtaken:  # somebody else saw it, or accepted something, at the same time
            continue


async def accepted_tools(eye: Eye, server: McpServer) -> list[dict[str, Any]]:
    """After a look at the server: what of it may be called, and told to a model."""
    known = await known_pins(eye, server, look=True)
    usable = [told for name, told in sorted(known.accepted.items()) if name not in known.waiting]
    return [{name: told.get(name) for name in ("name", "description", "inputSchema")} for told in usable]


async def _listed(server: McpServer, eye: Eye) -> list[dict[str, Any]]:
    outcome = await eye.ask(Listing(server, f"mcp:{server.name}#pin"))
    if outcome.kind != "ok":
        raise CallerError(
            f"MCP server {server.name!r} told of no tools ({outcome.kind}): {outcome.said}{_printed(outcome)}"
        )
    return pins.read_listing(outcome.value)


def _printed(outcome: Outcome) -> str:
    """The end of what the server printed, without the traceback of our own client behind it."""
    before, _, _ = outcome.printed.rpartition("Traceback (most recent call last):")
    last = " ".join((before or outcome.printed).split())[-PRINTED_MAX:]
    return f"; `understudy effects RUN --json` has all that it printed, the end of it: {last}" if last else ""


def misfit(schema: Any, args: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, as far as it can be told in a time that is bounded by their size.

    A stranger's schema: its patterns and references, with which a check can be made to take for ever, are not followed
    here, nor is anything fetched; and one that is too large for its arguments is not looked at. The client in the
    sandbox follows them, before the server gets the call.
    """
    # A schema may ask for each of its parts about the whole of the arguments, and each answer quotes them.
    if json.dumps(schema).count("{") * len(json.dumps(args)) > STEPS_MAX:
        return ""
    try:
        error = next(_bounded()(schema).iter_errors(args), None)
    except Exception as problem:  # jsonschema trips in many ways over what is no schema
        return f"its schema cannot be used ({type(problem).__name__}: {problem})"[:500]
    return breach(error) if error is not None else ""


@cache
def _bounded() -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    def additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Any:
        if "patternProperties" in schema:
            return
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, allowed, instance, schema) or ()

    never = ("$ref", "$dynamicRef", "pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems")
    ignored = dict.fromkeys((*never, "uniqueItems"))  # the last asks about each with each other
    return extend(Draft202012Validator, {**ignored, "additionalProperties": additional})
