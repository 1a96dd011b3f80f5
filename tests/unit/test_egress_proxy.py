"""The proxy of a sandbox, on real sockets: what is let through, what the server hears, and what is kept of it."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from support.upstream import OK, certificate, upstream
from support.waiting import run_async, wait_until_async
from understudy.actors.sandbox.egress.injection import Injection
from understudy.actors.sandbox.egress.log import KEPT_MAX, Connection
from understudy.actors.sandbox.egress.proxy import RESOLVING_MAX, Proxy
from understudy.policies.hosts import Address, read_host_pattern
from understudy.policies.profile import Limits


def leads(**names: Sequence[str]) -> Any:
    """A resolver that knows these names (`_` for a dot), and keeps what it was asked."""

    async def resolve(host: str) -> list[Address]:
        resolve.asked.append(host)  # type: ignore[attr-defined]
        found = names.get(host.replace(".", "_"))
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [ip_address(each) for each in found]

    resolve.asked = []  # type: ignore[attr-defined]
    return resolve


class Tool:
    """What speaks to the proxy."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def says(self, text: str | bytes) -> bytes:
        """All that is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text.encode("latin-1") if isinstance(text, str) else text)
        answer = await reader.read()
        writer.close()
        return answer

    async def gets(self, url: str, fields: str = "") -> bytes:
        return await self.says(f"GET {url} HTTP/1.1\r\n{fields}\r\n")


@contextlib.asynccontextmanager
async def proxied(*network: str, limits: Limits | None = None, **more: Any) -> AsyncIterator[tuple[Proxy, Tool]]:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(network, limits, key="k", run_id="r", **more)
    await proxy.open(listener)
    try:
        yield proxy, Tool(listener.getsockname()[1])
    finally:
        await proxy.close()


async def kept(proxy: Proxy, count: int = 1) -> list[Connection]:
    async def there() -> bool:
        return len(proxy.log.kept) >= count

    await wait_until_async(there, 10, f"{count} connections to be over")
    return proxy.log.kept


def test_a_granted_request_reaches_the_server_and_is_on_record() -> None:
    async def played() -> None:
        with upstream() as served:
            async with proxied(f"127.0.0.1:{served.port}") as (proxy, tool):
                url = f"http://127.0.0.1:{served.port}/a?b=c"
                answer = await tool.gets(url, "Accept: */*\r\nProxy-Authorization: x\r\nAuthorization: mine\r\n")
                assert answer == OK
                [connection] = await kept(proxy)
        [heard] = served.heard
        lines = heard.decode().split("\r\n")
        assert lines[:2] == ["GET /a?b=c HTTP/1.1", f"Host: 127.0.0.1:{served.port}"]
        assert sorted(lines[2:]) == ["", "", "Accept: */*", "Authorization: mine", "Connection: close"]
        assert (connection.key, connection.run_id, connection.method) == ("k", "r", "GET")
        assert (connection.host, connection.port, connection.address) == ("127.0.0.1", served.port, "127.0.0.1")
        assert (connection.decision, connection.reason) == ("allow", f"127.0.0.1:{served.port}")
        assert (connection.sent_bytes, connection.received_bytes) == (0, 5)

    run_async(played())


def test_what_is_not_granted_is_refused_with_the_reason() -> None:
    async def played() -> None:
        with upstream() as served:
            async with proxied(f"127.0.0.1:{served.port}", "a.example:80", resolve=leads()) as (proxy, tool):
                for url in ("http://127.0.0.1:1/", f"http://b.example:{served.port}/", "http://169.254.169.254/latest"):
                    answer = await tool.gets(url)
                    line, _, rest = answer.partition(b"\r\n")
                    assert line.startswith(b"HTTP/1.1 403 understudy's proxy: "), "most clients show this line alone"
                    assert all(b"is not granted; the grant lists" in part for part in (line, rest))
                assert (await tool.gets("http://a.example/", "Host: b.example\r\n")).startswith(b"HTTP/1.1 403 ")
                assert (await tool.says("CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
                assert (await tool.gets("/")).startswith(b"HTTP/1.1 400 ")
                connections = await kept(proxy, 6)
        assert {connection.decision for connection in connections} == {"deny"}
        assert served.heard == []

    run_async(played())


def test_a_name_that_leads_home_is_refused_and_resolved_once() -> None:
    async def played() -> None:
        with upstream() as served:
            resolve = leads(a_example=["127.0.0.1"], b_example=["10.0.0.1", "169.254.169.254"])
            port = served.port
            async with proxied(f"*:{port}", f"b.example:{port}", resolve=resolve) as (_, tool):
                for name in ("A.Example.", "b.example", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"):
                    answer = await tool.gets(f"http://{name}:{port}/")
                    assert answer.startswith(b"HTTP/1.1 403 "), name
                    assert b"a grant has to list the address itself" in answer
                assert resolve.asked == ["a.example", "b.example"], "the very name that was judged"
                assert b"does not resolve" in await tool.gets(f"http://c.example:{port}/")
        assert served.heard == []

    run_async(played())


def test_a_name_that_leads_elsewhere_a_moment_later_changes_nothing() -> None:
    """DNS rebinding: the first answer is judged and pinned; a second is judged anew."""

    async def played() -> None:
        with upstream() as served:
            answers = iter([["127.0.0.1"], ["10.9.9.9"], ["127.0.0.1"]])

            async def resolve(host: str) -> list[Address]:
                return [ip_address(each) for each in next(answers)]

            port = served.port
            async with proxied(f"a.example:{port}", f"127.0.0.1:{port}", resolve=resolve) as (proxy, tool):
                url = f"http://a.example:{port}/"
                got = [await tool.gets(url) for _ in range(3)]
                connections = await kept(proxy, 3)
        assert [answer[:12] for answer in got] == [b"HTTP/1.1 200", b"HTTP/1.1 403", b"HTTP/1.1 200"]
        assert [connection.address for connection in connections] == ["127.0.0.1", "", "127.0.0.1"]
        assert all(f"Host: a.example:{port}".encode() in heard for heard in served.heard)

    run_async(played())


def test_this_machines_other_addresses_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.actors.sandbox.egress import proxy as module

    monkeypatch.setattr(module, "is_own", lambda address: str(address) == "93.184.216.34")

    async def played() -> None:
        async with proxied("a.example:80", resolve=leads(a_example=["93.184.216.34"])) as (_, tool):
            assert b"leads to 93.184.216.34, this machine itself" in await tool.gets("http://a.example/")

    run_async(played())


def test_a_tunnel_carries_bytes_both_ways() -> None:
    async def played() -> None:
        with upstream(echo=True) as served:
            async with proxied(f"127.0.0.1:{served.port}") as (proxy, tool):
                reader, writer = await asyncio.open_connection("127.0.0.1", tool.port)
                writer.write(f"CONNECT 127.0.0.1:{served.port} HTTP/1.1\r\n\r\n".encode())
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                writer.write(b"GET / HTTP/1.1\r\nHost: any\r\n\r\n")
                assert b"Host: any" in await reader.read()
                writer.close()
                [connection] = await kept(proxy)
        assert connection.method == "CONNECT"
        assert connection.sent_bytes == len(b"GET / HTTP/1.1\r\nHost: any\r\n\r\n")
        assert connection.received_bytes > connection.sent_bytes

    run_async(played())


def test_a_server_sees_one_request_however_many_were_sent() -> None:
    async def played() -> None:
        with upstream() as served:
            async with proxied(f"127.0.0.1:{served.port}") as (_, tool):
                url = f"http://127.0.0.1:{served.port}/"
                second = f"GET {url}second HTTP/1.1\r\n\r\n"
                assert await tool.says(f"POST {url} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc{second}") == OK
                chunks = "3\r\nabc\r\n0\r\n\r\n"
                assert (
                    await tool.says(f"POST {url} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{second}") == OK
                )
                for smuggled in (
                    "Content-Length: 3\r\nTransfer-Encoding: chunked",
                    "Content-Length: 3\r\nContent-Length: 0",
                ):
                    answer = await tool.says(f"POST {url} HTTP/1.1\r\n{smuggled}\r\n\r\nabc{second}")
                    assert answer.startswith(b"HTTP/1.1 400 ")
                for body in ("3;x\r\nabc\r\n0", "3\r\nabcde0", "3\r\nabc\r\n0\r\nHost: other"):
                    broken = await tool.says(f"POST {url} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}\r\n\r\n")
                    assert broken.startswith(b"HTTP/1.1 400 "), body
        whole = [heard for heard in served.heard if heard.endswith((b"abc", b"0\r\n\r\n"))]
        assert len(whole) == 2
        assert not any(b"second" in heard for heard in served.heard)

    run_async(played())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", b"ended before it had answered"),
        (b"HTTP/1.1 200 OK\r\nA", b"its answer is cut"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", b"does not speak HTTP/1.1"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", b"switches protocols"),
        (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", b"no header field"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, b"that it goes on"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n", b"too long"),
    ],
)
def test_an_answer_that_is_none_is_told(answer: bytes, why: bytes) -> None:
    async def played() -> None:
        with upstream(answer) as served:
            async with proxied(f"127.0.0.1:{served.port}") as (_, tool):
                got = await tool.gets(f"http://127.0.0.1:{served.port}/")
                assert got.startswith(b"HTTP/1.1 502 ")
                assert why in got

    run_async(played())


def test_what_is_between_server_and_proxy_goes_no_further() -> None:
    between = b"Keep-Alive: 5\r\nConnection: keep-alive\r\n"
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\n" + between + b"Location: /b\r\n\r\n"

    async def played() -> None:
        with upstream(answer) as served:
            async with proxied(f"127.0.0.1:{served.port}") as (_, tool):
                got = await tool.gets(f"http://127.0.0.1:{served.port}/")
                assert got == b"HTTP/1.1 302 Found\r\nLocation: /b\r\nConnection: close\r\n\r\n"

    run_async(played())


def test_limits_end_connections_and_are_told() -> None:
    async def played() -> None:
        large = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000
        with upstream(large) as served:
            limits = Limits(network_bytes=100_000, connections=1)
            async with proxied(f"127.0.0.1:{served.port}", limits=limits) as (proxy, tool):
                with contextlib.suppress(ConnectionError):
                    assert len(await tool.gets(f"http://127.0.0.1:{served.port}/")) < 300_000
                connections = await kept(proxy, 1)
                assert "moved more than 100000 bytes" in connections[0].reason
                holding = await asyncio.open_connection("127.0.0.1", tool.port)
                answer = await tool.gets(f"http://127.0.0.1:{served.port}/")
                assert b"the call has 1 connections open (limits.connections)" in answer
                holding[1].close()
                body = "x" * 200_000
                denied = await tool.says(f"POST http://b.example/ HTTP/1.1\r\nContent-Length: 200000\r\n\r\n{body}")
                assert b"b.example:80 is not granted" in denied, "though nobody has read what it sent"

    run_async(played())


def test_silence_ends_a_connection() -> None:
    async def played() -> None:
        async with proxied("a.example:80", idle_s=0.05) as (proxy, tool):
            with contextlib.suppress(ConnectionError):
                await tool.says("GET http://a.exam")
            [connection] = await kept(proxy)
            assert connection.reason == "it was silent for 0.05 s"

    run_async(played())


def test_everything_ends_with_the_call_and_is_on_record() -> None:
    async def played() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            async with proxied(f"127.0.0.1:{port}") as (proxy, tool):
                asking = asyncio.ensure_future(tool.gets(f"http://127.0.0.1:{port}/"))
                loop = asyncio.get_running_loop()
                silent.setblocking(False)
                client, _ = await loop.sock_accept(silent)
                assert (await loop.sock_recv(client, 65536)).startswith(b"GET / HTTP/1.1")
                await proxy.close()
                with contextlib.suppress(ConnectionError):
                    assert await asking == b""
                with contextlib.suppress(ConnectionError):
                    assert await loop.sock_recv(client, 1) == b""
                client.close()
                [connection] = proxy.log.kept
                assert connection.reason == f"127.0.0.1:{port}; the call ended"
                with pytest.raises(ConnectionError):
                    await tool.gets(f"http://127.0.0.1:{port}/")

    run_async(played())


def test_what_is_kept_is_bounded_and_the_rest_is_counted() -> None:
    async def played() -> None:
        seen: list[Connection] = []
        async with proxied("a.example:80", seen=seen.append) as (proxy, tool):
            for _ in range(KEPT_MAX + 3):
                await tool.gets("http://b.example/")
            await kept(proxy, KEPT_MAX)
        assert len(proxy.log.kept) == KEPT_MAX
        assert (proxy.log.more, proxy.log.more_denied) == (3, 3)
        assert len(seen) == KEPT_MAX + 3

    run_async(played())


def injection(place: str, *, tls: bool, header: str = "Authorization") -> Injection:
    return Injection("api", read_host_pattern(place), header, "Bearer s3cret", tls)


def test_a_secret_is_put_into_requests_for_its_host_only() -> None:
    async def played() -> None:
        with upstream() as served, upstream() as other:
            mine = injection(f"127.0.0.1:{served.port}", tls=False)
            network = (f"127.0.0.1:{served.port}", f"127.0.0.1:{other.port}")
            async with proxied(*network, injections=[mine]) as (proxy, tool):
                await tool.gets(f"http://127.0.0.1:{served.port}/", "authorization: Bearer forged\r\n")
                await tool.gets(f"http://127.0.0.1:{other.port}/", "Authorization: own\r\n")
                connections = await kept(proxy, 2)
        assert served.heard[0].lower().count(b"authorization") == 1
        assert b"Authorization: Bearer s3cret\r\n" in served.heard[0]
        assert b"Authorization: own\r\n" in other.heard[0]
        assert [connection.secrets for connection in connections] == [("api",), ()]
        assert "s3cret" not in repr((mine, connections))

    run_async(played())


def test_a_tool_cannot_put_its_own_beside_a_secret() -> None:
    """It would choose whose account the request is made in."""

    async def played() -> None:
        with upstream() as served:
            mine = injection(f"127.0.0.1:{served.port}", tls=False, header="X-Api-Key")
            async with proxied(f"127.0.0.1:{served.port}", injections=[mine]) as (_, tool):
                own = "x-api-key: a\r\nX_Api_Key: b\r\nX-api_KEY: c\r\nAUTHORIZATION: d\r\nX-Other_Key: e\r\n"
                await tool.gets(f"http://127.0.0.1:{served.port}/", own)
        named = [
            line for line in served.heard[0].decode().split("\r\n") if "key" in line.lower() or "auth" in line.lower()
        ]
        assert named == ["X-Other_Key: e", "X-Api-Key: Bearer s3cret"]

    run_async(played())


def test_a_host_with_a_secret_is_spoken_to_over_tls_that_is_verified(tmp_path: Path) -> None:
    cert, server = certificate(tmp_path, "api.example")
    trusting = ssl.create_default_context(cafile=str(cert))

    async def played() -> None:
        with upstream(tls=server) as served:
            port = served.port
            network = (f"api.example:{port}", f"other.example:{port}", f"127.0.0.1:{port}")
            resolve = leads(api_example=["127.0.0.1"], other_example=["127.0.0.1"])
            secrets = [injection(f"api.example:{port}", tls=True), injection(f"other.example:{port}", tls=True)]
            async with proxied(*network, injections=secrets, resolve=resolve, tls=trusting) as (_, tool):
                assert await tool.gets(f"http://api.example:{port}/") == OK
                assert b"Authorization: Bearer s3cret" in served.heard[0]
                assert await tool.gets(f"https://api.example:{port}/") == OK
                wrong = await tool.gets(f"http://other.example:{port}/")
                assert wrong.startswith(b"HTTP/1.1 502 ")
                assert b"Hostname mismatch" in wrong
            async with proxied(*network, injections=secrets, resolve=resolve) as (_, tool):
                assert b"self-signed" in await tool.gets(f"http://api.example:{port}/"), "a CA that is not trusted"
        assert len(served.heard) == 2

    run_async(played())


def test_a_secret_that_wants_tls_never_goes_out_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.actors.sandbox.egress import proxy as module

    monkeypatch.setattr(module, "CONNECT_S", 0.5)  # the server waits for a request, and not for a handshake

    async def played() -> None:
        with upstream() as plain:
            mine = injection(f"127.0.0.1:{plain.port}", tls=True)
            async with proxied(f"127.0.0.1:{plain.port}", injections=[mine]) as (_, tool):
                assert (await tool.gets(f"http://127.0.0.1:{plain.port}/")).startswith(b"HTTP/1.1 502 ")
        assert not any(b"s3cret" in heard for heard in plain.heard)

    run_async(played())


def test_a_flood_of_connections_hurts_nobody_else_and_each_is_on_record() -> None:
    async def played() -> None:
        with upstream() as served:
            place, url = f"127.0.0.1:{served.port}", f"http://127.0.0.1:{served.port}/"
            async with proxied(place, limits=Limits(connections=4)) as (proxy, tool), proxied(place) as (_, other):
                flood = [socket.socket() for _ in range(500)]
                for each in flood:
                    each.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(each, ("127.0.0.1", tool.port))

                async def refused() -> bool:
                    return len(proxy.log.kept) + proxy.log.more == 500 - 2 * 4 - 16

                await wait_until_async(refused, 20, "all but those that are kept waiting to be ended")
                assert await other.gets(url) == OK
                for each in flood:
                    each.close()
                await kept(proxy)

                async def over() -> bool:
                    return not proxy._tasks

                await wait_until_async(over, 20, "all of them to be over")
                assert await tool.gets(url) == OK
            assert len(proxy.log.kept) + proxy.log.more == 501

    run_async(played())


def test_slow_names_take_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a name decides how long an answer takes; a hundred connections ask for it."""
    go, at_once, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def slow(host: str, *_: Any, **__: Any) -> Any:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        go.wait(20)
        with lock:
            at_once[0] -= 1
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def played() -> None:
        async with proxied("*.example:80", limits=Limits(connections=100)) as (proxy, tool):
            asking = [asyncio.ensure_future(tool.gets(f"http://n{number}.example/")) for number in range(60)]

            async def begun() -> bool:
                return at_once[0] == RESOLVING_MAX

            await wait_until_async(begun, 10, "some names to be asked for")
            assert await asyncio.to_thread(lambda: "free") == "free"
            go.set()
            answers = await asyncio.gather(*asking)
            assert all(b"does not resolve" in answer for answer in answers)
            await kept(proxy, KEPT_MAX)
        assert most[0] <= RESOLVING_MAX
        assert len(proxy.log.kept) + proxy.log.more == 60

    run_async(played())
