"""Waiting for something that will happen soon, with a bound and a name for it."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """Poll until `predicate` returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for: {what}")
        time.sleep(POLL_S)
    return answer


async def wait_until_async(predicate: Callable[[], Coroutine[object, object, T]], timeout_s: float, what: str) -> T:
    """The same for a coroutine function, without stopping the loop. A predicate that hangs counts as waiting."""
    try:
        async with asyncio.timeout(timeout_s):
            while not (answer := await predicate()):  # noqa: ASYNC110 (what is awaited lives in other processes)
                await asyncio.sleep(POLL_S)
            return answer
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s} s in vain for: {what}") from None


def run_async(
    test: Coroutine[object, object, T],
    timeout_s: float = 60,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run the coroutine of one test on a loop of its own (asyncio's, if `loop` makes no other); it may not hang."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await test

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(bounded())
