"""Runs inside the sandbox, beside the server: the client of the official SDK, for one call.

The client reads whatever a hostile server writes, so it is kept where that can hurt nobody: it shares the server's
sandbox, limits and end. Nothing is lost by that. What the server could do to the client, it could say in the first
place: its list and its results are its own words either way, and the host believes neither, but compares and bounds
them. Each call starts the server anew, looks at its tools, and calls one only if it is as it was pinned.
"""

import json
import os
from typing import Any

from understudy.actors.mcp.pins import FIELDS, TOOLS_MAX, digest
from understudy.actors.mcp.reach import Way, way_to

PAGES_MAX = 100
EFFECT_KEY = "understudy/effect-key"
"""In the `_meta` of a call: the same when it is made again because nobody knows how it ended."""


class ToolChanged(Exception):
    """The server does not have the tool as it was accepted; it was not called."""


class McpError(Exception):
    """What the server says went wrong."""


class Ask:
    """One question to a server: what tools there are; or, of a tool that is as it was pinned, to call it.

    No annotations in the class, where the runner would look for those of the arguments, which may have any names.
    """

    def __init__(self, server: dict[str, Any], tool: str = "", pinned: str = "") -> None:
        self.server = server
        self.tool = tool
        self.pinned = pinned

    async def __call__(self, /, **args: Any) -> Any:
        way = way_to(self.server, self.tool)
        try:
            return await self._asked(way, args)
        except (Exception, BaseExceptionGroup) as error:
            raise _told(way, _first(error)) from None

    async def _asked(self, way: Way, args: dict[str, Any]) -> Any:
        async with way.client() as client:
            tools = await _tools(client)
            if not self.tool:
                return tools
            told = next((told for told in tools if told["name"] == self.tool), None)
            if told is None or digest(self.server["name"], told) != self.pinned:
                what = "is not there any more" if told is None else "is not what was accepted"
                raise ToolChanged(f"tool {self.tool!r} of MCP server {self.server['name']!r} {what}; it was not called")
            _fit(told["inputSchema"], args)
            way.calling = True
            key = os.environ.get("UNDERSTUDY_EFFECT_KEY", "")
            return _value(await client.call_tool(self.tool, args, meta={EFFECT_KEY: key}))


async def _tools(client: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    for _ in range(PAGES_MAX):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            plain = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
            found.append({name: plain.get(name) for name in FIELDS})
        cursor = page.next_cursor
        if cursor is None:
            return found
        if len(found) > TOOLS_MAX:
            raise McpError(f"the server tells of more than {TOOLS_MAX} tools")
    raise McpError(f"the server's list of tools does not end after {PAGES_MAX} pages")


def _fit(schema: dict[str, Any], args: dict[str, Any]) -> None:
    """The whole schema, with what could be made to take for ever (patterns, references): it ends with the call here."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    error = next(Draft202012Validator(schema, registry=Registry()).iter_errors(args), None)
    if error is not None:
        raise ValueError(breach(error))


def breach(error: Any) -> str:
    """Where arguments break a schema, and what it asks there; not what is there, which a rule may hide (`redact`)."""
    if error.validator in ("required", "additionalProperties"):  # about names
        return f"{error.json_path}: {error.message[:300]}"
    asked = json.dumps(error.validator_value, default=str)[:300]
    return f"{error.json_path}: what is given does not fit {error.validator}: {asked}"


def _value(result: Any) -> Any:
    """JSON values: structured content where there is some, text as text, other content as the protocol writes it."""
    parts = [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if result.is_error:
        raise McpError(text[:1900] or "the server gives no reason")
    if result.structured_content is not None:
        return result.structured_content
    return text if all(part["type"] == "text" for part in parts) else {"content": parts}


def _told(way: Way, error: BaseException) -> BaseException:
    """What this module has raised itself is as it should be, also where the SDK's task groups are around it."""
    return error if isinstance(error, ToolChanged | McpError) else way.reason(error)


def _first(error: BaseException) -> BaseException:
    """What really went wrong, out of the task groups that it went through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
