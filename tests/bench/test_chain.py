"""Microseconds per node of a 200-node chain on each store, beside the floor: one bare transaction of the same bytes.

Run on demand: `make bench`. Both are measured in turns in one run, because these machines are noisy: the ratio is the
claim, not the microseconds. The engine is the one that a run actor drives; Ray is not part of it (its hops are per
residence, not per node).
"""

import json
import os
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import psycopg
import pytest
import redis.asyncio
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Graph, append
from understudy.actors.store import Store
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
NODES = 200
ROUNDS = 15


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

    async def commit(self, commit: Any) -> Any:
        body = commit.checkpoint.body if commit.checkpoint else ""
        self.sizes.append(len(body) + sum(len(json.dumps(dict(event.data))) for event in commit.events))
        return await self._store.commit(commit)


async def per_node_us(store: Store, graph: Graph) -> float:
    stage = Stage(store, graph)
    run = await stage.start()
    driver = await stage.driver(run)
    began = time.perf_counter()
    assert await driver.drive() == "succeeded"
    return (time.perf_counter() - began) / NODES * 1e6


async def measure(name: str, url: str, floor: Callable[[int], Awaitable[float]]) -> dict[str, Any]:
    graph = chain()
    store = await open_store(url)
    counting = Counting(store)
    await per_node_us(counting, graph)  # type: ignore[arg-type]
    size = round(statistics.median(counting.sizes))
    ours, floors = [], []
    for _ in range(ROUNDS):
        floors.append(await floor(size))
        ours.append(await per_node_us(store, graph))
    await store.close()
    ratio = statistics.median(a / b for a, b in zip(ours, floors, strict=True))
    return {
        "store": name,
        "bytes": size,
        "us_per_node": round(statistics.median(ours)),
        "floor_us": round(statistics.median(floors)),
        "ratio": round(ratio, 2),
    }


async def no_floor(size: int) -> float:
    """The engine alone: what it costs where storing costs nothing."""
    return 1.0


def sqlite_floor(path: Path) -> Callable[[int], Awaitable[float]]:
    """One bare transaction a node, with the durability of our store (WAL, synchronous=FULL)."""

    async def measured(size: int) -> float:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body TEXT)")
        body = "x" * size
        began = time.perf_counter()
        for _ in range(NODES):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (body) VALUES (?)", (body,))
            connection.execute("COMMIT")
        spent = time.perf_counter() - began
        connection.close()
        return spent / NODES * 1e6

    return measured


def redis_floor(url: str) -> Callable[[int], Awaitable[float]]:
    """One bare script a node, through redis-py's asyncio client: it stores the bytes, and nothing else."""

    async def measured(size: int) -> float:
        client = redis.asyncio.from_url(url)
        script = await client.script_load("return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])")
        body = "x" * size
        began = time.perf_counter()
        for index in range(NODES):
            await client.evalsha(script, 1, "floor", str(index), body)
        spent = time.perf_counter() - began
        await client.delete("floor")
        await client.aclose()
        return spent / NODES * 1e6

    return measured


def postgres_floor(url: str) -> Callable[[int], Awaitable[float]]:
    """One bare transaction a node, through psycopg's asyncio connection."""

    async def measured(size: int) -> float:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await connection.execute("CREATE TABLE IF NOT EXISTS floor (id BIGSERIAL PRIMARY KEY, body TEXT)")
        body = "x" * size
        began = time.perf_counter()
        for _ in range(NODES):
            await connection.execute("INSERT INTO floor (body) VALUES (%s)", (body,))
        spent = time.perf_counter() - began
        await connection.close()
        return spent / NODES * 1e6

    return measured


def test_chain(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    async def measured() -> list[dict[str, Any]]:
        return [
            await measure("memory", "memory://", no_floor),
            await measure("sqlite", f"sqlite://{tmp_path}/bench.db", sqlite_floor(tmp_path / "floor.db")),
            await measure("postgres", postgres_url, postgres_floor(postgres_url)),
            await measure("redis", redis_url, redis_floor(redis_url)),
        ]

    rows = run_async(measured(), 500)
    load = os.getloadavg()[0]
    print(f"\n200-node chain, medians of {ROUNDS} rounds in turns, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'store':<10}{'bytes/node':>12}{'us/node':>10}{'floor us':>10}{'ratio':>8}")
    for row in rows:
        floor, ratio = ("-", "-") if row["store"] == "memory" else (row["floor_us"], row["ratio"])
        print(f"{row['store']:<10}{row['bytes']:>12}{row['us_per_node']:>10}{floor:>10}{ratio:>8}")
    out = Path(os.environ.get("UNDERSTUDY_BENCH_OUT", tmp_path / "bench.json"))
    out.write_text(json.dumps(rows, indent=2))
    assert all(row["us_per_node"] > 0 for row in rows)
