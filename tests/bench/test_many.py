"""Many runs at once in one process, as in a run actor with `runs_per_actor`, on Redis."""

import asyncio
import statistics
import time
from itertools import pairwise
from typing import Any

import pytest
from bench.floors import redis_floor
from bench.settled import run_as_actor, settled
from bench.table import Table
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Graph
from understudy.actors.driver import Driver
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
ROUNDS = 5


class Count(BaseModel):
    count: int = 0


def chain(nodes: int, pause_s: float) -> Graph:
    graph = Graph("many", Count)
    names = [f"n{index}" for index in range(nodes)]

    async def node(state: Count) -> dict[str, Any]:
        if pause_s:
            await asyncio.sleep(pause_s)
        return {"count": state.count + 1}

    for name in names:
        graph.node(node, name=name)
    for before, after in pairwise((START, *names, END)):
        graph.edge(before, after)
    return graph


async def seconds(url: str, runs: int, graph: Graph) -> float:
    """All runs, from their claim to their end."""
    store = await open_store(url)
    stage = Stage(store, graph)
    started = [await stage.start() for _ in range(runs)]

    async def one(run: Any) -> None:
        driver: Driver = await stage.driver(run)
        assert await driver.drive() == "succeeded"

    with settled():
        began = time.perf_counter()
        await asyncio.gather(*(one(run) for run in started))
        spent = time.perf_counter() - began
    await store.close()
    return spent


def test_two_hundred_runs_of_twenty_nodes(table: Table, redis_url: str) -> None:
    async def measured() -> None:
        graph, moves = chain(20, 0.0), 200 * 20
        floor = redis_floor(redis_url, at_once=50)
        rounds = [(await floor(moves, 300), await seconds(redis_url, 200, graph)) for _ in range(ROUNDS)]
        table.add(
            "200 runs x 20 nodes in one process",
            "Redis, always",
            moves / statistics.median(s for _, s in rounds),
            moves / statistics.median(f for f, _ in rounds),
            "nodes/s",
            ratio=statistics.median(f / s for f, s in rounds),
            aim=">= 5,000/s",
        )

    run_as_actor(measured(), 500)


def test_five_hundred_waiting_runs(table: Table, redis_url: str) -> None:
    async def bare() -> float:
        async def one() -> None:
            for _ in range(5):
                await asyncio.sleep(0.05)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(500)))
        return time.perf_counter() - began

    async def measured() -> None:
        graph = chain(5, 0.05)
        rounds = [(await bare(), await seconds(redis_url, 500, graph)) for _ in range(ROUNDS)]
        table.add(
            "500 runs x 5 nodes of 50 ms in one process",
            "Redis, always",
            statistics.median(s for _, s in rounds),
            statistics.median(f for f, _ in rounds),
            "s",
            ratio=statistics.median(s / f for f, s in rounds),
            aim="<= 2",
        )

    run_as_actor(measured(), 500)
