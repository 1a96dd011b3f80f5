"""Floors: the same bytes with the same durability, stored by the barest means that each database has."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis.asyncio

Floor = Callable[[int, int], Awaitable[float]]
"""Seconds for `count` moves of `size` bytes each, one after the other."""


def sqlite_floor(path: Path) -> Floor:
    """One bare transaction a move, with the durability of our store (WAL, synchronous=FULL)."""

    async def measured(count: int, size: int) -> float:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body TEXT)")
        body = "x" * size
        began = time.perf_counter()
        for _ in range(count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t (body) VALUES (?)", (body,))
            connection.execute("COMMIT")
        spent = time.perf_counter() - began
        connection.close()
        return spent

    return measured


def redis_floor(url: str, at_once: int = 1) -> Floor:
    """One bare script a move, through redis-py's asyncio client: it stores the bytes, and nothing else.

    Args:
        at_once: so many share the moves, each on a connection of its own.
    """

    async def measured(count: int, size: int) -> float:
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=at_once)
        client = redis.asyncio.Redis(connection_pool=pool)
        script = await client.script_load("return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])")
        body = "x" * size
        indices = iter(range(count))

        async def some() -> None:
            for index in indices:
                await client.evalsha(script, 1, "floor", str(index), body)

        began = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(at_once)))
        spent = time.perf_counter() - began
        await client.delete("floor")
        await client.aclose()
        await pool.aclose()
        return spent

    return measured


def postgres_floor(url: str) -> Floor:
    """One bare transaction a move, through psycopg's asyncio connection."""

    async def measured(count: int, size: int) -> float:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await connection.execute("CREATE TABLE IF NOT EXISTS floor (id BIGSERIAL PRIMARY KEY, body TEXT)")
        body = "x" * size
        began = time.perf_counter()
        for _ in range(count):
            await connection.execute("INSERT INTO floor (body) VALUES (%s)", (body,))
        spent = time.perf_counter() - began
        await connection.close()
        return spent

    return measured


@dataclass(frozen=True)
class Backend:
    """A store to be measured, and its floor."""

    name: str
    url: str
    floor: Floor


def backends(folder: Path, redis_url: str, postgres_url: str) -> list[Backend]:
    """All stores that keep what they were told."""
    return [
        Backend("SQLite, FULL", f"sqlite://{folder}/bench.db", sqlite_floor(folder / "floor.db")),
        Backend("Postgres", postgres_url, postgres_floor(postgres_url)),
        Backend("Redis, always", redis_url, redis_floor(redis_url)),
    ]
