"""A conversation of 1,600 messages of 500 bytes: how much is stored, how long it takes, and whether it gets slower."""

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import pytest
from bench.floors import backends
from bench.settled import run_as_actor
from bench.table import Table
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Graph, append
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
MESSAGES, BYTES = 1600, 500
ROUNDS = 3


class Talk(BaseModel):
    messages: Annotated[list[str], append] = []
    count: int = 0


def talking(times: list[float]) -> Graph:
    graph = Graph("talk", Talk, step_limit=MESSAGES + 1)

    @graph.node
    async def say(state: Talk) -> dict[str, Any]:
        times.append(time.perf_counter())
        return {"messages": [f"{state.count:06d} {'m' * (BYTES - 7)}"], "count": state.count + 1}

    graph.edge(START, say)
    return graph.branch(say, lambda state: "say" if state.count < MESSAGES else END, ["say", END])


def test_messages(table: Table, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    async def measured() -> None:
        for backend in backends(tmp_path, redis_url, postgres_url):
            store = await open_store(backend.url)
            rounds, slower, stored = [], [], 0.0
            for _ in range(ROUNDS):
                times: list[float] = []
                floor = await backend.floor(MESSAGES, BYTES)
                stage = Stage(store, talking(times))
                run = await stage.start()
                began = time.perf_counter()
                assert await stage.drive(run) == "succeeded"
                rounds.append((floor, time.perf_counter() - began))
                fifth = MESSAGES // 5
                slower.append((times[-1] - times[-fifth]) / (times[fifth] - times[0]))
                rows = (await store.dump((await run.record()).thread_id)).checkpoints
                stored = sum(len(row.body.encode()) for row in rows) / 1e6
            await store.close()
            ours = statistics.median(s for _, s in rounds)
            floor = statistics.median(f for f, _ in rounds)
            ratio = statistics.median(s / f for f, s in rounds)
            table.add("1,600 messages of 500 bytes", backend.name, ours, floor, "s", ratio=ratio, aim="<= 1 s")
            table.add("the same, checkpoints stored", backend.name, stored, MESSAGES * BYTES / 1e6, "MB", aim="<= 3 MB")
            last = statistics.median(slower)
            table.add("the same, last fifth against the first", backend.name, last, 0, "times", aim="flat")

    run_as_actor(measured(), 500)
