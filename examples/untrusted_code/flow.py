"""A run that executes code from a file that it was given, and keeps what came of it."""

from typing import Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, python

execute = python("python")


class Work(BaseModel):
    source: str
    """Where the code finds its data, HOST:PORT."""
    value: dict[str, Any] = {}
    error: str = ""


graph = Graph("untrusted-code", Work, version="1")


@graph.node
async def run_it(state: Work, ctx: Context) -> dict[str, Any]:
    code = ctx.read_file("report.py").decode()
    done = await ctx.call(execute, code=code, inputs={"source": state.source})
    return {"value": done.value or {}, "error": done.error}


graph.edge(START, "run_it").edge("run_it", END)
