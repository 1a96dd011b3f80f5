"""The head of a request to the proxy: one reading, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.sandbox.egress.request import HEAD_BYTES_MAX, BadRequest, chunk_size, read_head

FINE = "GET http://api.example.org/a?b=c HTTP/1.1\r\nHost: api.example.org\r\n\r\n"


def refused(text: str | bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        read_head(text.encode("latin-1") if isinstance(text, str) else text)
    return str(caught.value)


def test_a_plain_request_is_read() -> None:
    head = read_head(FINE.encode())
    assert (head.method, head.target.host, head.target.port, head.path) == ("GET", "api.example.org", 80, "/a?b=c")
    assert head.fields == ()
    assert head.body == 0


def test_a_tunnel_is_read() -> None:
    head = read_head(b"CONNECT API.Example.org.:443 HTTP/1.1\r\nHost: api.example.org:443\r\n\r\n")
    assert head.tunnel
    assert (head.target.host, head.target.port) == ("api.example.org", 443)


def test_what_is_between_tool_and_proxy_goes_no_further() -> None:
    head = read_head(
        b"POST http://h:80/ HTTP/1.1\r\nHost: h\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nProxy-Authorization: a\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\nContent-Length: 3\r\nX-Yours: 2\r\nproxy-a: x\r\n\r\n"
    )
    assert head.fields == (("X-Yours", "2"),)
    assert head.body == 3


def test_what_some_servers_read_as_framing_goes_no_further() -> None:
    head = read_head(b"POST http://h/ HTTP/1.1\r\nTransfer_Encoding: chunked\r\nCONTENT_length: 9\r\nA_b: 1\r\n\r\n")
    assert (head.fields, head.body) == ((("A_b", "1"),), 0)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "two ways"),
        ("Content-Length: 3\r\nContent-Length: 3", "twice"),
        ("Content-Length: 3\r\ncontent-length: 4", "twice"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "twice"),
        ("Transfer-Encoding: chunked, identity", "not 'chunked'"),
        ("Transfer-Encoding: \x0bchunked", "control character"),
        ("Transfer-Encoding : chunked", "no header field"),
        ("Content-Length: +3", "no plain number"),
        ("Content-Length: 3, 3", "no plain number"),
        ("Content-Length: 0x3", "no plain number"),
        ("Content-Length: -1", "no plain number"),
        ("A: b\nContent-Length: 3", "control character"),
        ("A: b\rContent-Length: 3", "control character"),
        ("A: b\r\n folded: c", "no header field"),
        ("A: b\r\n\tfolded", "no header field"),
        ("A: b\x00c", "control character"),
        (": empty", "no header field"),
        ("no colon", "no header field"),
        ("Host: other.example.org", "its Host is"),
        ("Host: h:81", "its Host is"),
        ("Host: h\r\nHost: h", "more than one Host"),
        ("Host: http://h", "its Host is"),
        ("Host: ", "its Host is"),
        ("Expect: 200-maybe", "expects"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(lines: str, why: str) -> None:
    assert why in refused(f"POST http://h/ HTTP/1.1\r\n{lines}\r\n\r\n")


@pytest.mark.parametrize(
    "target",
    [
        "/path",
        "*",
        "ftp://h/",
        "http:/h/",
        "http://",
        "http:///a",
        "http://user@h/",
        "http://good.example\\@h/",
        "http://h%2eexample/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://[::1%25lo]/",
        "http://[::1/",
        "http://h:/",
        "http://h:0/",
        "http://h:99999/",
        "http://h:80:81/",
        "http://h/#fragment",
        "http://h..example/",
        "http://\xe9xample.org/",
        "http://ex\u00adample.org/".encode("utf-8").decode("latin-1"),
    ],
)
def test_a_target_in_an_odd_spelling_is_refused(target: str) -> None:
    refused(f"GET {target} HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "text",
    [
        "GET http://user:hunter22@h/ HTTP/1.1\r\n\r\n",
        "GET http://h/?token=hunter22#part HTTP/1.1\r\n\r\n",
        "GET http://h..h/?token=hunter22 HTTP/1.1\r\n\r\n",
        "CONNECT user:hunter22@h:443 HTTP/1.1\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nAuthorization Bearer hunter22\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nAuthorization: Bearer\r\n hunter22\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nAuthorization: hunter22\r\nHost: other\r\n\r\n",
        "GET http://h/hunter22 HTTP/2.0\r\n\r\n",
    ],
)
def test_a_refusal_quotes_no_password(text: str) -> None:
    """It goes on record."""
    assert "hunter22" not in refused(text)


@pytest.mark.parametrize("where", ["h", "h:", "http://h:443", "h:443/path", "u@h:443", "h\x00.example.org:443", "h:0"])
def test_a_tunnel_to_an_odd_place_is_refused(where: str) -> None:
    refused(f"CONNECT {where} HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "first",
    [
        "GET  http://h/ HTTP/1.1",
        "GET http://h/",
        "GET http://h/ HTTP/2.0",
        "get http://h/ HTTP/1.1",
        "G T http://h/ HTTP/1.1",
    ],
)
def test_an_odd_first_line_is_refused(first: str) -> None:
    refused(f"{first}\r\n\r\n")


def test_heads_are_bounded() -> None:
    assert "more than" in refused(b"GET http://h/ HTTP/1.1\r\nA: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n")
    assert "100 are the most" in refused("GET http://h/ HTTP/1.1\r\n" + "A: b\r\n" * 101 + "\r\n")


def test_addresses_have_one_spelling() -> None:
    assert read_head(b"GET http://[::FFFF:10.0.0.1]/ HTTP/1.1\r\n\r\n").target.host == "10.0.0.1"
    assert read_head(b"GET http://[0:0::1]:8080/ HTTP/1.1\r\n\r\n").target.host == "::1"


WORDS = (
    "GET|CONNECT| |http://|h|:80|/|HTTP/1.1|Host|:|@|[|]|Content-Length|Transfer-Encoding|chunked|3|,|%|Connection|A: b"
)
PIECES = st.sampled_from([*WORDS.split("|"), "\r\n", "\n", "\r", "\x00", "\t", "\xff", "\r\n\r\n"])


@given(st.lists(PIECES, max_size=40).map("".join).map(lambda text: text.encode("latin-1")) | st.binary(max_size=300))
def test_any_bytes_are_read_once_or_refused(data: bytes) -> None:
    for each in (data, data + b"\r\n\r\n", b"GET http://h/ HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        try:
            head = read_head(each)
        except BadRequest:
            continue
        assert head.target.port is not None
        assert all(sign not in text for pair in head.fields for text in pair for sign in "\r\n\0")
        assert all(sign not in head.path for sign in "\r\n\0 ")
        # What is written from it is read as the same.
        again = "".join(f"{name}: {value}\r\n" for name, value in head.fields)
        where = f"{head.target.host}:{head.target.port}" if ":" not in head.target.host else head.target.host
        if not head.tunnel and ":" not in head.target.host:
            written = f"{head.method} http://{where}{head.path} HTTP/1.1\r\n{again}\r\n"
            assert read_head(written.encode("latin-1")).fields == head.fields


@given(st.integers(0, 2**59), st.booleans())
def test_chunks_say_their_size(size: int, upper: bool) -> None:
    assert chunk_size((f"{size:X}" if upper else f"{size:x}").encode() + b"\r\n") == size


@pytest.mark.parametrize(
    "line", [b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1 \r\n", b"1;a=b\r\n", b"1\n", b"1" * 16 + b"\r\n"]
)
def test_an_odd_size_of_a_chunk_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequest):
        chunk_size(line)
