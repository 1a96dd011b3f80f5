"""Commits on their way to the store: in order, several in one call, while the run goes on.

Law 3 (output commit): the next node may start while the commit of the one before is in flight; whatever leaves the
system waits until all that it stands on has landed. A commit that fails ends the residence, with everything behind it.

The idea is Elnozahy's output commit (Manetho, 1992); the group commit of databases makes it cheap: what gathers while
one call is under way goes with the next.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from understudy.actors.records import Commit, Committed
from understudy.actors.store import Store

IN_FLIGHT_MAX = 32
"""Commits that have not landed. A crash loses so many finished nodes at most, and they run again."""


class Flight:
    """The commits of one run.

    Args:
        landed: called after each call to the store: its answer, and how many seconds it took.
        failed: called once, with what ended it (Fenced, StoreUnavailable, or a bug).
    """

    def __init__(
        self,
        store: Store,
        landed: Callable[[Committed, float], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._told_landed = landed
        self._told_failed = failed
        self._queue: list[Commit] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._sent = 0
        """The seq of the last commit that was given."""
        self._durable = 0
        """The seq of the last commit that has landed."""
        self._error: BaseException | None = None
        self._writing: asyncio.Task[Any] | None = None
        """The task that is at it: one of its own, or that of a node that has ended."""
        self._lent = False
        """What is sent now is written by whoever sends it."""
        self._stopped = False

    @property
    def out(self) -> int:
        """Commits that have not landed."""
        return self._sent - self._durable

    def send(self, commit: Commit) -> None:
        """Put a commit on its way, behind those before it."""
        if self._sent == self._durable:
            self._durable = commit.seq - 1
        self._sent = commit.seq
        self._queue.append(commit)
        if self._writing is None and not self._lent:
            self._writing = asyncio.ensure_future(self._write())

    async def write_what(self, tells: Callable[[], None]) -> None:
        """Call what may send commits, and write those in the caller's own task: a task for it would wait for two turns
        of the loop, which is a tenth of the way from node to node."""
        self._lent = True
        try:
            tells()
        finally:
            self._lent = False
        if self._queue and self._writing is None:
            self._writing = asyncio.current_task()
            await self._write()

    async def landed(self) -> None:
        """Wait until everything that was sent so far is durable. Raises what ended the flight."""
        if self._error is not None:
            raise self._error
        if self._sent == self._durable:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._sent, future))
        await future

    def stop(self) -> None:
        """Nobody waits any more. What is under way may land or not, as in a crash."""
        self._stopped = True
        self._told_landed, self._told_failed = _nobody, _nobody  # else the driver were kept until garbage is looked for
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self) -> None:
        batch: list[Commit] = []
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                began = time.perf_counter()
                committed = await self._store.commit(*batch)
                self._durable = batch[-1].seq
                self._told_landed(committed, time.perf_counter() - began)
                self._wake(None)
            self._writing = None
        except asyncio.CancelledError:
            if self._stopped:
                raise
            # Somebody has kept a node's task and cancels it now that the node has ended. The commits are sent again, by
            # a task that nobody has; those that had landed change nothing (law 2).
            self._queue[:0] = batch
            self._writing = asyncio.ensure_future(self._write())
        except BaseException as error:
            self._error = error
            self._told_failed(error)
            self._wake(error)

    def _wake(self, error: BaseException | None) -> None:
        behind = []
        for seq, future in self._waiting:
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            elif seq <= self._durable:
                future.set_result(None)
            else:
                behind.append((seq, future))
        self._waiting = behind


def _nobody(*_told: object) -> None:
    """Who is told once the residence is over."""
