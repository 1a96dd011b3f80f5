"""Floors: the same bytes with the same durability, stored by the barest means that each database has.

There are two. The strict one stores a commit's bytes as one row, and is what the aims are measured by. The other stores
them as the rows that a commit has to leave (law 2: the run's own is moved, the checkpoint and two events are new, two
counters grow), compares nothing and refuses nothing: what lies between the two is the price of what people can ask a
store, and what lies above both is ours.
"""

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


def sqlite_rows(path: Path) -> Floor:
    """The rows of a commit, in one bare transaction a move."""

    async def measured(count: int, size: int) -> float:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript("""
            CREATE TABLE IF NOT EXISTS run (id INTEGER PRIMARY KEY, seq INTEGER, head TEXT);
            CREATE TABLE IF NOT EXISTS checkpoint (id INTEGER PRIMARY KEY, name TEXT UNIQUE, body TEXT);
            CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, data TEXT);
            CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value REAL);
        """)
        run = db.execute("INSERT INTO run (seq) VALUES (0)").lastrowid
        body, events, counters = parts(size)
        began = time.perf_counter()
        for n in range(count):
            head = f"{run}-{n}"
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE run SET seq = ?, head = ? WHERE id = ?", (n, head, run))
            db.execute("INSERT INTO checkpoint (name, body) VALUES (?, ?)", (head, body))
            db.execute("INSERT INTO event (data) VALUES (?), (?)", events)
            db.execute(
                "INSERT INTO counter VALUES (?, 1), (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", counters
            )
            db.execute("COMMIT")
        spent = time.perf_counter() - began
        db.close()
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


def redis_rows(url: str) -> Floor:
    """The rows of a commit, in one bare script a move."""
    script = """
        redis.call('HSET', KEYS[1], 'seq', ARGV[1], 'head', ARGV[1])
        redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
        redis.call('RPUSH', KEYS[3], ARGV[1])
        redis.call('RPUSH', KEYS[4], ARGV[3], ARGV[4])
        redis.call('HINCRBY', KEYS[5], ARGV[5], 1)
        redis.call('HINCRBY', KEYS[5], ARGV[6], 1)
    """
    keys = [f"floor-{name}" for name in ("run", "checkpoints", "history", "events", "counters")]

    async def measured(count: int, size: int) -> float:
        client = redis.asyncio.Redis.from_url(url)
        sha = await client.script_load(script)
        body, events, counters = parts(size)
        began = time.perf_counter()
        for n in range(count):
            await client.evalsha(sha, len(keys), *keys, str(n), body, *events, *counters)
        spent = time.perf_counter() - began
        await client.delete(*keys)
        await client.aclose()
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


def postgres_rows(url: str) -> Floor:
    """The rows of a commit, in one bare statement a move."""
    tables = """
        CREATE TABLE IF NOT EXISTS floor_run (id BIGSERIAL PRIMARY KEY, seq BIGINT, head TEXT) WITH (fillfactor = 70);
        CREATE TABLE IF NOT EXISTS floor_checkpoint (id BIGSERIAL, name TEXT PRIMARY KEY, body TEXT);
        CREATE TABLE IF NOT EXISTS floor_event (id BIGSERIAL PRIMARY KEY, data TEXT);
        CREATE TABLE IF NOT EXISTS floor_counter (name TEXT PRIMARY KEY, value FLOAT8) WITH (fillfactor = 50);
    """
    statement = """
        WITH run AS (UPDATE floor_run SET seq = %s, head = %s WHERE id = %s),
        checkpoint AS (INSERT INTO floor_checkpoint (name, body) VALUES (%s, %s)),
        event AS (INSERT INTO floor_event (data) VALUES (%s), (%s))
        INSERT INTO floor_counter VALUES (%s, 1), (%s, 1)
        ON CONFLICT (name) DO UPDATE SET value = floor_counter.value + 1
    """

    async def measured(count: int, size: int) -> float:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await connection.execute(tables)
        cursor = await connection.execute("INSERT INTO floor_run (seq) VALUES (0) RETURNING id")
        [run] = await cursor.fetchone() or [0]
        body, events, counters = parts(size)
        began = time.perf_counter()
        for n in range(count):
            await connection.execute(statement, (n, f"{run}-{n}", run, f"{run}-{n}", body, *events, *counters))
        spent = time.perf_counter() - began
        await connection.close()
        return spent

    return measured


def parts(size: int) -> tuple[str, tuple[str, str], tuple[str, str]]:
    """So many bytes as a body and two events; and the names of two counters."""
    events = ("e" * min(80, size // 4), "f" * min(50, size // 4))
    return "x" * (size - sum(map(len, events))), events, ("commits", "nodes")


@dataclass(frozen=True)
class Backend:
    """A store to be measured, and its floor."""

    name: str
    url: str
    floor: Floor
    rows: Floor
    """The other floor, see above."""


def backends(folder: Path, redis_url: str, postgres_url: str) -> list[Backend]:
    """All stores that keep what they were told."""
    return [
        Backend(
            "SQLite, FULL",
            f"sqlite://{folder}/bench.db",
            sqlite_floor(folder / "floor.db"),
            sqlite_rows(folder / "rows.db"),
        ),
        Backend("Postgres", postgres_url, postgres_floor(postgres_url), postgres_rows(postgres_url)),
        Backend("Redis, always", redis_url, redis_floor(redis_url), redis_rows(redis_url)),
    ]
