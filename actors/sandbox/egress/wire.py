"""Moves bytes between a tool and a server, and counts them: a limit reached, or silence, ends the connection."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 64 * 1024


class Cut(Exception):
    """The connection is ended from here. Says why."""


@dataclass
class Allowance:
    """What all connections of a call may move together, in and out."""

    bytes_max: int
    moved: int = 0

    @property
    def spent(self) -> bool:
        return self.moved > self.bytes_max

    def take(self, count: int) -> None:
        """Raises Cut."""
        self.moved += count
        if self.spent:
            raise Cut(f"the call moved more than {self.bytes_max} bytes over the network (limits.network)")


@dataclass
class Meter:
    """Of one connection."""

    allowance: Allowance
    idle_s: float
    silence: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around the whole connection; put off by every byte."""
    sent_bytes: int = 0
    """To the server, bodies and tunnels' content; not the heads that the proxy writes itself."""
    received_bytes: int = 0
    answered: bool = False
    """The tool has had the beginning of an answer, so it gets no other."""

    def sent(self, count: int) -> None:
        self.sent_bytes += count
        self._moved(count)

    def received(self, count: int) -> None:
        self.received_bytes += count
        self._moved(count)

    def alive(self) -> None:
        self.silence.reschedule(asyncio.get_running_loop().time() + self.idle_s)

    def _moved(self, count: int) -> None:
        self.alive()
        self.allowance.take(count)


@dataclass(frozen=True)
class Ends:
    """Of one side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def tunnel(tool: Ends, server: Ends, meter: Meter) -> None:
    """Everything, in both directions, until both have ended. Raises Cut, OSError, TimeoutError."""

    async def outward() -> None:
        while data := await tool.reader.read(CHUNK_BYTES):
            meter.sent(len(data))
            server.writer.write(data)
            await server.writer.drain()
        _end_of(server.writer)

    async def inward() -> None:
        while data := await server.reader.read(CHUNK_BYTES):
            meter.received(len(data))
            tool.writer.write(data)
            await tool.writer.drain()
        _end_of(tool.writer)

    await together(outward(), inward())


async def together(*ways: Coroutine[Any, Any, None]) -> None:
    """All of them; the first error ends the others."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _end_of(writer: asyncio.StreamWriter) -> None:
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
