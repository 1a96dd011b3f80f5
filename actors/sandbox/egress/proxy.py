"""The proxy of one sandbox: accepts on a socket that lives in the sandbox, and connects from here to what is granted.

Whoever can reach the socket is in the sandbox, so there is no token: identity is the descriptor. For each connection a
request is read (`request`), judged (`decision`), its host resolved once, the addresses judged (`addresses`), and one of
them connected to; a name is never handed to anything that would resolve it again. An address, not a name, is what is
connected to, so a name that leads elsewhere a moment later changes nothing.

Two ways: `CONNECT host:port`, a tunnel, in which TLS is the tool's own, and what it asks there (of another virtual host
at the same place, too) is not looked at; and `GET http://host:port/path`, where the proxy writes the request anew, and
puts in the secrets that go to this host. A host that gets a secret is spoken to over TLS by the proxy itself, though
the tool says http to the proxy: `http://api.example.org:443/`. So is any host on port 443, or with https:// in the
request. An answer is looked through for the secrets that were put into its request (`masking`). A redirect is the
tool's to follow: it comes back as a request of its own.

Everything ends with `close`. It may serve a sandbox that lives for a moment or for days.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from understudy.actors.sandbox.egress.addresses import is_listed, usable
from understudy.actors.sandbox.egress.answer import BadAnswer
from understudy.actors.sandbox.egress.decision import Denied, decide, patterns
from understudy.actors.sandbox.egress.exchange import exchange, onward_head
from understudy.actors.sandbox.egress.injection import Injection, for_target, with_injections
from understudy.actors.sandbox.egress.log import Connection, ConnectionLog, ignore
from understudy.actors.sandbox.egress.masking import Mask, asked_plainly
from understudy.actors.sandbox.egress.request import END, HEAD_BYTES_MAX, BadRequest, Head, read_head
from understudy.actors.sandbox.egress.resolve import Resolve, is_own, resolve
from understudy.actors.sandbox.egress.told import BROKEN, HEADER, REFUSED, UNREACHABLE
from understudy.actors.sandbox.egress.wire import CHUNK_BYTES, Allowance, Cut, Ends, Meter, tunnel
from understudy.policies.hosts import Address, Target
from understudy.policies.profile import Limits

if TYPE_CHECKING:
    import ssl

IDLE_S: Final = 60.0
"""Silence after which a connection is ended."""
CONNECT_S: Final = 10.0
"""Seconds for a name to resolve, and again for an address to answer."""
LINGER_S: Final = 5.0
"""Seconds that a tool has to read the end of an answer."""
LINGER_READS_MAX: Final = 64
RESOLVING_MAX: Final = 4
"""Names of one call that are asked for at once: each takes a thread that other calls wait for."""
ADDRESSES_MAX: Final = 32
"""Addresses of a name that are looked at."""
ATTEMPTS_MAX: Final = 3
"""Addresses of a name that are tried."""
PHRASE_MAX: Final = 800
"""Characters of a reason phrase."""


class Refused(Exception):
    """No connection is made. Says why."""


class Proxy:
    """Of one sandbox. `open` it on a listening socket; `close` has to be awaited then.

    Args:
        network: what may be reached, as `HostPattern` spells it.
        limits: of which `network_bytes` and `connections` count here.
        key, run_id: whose connections these are.
        injections: headers that requests to some hosts get.
        seen: told of each connection when it is over.
        resolve: asks where a name leads.
        tls: how certificates of servers are judged; by default, as this machine's OpenSSL does (SSL_CERT_FILE).
    """

    def __init__(
        self,
        network: Sequence[str],
        limits: Limits | None = None,
        *,
        key: str = "",
        run_id: str = "",
        injections: Sequence[Injection] = (),
        seen: Callable[[Connection], None] = ignore,
        resolve: Resolve = resolve,
        tls: "ssl.SSLContext | None" = None,
        idle_s: float = IDLE_S,
    ) -> None:
        limits = limits or Limits()
        self.log = ConnectionLog(seen)
        self._granted = patterns(network)
        self._injections = tuple(injections)
        self._whose = (key, run_id)
        self._resolve = resolve
        self._tls = tls
        self._idle_s = idle_s
        self._allowance = Allowance(limits.network_bytes)
        self._most = limits.connections
        self._resolving = asyncio.Semaphore(RESOLVING_MAX)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        """Connections that are not on record yet; others only linger."""

    async def open(self, listener: socket.socket) -> None:
        """Accept from now on. The socket belongs to the proxy, also if this raises."""
        try:
            listener.setblocking(False)
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=HEAD_BYTES_MAX)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """End every connection, and return when all of them are on record."""
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        attempt = Attempt(time.time(), time.perf_counter(), Meter(self._allowance, self._idle_s))
        attempt.crowded = len(self._tasks) >= 2 * self._most + 16
        work = asyncio.ensure_future(self._keep(attempt, Ends(reader, writer)))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def _keep(self, attempt: "Attempt", tool: Ends) -> None:
        """Serve one connection, and put it on record, however it ends."""
        try:
            async with attempt.meter.silence:
                attempt.meter.alive()
                await self._serve(attempt, tool)
        except TimeoutError:
            attempt.ended(f"it was silent for {self._idle_s:g} s")
            attempt.cut = True
        except asyncio.CancelledError:
            attempt.ended("the call ended")
            attempt.cut = True
        except (OSError, EOFError) as error:
            attempt.ended(f"it broke: {error or type(error).__name__}")
            attempt.cut = True
        finally:
            self.log.add(attempt.over(*self._whose))
            self._open -= 1
            await _let_go(tool, attempt.cut)

    async def _serve(self, attempt: "Attempt", tool: Ends) -> None:
        try:
            full = f"the call has {self._most} connections open (limits.connections)"
            if attempt.crowded:  # not even read: each costs this process a descriptor
                raise Cut(full)
            head = await _head(tool.reader)
            attempt.wants(head)
            if self._open > self._most:
                raise Refused(full)
            await self._let_through(attempt, head, tool)
        except (BadRequest, Refused, _Unreachable, BadAnswer) as error:
            attempt.ended(str(error))
            attempt.cut = attempt.meter.answered
            if not attempt.cut:
                status = error.status if isinstance(error, BadRequest) else 403 if isinstance(error, Refused) else 502
                await _answer(tool.writer, status, _WHAT.get(type(error), REFUSED), str(error))
        except Cut as error:
            attempt.ended(str(error))
            attempt.cut = True

    async def _let_through(self, attempt: "Attempt", head: Head, tool: Ends) -> None:
        target = head.target
        decision = decide(target, self._granted)
        if isinstance(decision, Denied):
            raise Refused(decision.reason)
        injections = [] if head.tunnel else for_target(self._injections, target)
        if injections and head.method == "TRACE":
            raise Refused("TRACE is answered with what was asked, and this host is asked with a secret")
        addresses = await self._addresses(target)
        attempt.allowed(decision.by, [each.secret for each in injections])
        tls = not head.tunnel and (
            any(each.tls for each in injections)
            or (not injections and (target.scheme == "https" or target.port == 443))
        )
        server = await self._connect(attempt, target, addresses, tls)
        attempt.meter.alive()
        try:
            if head.tunnel:
                tool.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                attempt.meter.answered = True
                await tunnel(tool, server, attempt.meter)
            else:
                fields = with_injections(head.fields, injections)
                mask = Mask.over(injections) if injections else None
                fields = asked_plainly(fields) if mask else fields
                await exchange(head, onward_head(head, fields, tls), tool, server, attempt.meter, mask)
                if mask and mask.found:
                    attempt.ended("its answer held the secret, which was blotted out")
        finally:
            server.writer.transport.abort() if attempt.meter.allowance.spent else server.writer.close()

    async def _addresses(self, target: Target) -> list[Address]:
        """Those that may be connected to. Raises Refused, _Unreachable."""
        resolved: Sequence[Address]
        if target.address is not None:
            resolved = [target.address]
        else:
            try:
                async with asyncio.timeout(CONNECT_S), self._resolving:
                    resolved = (await self._resolve(target.host))[:ADDRESSES_MAX]
            except (OSError, UnicodeError, TimeoutError) as error:
                raise _Unreachable(f"{target.host} does not resolve: {error or 'no answer in time'}") from None
        fine, why = usable(target, resolved, self._granted)
        if not fine:
            raise Refused(why)
        foreign = [each for each in fine if is_listed(target, each, self._granted) or not is_own(each)]
        if not foreign:
            raise Refused(f"{target.host} leads to {fine[0]}, this machine itself; a grant has to list the address")
        return foreign

    async def _connect(self, attempt: "Attempt", target: Target, addresses: Sequence[Address], tls: bool) -> Ends:
        """To the first address that answers. Raises _Unreachable."""
        context = self._context() if tls else None
        name = target.host if tls else None
        said = ""
        for address in addresses[:ATTEMPTS_MAX]:
            attempt.address = str(address)
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(CONNECT_S):
                        reader, writer = await asyncio.open_connection(
                            str(address), target.port, ssl=context, server_hostname=name, limit=2 * HEAD_BYTES_MAX
                        )
                        return Ends(reader, writer)
                except OSError as error:  # also of TLS: a certificate that is not good for the name
                    said = f": {getattr(error, 'verify_message', '') or error.strerror or error}"
        raise _Unreachable(f"{target.host}:{target.port} at {attempt.address} cannot be reached{said}")

    def _context(self) -> "ssl.SSLContext":
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls


class _Unreachable(Exception):
    """It was allowed, and did not come about. Says why."""


@dataclass
class Attempt:
    """A connection while it is not over."""

    at: float
    began: float
    meter: Meter
    method: str = ""
    host: str = ""
    port: int = 0
    address: str = ""
    by: str = ""
    """The entry of the grant that lets it through; empty while nothing does."""
    end: str = ""
    secrets: tuple[str, ...] = ()
    crowded: bool = False
    """There were too many others when it came."""
    cut: bool = False

    def wants(self, head: Head) -> None:
        self.method, self.host, self.port = head.method, head.target.host, head.target.port or 0

    def allowed(self, by: str, secrets: Sequence[str]) -> None:
        self.by, self.secrets = by, tuple(secrets)

    def ended(self, why: str) -> None:
        self.end = self.end or why

    def over(self, key: str, run_id: str) -> Connection:
        meter = self.meter
        return Connection(
            key=key,
            run_id=run_id,
            at=self.at,
            method=self.method,
            host=self.host,
            port=self.port,
            address=self.address,
            decision="allow" if self.by else "deny",
            reason="; ".join(part for part in (self.by, self.end) if part),
            sent_bytes=meter.sent_bytes,
            received_bytes=meter.received_bytes,
            duration_s=time.perf_counter() - self.began,
            secrets=self.secrets,
        )


async def _head(reader: asyncio.StreamReader) -> Head:
    """Raises BadRequest; EOFError where the tool sends none."""
    try:
        data = await reader.readuntil(END)
    except asyncio.LimitOverrunError:
        raise BadRequest(f"its head has more than {HEAD_BYTES_MAX} bytes", 431) from None
    except asyncio.IncompleteReadError:
        raise EOFError("no request came") from None
    return read_head(data)


async def _let_go(tool: Ends, cut: bool) -> None:
    """Close it once all is sent and read; at once, if it was cut: then the tool sees that it has not had all.

    What a tool still sends is thrown away, not left unread: the kernel would reset the connection, and with it what the
    tool has not read yet of its answer.
    """
    transport = tool.writer.transport
    try:
        async with asyncio.timeout(LINGER_S):
            if not cut and not transport.is_closing():
                await tool.writer.drain()
                tool.writer.write_eof()
                for _ in range(LINGER_READS_MAX):
                    if not await tool.reader.read(CHUNK_BYTES):
                        break
    except OSError:  # also TimeoutError
        pass
    finally:
        transport.abort()


_WHAT: Final = {_Unreachable: UNREACHABLE, BadAnswer: BROKEN}


async def _answer(writer: asyncio.StreamWriter, status: int, what: str, words: str) -> None:
    """In the place of the reason phrase, too: most clients show no more of it (`HTTP Error 403: Forbidden`)."""
    line = f"understudy's proxy: {words}".encode("ascii", "backslashreplace").decode()
    phrase = "".join(char if char.isprintable() else " " for char in line[:PHRASE_MAX])
    body = f"{line}\n".encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        f"{HEADER}: {what}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
