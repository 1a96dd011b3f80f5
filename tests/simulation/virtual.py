"""An event loop whose time is made up: it passes when nobody has anything to do, and then at once.

Everything that happens on it is in an order that follows from the code alone, so that a seed tells the same story every
time. Waiting for nothing is an error: nothing else could ever happen.
"""

import asyncio
import random
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
START = 1_764_000_000.0
"""What time it is when a story begins, in seconds since the epoch."""


class Stuck(AssertionError):
    """All wait for each other."""


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self._selector.select = lambda timeout=None: []  # type: ignore[attr-defined]  # nothing comes from outside

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready:
            first = scheduled[0] if scheduled else None  # it is a heap
            waiting = scheduled if first is not None and first.cancelled() else scheduled[:1]
            times = [handle.when() for handle in waiting if not handle.cancelled()]
            if not times:
                raise Stuck("nothing is left that could happen: all wait for each other")
            self._now = max(self._now, min(times))
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise AssertionError("a story has no threads: they are not the same every time")


def now() -> float:
    """Seconds since the epoch, on the loop that runs."""
    return START + asyncio.get_running_loop().time()


@contextmanager
def _chance(seed: str) -> Iterator[None]:
    """Names are made from the seed, too."""
    dice, real = random.Random(seed), uuid.uuid4
    uuid.uuid4 = lambda: uuid.UUID(int=dice.getrandbits(128), version=4)  # type: ignore[assignment]
    try:
        yield
    finally:
        uuid.uuid4 = real


def run_virtual(story: Coroutine[Any, Any, T], seed: str) -> T:
    """Run a story to its end. Raises Stuck."""
    loop = VirtualLoop()
    with _chance(seed), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(story)
