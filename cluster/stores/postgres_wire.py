"""Asks prepared statements through libpq alone: psycopg's cursor takes as long as the server does for a commit.

It is psycopg's connection all the same, and these are its errors (see postgres_client.py). What a statement answers is
read by psycopg.
"""

import asyncio
import struct
from collections.abc import Iterable, Sequence
from typing import Any

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
    """A statement; each line learns it once."""

    def __init__(self, name: str, sql: str) -> None:
        self.name = name.encode()
        self.sql = sql.encode()


class Line:
    """A connection that asks one statement after the other, and listens to its socket all the time: to begin and to end
    that with each statement took a third of what one costs here.

    A socket that is closed while the loop still knows its number would make the loop deaf to the next of that number.
    So a line is closed by `finish` alone, and listens no more once libpq has found it lost.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._socket = connection.pgconn.socket
        self._known: set[bytes] = set()
        self._told: asyncio.Future[pq.abc.PGresult] | None = None
        """Who waits for an answer."""
        self._result: pq.abc.PGresult | None = None
        self._writes = False
        """There was no room for all that was to be sent."""
        self._listens = False

    def deafen(self) -> None:
        """Leave the socket to somebody else, until the next statement is asked here: to psycopg, or to nobody."""
        if self._listens:
            self._listens = self._writes = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    def finish(self) -> None:
        """Close it at once, also in the middle of an answer."""
        self.deafen()
        self._pgconn.finish()

    def give_up(self) -> None:
        """Who waits for an answer has waited too long, and is told TimeoutError."""
        if self._told is not None and not self._told.done():
            self._told.set_exception(TimeoutError("no answer"))

    async def rows(self, statement: Prepared, given: Sequence[Told]) -> Rows:
        """What a statement answers. Raises psycopg.Error, TimeoutError."""
        result = await self.ask(statement, [value for value, _ in given], [form for _, form in given])
        reader = Transformer(self.connection)
        reader.set_pgresult(result)
        return list(reader.load_rows(0, result.ntuples, tuple))

    async def ask(self, statement: Prepared, values: Sequence[Value], formats: Sequence[int]) -> "pq.abc.PGresult":
        """As `rows`, still as libpq has it."""
        if not self._listens:
            self._listen()
        if statement.name not in self._known:
            await self._learn(statement)
        try:
            self._pgconn.send_query_prepared(statement.name, values, formats)
            return await self._answer()
        except errors.InvalidSqlStatementName:  # somebody between us and the server gave us another one's connection
            await self._learn(statement)
            self._pgconn.send_query_prepared(statement.name, values, formats)
            return await self._answer()

    def _listen(self) -> None:
        if self._pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection is lost")
        self._loop.add_reader(self._socket, self._go_on)
        self._listens = True

    async def _learn(self, statement: Prepared) -> None:
        self._pgconn.send_prepare(statement.name, statement.sql)
        await self._answer()
        self._known.add(statement.name)

    async def _answer(self) -> "pq.abc.PGresult":
        """What the statement that was sent answers."""
        told = self._told = self._loop.create_future()
        if self._pgconn.flush():
            self._writes = True
            self._loop.add_writer(self._socket, self._go_on)
        try:
            result: pq.abc.PGresult = await told
        finally:
            self._told = None
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise errors.error_from_result(result)
        return result

    def _go_on(self) -> None:
        """The socket has something to read, or room for what is still to be sent."""
        pgconn, told = self._pgconn, self._told
        try:
            if self._writes and not pgconn.flush():
                self._writes = False
                self._loop.remove_writer(self._socket)
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    if told is not None and not told.done() and self._result is not None:
                        told.set_result(self._result)
                    self._result = None
                    return
                self._result = result
        except psycopg.Error as error:
            self.deafen()
            if told is not None and not told.done():
                told.set_exception(error)


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
