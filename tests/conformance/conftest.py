"""The backends, as empty worlds. Servers are started only for the backends that are asked for."""

import functools
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from support.redis_cluster import RedisCluster
from understudy.actors.memory import MemoryStore
from understudy.actors.store import Store
from understudy.cluster.stores import open_store
from understudy.cluster.testing.conformance.suite import World

BACKENDS = ("memory", "sqlite", "redis", "redis_cluster", "postgres", *(["valkey"] if which("valkey-server") else []))
"""Valkey is one more where it is installed; Debian has it from 13 on."""

KEPT = ("blob", "beat", "counter", "meta", "document")
"""What outlives threads: part of the name of its table or key."""

MakeWorld = Callable[[], World]


@pytest.fixture(params=BACKENDS)
def make_world(request: pytest.FixtureRequest, tmp_path: Path) -> MakeWorld:
    """A function that makes the World of a backend. Servers are started only for the backends that are asked for."""
    name = request.param
    match name:
        case "memory":
            return memory_world
        case "sqlite":
            return functools.partial(sqlite_world, tmp_path / "new" / "folders" / "store.db")
        case "redis":
            return functools.partial(redis_world, request.getfixturevalue("redis_url"))
        case "valkey":
            return functools.partial(redis_world, request.getfixturevalue("valkey_url"))
        case "redis_cluster":
            url = request.getfixturevalue("redis_cluster_url")
            return functools.partial(redis_cluster_world, url, request.getfixturevalue("redis_cluster"))
        case _:
            return functools.partial(postgres_world, request.getfixturevalue("made_postgres_url"))


def memory_world() -> World:
    store = MemoryStore()

    async def client() -> Store:
        return store

    async def leftovers() -> dict[str, int]:
        return {"runs": len(store._runs), "threads": len(store._threads)}

    return World(client, leftovers)


def sqlite_world(path: Path) -> World:
    async def leftovers() -> dict[str, int]:
        import sqlite3

        with sqlite3.connect(path) as connection:
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            return {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for name in names
                if is_bound(name)
            }

    return World(lambda: open_store(f"sqlite:///{path}"), leftovers)


def redis_world(url: str) -> World:
    async def leftovers() -> dict[str, int]:
        import redis

        client = redis.Redis.from_url(url.replace("valkey://", "redis://"), decode_responses=True)
        keys = [key for key in client.scan_iter(count=1000) if is_bound(key)]
        client.close()
        return dict.fromkeys(keys, 1)

    return World(lambda: open_store(url), leftovers)


def redis_cluster_world(url: str, cluster: RedisCluster) -> World:
    async def leftovers() -> dict[str, int]:
        return dict.fromkeys(filter(is_bound, cluster.keys()), 1)

    return World(lambda: open_store(url), leftovers)


def postgres_world(url: str) -> World:
    async def leftovers() -> dict[str, int]:
        import psycopg

        with psycopg.connect(url) as connection:
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'understudy'"
            names = [row[0] for row in connection.execute(tables) if is_bound(row[0])]
            counts: dict[str, Any] = {}
            for name in names:
                found = connection.execute(f'SELECT count(*) FROM understudy."{name}"'.encode()).fetchone()
                counts[name] = found[0] if found else 0
            return counts

    return World(lambda: open_store(url), leftovers)


def is_bound(name: str) -> bool:
    """Whether it has to go when its thread goes."""
    return not any(kept in name for kept in KEPT) and not name.startswith("sqlite_")
