"""One connection to Redis that many coroutines share: requests go out as they come, answers come back in that order.

Why not redis.asyncio: its pool, retries and parser cost as much as the command itself (see tests/bench), and its
retries are blind.
"""

import asyncio
import hashlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import hiredis

from understudy.actors.errors import CallerError

Arg = str | bytes | int

SILENCE_S = 5.0
"""A connection that owes an answer for so long is given up; the request is sent again on a new one."""


@dataclass(frozen=True)
class Script:
    """A Lua script and the name that Redis knows it by."""

    name: str
    source: str
    sha: str

    @classmethod
    def of(cls, name: str, source: str) -> "Script":
        return cls(name, source, hashlib.sha1(source.encode()).hexdigest())

    def call(self, keys: Sequence[str], args: Sequence[Arg]) -> bytes:
        """The request that runs it. Every key that it touches has to be among `keys`."""
        return pack("EVALSHA", self.sha, len(keys), *keys, *args)

    def opening(self, keys: Sequence[str], args: Sequence[Arg]) -> "Opening":
        """The beginning of requests that run it on these keys, with these as their first arguments."""
        return Opening(*_counted("EVALSHA", self.sha, len(keys), *keys, *args))


@dataclass(frozen=True)
class Opening:
    """The words that many requests begin with, packed once: names of a dozen keys are half of what a commit says."""

    count: int
    words: bytes

    def then(self, args: Sequence[Arg]) -> bytes:
        """The whole request."""
        count, words = _counted(*args)
        return b"*%d\r\n%b%b" % (self.count + count, self.words, words)


def _counted(*words: Arg) -> tuple[int, bytes]:
    return len(words), pack(*words).partition(b"\r\n")[2]


def pack(*command: Arg) -> bytes:
    """A command as Redis reads it."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


_INCOMPLETE = object()


class Link(asyncio.Protocol):
    """One open connection. Redis answers in the order of asking, so a queue of futures is all the bookkeeping."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_message: Callable[[], None] | None = None) -> None:
        self.loop = loop
        self.closed = False
        self._on_message = on_message
        self._reader = hiredis.Reader(encoding="utf-8", notEnoughData=_INCOMPLETE)
        self._owed: deque[tuple[asyncio.Future[list[Any]], int, list[Any], bool, float]] = deque()
        self._transport: asyncio.Transport
        self._watch: asyncio.TimerHandle | None = None
        self._gathered: list[bytes] | None = None
        """What hundreds of runs ask in one turn of the loop goes out in one piece, and Redis syncs its file once for
        it. One that comes while nothing is owed does not wait for them: where there is only one, that is its time."""

    def request(self, payload: bytes, answers: int, text: bool = True) -> asyncio.Future[list[Any]]:
        """Send commands; the future brings their answers, errors among them as values."""
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        if self.closed:
            future.set_exception(ConnectionResetError("connection is closed"))
            return future
        is_first = not self._owed
        self._owed.append((future, answers, [], text, self.loop.time()))
        if self._watch is None:
            self._watch = self.loop.call_later(1.0, self._look)
        if is_first:
            self._transport.write(payload)
        elif self._gathered is None:
            self._gathered = [payload]
            self.loop.call_soon(self._send_gathered)
        else:
            self._gathered.append(payload)
        return future

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered and not self.closed:
            self._transport.write(b"".join(gathered))

    def close(self) -> None:
        self._lost(ConnectionResetError("connection was closed"))
        if not self.loop.is_closed():
            self._transport.abort()

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # by name, uvloop's (which Ray takes) is none
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            try:
                answer = self._reader.gets(not self._owed or self._owed[0][3])
            except hiredis.ProtocolError as error:
                self._lost(CallerError(f"what answers there is no Redis ({error}); choose another --store"))
                self._transport.abort()
                return
            if answer is _INCOMPLETE:
                return
            if not self._owed:  # a message of a subscription
                if self._on_message:
                    self._on_message()
                continue
            future, expected, answers, _text, _since = self._owed[0]
            answers.append(answer)
            if len(answers) == expected:
                self._owed.popleft()
                if not future.done():
                    future.set_result(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or ConnectionResetError("Redis closed the connection"))

    # --- inside ---

    def _lost(self, error: Exception) -> None:
        self.closed = True
        if self._watch:
            self._watch.cancel()
        while self._owed:
            future = self._owed.popleft()[0]
            if not future.done():
                future.set_exception(error)
        if self._on_message:
            self._on_message()

    def _look(self) -> None:
        """Once a second while an answer is owed; a timer for each request would cost more than the request."""
        self._watch = None
        if not self._owed:
            return
        if self.loop.time() - self._owed[0][4] > SILENCE_S:
            self._lost(TimeoutError(f"no answer for {SILENCE_S:g} s"))
            self._transport.abort()
        else:
            self._watch = self.loop.call_later(1.0, self._look)
