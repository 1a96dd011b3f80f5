"""A graph that calls an MCP server over HTTP: once with an answer, and once with none, for the server dies of it."""

import hashlib
from typing import Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, mcp_server

POLICY = """
policy: mcp
version: 1
rules:
  - {id: calc, effect: allow, tool: ["mcp:calc", "mcp:calc/*"], network: ["127.0.0.1:%d"], secrets: [token]}
"""


class State(BaseModel):
    url: str
    said: list[Any] = []


def hashed(header: str) -> str:
    return hashlib.sha256(header.encode()).hexdigest()


over_http = Graph("over-http", State)


@over_http.node
async def calls(state: State, ctx: Context) -> dict[str, Any]:
    server = mcp_server("calc", url=state.url)
    said = [await ctx.call(server.tool("whoami")), await ctx.call(server.tool("die"))]
    return {"said": [each["result"] for each in said]}


over_http.edge(START, "calls").edge("calls", END)
