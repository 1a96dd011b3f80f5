"""Reads what comes out of a sandbox through a pipe: its tail, up to a cap, whatever the other side does."""

import asyncio
import os
from collections.abc import Callable

CHUNK_BYTES = 65536
PIPE_BYTES_MAX = 1 << 20
"""That an unprivileged process can have a pipe hold (fs.pipe-max-size)."""


class Inlet:
    """Reads a pipe, once it listens, and keeps its tail up to a cap. Owns the descriptor.

    Calls `full` when there was more, and `closed` when nobody can write to it any more.
    """

    def __init__(self, fd: int, cap: int, full: Callable[[], None], closed: Callable[[], None] = lambda: None) -> None:
        self.data = bytearray()
        self._fd = fd
        self._cap = cap
        self._full = full
        self._closed = closed
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        """From now on, read what comes when it comes."""
        self._loop.add_reader(self._fd, self._take)

    def allow(self, more: int) -> None:
        """Raise the cap."""
        self._cap += more

    def _take(self) -> bool:
        """False when there is nothing more for now."""
        try:
            chunk = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._fd)
            self._closed()
            return False
        self.data += chunk
        if len(self.data) > self._cap:
            del self.data[: len(self.data) - self._cap]  # not [: -cap], of which 0 keeps all
            self._full()
        return True

    def take_what_is_there(self) -> None:
        """By now; others may go on writing, so no more than the largest pipe holds."""
        for _ in range(PIPE_BYTES_MAX // CHUNK_BYTES):
            if not self._take():
                return

    def take_the_rest(self) -> None:
        """At most what the pipe holds, for all who wrote to it are dead."""
        while self._take():
            pass

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
