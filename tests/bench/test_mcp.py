"""What a call of an MCP server costs that is started for it, behind walls, beside starting it bare.

The floor is the same server, spawned and spoken to (handshake, list of tools, call) by a client that is imported
already. Ours pays for the walls, and for importing the client: it is inside them, with the server.
"""

import asyncio
import statistics
import time

import pytest
from bench.table import Table

from understudy.actors.mcp.server import Listing, McpTool, mcp_server
from understudy.actors.outcome import ToolCall
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.policies.profile import Profile

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
SERVER = """
from mcp.server import MCPServer
server = MCPServer("calc")

@server.tool()
def add(a: int, b: int = 2) -> int:
    "Adds."
    return a + b

server.run()
"""
ROUNDS = 10


def test_an_mcp_call(table: Table) -> None:
    server = mcp_server("calc", command=["python", "-c", SERVER])

    async def played() -> list[tuple[float, float]]:
        (told,) = await Listing(server).fn()
        tool = McpTool(server, "add", told=told)
        call = ToolCall("k", tool.name, tool._shipped, {"a": 1})
        rounds = []
        for _ in range(ROUNDS):  # in turns, so that what else the machine does counts for both
            began = time.perf_counter()
            outcome = await BubblewrapBackend().execute(call, Profile(tier="cold"))
            between = time.perf_counter()
            assert outcome.value == {"result": 3}, outcome
            assert await tool.fn(a=1) == {"result": 3}
            rounds.append((between - began, time.perf_counter() - between))
        return rounds

    ours, floor = (statistics.median(column) * 1000 for column in zip(*asyncio.run(played()), strict=True))
    table.add("MCP call, server started for it (stdio), tier cold", "-", ours, floor, "ms", aim="ratio <= 2.5")
