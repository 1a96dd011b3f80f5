"""A graph with tools that are not plain functions: with packages of their own, and of an MCP server over HTTP."""

import hashlib
from typing import Any

from pydantic import BaseModel

from understudy import END, START, Context, Environment, Graph, mcp_server, tool

POLICY = """
policy: kinds
version: 1
rules:
  - {id: calc, effect: allow, tool: ["mcp:calc", "mcp:calc/*"], network: ["127.0.0.1:%d"], secrets: [token]}
  - {id: pads, effect: allow, tool: pads}
"""
PAD = Environment(packages=["left-pad==1.0"])


class State(BaseModel):
    url: str
    said: list[Any] = []


def hashed(header: str) -> str:
    return hashlib.sha256(header.encode()).hexdigest()


@tool(environment=PAD)
def pads(text: str) -> str:
    import left_pad  # type: ignore[import-not-found]

    padded: str = left_pad.pad(text)
    return padded


kinds = Graph("kinds", State)


@kinds.node
async def calls(state: State, ctx: Context) -> dict[str, Any]:
    """The last call has no answer: the server dies of it."""
    server = mcp_server("calc", url=state.url)
    padded, token = await ctx.call(pads, text="x"), await ctx.call(server.tool("whoami"))
    return {"said": [padded, token["result"], (await ctx.call(server.tool("die")))["result"]]}


kinds.edge(START, "calls").edge("calls", END)
