"""Calling a user's function in a thread: whatever it raises comes back, also what a future cannot hold."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

R = TypeVar("R")


def in_a_thread(executor: Executor | None, fn: Callable[[], R]) -> "asyncio.Future[R]":
    """The end of `fn`, called in a thread of `executor` (None: the loop's own). To be called from the loop."""

    def called() -> R:
        try:
            return fn()
        except StopIteration as error:
            # No future takes one: it would be lost in a callback of the loop, and who awaits would wait for ever. A
            # bare next() in a node is enough. Coroutines turn it into a RuntimeError for the same reason (PEP 479).
            raise RuntimeError(f"the function raised StopIteration{f' ({error})' if error.args else ''}") from error

    return asyncio.get_running_loop().run_in_executor(executor, called)
