"""Asks a prepared statement through libpq alone: psycopg's cursor takes as long as the server does for a commit.

It is psycopg's connection all the same, and these are its errors (see postgres_client.py); between two statements it is
used in the ordinary way. What a statement answers is read by psycopg.
"""

import asyncio
import struct
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Value = bytes | None
Told = tuple[Value, int]
"""A value, and whether it is given as the server keeps it (1) or spelled (0). Texts are given as they are kept: their
length is told, so that a NUL is refused, and does not end them."""
Rows = list[tuple[Any, ...]]
TEXT_OID = 25


class Prepared:
    """A statement; each connection learns it once."""

    def __init__(self, name: str, sql: str) -> None:
        self._name = name.encode()
        self._sql = sql.encode()
        self._known: WeakSet[Connection] = WeakSet()

    async def rows(self, connection: Connection, given: Sequence[Told]) -> Rows:
        """What it answers. Raises psycopg.Error."""
        result = await self.ask(connection, [value for value, _ in given], [form for _, form in given])
        reader = Transformer(connection)
        reader.set_pgresult(result)
        return list(reader.load_rows(0, result.ntuples, tuple))

    async def ask(self, connection: Connection, values: Sequence[Value], formats: Sequence[int]) -> "pq.abc.PGresult":
        """As `rows`, still as libpq has it."""
        pgconn = connection.pgconn
        if connection not in self._known:
            await self._learn(connection)
        pgconn.send_query_prepared(self._name, values, formats)
        try:
            return await _result(pgconn)
        except errors.InvalidSqlStatementName:  # somebody between us and the server gave us another one's connection
            await self._learn(connection)
            pgconn.send_query_prepared(self._name, values, formats)
            return await _result(pgconn)

    async def _learn(self, connection: Connection) -> None:
        connection.pgconn.send_prepare(self._name, self._sql)
        await _result(connection.pgconn)
        self._known.add(connection)


async def _result(pgconn: "pq.abc.PGconn") -> "pq.abc.PGresult":
    """What the statement that was sent answers. Raises psycopg.Error."""
    loop = asyncio.get_running_loop()
    found: list[pq.abc.PGresult] = []
    told: asyncio.Future[None] = loop.create_future()

    def go_on() -> None:
        try:
            pgconn.flush()
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    if not told.done():
                        told.set_result(None)
                    return
                found.append(result)
        except psycopg.Error as error:
            if not told.done():
                told.set_exception(error)

    socket = pgconn.socket
    loop.add_reader(socket, go_on)
    must_wait = pgconn.flush()  # for room, as the values are many
    if must_wait:
        loop.add_writer(socket, go_on)
    try:
        await told
    finally:
        loop.remove_reader(socket)
        if must_wait:
            loop.remove_writer(socket)
    last = found[-1]
    if last.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise errors.error_from_result(last)
    return last


def told(value: Any) -> Told:
    """A value of any type that a verb takes."""
    match value:
        case None:
            return None, 0
        case str():
            return value.encode(), 1
        case bytes():
            return value, 1
        case bool():
            return (b"t" if value else b"f"), 0
        case int():
            return b"%d" % value, 0
        case float():
            return number(value), 0
        case [str(), *_]:
            return texts(value), 1
        case [*_]:
            return f"{{{','.join(map(repr, value))}}}".encode(), 0
    raise AssertionError(f"no verb takes a {type(value).__name__}")


def number(value: float) -> bytes:
    return repr(value).encode()


def texts(items: Iterable[str]) -> bytes:
    """A text[] as the server keeps it: without quotes, which would have to be escaped here and read there."""
    encoded = [item.encode() for item in items]
    size = (len(encoded), 1) if encoded else ()
    parts = [struct.pack(f"!{3 + len(size)}i", len(size) // 2, 0, TEXT_OID, *size)]
    for item in encoded:
        parts += (len(item).to_bytes(4), item)
    return b"".join(parts)
