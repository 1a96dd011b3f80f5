"""One task's look at MCP servers: asks them what tools they have, under the policy, and tells what has changed.

What is pinned, or set aside, is in the event log of the run that saw it first, and before it is pinned: whoever dies in
between tells it once and pins it afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from understudy.actors.calls import Caller, Place
from understudy.actors.effects import SEEN, call_digest
from understudy.actors.ledger import Wish
from understudy.actors.mcp import pins
from understudy.actors.mcp.server import Listing, McpServer, McpTool, accepted_tools
from understudy.actors.outcome import Outcome
from understudy.actors.records import Event
from understudy.actors.store import Store

TOLD_MAX = 50
"""Tools that an event names, of those that are accepted and of those that are set aside."""
NAME_CHARS_MAX = 80


@dataclass(frozen=True)
class Look:
    caller: Caller
    place: Place
    next: Callable[[str], int]
    """Counts calls by name, as the context does."""

    @property
    def store(self) -> Store:
        return self.caller.store

    async def call(self, tool: McpTool, args: dict[str, Any], index: int) -> Outcome:
        """The tool as it is pinned; and where it turned out to be another, that is put on record."""
        outcome = await self.caller.call(self.place, await tool.resolve(self), args, index)
        if outcome.error_type == "ToolChanged":
            now = await tool.resolve(self, look=True)
            outcome = replace(outcome, error=f"{outcome.error}. {now.refused}".rstrip(". "))
        return outcome

    async def tools(self, server: McpServer) -> list[dict[str, Any]]:
        """Those that are accepted, after a look at the server."""
        return await accepted_tools(self, server)

    async def ask(self, listing: Listing) -> Outcome:
        return await self.caller.call(self.place, listing, {}, self.next("call:" + listing.name))

    async def tell(self, seen: pins.Pins, first: bool) -> None:
        data: dict[str, Any] = {
            "server": seen.server,
            "launch": seen.launch[:300],
            "first": first,
            "accepted": {name: pins.digest(seen.server, told)[:16] for name, told in _some(seen.accepted)},
            "set_aside": {
                pins.shown(name)[:NAME_CHARS_MAX]: pins.digest(seen.server, told)[:16] if told else ""
                for name, told in _some(seen.waiting)
            },
            "tools": len(seen.accepted),
            "waiting": len(seen.waiting),
        }
        digest = call_digest(seen.server, "", {"seen": seen.text().decode()})
        # Its name is that of what was seen: the same is told once by a task, however often that runs.
        wish = Wish(self.place, f"mcp:{seen.server}{SEEN}", 0, digest, "", about=("", digest))
        await self.caller.ledger.settle(wish, Outcome("ok"), [Event("mcp_tools", self.caller.clock(), data)])


def _some(tools: Any) -> list[tuple[str, Any]]:
    return sorted(tools.items())[:TOLD_MAX]
