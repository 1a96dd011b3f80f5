"""Writes the audit log: what several tell at the same time goes into one segment, and nobody is answered before it is
durable.

Several processes write to one chain. The document of the next number can be created once only; whoever was slower
finds the segment that took the number, and follows that one. So the store decides the order, in one round trip.

Writers who take turns would be overtaken each time. So what goes between them by other ways carries a sealed word of
where the log ends (`word`, `hear`); it saves the look, and nothing depends on it.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from understudy.actors.documents import Overtaken
from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.store import Store
from understudy.policies.audit import (
    Entry,
    Head,
    claimed,
    is_signed,
    name_of,
    number_of,
    place_of,
    read_anchor,
    read_segment,
    read_word,
    write_segment,
    write_word,
)

SHELF = "audit"
ANCHORS = "audit-anchor"
ANCHOR = "anchor"
TOGETHER_MAX = 100
"""Entries of one segment: with those at their longest, a segment is still a small document."""
ENTRY_CHARS_MAX = 2000
HEAD_KEPT_S = 600.0
"""So long a writer believes that the head it knows is near the end. Pruning leaves what is younger than an hour, so no
writer can take a number anew that was pruned."""
STRANGERS_MAX = 100
"""Documents that are no segments, behind the last one, that are passed over."""
FOLLOWED_MAX = 4
"""Segments of others that a writer follows one by one; who is further behind looks for the end."""
TURNS_MAX = 10_000
"""Overtaken so often in a row, something is wrong with the store: each time another writer went forward."""


class AuditLog:
    """One process's pen.

    Args:
        strict: refuse to write behind a segment that this secret has not signed. People's commands do: their secret may
            be another deployment's. Actors go on: `understudy audit verify` says what was changed, and to stop all runs
            would only help whoever did it.
    """

    def __init__(
        self,
        open_store: Callable[[], Awaitable[Store]],
        secret: bytes,
        clock: Callable[[], float] = time.time,
        *,
        strict: bool = False,
    ) -> None:
        self._open_store = open_store
        self._secret = secret
        self._clock = clock
        self._strict = strict
        self._head: Head | None = None
        self._known_at = 0.0
        self._word: tuple[Head | None, str] = (None, "")
        self._heard = ("", Head(), 0.0)
        self._waiting: deque[tuple[Entry, asyncio.Future[str]]] = deque()
        self._open: set[asyncio.Future[str]] = set()
        """Of entries that are not known to be durable."""
        self._writing: asyncio.Task[None] | None = None

    async def append(self, kind: str, **told: Any) -> str:
        """Put an entry into the log; where it stands. Durable when this returns, however long the store is away.

        Raises, with `strict`, CallerError: the secret is another deployment's; StoreUnavailable.
        """
        return await self._queue(kind, told)

    def append_nowait(self, kind: str, **told: Any) -> None:
        """The same for who cannot wait, as a proxy that tells of a connection; whoever answers for it waits for
        `written` before anything stands on it."""
        self._queue(kind, told).add_done_callback(lambda done: done.cancelled() or done.exception())

    async def written(self) -> None:
        """Returns once all that was told up to now is durable; what comes later is not waited for."""
        told = [*self._open]
        if told:
            await asyncio.wait(told)
        for written in told:
            if not written.cancelled():
                written.result()

    def word(self) -> str:
        """Where the log ends, as far as this process knows, for `hear` in another one; empty: it does not know."""
        if self._head is None or not self._head.number:
            return ""
        if self._word[0] is not self._head:
            self._word = (self._head, write_word(self._head, self._known_at, self._secret))
        return self._word[1]

    def hear(self, word: str) -> None:
        """What another writer has said. Without its seal, or older than what is known here, it counts for nothing."""
        if word and word != self._heard[0] and claimed(word) > (self._head.number if self._head else 0):
            with contextlib.suppress(ValueError):
                self._heard = (word, *read_word(word, self._secret))

    def _queue(self, kind: str, told: Mapping[str, Any]) -> "asyncio.Future[str]":
        entry = _bounded({"kind": kind, "at": round(self._clock(), 6), **told})
        written: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        self._open.add(written)
        written.add_done_callback(self._open.discard)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_on())
        return written

    async def _write_on(self) -> None:
        """What comes while a segment is being written goes into the next one."""
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(TOGETHER_MAX, len(self._waiting)))]
            try:
                number = await self._write([entry for entry, _ in some])
            except BaseException as error:
                for _, written in some:
                    if not written.done():
                        written.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for index, (_, written) in enumerate(some):
                if not written.done():
                    written.set_result(place_of(number, index))

    async def _write(self, entries: list[Entry]) -> int:
        pause_s = 0.05
        after: Head | None = None
        _, heard, at = self._heard
        if heard.number > (self._head.number if self._head else 0):
            self._head, self._known_at = heard, min(at, self._clock())  # the other's clock may be ahead
        data, head = b"", Head()
        overtaken = 0
        while overtaken < TURNS_MAX:
            try:
                store = await self._open_store()
                if self._head is not None and self._clock() - self._known_at > HEAD_KEPT_S:  # it may be pruned by now
                    if data and await self._is_there(store, head, data):  # only the reply was lost, long ago
                        return head.number
                    self._head = None
                if self._head is None:
                    self._follow(*await head_of(store, self._secret))
                assert self._head is not None
                if after != self._head:  # else it is the very same write again: its reply may have been lost
                    after = self._head
                    data, head = write_segment(after, entries, self._clock(), self._secret)
                await store.write_document(SHELF, name_of(head.number), data, 0)
                self._head, self._known_at = head, self._clock()
                return head.number
            except Overtaken as error:
                overtaken += 1
                if overtaken % FOLLOWED_MAX == 0 or error.found is None or not self._goes_on(error.found.data):
                    self._head = None  # look for the end
            except StoreUnavailable:
                if self._strict:  # a person waits, and can try again
                    raise
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 2.0)
        raise StoreUnavailable(f"the audit log was overtaken {TURNS_MAX} times in a row; is its shelf being rewritten?")

    async def _is_there(self, store: Store, head: Head, data: bytes) -> bool:
        """Whether a segment of ours stands in the log."""
        found = await store.read_document(SHELF, name_of(head.number))
        return found is not None and found.data == data

    def _goes_on(self, data: bytes) -> bool:
        """Follow the segment that was found in the place of ours, if it can be read."""
        with contextlib.suppress(ValueError):
            segment = read_segment(data)
            if self._head is not None and segment.number == self._head.number + 1:
                self._follow(segment.head, data)
                return True
        return False

    def _follow(self, head: Head, data: bytes) -> None:
        if self._strict and data and not is_signed(data, self._secret):
            raise CallerError(
                f"segment {head.number} of the audit log was not signed with this machine's secret; name the "
                f"deployment's with UNDERSTUDY_SECRET_FILE, or see `understudy audit verify`"
            )
        self._head, self._known_at = head, self._clock()


async def head_of(store: Store, secret: bytes) -> tuple[Head, bytes]:
    """The end of the chain as it is there, with the bytes of its last segment; empty where it was pruned or none is."""
    found = await store.documents(SHELF, limit=1, last=True)
    if found and not number_of(found[0].name):  # somebody has put it there: what lies before it?
        found = await store.documents(SHELF, limit=STRANGERS_MAX, last=True)
    for document in reversed([each for each in found if number_of(each.name)]):
        try:
            return Head(number_of(document.name), read_segment(document.data).mac), document.data
        except ValueError:  # spoilt: what follows it says so
            return Head(number_of(document.name), ""), b""
    with contextlib.suppress(ValueError):  # verification says so, too
        return await anchor_of(store, secret), b""
    return Head(), b""


async def anchor_of(store: Store, secret: bytes) -> Head:
    """Behind which the chain begins. Raises ValueError: the note about it is not ours."""
    kept = await store.read_document(ANCHORS, ANCHOR)
    return read_anchor(kept.data, secret) if kept else Head()


def _bounded(entry: dict[str, Any]) -> Entry:
    """Law 8: an entry is a few lines, whatever it is about."""
    if len(json.dumps(entry)) <= ENTRY_CHARS_MAX:
        return entry
    for name, value in [*entry.items()]:
        text = json.dumps(value)
        if len(text) > ENTRY_CHARS_MAX:
            entry[name] = text[:ENTRY_CHARS_MAX] + f"... ({len(text) - ENTRY_CHARS_MAX} characters more)"
    return entry
