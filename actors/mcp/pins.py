"""What a server says of its tools is pinned at first sight; what is different later is set aside until it is accepted.

Pure. A model reads names, descriptions and schemas as if they were instructions, so a change of them is a change of the
program. The first sight is trusted (there is nothing to compare it with); but text that people cannot see never is.
A tool that is renamed is one that vanished and one that is new: both wait.
"""

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from understudy.actors.errors import CallerError

Told = Mapping[str, Any]
"""What a server says of one tool: JSON values, under the names in FIELDS."""
FIELDS: Final = ("name", "description", "inputSchema", "outputSchema", "annotations")
TOOLS_MAX = 1000
COMPARED_LINES_MAX = 2000
NAMED_MAX = 20
DIFF_CHARS_MAX = 4000
"""Of a difference, where it is told with a refusal; `understudy mcp diff` shows all of it."""
SHELF = "mcp"
"""Where the store keeps pins: one document a server."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SEEN_AS_NOTHING = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2028\u2029\u2800\u3164\uffa0")
_OF_EMOJI = frozenset("\ufe0e\ufe0f")


@dataclass(frozen=True)
class Pins:
    """Of one server."""

    server: str
    accepted: Mapping[str, Told] = field(default_factory=dict)
    waiting: Mapping[str, Told | None] = field(default_factory=dict)
    """What is different from that: changed or new; None: it has vanished."""
    launch: str = ""
    """How the server was reached when it was last seen, for people."""

    def text(self) -> bytes:
        return _canonical({**self.__dict__})

    @staticmethod
    def read(data: bytes) -> "Pins":
        return Pins(**json.loads(data))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(server: str, told: Told) -> str:
    """What an approval and a grant of a call are bound to."""
    return hashlib.sha256(_canonical({"server": server, **{name: told.get(name) for name in FIELDS}})).hexdigest()


def read_listing(value: Any) -> list[dict[str, Any]]:
    """The tools that untrusted code has told of. Raises CallerError."""
    if not isinstance(value, list) or len(value) > TOOLS_MAX:
        raise CallerError(f"an MCP server's list of tools is to be a list of at most {TOOLS_MAX}")
    tools: dict[str, dict[str, Any]] = {}
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise CallerError("an MCP server told of a tool without a name")
        if item["name"] in tools:
            raise CallerError(f"an MCP server told of two tools named {shown(item['name'])[:100]!r}")
        tools[item["name"]] = {name: item.get(name) for name in FIELDS}
    return list(tools.values())


# --- what changes ----------------------------------------------------------------------------------------------------


def first_sight(server: str, listing: Sequence[Told], launch: str = "") -> Pins:
    """All are accepted but those with a problem."""
    sound = {told["name"]: told for told in listing if not problem_of(told)}
    return seen(Pins(server, sound), listing, launch)


def seen(pins: Pins, listing: Sequence[Told], launch: str = "") -> Pins:
    """After another look. What is as it was accepted, again, waits no more."""
    now = {told["name"]: told for told in listing}
    waiting: dict[str, Told | None] = {
        name: told
        for name, told in now.items()
        if name not in pins.accepted or digest("", pins.accepted[name]) != digest("", told)
    }
    waiting |= {name: None for name in pins.accepted if name not in now}
    return replace(pins, waiting=waiting, launch=launch or pins.launch)


def accept(pins: Pins, tool: str = "") -> Pins:
    """What waits, or one tool of it, as it was last seen, is what is pinned from now on. Raises CallerError."""
    if tool and tool not in pins.waiting:
        waits = ", ".join(map(shown, sorted(pins.waiting))) or "nothing"
        raise CallerError(f"tool {tool!r} of MCP server {pins.server!r} does not wait; waiting: {waits}")
    accepted, waiting = dict(pins.accepted), dict(pins.waiting)
    for name in [tool] if tool else list(waiting):
        told = waiting[name]
        if told is None:
            accepted.pop(name, None)
        elif problem := problem_of(told):
            if tool:
                raise CallerError(f"tool {shown(name)!r} cannot be accepted: {problem}")
            continue
        else:
            accepted[name] = told
        del waiting[name]
    return replace(pins, accepted=accepted, waiting=waiting)


def refusal(pins: Pins, tool: str) -> str:
    """Why this tool may not be called; empty if it may."""
    where = f"`understudy mcp diff {pins.server}` shows it"
    if tool in pins.waiting:
        told = pins.waiting[tool]
        if told is not None and (problem := problem_of(told)):
            return f"tool {shown(tool)!r} of MCP server {pins.server!r} is not used: {problem}; {where}"
        remedy = f"{where}; if it is as it should be: understudy mcp accept {pins.server} {shown(tool)}"
        shown_diff = diff(pins, tool)
        if len(shown_diff) > DIFF_CHARS_MAX:  # it goes on record with each refusal
            shown_diff = f"{shown_diff[:DIFF_CHARS_MAX]}..."
        return f"{_what(pins, tool)}, and set aside; {remedy}\n{shown_diff}"
    if tool not in pins.accepted:
        names = sorted(pins.accepted)
        has = ", ".join([*names[:NAMED_MAX], *(["..."] if len(names) > NAMED_MAX else [])]) or "none"
        return f"MCP server {pins.server!r} has no tool {shown(tool)!r}; it has: {has}"
    return ""


def _what(pins: Pins, tool: str) -> str:
    new, named = tool not in pins.accepted, f"tool {shown(tool)!r} of MCP server {pins.server!r}"
    return f"{named} {'has vanished' if pins.waiting[tool] is None else 'is new' if new else 'has changed'}"


def diff(pins: Pins, tool: str) -> str:
    """From what is accepted to what was last seen, with all that is invisible made visible."""
    old, new = pins.accepted.get(tool), pins.waiting.get(tool)
    before, after = _lines(old), _lines(new)
    if len(before) + len(after) > COMPARED_LINES_MAX:  # to compare them could take as long as whoever wrote them likes
        told = ["--- accepted", "+++ now", *(f"-{line}" for line in before), *(f"+{line}" for line in after)]
        return "\n".join(told)
    return "\n".join(difflib.unified_diff(before, after, "accepted", "now", lineterm="", n=2))


def _lines(told: Told | None) -> list[str]:
    text = "" if told is None else json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False)
    return [shown(line) for line in text.split("\n") if line]


# --- what can be seen ------------------------------------------------------------------------------------------------


def problem_of(told: Told) -> str:
    """Why a tool is never used as it is; empty if there is no reason."""
    if not _NAME.fullmatch(told["name"]):
        return f"its name {shown(told['name'])[:150]!r} is not made of letters, digits, '_', '-' and '.'"
    if not isinstance(told.get("description"), str | None):
        return "its description is no text"
    if not isinstance(told.get("inputSchema"), dict):
        return "its inputSchema is no object"
    for text in _texts(told):
        if hidden := [sign for sign in text if is_invisible(sign)]:
            return (
                f"what it says of itself holds characters that nobody sees ({shown(hidden[0])}, {len(hidden)} in all)"
            )
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def is_invisible(sign: str) -> bool:
    """Tag characters, bidi controls, zero widths, selectors, fillers, controls: models read them, people do not."""
    if sign in "\n\r\t" or sign in _OF_EMOJI:
        return False
    category = unicodedata.category(sign)
    selector = "\ufe00" <= sign <= "\ufe0f" or "\U000e0100" <= sign <= "\U000e01ef"
    return category in ("Cc", "Cf", "Cn", "Co", "Cs") or sign in _SEEN_AS_NOTHING or selector


def shown(text: str) -> str:
    """The text with a name in the place of each character that cannot be seen."""
    return "".join(f"<U+{ord(sign):04X}>" if is_invisible(sign) else sign for sign in text)
