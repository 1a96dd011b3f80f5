"""Following a run from any point on: its events, what it streams, or both; over reconnects, with cursors.

A cursor is how much one has seen. Whoever comes back with it sees everything after it, once: events are numbered in
the order in which they happened, chunks in the order in which they were streamed. A store tells nobody when a run
changes, so it is asked: every 10 ms while there is something, a few times a second while there is nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from understudy.actors.errors import CallerError
from understudy.actors.records import Chunk, Event
from understudy.actors.store import Store
from understudy.actors.streaming import BATCH_MAX, Once

FIRST_S = 0.01
SLOWEST_S = 0.25
STREAM_SLOWEST_S = 0.04
"""A chunk is seen within this time and the store's own."""
RECORD_EVERY_S = 0.1
PAGE = 1000
DIGITS_MAX = 18
"""Nothing is numbered beyond; and no store compares larger numbers."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cursor:
    """How much of a run one has seen: the n of the last event and of the last chunk. As text, `12.40`."""

    event: int = 0
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.event}.{self.chunk}"

    @staticmethod
    def read(text: str) -> "Cursor":
        """Raises CallerError."""
        event, _, chunk = text.partition(".")
        if not (event.isdecimal() and chunk.isdecimal() and max(len(event), len(chunk)) <= DIGITS_MAX):
            raise CallerError(f"{text!r} is no cursor; it is EVENT.CHUNK, e.g. '12.40', or '0.0' for the beginning")
        return Cursor(int(event), int(chunk))

    def past(self, item: Event | Chunk) -> "Cursor":
        """The cursor once this has been seen, too."""
        return replace(self, event=item.n) if isinstance(item, Event) else replace(self, chunk=item.n)


@dataclass(frozen=True)
class Seen:
    """An event or a chunk, and the cursor to come back with after it."""

    item: Event | Chunk
    cursor: Cursor


async def events(store: Store, run_id: str, after: int, *, follow: bool) -> AsyncIterator[Event]:
    """Events behind `after`, in order; with `follow`, until the run is final and all are told. Raises NotFound."""

    async def more(n: int) -> list[Event]:
        return await store.events(run_id, n, PAGE)

    async for event in _all(store, run_id, after, more, SLOWEST_S, follow=follow):
        yield event


async def chunks(store: Store, run_id: str, after: int, *, follow: bool) -> AsyncIterator[Chunk]:
    """Chunks behind `after`, in order; with `follow`, until the run is final and all are told. Raises NotFound."""

    async def more(n: int) -> list[Chunk]:
        return await store.chunks(run_id, n, PAGE)

    once = await _once(store, run_id, after)
    async for chunk in _all(store, run_id, after, more, STREAM_SLOWEST_S, follow=follow):
        for new in once.news([chunk]):
            yield new


async def _once(store: Store, run_id: str, after: int) -> Once:
    """What a reader that comes back has seen last: a batch of it may be there again."""
    return Once(await store.chunks(run_id, max(0, after - BATCH_MAX), min(after, BATCH_MAX)) if after else ())


async def _all(
    store: Store,
    run_id: str,
    after: int,
    more: Callable[[int], Awaitable[list[T]]],
    slowest_s: float,
    *,
    follow: bool,
) -> AsyncIterator[T]:
    pause = _Pause(store, run_id, slowest_s)
    while True:
        ended = not follow or await pause.has_ended()  # asked before: what is read afterwards is all there will be
        while found := await more(after):
            pause.restart()
            for item in found:
                after = item.n  # type: ignore[attr-defined]
                yield item
        if ended:
            return
        await pause.wait()


async def both(store: Store, run_id: str, after: Cursor, *, follow: bool) -> AsyncIterator[Seen]:
    """Events and chunks behind a cursor, each in its order, together by time. Raises NotFound."""
    pause = _Pause(store, run_id, STREAM_SLOWEST_S)
    looked_at = -SLOWEST_S
    once = await _once(store, run_id, after.chunk)
    while True:
        ended = not follow or await pause.has_ended()
        now = asyncio.get_running_loop().time()
        news: list[Event | Chunk] = []
        page = await store.chunks(run_id, after.chunk, PAGE)
        news += once.news(page)
        if news or ended or now - looked_at >= SLOWEST_S / 2:
            # Seldom, as an event may be late and a token may not; but with every chunk, so that it comes in its place.
            looked_at = now
            news += await store.events(run_id, after.event, PAGE)
        for item in _by_time(news):
            after = after.past(item)
            yield Seen(item, after)
        if page:
            after = after.past(page[-1])
        if news or page:
            pause.restart()
        elif ended:
            return
        else:
            await pause.wait()


def _by_time(news: list[Event | Chunk]) -> list[Event | Chunk]:
    """Both sequences merged by their times; within each, order is by n, as clocks may step back."""
    told: list[Event | Chunk] = []
    left = [item for item in news if isinstance(item, Event)]
    for chunk in [item for item in news if isinstance(item, Chunk)]:
        while left and left[0].at <= chunk.at:
            told.append(left.pop(0))
        told.append(chunk)
    return told + left


class _Pause:
    """Waits, longer each time, and looks from time to time whether the run has ended."""

    def __init__(self, store: Store, run_id: str, slowest_s: float) -> None:
        self._store = store
        self._run_id = run_id
        self._slowest_s = slowest_s
        self._next_s = FIRST_S
        self._ended = False
        self._asked_at = -RECORD_EVERY_S

    def restart(self) -> None:
        self._next_s = FIRST_S

    async def wait(self) -> None:
        await asyncio.sleep(self._next_s)
        self._next_s = min(self._next_s * 1.3, self._slowest_s)

    async def has_ended(self) -> bool:
        now = asyncio.get_running_loop().time()
        if not self._ended and now - self._asked_at >= min(RECORD_EVERY_S, self._next_s * 4):
            self._asked_at = now
            self._ended = (await self._store.run(self._run_id)).final
        return self._ended
