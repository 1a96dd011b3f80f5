"""Both eras of the protocol, over stdio and over streamable HTTP: begun with a handshake, and without one."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from support.waiting import run_async, wait_until
from understudy.actors.mcp.inside import Ask
from understudy.actors.mcp.server import Era, Listing, McpServer, McpTool, mcp_server

pytestmark = [pytest.mark.timeout(120)]

SERVER = """
import sys
from mcp.server import MCPServer
server = MCPServer("calc")

@server.tool()
def add(a: int, b: int = 2) -> int:
    "Adds."
    return a + b

if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run()
"""


class Told(BaseModel):
    listing: list[dict[str, Any]]
    result: Any


async def used(server: McpServer) -> Told:
    listing = await Listing(server).fn()
    return Told(listing=listing, result=await McpTool(server, "add", told=listing[0]).fn(a=1))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(port), 30, "the MCP server over HTTP")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("era", ["auto", "legacy", "2026-07-28"])
def test_over_http(url: str, era: Era) -> None:
    told = run_async(used(mcp_server("calc", url=url, era=era)))
    assert told.listing[0]["name"] == "add"
    assert told.result == {"result": 3}


@pytest.mark.parametrize("era", ["auto", "legacy", "2026-07-28"])
def test_over_stdio(era: Era) -> None:
    told = run_async(used(mcp_server("calc", command=["python", "-c", SERVER], era=era)))
    assert told.listing[0]["description"] == "Adds."
    assert told.result == {"result": 3}


def test_a_tool_that_is_not_as_it_was_pinned_is_not_called(url: str) -> None:
    server = mcp_server("calc", url=url)
    with pytest.raises(Exception, match="is not what was accepted"):
        run_async(Ask(server.plain(), "add", "0" * 64)(a=1))
    with pytest.raises(Exception, match="is not there any more"):
        run_async(Ask(server.plain(), "sub", "0" * 64)(a=1))
