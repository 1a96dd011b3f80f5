"""One HTTP request and its answer: written anew on both sides, so that each side sees exactly one of each.

There is one exchange on a connection. The server is told to close after it, and so is the tool: where an answer ends is
then for nobody to guess, and what a tool sends behind its request is never read.
"""

import asyncio
import contextlib
from collections.abc import Sequence

from understudy.actors.sandbox.egress.answer import send_answer
from understudy.actors.sandbox.egress.masking import Mask
from understudy.actors.sandbox.egress.request import CHUNK_LINE_MAX, Body, Head, chunk_size
from understudy.actors.sandbox.egress.wire import CHUNK_BYTES, Ends, Meter
from understudy.policies.hosts import PORTS


async def exchange(head: Head, onward: bytes, tool: Ends, server: Ends, meter: Meter, mask: Mask | None = None) -> None:
    """Send a request on, with the head `onward`, and its answer back, with what the mask covers blotted out.

    Raises BadRequest where its body is none, BadAnswer, Cut, OSError, TimeoutError.
    """
    server.writer.write(onward)
    if head.continues and head.body != 0:
        tool.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    sending = asyncio.ensure_future(_send_body(head.body, tool.reader, server.writer, meter))
    answering = asyncio.ensure_future(send_answer(server.reader, tool.writer, meter, mask, head.method != "HEAD"))
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            with contextlib.suppress(ConnectionError):  # the server reads no more; it may have said why
                sending.result()
        await answering  # a server may answer before it has read all
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


def onward_head(head: Head, fields: Sequence[tuple[str, str]], tls: bool) -> bytes:
    """The head of the request as the server gets it."""
    host = f"[{head.target.host}]" if ":" in head.target.host else head.target.host
    if head.target.port != PORTS["https" if tls else "http"]:
        host = f"{host}:{head.target.port}"
    lines = [f"{head.method} {head.path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in fields)]
    if head.body == "chunked":
        lines.append("Transfer-Encoding: chunked")
    elif head.body or head.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {head.body}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


async def _send_body(body: Body, tool: asyncio.StreamReader, server: asyncio.StreamWriter, meter: Meter) -> None:
    """Raises BadRequest, Cut, OSError; IncompleteReadError where the tool ends early."""
    if body != "chunked":
        await _pass_on(body, tool, server, meter)
        return
    while True:
        size = chunk_size(await _line(tool))
        server.write(b"%x\r\n" % size)
        if size == 0:
            break
        await _pass_on(size, tool, server, meter)
        _expect(await tool.readexactly(2))
        server.write(b"\r\n")
    _expect(await tool.readexactly(2))  # no trailers: they are fields that nobody has judged
    server.write(b"\r\n")
    await server.drain()


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < CHUNK_LINE_MAX:
        line += await reader.readexactly(1)
    return line


def _expect(found: bytes) -> None:
    if found != b"\r\n":
        chunk_size(found)  # raises: it says what was found


async def _pass_on(count: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter) -> None:
    while count:
        data = await reader.read(min(count, CHUNK_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        count -= len(data)
        meter.sent(len(data))
        writer.write(data)
        await writer.drain()
