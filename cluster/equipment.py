"""Which environments the tools of a module want, and whether this machine has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from understudy.actors.environment import Environment
from understudy.actors.errors import CallerError
from understudy.actors.mcp.server import McpServer
from understudy.actors.sandbox.environments import Environments, EnvironmentUnusable
from understudy.actors.tool import Tool


@dataclass(frozen=True)
class Wanted:
    """One environment, and the tools that want it."""

    environment: Environment
    tools: tuple[str, ...]


def wanted_by(target: str) -> list[Wanted]:
    """By tools and MCP servers that are global names of `MODULE`, or of that of `MODULE:GRAPH`; or by `MODULE:TOOL`.

    Raises CallerError: there is no such module, or no such name in it.
    """
    module, one = _named(target)
    one_of_them = isinstance(one, Tool | McpServer)
    tools = [each for each in ([one] if one_of_them else vars(module).values()) if isinstance(each, Tool | McpServer)]
    found: dict[str, Wanted] = {}
    for tool in tools:
        if tool.environment:
            named = tool.name if isinstance(tool, Tool) else f"mcp:{tool.name}"
            before = found.get(tool.environment.text, Wanted(tool.environment, ()))
            found[tool.environment.text] = Wanted(tool.environment, (*before.tools, named))
    return list(found.values())


def is_tool(target: str) -> bool:
    """Whether it names one tool, or MCP server, and not a module or a graph. Raises CallerError."""
    return isinstance(_named(target)[1], Tool | McpServer)


def _named(target: str) -> tuple[ModuleType, Any]:
    """The module, and what is named in it, if anything is."""
    name, _, attribute = target.partition(":")
    try:
        module = import_module(name)
    except Exception as error:
        raise CallerError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    first = attribute.partition(".")[0]
    if first and not hasattr(module, first):
        tools = ", ".join(key for key, each in vars(module).items() if isinstance(each, Tool | McpServer)) or "none"
        raise CallerError(f"module {name!r} has no {first!r}; its tools are: {tools}")
    return module, getattr(module, attribute, None) if attribute else None


def problems(environments: Environments, wanted: Sequence[Wanted]) -> dict[str, str]:
    """Why this machine would refuse calls, by the tool's name; verified now, file by file."""
    found: dict[str, str] = {}
    for each in wanted:
        try:
            environments.prepare(each.environment)
        except EnvironmentUnusable as error:
            found |= dict.fromkeys(each.tools, str(error))
    return found
