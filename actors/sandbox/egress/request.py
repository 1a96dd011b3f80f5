"""Reads the head of a request to the proxy, and refuses whatever two programs could read differently. Pure.

The tool on one side and a server on the other must see one request, the same one: smuggling lives in the difference. So
there is one way to end a line, to fold none, to say a length once, and to name the host. What is read here is written
anew for the server; nothing is passed on as it came.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from understudy.policies.hosts import NotCanonical, Target, read_target

HEAD_BYTES_MAX: Final = 32 * 1024
FIELDS_MAX: Final = 100
END: Final = b"\r\n\r\n"

Body = int | Literal["chunked"]


class BadRequest(ValueError):
    """The request is not passed on. Says what is wrong; `status` is the one of the answer."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Head:
    """A request, understood."""

    method: str
    target: Target
    """Where it leads; its port is known."""
    path: str
    """With its query, as the tool wrote it; empty for a tunnel."""
    fields: tuple[tuple[str, str], ...]
    """Without those that are between the tool and the proxy, and without Host and those that frame the body."""
    body: Body
    """Bytes that follow, or `chunked`."""
    continues: bool
    """The tool waits for a word before it sends the body."""

    @property
    def tunnel(self) -> bool:
        return self.method == "CONNECT"


def read_head(data: bytes) -> Head:
    """A head, up to and with its empty line. Raises BadRequest."""
    if len(data) > HEAD_BYTES_MAX:
        raise BadRequest(f"its head has more than {HEAD_BYTES_MAX} bytes", 431)
    if not data.endswith(END) or data.index(END) != len(data) - len(END):
        raise BadRequest("its head does not end with one empty line")
    text = data[: -len(END)].decode("latin-1")
    if _UNSEEN.search(text.replace("\r\n", "")):
        raise BadRequest("its head holds a control character, or a line that does not end with CR LF")
    first, *lines = text.split("\r\n")
    fields = _fields(lines)
    found = _REQUEST.fullmatch(first)
    if found is None:
        raise BadRequest("its first line is not 'METHOD TARGET HTTP/1.1'")
    method, where = found[1], found[2]
    target, path = _tunnel(where) if method == "CONNECT" else _absolute(where)
    _same_host(fields, target)
    body = _framing(fields)
    if method == "CONNECT" and body != 0:
        raise BadRequest("a CONNECT request has no body")
    expected = {value.lower() for name, value in fields if name.lower() == "expect"}
    if expected - {"100-continue"}:
        raise BadRequest(f"it expects {sorted(expected)!r:.80}", 417)
    return Head(method, target, path, _onward(fields), body, bool(expected))


# --- parts ---------------------------------------------------------------------------------------------------------

_REQUEST: Final = re.compile(r"([A-Z]{1,20}) ([!-~]{1,16000}) HTTP/1\.[01]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_UNSEEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "te", "trailer", "upgrade", "transfer-encoding", "content-length", "host", "expect")
)


def _fields(lines: Sequence[str]) -> list[tuple[str, str]]:
    if len(lines) > FIELDS_MAX:
        raise BadRequest(f"it has {len(lines)} header fields, and {FIELDS_MAX} are the most", 431)
    fields = []
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):  # also a folded line, and a blank before the colon
            raise BadRequest(f"line {number} of its head is no header field")  # without it: it may hold a token
        fields.append((name, value.strip(" \t")))
    return fields


def _tunnel(where: str) -> tuple[Target, str]:
    if "://" in where:
        raise BadRequest("CONNECT names a host and a port, as in example.org:443")
    target = _target(where)
    if target.port is None:
        raise BadRequest(f"CONNECT {where[:60]!a} names no port, as in example.org:443")
    return target, ""


def _absolute(where: str) -> tuple[Target, str]:
    scheme, found, rest = where.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        raise BadRequest("it names no http:// address: this is a proxy, and reads http://HOST:PORT/PATH, or CONNECT")
    if "#" in where:
        raise BadRequest("it holds '#', which no request carries")
    end = min((rest.find(sign) for sign in "/?" if sign in rest), default=len(rest))
    target, path = _target(f"{scheme}://{rest[:end]}"), rest[end:]
    return target, path if path.startswith("/") else f"/{path}"


def _target(where: str) -> Target:
    try:
        target = read_target(where)
    except NotCanonical as error:
        shown = where.rpartition("@")[2]  # the refusal is on record, and what stands before it may be a password
        raise BadRequest(f"{shown[:80]!a} is no place to go: {error}") from None
    if target.port == 0:
        raise BadRequest("port 0 is nowhere")
    return target


def _same_host(fields: Sequence[tuple[str, str]], target: Target) -> None:
    """A Host that says something else is meant for somebody who reads that one instead."""
    hosts = _all(fields, "host")
    if len(hosts) > 1:
        raise BadRequest("it has more than one Host")
    for host in hosts:
        try:
            said = read_target(host) if "://" not in host else None
        except NotCanonical:
            said = None
        # Without a port is as good: with http on another port clients leave it out, and it is written anew anyway.
        if said is None or said.host != target.host or said.port not in (None, target.port):
            raise BadRequest(f"its Host is {host[:60]!a}, and its target {target.host}:{target.port}", 403)


def _framing(fields: Sequence[tuple[str, str]]) -> Body:
    lengths, codings = _all(fields, "content-length"), _all(fields, "transfer-encoding")
    if lengths and codings:
        raise BadRequest("it says its length in two ways (Content-Length and Transfer-Encoding)")
    if len(lengths) > 1 or len(codings) > 1:
        raise BadRequest("it says its length twice")
    if codings:
        if codings[0].lower() != "chunked":
            raise BadRequest(f"Transfer-Encoding {codings[0][:40]!a} is not 'chunked'", 501)
        return "chunked"
    if not lengths:
        return 0
    if not _LENGTH.fullmatch(lengths[0]):
        raise BadRequest(f"Content-Length {lengths[0][:40]!a} is no plain number")
    return int(lengths[0])


def _onward(fields: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    named = {each.strip().lower() for value in _all(fields, "connection") for each in value.split(",")}
    dropped = _HOP_BY_HOP | named
    kept = [(name, value, name.lower().replace("_", "-")) for name, value in fields]  # as some servers read them
    return tuple((name, value) for name, value, read in kept if read not in dropped and not read.startswith("proxy-"))


def _all(fields: Sequence[tuple[str, str]], wanted: str) -> list[str]:
    return [value for name, value in fields if name.lower() == wanted]


# --- chunks --------------------------------------------------------------------------------------------------------

CHUNK_LINE_MAX: Final = 18
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")


def chunk_size(line: bytes) -> int:
    """Of a chunk, from its first line; extensions are not read. Raises BadRequest."""
    found = _CHUNK.fullmatch(line)
    if found is None:
        raise BadRequest(f"{line[:40]!r} is no size of a chunk")
    return int(found[1], 16)
