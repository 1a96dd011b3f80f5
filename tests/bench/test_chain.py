"""Microseconds per node of a 200-node chain with a durable checkpoint after every node, beside the bare transaction.

In turns in one run, because these machines are noisy: the ratio is the claim. The engine is the one that a run actor
drives; Ray is not part of it (its hops are per residence, not per node).
"""

import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import pytest
from bench.floors import backends
from bench.settled import run_as_actor, settled
from bench.table import Table
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Graph, append
from understudy.actors.flight import IN_FLIGHT_MAX
from understudy.actors.store import Store
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
NODES = 200
ROUNDS = 11


class Log(BaseModel):
    seen: Annotated[list[str], append] = []
    text: str = ""


def chain() -> Graph:
    graph = Graph("chain", Log, step_limit=NODES + 1)
    names = [f"n{index}" for index in range(NODES)]
    for name in names:

        async def node(state: Log, name: str = name) -> dict[str, Any]:
            return {"seen": [name], "text": "x" * 200}

        graph.node(node, name=name)
    for before, after in pairwise((START, *names, END)):
        graph.edge(before, after)
    return graph


class Counting:
    """A store that notes how many bytes each commit carries."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, *commits: Any) -> Any:
        for commit in commits:
            body = commit.checkpoint.body if commit.checkpoint else ""
            self.sizes.append(len(body) + sum(len(json.dumps(dict(event.data))) for event in commit.events))
        return await self._store.commit(*commits)


async def seconds(store: Store, graph: Graph, in_flight_max: int = IN_FLIGHT_MAX) -> float:
    """One chain, from its load to its end."""
    stage = Stage(store, graph)
    driver = await stage.driver(await stage.start())
    driver.in_flight_max = in_flight_max
    began = time.perf_counter()
    assert await driver.drive() == "succeeded"
    return time.perf_counter() - began


def test_chain(table: Table, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    async def measured() -> None:
        graph = chain()
        memory = await open_store("memory://")
        with settled():
            alone = [await seconds(memory, graph) for _ in range(ROUNDS)]
        table.add("node of a chain", "memory", statistics.median(alone) / NODES * 1e6, 0, "us", aim="-")
        for backend in backends(tmp_path, redis_url, postgres_url):
            store = await open_store(backend.url)
            counting = Counting(store)
            await seconds(counting, graph)  # type: ignore[arg-type]
            size = round(statistics.median(counting.sizes))
            with settled():
                rounds = [
                    (
                        await backend.floor(NODES, size),
                        await backend.rows(NODES, size),
                        await seconds(store, graph, 0),
                        await seconds(store, graph),
                    )
                    for _ in range(ROUNDS)
                ]
            await store.close()
            for what, index, base, aim in (
                ("node of a chain, each waits for its commit", 2, 0, "<= 1.5"),
                ("the same, beside the rows of a commit", 2, 1, "-"),
                ("node of a chain, commits in flight", 3, 0, "< 1"),
            ):
                floor = statistics.median(r[base] for r in rounds) / NODES * 1e6
                ours = statistics.median(r[index] for r in rounds) / NODES * 1e6
                ratio = statistics.median(r[index] / r[base] for r in rounds)
                table.add(what, backend.name, ours, floor, "us", ratio=ratio, aim=aim)

    run_as_actor(measured(), 500)
    assert len(table.rows) >= 10
