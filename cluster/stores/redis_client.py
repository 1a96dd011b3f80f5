"""One connection to Redis that many coroutines share: requests go out as they come, answers come back in that order.

Why not redis.asyncio: its pool, retries and parser cost as much as the command itself (see tests/bench), and its
retries are blind. This client sends again after a lost connection, for about ten seconds, because every request of the
store is made so that it applies once (law 2). Faults are told apart (law 11): what time heals is tried again, what an
operator must heal is `StoreUnavailable` with the remedy, a wrong password is the caller's, the rest is a bug.
"""

import asyncio
import hashlib
import socket
import ssl
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from understudy.actors.errors import CallerError, StoreUnavailable

Arg = str | bytes | int

GIVE_UP_S = 10.0
"""How long a request is tried again before the store counts as unavailable."""
CONNECT_S = 3.0
SILENCE_S = 5.0
"""A connection that owes an answer for so long is given up; the request is sent again on a new one."""
BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)

_HEALS = ("LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "ERR max number of clients")
"""Errors that pass by themselves: a start, a failover, a slow script of someone else."""
_REMEDIES = {
    "OOM": "its memory is full: raise `maxmemory`, or let `understudy` sweep sooner (shorter retention)",
    "MISCONF": "it cannot write its append-only file: look at its log and at the disk's free space",
    "NOREPLICAS": "too few replicas are in sync for `min-replicas-to-write`: bring them back",
}
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH")


@dataclass(frozen=True)
class Address:
    """Where Redis is, read from a URL: redis://, rediss:// (TLS) or unix://."""

    host: str
    port: int
    path: str
    db: int
    username: str
    password: str
    tls: ssl.SSLContext | None

    @classmethod
    def of_url(cls, url: str) -> "Address":
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
            raise CallerError(f"store URL {_without_secrets(url)!r}: expected redis://, rediss:// (TLS) or unix://")
        is_unix = parts.scheme == "unix"
        database = query.get("db", "") if is_unix else parts.path.strip("/") or query.get("db", "")
        if not (database or "0").isdigit():
            raise CallerError(f"store URL {_without_secrets(url)!r}: {database!r} is no database number, e.g. /0")
        try:
            port = parts.port or 6379
        except ValueError as error:
            raise CallerError(f"store URL {_without_secrets(url)!r}: {error}") from None
        return cls(
            host="" if is_unix else parts.hostname or "localhost",
            port=port,
            path=parts.path if is_unix else "",
            db=int(database or 0),
            username=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
            tls=_tls(query) if parts.scheme in ("rediss", "valkeys") else None,
        )

    @property
    def where(self) -> str:
        """The URL without credentials."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}/{self.db}"


def _tls(query: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


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

    def request(self, payload: bytes, answers: int, text: bool = True) -> asyncio.Future[list[Any]]:
        """Send commands; the future brings their answers, errors among them as values."""
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        if self.closed:
            future.set_exception(ConnectionResetError("connection is closed"))
            return future
        self._owed.append((future, answers, [], text, self.loop.time()))
        if self._watch is None:
            self._watch = self.loop.call_later(1.0, self._look)
        self._transport.write(payload)
        return future

    def close(self) -> None:
        self._lost(ConnectionResetError("connection was closed"))
        if not self.loop.is_closed():
            self._transport.abort()

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            answer = self._reader.gets(not self._owed or self._owed[0][3])
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


class RedisClient:
    """Asks, and asks again. Shared by all coroutines of one event loop; opened on another one, it starts afresh."""

    def __init__(self, address: Address, scripts: Sequence[Script]) -> None:
        self.address = address
        self._scripts = scripts
        self._link: Link | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, *commands: bytes, text: bool = True) -> list[Any]:
        """The answers to these commands, sent in one go. What must not be retried is raised, see above."""
        link = self._link
        if link is not None and not link.closed and link.loop is asyncio.get_running_loop():
            try:
                answers = await link.request(
                    b"".join(commands) if len(commands) > 1 else commands[0], len(commands), text
                )
            except OSError:  # every ConnectionError and TimeoutError is one
                answers = []
            if answers and not any(isinstance(answer, hiredis.ReplyError) for answer in answers):
                return answers
        else:
            answers = []
        return await self._ask_again(commands, answers, text)

    async def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def subscribe(self, channel: str, on_message: Callable[[], None]) -> Link:
        """A connection of its own, on which `on_message` is called for each message, and once when it is lost."""
        return await self._connect(on_message, pack("SUBSCRIBE", channel))

    # --- inside ---

    async def _ask_again(self, commands: Sequence[bytes], answers: list[Any], text: bool) -> list[Any]:
        """The long way: connect, load scripts, wait and repeat what has no good answer yet."""
        loop = asyncio.get_running_loop()
        give_up_at, attempt, trouble = loop.time() + GIVE_UP_S, 0, ""
        settled: dict[int, Any] = {}
        while True:
            for index, answer in zip(self._open(commands, settled), answers, strict=False):
                if not isinstance(answer, hiredis.ReplyError):
                    settled[index] = answer
                    continue
                trouble = str(answer)
                if trouble.startswith("NOSCRIPT"):
                    attempt = 0
                elif trouble.startswith(_HEALS):
                    if trouble.startswith(("READONLY", "MASTERDOWN")):  # the name may lead to another server by now
                        await self.close()
                else:
                    raise self._fault(trouble)
            if len(settled) == len(commands):
                return [settled[index] for index in range(len(commands))]
            if loop.time() > give_up_at:
                raise StoreUnavailable(
                    f"Redis at {self.address.where} gave no good answer for {GIVE_UP_S:g} s (last: {trouble}); "
                    f"is it running and reachable?"
                )
            if attempt:
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S)) - 1])
            attempt += 1
            answers = []
            try:
                link = await self._connected()
                if trouble.startswith("NOSCRIPT"):
                    await self._ok(link, *(pack("SCRIPT", "LOAD", script.source) for script in self._scripts))
                again = [commands[index] for index in self._open(commands, settled)]
                answers = await link.request(b"".join(again), len(again), text)
            except OSError as error:
                trouble = str(error) or type(error).__name__

    @staticmethod
    def _open(commands: Sequence[bytes], settled: Mapping[int, Any]) -> list[int]:
        return [index for index in range(len(commands)) if index not in settled]

    async def _connected(self) -> Link:
        loop = asyncio.get_running_loop()
        if self._link is not None and self._link.loop is not loop:
            self._link, self._connecting = None, asyncio.Lock()
        async with self._connecting:
            if self._link is None or self._link.closed:
                self._link = await self._connect()
            return self._link

    async def _connect(self, on_message: Callable[[], None] | None = None, *first: bytes) -> Link:
        loop = asyncio.get_running_loop()
        at = self.address
        async with asyncio.timeout(CONNECT_S):
            if at.path:
                _, link = await loop.create_unix_connection(lambda: Link(loop, on_message), at.path)
            else:
                try:
                    _, link = await loop.create_connection(lambda: Link(loop, on_message), at.host, at.port, ssl=at.tls)
                except ssl.SSLCertVerificationError as error:
                    raise CallerError(
                        f"Redis at {at.where} has a certificate that is not trusted here ({error.verify_message}); "
                        f"name its authority in the URL, ?ssl_ca_certs=/path/to/ca.pem"
                    ) from None
            greeting = [pack("CLIENT", "SETNAME", "understudy")]
            if at.password:
                greeting.insert(0, pack("AUTH", *filter(None, (at.username, at.password))))
            if at.db:
                greeting.append(pack("SELECT", at.db))
            try:
                await self._ok(link, *greeting, *first)
            except BaseException:
                link.close()
                raise
        return link

    async def _ok(self, link: Link, *commands: bytes) -> None:
        for answer in await link.request(b"".join(commands), len(commands)):
            if isinstance(answer, hiredis.ReplyError):
                if str(answer).startswith(_HEALS):
                    raise ConnectionError(str(answer))
                raise self._fault(str(answer))

    def _fault(self, answer: str) -> Exception:
        """Whose fault an error is that will not pass by itself."""
        code = answer.partition(" ")[0]
        if code in _REMEDIES:
            return StoreUnavailable(f"Redis at {self.address.where} refuses to write, {_REMEDIES[code]} ({answer})")
        if answer.startswith(_DENIED) or "can't access at least one of the keys" in answer:
            user = self.address.username or "default"
            return CallerError(
                f"Redis at {self.address.where} denies access to user {user!r}: {answer}; "
                f"put the right user and password into the URL, redis://user:password@host:port/0"
            )
        if code in ("MOVED", "ASK", "CROSSSLOT"):
            return CallerError(
                f"Redis at {self.address.where} is a node of a cluster that does not hold all slots ({answer}); "
                f"give the URL of a single primary or of a proxy"
            )
        return AssertionError(f"Redis refused a command of the store: {answer}")
