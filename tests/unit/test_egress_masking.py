"""A tool never reads a secret that the proxy has put into its request, though the server answers with it."""

import base64
import gzip
import itertools
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.test_egress_proxy import kept, proxied

from support.upstream import upstream
from support.waiting import run_async
from understudy.actors.sandbox.egress.injection import Injection
from understudy.actors.sandbox.egress.masking import Mask
from understudy.actors.secret_file import SecretFile
from understudy.actors.secret_traces import forms
from understudy.policies.hosts import read_host_pattern

SECRET = 'sk-Pl4nted"/+é=='
SENT = "sk-Pl4nted/+=="


def injection(port: int) -> Injection:
    return Injection("api", read_host_pattern(f"127.0.0.1:{port}"), "Authorization", f"Bearer {SENT}", False, (SENT,))


FORMS = sorted({form.encode() for form in forms(SECRET)})
BODIES = st.lists(
    st.binary(max_size=20) | st.sampled_from(FORMS) | st.sampled_from(FORMS).map(lambda f: f[:5]), max_size=8
)


@given(BODIES, st.lists(st.integers(0, 200), max_size=10))
def test_no_form_of_it_comes_through_however_it_is_cut_into_pieces(body: list[bytes], cuts: list[int]) -> None:
    data, mask, told = b"".join(body), Mask([SECRET]), []
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in itertools.pairwise(places):
        told.append(mask.feed(data[begin:end]))
    answer = b"".join([*told, mask.end()])
    assert len(answer) == len(data)
    assert not [form for form in FORMS if form in answer]
    assert mask.found == any(form in data for form in FORMS)


def test_what_is_no_beginning_of_it_is_not_kept_waiting() -> None:
    """A model's answer that comes word by word goes on word by word."""
    mask = Mask([SECRET])
    assert mask.feed(b'data: {"word": "one"}\n\n') == b'data: {"word": "one"}\n\n'
    assert mask.feed(b"sk-Pl4") == b""
    assert mask.feed(b" is none") == b"sk-Pl4 is none"


@pytest.mark.parametrize(
    "shown",
    [
        SENT,
        base64.b64encode(f"user:{SENT}".encode()).decode(),
        quote(SENT, safe=""),
        json.dumps(json.dumps({"authorization": f"Bearer {SENT}"})),
        SENT.encode().hex(),
    ],
)
def test_a_server_that_echoes_shows_asterisks(shown: str) -> None:
    body = f"you said {shown}.".encode()
    head = f"HTTP/1.1 200 OK\r\nX-Debug: {shown}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    split = len(body) // 2
    chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (body[:split], body[split:]))
    chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"

    async def played(answer: bytes) -> bytes:
        with upstream(answer) as served:
            async with proxied(f"127.0.0.1:{served.port}", injections=[injection(served.port)]) as (proxy, tool):
                got = await tool.gets(f"http://127.0.0.1:{served.port}/")
                [connection] = await kept(proxy)
            assert f"Authorization: Bearer {SENT}\r\n".encode() in served.heard[0]
            assert connection.reason.endswith("; its answer held the secret, which was blotted out")
            return got

    for answer in (head + body, head.replace(b"Content-Length", b"X-Length") + body, chunked):
        got = run_async(played(answer))
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert shown.encode() not in got
        assert SENT.encode() not in got
        assert b"you said " in got
        assert b"********" in got


def test_a_tool_cannot_ask_for_it_in_pieces_or_packed() -> None:
    async def played() -> None:
        with upstream() as served:
            url = f"http://127.0.0.1:{served.port}/"
            async with proxied(f"127.0.0.1:{served.port}", injections=[injection(served.port)]) as (_, tool):
                assert (await tool.gets(url, "Range: bytes=0-3\r\nIf-Range: x\r\nAccept-Encoding: gzip\r\n"))[:12] == (
                    b"HTTP/1.1 200"
                )
                traced = await tool.says(f"TRACE {url} HTTP/1.1\r\n\r\n")
                assert traced.startswith(b"HTTP/1.1 403 ")
                assert b"TRACE is answered with what was asked" in traced
        [heard] = served.heard
        assert b"range" not in heard.lower()
        assert b"Accept-Encoding: identity\r\n" in heard

    run_async(played())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP\r\n\r\n" + gzip.compress(SENT.encode(), mtime=0),
            b"is packed (gzip)",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"in an odd way"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", b"in an odd way"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", b"in an odd way"),
    ],
)
def test_an_answer_that_cannot_be_looked_through_is_not_passed_on(answer: bytes, why: bytes) -> None:
    async def played() -> None:
        with upstream(answer) as served:
            async with proxied(f"127.0.0.1:{served.port}", injections=[injection(served.port)]) as (_, tool):
                got = await tool.gets(f"http://127.0.0.1:{served.port}/")
        assert got.startswith(b"HTTP/1.1 502 ")
        assert why in got
        assert SENT.encode() not in got

    run_async(played())


@pytest.mark.parametrize(
    "body", [b"", b"x\r\n", b"5\r\nab", b"2\r\nabX\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"1" * 99999]
)
def test_chunks_that_are_none_end_the_connection(body: bytes) -> None:
    async def played() -> None:
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        with upstream(answer) as served:
            async with proxied(f"127.0.0.1:{served.port}", injections=[injection(served.port)]) as (proxy, tool):
                try:
                    got = await tool.gets(f"http://127.0.0.1:{served.port}/")
                except ConnectionError:  # it was cut, and so it is not taken for whole
                    got = b""
                [connection] = await kept(proxy)
        assert not got.endswith(b"0\r\n\r\n")
        assert "its answer " in connection.reason

    run_async(played())


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_answer_without_a_body_is_passed_on(method: str) -> None:
    async def played() -> None:
        status = b"200 OK" if method == "HEAD" else b"304 Not Modified"
        with upstream(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n") as served:
            async with proxied(f"127.0.0.1:{served.port}", injections=[injection(served.port)]) as (_, tool):
                got = await tool.says(f"{method} http://127.0.0.1:{served.port}/ HTTP/1.1\r\n\r\n")
        assert got == b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"

    run_async(played())


def test_the_password_of_a_basic_authorization_is_hidden_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    packed = base64.b64encode(b"user:the password").decode()
    path = tmp_path / "secrets.yaml"
    path.touch(mode=0o600)
    path.write_text(f"api: {{value: '{packed}', hosts: [a.example], template: 'Basic {{value}}'}}")
    [secret] = SecretFile(str(path)).named(["api"])
    mask = Mask.over(secret.injections())
    assert mask.whole(b"hello the password") == b"hello ************"
    assert packed.encode() not in mask.whole(f"Basic {packed}".encode())
