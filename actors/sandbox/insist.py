"""Waits that a cancellation does not cut short: for what must not be left behind half ended."""

import asyncio
import signal
from contextlib import suppress


async def insist(future: "asyncio.Future[None]") -> bool:
    """Wait for it even when cancelled. True if that happened: whoever asked to stop has to be told then."""
    interrupted = False
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            interrupted = True
    return interrupted


def readable(fd: int) -> "asyncio.Future[None]":
    """Done once there is something to read; of a pidfd, once its process is dead. Forget it with `remove_reader`."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        loop.remove_reader(fd)
        if not future.done():
            future.set_result(None)

    loop.add_reader(fd, resolve)
    return future


def send_kill(pidfd: int) -> None:
    """SIGKILL, to a process that may be dead already."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
