"""A store is whatever passes tests/conformance: it keeps runs so that one owner at a time moves each forward.

Laws kept here (numbers as in the design):
1. One owner. Every write to a run carries an epoch; one that is not the run's current epoch raises `Fenced`, changes
   nothing but the counter `fence_rejections_total{op=...}`.
2. One commit. Each verb is atomic: all of it or nothing, in one round trip. `create`, `commit`, `begin`, `finish`,
   `requeue`, `resume` and `cancel` may be sent twice (a client that lost the reply sends again) and apply once.
8. Bounded. Whatever is written belongs to a thread, and `sweep` and `delete_thread` leave nothing of it behind.
9. Crash-only. A store may be closed by SIGKILL at any line; opening it is all the recovery there is.

All verbs are coroutines and may be called from one event loop at a time. Times are seconds since the epoch and come
from the caller. A store that does not answer raises `StoreUnavailable` after having tried again itself for a while.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.actors.records import (
    Begun,
    CheckpointRow,
    Commit,
    Committed,
    Counters,
    Due,
    Event,
    Loaded,
    NewRun,
    Receipt,
    Renewed,
    RunRecord,
    Status,
)


@dataclass(frozen=True)
class StoreInfo:
    """What `doctor` tells of a store."""

    kind: str
    where: str
    """URL without credentials."""
    durable: bool
    detail: Mapping[str, str]


class Store(Protocol):
    # --- the life of a run -------------------------------------------------------------------------------------

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        """Make a run durable, as queued; or return the one that has the same key on the same thread.

        A run on a thread with an unfinished run stays behind it: it is not `ready` until that one is final (runs on
        one thread are serial, in the order of `create`). A run that starts a thread with `seed` has it as its head;
        another one starts from the thread's head at the time it is claimed.
        Sending the same run_id again returns the stored run.
        Raises Conflict: the key belongs to a run with another digest; or `seed` on a thread that is not new.
        """

    async def due(self, now: float, limit: int) -> Due:
        """Runs to be claimed (queued, or waiting with a wake time that has come) and runs whose lease has passed."""

    async def wait_work(self, timeout_s: float) -> None:
        """Return when something may have become due, or after the time. A hint: early or late is allowed."""

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        """Take a ready run: status running, epoch + 1, lease until now + lease_s, `not_before` 0. Appends the event
        `claimed` {owner, epoch}. Sets `head` to the thread's head if the run has made no commit yet.

        Raises Conflict if the run is not ready (someone else was faster, or it is final), NotFound.
        """

    async def load(self, run_id: str) -> Loaded:
        """Everything to go on with, in one round trip. Raises NotFound."""

    async def commit(self, commit: Commit) -> Committed:
        """Move a run forward (law 2): checkpoint, pending writes, status, questions, events and counters at once.

        The epoch has to be the run's and the seq one more than the stored one; the same (epoch, seq) again is a
        duplicate and changes nothing. A checkpoint becomes the run's and the thread's head, and clears the pending
        writes, interrupts and answers of the superstep before. Status `waiting` puts the run to sleep until `resume`
        or `wake_at` (if an answer for one of its open interrupts is there already, it is queued at once). A final
        status releases the next run of the thread. `detected_at` becomes 0. Counts
        `checkpoint_commits_total{result="ok"|"duplicate"}`.
        Raises Fenced (also for a final run), AssertionError for a seq with a gap (a bug of ours).
        """

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        """Keep the leases on (run id, epoch) until now + lease_s; tell which are lost or to be cancelled."""

    async def requeue(
        self,
        run_id: str,
        epoch: int,
        now: float,
        not_before: float,
        events: Sequence[Event],
        counters: Counters,
        *,
        crashed: bool = True,
        quarantine: str = "",
    ) -> RunRecord:
        """Take a running run away from the owner with this epoch: epoch + 1 (its owner is fenced from here on),
        queued again and not claimed before `not_before`; with `crashed`, restarts + 1, the crash time kept and
        `detected_at` = now; with `quarantine` (the reason), set aside for good instead, as its error.

        Raises Fenced if the epoch is not the run's, or the run is not running.
        """

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        """Keep an answer (JSON) to an open interrupt, and queue the run if it waits. Appends the event
        `answered` {interrupt_id}; counts nothing.

        The first answer stands: the same answer again changes nothing, another one raises Conflict. Raises NotFound
        if the run has no such open interrupt.
        """

    async def cancel(self, run_id: str, now: float) -> RunRecord:
        """Ask to cancel: a queued or waiting run is cancelled at once (epoch + 1, event `finished`
        {status: "cancelled"}, counter `runs_finished_total{graph=...,status="cancelled"}`, kept 7 days); a running
        one gets `cancel_asked`, which its owner learns from `renew` and `commit`. A final run stays as it is."""

    # --- effects -----------------------------------------------------------------------------------------------

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        """Put an effect on record before it happens: state `started`, or `done` with an outcome (a denial).

        If the key is on record, nothing changes and the answer is that receipt, with `fresh` False - except that a
        receipt in state `unknown` is started anew (that was decided by the tool's declaration or by a person).
        Raises Fenced if the epoch is not the run's.
        """

    async def finish(
        self,
        run_id: str,
        key: str,
        checkpoint_id: str,
        token: str,
        outcome: str,
        events: Sequence[Event],
        counters: Counters,
        now: float,
    ) -> bool:
        """Write the outcome of a started effect. Not fenced by epoch: a call outlives its run actor (law 5).

        False, and no change, if the receipt is gone, is done already, or was started anew with another token.
        """

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        """Mark a started effect whose sandbox died as `unknown`. False if it is not in that start any more."""

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None: ...

    # --- reading -----------------------------------------------------------------------------------------------

    async def run(self, run_id: str) -> RunRecord:
        """Raises NotFound."""

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        """Newest first."""

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events with n > after, in order. Raises NotFound."""

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        """Checkpoints of a thread, newest first. Bodies are left empty."""

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        """From the newest snapshot at or before this checkpoint to itself, oldest first. Raises NotFound."""

    async def counts(self) -> dict[Status, int]:
        """Runs by status, every status present."""

    async def counters(self) -> dict[str, float]:
        """The sum of all counters ever given, by sample name."""

    # --- around it ---------------------------------------------------------------------------------------------

    async def put_blob(self, digest: str, data: bytes) -> None:
        """Keep bytes under their digest; the same again changes nothing."""

    async def get_blob(self, digest: str) -> bytes:
        """Raises NotFound."""

    async def beat(self, member: str, data: str, now: float) -> None:
        """A sign of life of a supervisor or daemon, with a JSON text about it."""

    async def beats(self) -> dict[str, tuple[float, str]]:
        """The last sign of each member: (time, JSON text). Members silent for a day are dropped by `sweep`."""

    async def sweep(self, now: float) -> int:
        """Delete the threads whose time has passed; the number of them."""

    async def delete_thread(self, thread_id: str) -> None:
        """Delete a thread and all of its runs; not one key stays. Raises Conflict while a run of it is not final."""

    async def info(self) -> StoreInfo: ...

    async def close(self) -> None: ...
