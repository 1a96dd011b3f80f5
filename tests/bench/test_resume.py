"""From an answer to the node that waits for it, and from a claim at step 1,000 to the next node; in one process."""

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import pytest
from bench.floors import Backend, backends
from bench.settled import run_as_actor, settled
from bench.table import Table
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Context, Graph, append
from understudy.actors.store import Store
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
ROUNDS = 15
STEPS = 1000


class Talk(BaseModel):
    messages: Annotated[list[str], append] = []
    count: int = 0


def asking(answered: list[float], steps: int) -> Graph:
    """So many steps, each with a message of 500 bytes, then a question."""
    graph = Graph("ask", Talk, step_limit=steps + 2)

    @graph.node
    async def say(state: Talk) -> dict[str, Any]:
        return {"messages": ["m" * 500], "count": state.count + 1}

    @graph.node
    async def ask(state: Talk, ctx: Context) -> dict[str, Any]:
        await ctx.interrupt("go on?")
        answered.append(time.perf_counter())
        return {}

    graph.edge(START, say).edge(ask, END)
    return graph.branch(say, lambda state: "say" if state.count < steps else "ask", ["say", "ask"])


async def one(backend: Backend, store: Store, steps: int) -> tuple[float, float]:
    """Seconds of the floor, and from the answer to the node."""
    answered: list[float] = []
    floor = await backend.floor(2, 500)  # the answer and the claim, each a durable move
    stage = Stage(store, asking(answered, steps))
    run = await stage.start()
    assert await stage.drive(run) == "waiting"
    record = await run.record()
    began = time.perf_counter()
    await store.resume(run.run_id, record.interrupts[0].interrupt_id, "true", time.time())
    assert await stage.drive(run) == "succeeded"
    return floor, answered[-1] - began


def test_resume_to_node(table: Table, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    async def measured(steps: int, what: str, aim: str) -> None:
        for backend in backends(tmp_path, redis_url, postgres_url):
            store = await open_store(backend.url)
            with settled():
                rounds = [await one(backend, store, steps) for _ in range(ROUNDS if steps == 1 else 5)]
            await store.close()
            ours = statistics.median(s for _, s in rounds) * 1e3
            floor = statistics.median(f for f, _ in rounds) * 1e3
            table.add(what, backend.name, ours, floor, "ms", ratio=statistics.median(s / f for f, s in rounds), aim=aim)

    run_as_actor(measured(1, "answer to node", "<= 2 ms"), 250)
    run_as_actor(measured(STEPS, "answer to node at step 1,000 (reload)", "<= 10 ms"), 250)
