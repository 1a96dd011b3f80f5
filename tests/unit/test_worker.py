"""The thread of a SQLite store goes on, whatever becomes of the loops that have asked it."""

import asyncio
from typing import Any

import pytest

from support.waiting import run_async
from understudy.cluster.stores.worker import Worker


class Closed:
    """A loop that was closed just after somebody has looked whether it is."""

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, call: Any) -> None:
        raise RuntimeError("Event loop is closed")


def test_a_loop_that_is_closed_while_it_is_answered_takes_the_thread_not_with_it() -> None:
    """Whoever asked next, on another loop, would wait for ever."""

    async def asked() -> None:
        worker, loop = Worker("the store"), asyncio.get_running_loop()
        gone: Any = Closed()
        for call in (lambda: 1, lambda: 1 / 0):
            worker._calls.put((call, gone, loop.create_future()))
        assert await worker.do(lambda: 2) == 2
        with pytest.raises(ZeroDivisionError):
            await worker.do(lambda: 1 / 0)
        worker.close_nowait()

    run_async(asked(), 20)
