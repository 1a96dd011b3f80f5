"""The answer to a request, written anew for the tool, with the secrets that were put into the request blotted out."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

from understudy.actors.sandbox.egress.masking import Mask
from understudy.actors.sandbox.egress.request import END
from understudy.actors.sandbox.egress.told import HEADER
from understudy.actors.sandbox.egress.wire import CHUNK_BYTES, Meter

INTERIM_MAX: Final = 8
"""Answers of the kind 1xx that are skipped."""


class BadAnswer(Exception):
    """The server's answer cannot be passed on. Says why."""


_STATUS: Final = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*)?")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t -~\x80-\xff]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[^\n]*)?\r\n")
_BETWEEN: Final = frozenset(
    ("connection", "keep-alive", "upgrade", "proxy-connection", "proxy-authenticate", HEADER.lower())
)


async def send_answer(
    server: asyncio.StreamReader, tool: asyncio.StreamWriter, meter: Meter, mask: Mask | None, has_body: bool
) -> None:
    for _ in range(INTERIM_MAX):
        try:
            status, lines = _answer_head(await server.readuntil(END))
        except asyncio.LimitOverrunError:
            raise BadAnswer("the head of its answer is too long") from None
        except asyncio.IncompleteReadError as error:
            raise BadAnswer("it ended before it had answered" if not error.partial else "its answer is cut") from None
        meter.alive()
        if status == 101:
            raise BadAnswer("it switches protocols; use CONNECT for that")
        if status >= 200:
            break
    else:
        raise BadAnswer(f"it said more than {INTERIM_MAX} times that it goes on")
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    # What is wrong with it is said before the tool has had anything of it.
    chunked = mask is not None and _is_chunked(lines) and has_body and status not in (204, 304)
    meter.answered = True
    tool.write(mask.whole(head) if mask else head)
    async for data in _chunks(server) if chunked else _pieces(server):
        meter.received(len(data))
        _write_piece(tool, mask.feed(data) if mask else data, chunked)
        await tool.drain()
    _write_piece(tool, mask.end() if mask else b"", chunked)
    tool.write(b"0\r\n\r\n" if chunked else b"")
    await tool.drain()


def _write_piece(tool: asyncio.StreamWriter, data: bytes, chunked: bool) -> None:
    if data:
        tool.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)


async def _pieces(server: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """All that comes."""
    while data := await server.read(CHUNK_BYTES):
        yield data


async def _chunks(server: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What is in the chunks, without what separates them: a secret may lie across. Raises BadAnswer."""
    while size := _size_in_answer(await _line_of_answer(server)):
        while size:
            data = await server.read(min(size, CHUNK_BYTES))
            if not data:
                raise BadAnswer("its answer is cut")
            size -= len(data)
            yield data
        if await _line_of_answer(server) != b"\r\n":
            raise BadAnswer("its answer holds a chunk of another length than it says")


async def _line_of_answer(server: asyncio.StreamReader) -> bytes:
    try:
        return await server.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        raise BadAnswer("its answer is cut") from None
    except asyncio.LimitOverrunError:
        raise BadAnswer("its answer holds a chunk without a size") from None


def _size_in_answer(line: bytes) -> int:
    found = _CHUNK.fullmatch(line)
    if found is None:
        raise BadAnswer("its answer holds a chunk without a size")
    return int(found[1], 16)


def _is_chunked(lines: Sequence[str]) -> bool:
    """Of an answer that is to be looked through. Raises BadAnswer where it cannot be."""
    said = [
        (name.lower(), value.strip(" \t").lower()) for name, _, value in (line.partition(":") for line in lines[1:])
    ]
    packed = [value for name, value in said if name == "content-encoding" and value not in ("", "identity")]
    if packed:
        raise BadAnswer(f"its answer is packed ({packed[0]:.40}), and a secret in it could not be seen")
    codings = [value for name, value in said if name == "transfer-encoding"]
    if codings and (codings != ["chunked"] or any(name == "content-length" for name, _ in said)):
        raise BadAnswer("it says the length of its answer in an odd way, and a secret in it could not be seen")
    return bool(codings)


def _answer_head(data: bytes) -> tuple[int, list[str]]:
    """Its status, and the lines of its head as the tool gets them. Raises BadAnswer."""
    first, *lines = data[: -len(END)].decode("latin-1").split("\r\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise BadAnswer("it does not speak HTTP/1.1")
    kept = [first]
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadAnswer("its answer holds a line that is no header field")
        if field[1].lower() not in _BETWEEN:
            kept.append(line)
    return int(found[1]), kept
