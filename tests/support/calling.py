"""A run that measures what its tool calls take, beside bare subprocesses."""

import asyncio
import subprocess
import sys
import time
from typing import Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, tool

CALLS = 100
BARE = [sys.executable, "-I", "-S", "-c", "print(sum([1, 2, 3]))"]


@tool
def total(numbers: list[int]) -> int:
    """A tool with next to nothing to do."""
    return sum(numbers)


class Spent(BaseModel):
    calls_ms: list[float] = []
    bare_ms: list[float] = []


calling = Graph("calling", Spent)


@calling.node
async def call(state: Spent, ctx: Context) -> dict[str, Any]:
    calls, bare = [], []
    for number in range(CALLS):
        began = time.perf_counter()
        assert await ctx.call(total, numbers=[number, 1]) == number + 1
        between = time.perf_counter()
        await asyncio.to_thread(subprocess.run, BARE, stdout=subprocess.PIPE, check=True)
        calls.append((between - began) * 1e3)
        bare.append((time.perf_counter() - between) * 1e3)
    return {"calls_ms": calls, "bare_ms": bare}


calling.edge(START, call).edge(call, END)
