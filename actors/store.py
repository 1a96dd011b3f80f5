"""A store keeps runs so that one owner at a time moves each forward; it is whatever passes the conformance suite.

The suite is `understudy.cluster.testing.conformance`, and memory.py the store that reads like this text.

Laws kept here (numbers as in the design):
1. One owner. Every write to a run carries an epoch; one that is not the run's current epoch raises `Fenced`, changes
   nothing but the counter `fence_rejections_total{op=...}`.
2. One commit. Each verb is atomic: all of it or nothing, in one round trip. `create`, `commit`, `begin`, `finish`,
   `requeue`, `resume`, `cancel`, `retry`, `send`, `adopt` and the verbs of documents may be sent twice (a client that
   lost the reply sends again) and apply once; the second answer may then be that of the state it finds (`requeue`:
   Fenced, `finish`: False).
8. Bounded. Whatever is written belongs to a thread, and `sweep` and `delete_thread` leave nothing of it behind; apart
   from documents, which whoever writes them erases.
9. Crash-only. A store may be closed by SIGKILL at any line; opening it is all the recovery there is.

A run that becomes final, by any verb, gives its lease back, releases the next run of its thread, and sets how long the
thread is kept: by `retain_s` of the commit, else 7 days. The last run of a thread decides; while one is unfinished the
thread is not swept. Receipts stay as long as their checkpoint. One that succeeded or was cancelled loses its pending
writes, interrupts, answers and mailbox; one that failed or was quarantined keeps them, for `retry`. A cancelled run
with `rollback` that has made a checkpoint sets the head of its thread back to its `base`.

If a run that becomes final has a parent that is not final, the end is an answer to the parent's interrupt
`parent_interrupt`, whether it is open yet or not: JSON `{"status": ..., "error": ..., "result": ...}` (see
`refusals.child_answer`), kept unless there is one already, with the event `answered` {interrupt_id} in the parent's
log. A parent that waits with that interrupt open becomes ready. In the same move; parent and child share a partition.

Only these verbs set `updated_at` of a run (to `now` or the commit's `at`): create, claim, commit, requeue, resume,
cancel and retry. Whoever owns a run that was deleted meanwhile is told Fenced, not NotFound.

All verbs are coroutines and may be called from one event loop at a time. Times are seconds since the epoch and come
from the caller; clocks of clients and supervisors should agree to within a second or so. A store that does not answer
raises `StoreUnavailable` after having tried again itself for a while.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.actors.documents import Document
from understudy.actors.records import (
    Begun,
    CheckpointRow,
    Chunk,
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
    ThreadDump,
)

MAILBOX_MAX = 10_000
CHUNKS_MAX = 10_000
BLOB_KEPT_S = 86400.0
OPENING_S = 10.0
"""How long the server of a store that is being opened may take to answer, unless said otherwise: no run is under way
yet, its address may be wrong, and a person may be waiting."""


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
        Sending the same run_id again returns the stored run (before anything else is looked at). Until a claim, `head`
        is empty, or the seed's id. Thread ids and keys are any text. With `busy` other than enqueue, and unfinished
        runs on the thread: `reject` raises Conflict; `interrupt` does what `cancel` does to each of them; `rollback` as
        well, and sets their `rollback`.
        Raises Fenced: the parent is not running with `parent_epoch`, if that is not 0 (law 1). Conflict: the key
        belongs to a run with another digest; `seed` on a thread that is not new; `reject`.
        """

    async def due(self, now: float, limit: int) -> Due:
        """Runs to be claimed (queued, or waiting with a wake time that has come) and runs whose lease has passed.

        Each at most `limit`. Oldest first: by the time at which a run became ready (`create`, release by the run before
        it, `not_before`, wake time, answer), the overdue by `lease_until`; then by run id. A time that equals now has
        come.
        """

    async def wait_work(self, timeout_s: float) -> None:
        """Return when something may have become due, or after the time. A hint: early or late is allowed."""

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        """Take a ready run: status running, epoch + 1, lease until now + lease_s, `not_before` 0. Appends the event
        `claimed` {owner, epoch}. Sets `head` and `base` to the thread's head if the run has made no commit yet.

        Raises Conflict if the run is not ready (someone else was faster, or it is final), NotFound.
        """

    async def load(self, run_id: str) -> Loaded:
        """Everything to go on with, in one round trip. Raises NotFound.

        The chain belongs to the run's `head`; writes and receipts are those of this run only.
        """

    async def commit(self, *commits: Commit) -> Committed:
        """Move a run forward (law 2): checkpoint, pending writes, status, questions, events and counters at once.

        Several commits are one run's, and follow one another: one round trip, in order, each whole or not at all, none
        after one that was refused. The answer is the last one's. Sent again as they were, those that were applied are
        duplicates: if the stored (epoch, seq) is among them, it and the ones before it.

        The epoch has to be the run's and the seq one more than the stored one; the same (epoch, seq) again is a
        duplicate and changes nothing. A checkpoint becomes the run's and the thread's head, and clears the pending
        writes, interrupts and answers of the superstep before. Status `waiting` puts the run to sleep until `resume`
        or `wake_at` (if an answer for one of its open interrupts is there already, or someone asked to cancel, it is
        queued at once). A final status releases the next run of the thread. `detected_at` becomes 0, `result` and
        `error` what the commit says. Counts `checkpoint_commits_total{result="ok"|"duplicate"}`.
        With status running and no checkpoint, interrupts stay as they are. `writes` that come with a checkpoint belong
        to the superstep that it ends, and are not kept. A duplicate is told even after the status it brought.
        `taken` messages leave the mailbox. With status waiting and `listens_after`, a message with a larger n that is
        there already queues the run at once, and one that comes later does then.
        Raises Fenced (also for a run that is not running), AssertionError for a seq with a gap, or one that an earlier
        owner used (a bug of ours).
        """

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        """Keep the leases on (run id, epoch) until now + lease_s; tell which are lost or to be cancelled, in order.

        Lost: another epoch, or no such run; each counts as a fence rejection with op="renew". A run that this very
        owner gave back (the same epoch, not running any more) is in neither list, and its lease is not kept.
        """

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
        `detected_at` = now; with `quarantine` (the reason), set aside for good instead, as its error. Everything else
        stays: seq, head, pending writes, interrupts, answers, `cancel_asked`.

        Raises Fenced if the epoch is not the run's, or the run is not running.
        """

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        """Keep an answer (JSON) to an open interrupt, and queue the run if it waits. Appends the event
        `answered` {interrupt_id}; counts nothing.

        The first answer stands: the same answer (text) again changes nothing, another one raises Conflict. Raises
        NotFound if the run has no such open interrupt: one that is stored with it and not `settled`; a final run has
        none. A run may be answered while it is queued or running; a waiting one becomes ready now, its `not_before` 0.
        """

    async def cancel(self, run_id: str, now: float, parent_epoch: int = 0) -> RunRecord:
        """Ask to cancel: a queued or waiting run is cancelled at once (epoch + 1, event `finished`
        {status: "cancelled"}, counter `runs_finished_total{graph=...,status="cancelled"}`, kept 7 days); a running
        one gets `cancel_asked`, which its owner learns from `renew` and `commit`, and, the first time, the event
        `cancel_asked` {}. A final run stays as it is. `cancel_asked` is set in both.
        Raises NotFound; Fenced: the run's parent is not running with `parent_epoch`, if that is not 0 (law 1).
        """

    async def retry(self, run_id: str, now: float) -> RunRecord:
        """Take a failed or quarantined run up again from its head: queued, epoch + 1, `error` empty, `crashes` empty;
        pending writes, interrupts and answers as they were. Appends the event `retried` {}. The thread is kept.

        A run that is not final stays as it is. Raises NotFound; Conflict: it succeeded or was cancelled; its thread has
        an unfinished run; or the thread's head is not the run's any more (another run went on: fork instead).
        """

    # --- messages and streams ------------------------------------------------------------------------------------

    async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
        """Put a message (JSON) into the mailbox of a run, behind the others; its n. The same message_id again changes
        nothing, also after it was taken. Appends the event `message` {n, message_id}. A run that waits and listens (see
        `commit`) becomes ready, its `not_before` 0.
        Raises NotFound; Fenced: the run's parent is not running with `parent_epoch`, if that is not 0 (law 1);
        Conflict: the run is final, or its mailbox holds `MAILBOX_MAX` messages.
        """

    async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
        """Append chunks (law 1: of the owner only). Cheap: they may be lost with the store's process, and only the last
        `CHUNKS_MAX` of a run are kept. Raises Fenced: not the run's epoch, or the run is not running; counts nothing.
        """

    async def chunks(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Chunk]:
        """Chunks with n > after, in order; from the oldest that is kept. Raises NotFound."""

    # --- effects -----------------------------------------------------------------------------------------------

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        """Put an effect on record before it happens: state `started`, or `done` with an outcome (a denial, a person's
        answer, what a fork takes from its origin; also that a deadline has passed).

        On record is what has the same run, key and checkpoint. If the key is on record, nothing changes and the answer
        is that receipt, with `fresh` False - except that a receipt in state `unknown` is replaced: started anew, or
        done (its declaration, the other side or a person has decided that). The very same begin sent again (same token)
        changes nothing, whatever has become of it: `fresh` as it was the first time while the state is the one that it
        brought, and not any more once it has ended or was given up. The receipt is kept as given.
        Raises Fenced if the epoch is not the run's, or the run is not running.
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

        False, and no change, if the receipt is gone (with its thread), is done already, or was started anew with
        another token. One marked unknown takes the outcome of the same start: late knowledge is knowledge. `at` of the
        receipt stays the time of its start.
        """

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        """Mark a started effect whose sandbox died as `unknown`. False if it is not in that start any more."""

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        """The record of one effect; None if there is none, or no such run."""

    async def receipts(self, run_id: str) -> list[Receipt]:
        """All receipts of a run, oldest first (by `at`, then key, then checkpoint id). Empty for an unknown run."""

    # --- reading -----------------------------------------------------------------------------------------------

    async def run(self, run_id: str) -> RunRecord:
        """Raises NotFound."""

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        """Newest first, by `created_at`, then run id."""

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events with n > after, in order. Raises NotFound."""

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        """Checkpoints of a thread, newest (last stored) first. Bodies are left empty. Empty for an unknown thread."""

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        """What this checkpoint is restored from: itself, what that is a difference to (`NewCheckpoint.since`, or else
        its parent), and so on to a snapshot; oldest first. Raises NotFound."""

    async def counts(self) -> dict[Status, int]:
        """Runs by status, every status present."""

    async def counters(self) -> dict[str, float]:
        """The sum of all counters ever given, by sample name."""

    # --- around it ---------------------------------------------------------------------------------------------

    async def put_blob(self, digest: str, data: bytes, now: float) -> None:
        """Keep bytes under their digest; the same again changes only the time at which it was put last."""

    async def get_blob(self, digest: str) -> bytes:
        """Raises NotFound."""

    async def beat(self, member: str, data: str, now: float) -> None:
        """A sign of life of a supervisor or daemon, with a JSON text about it."""

    async def beats(self) -> dict[str, tuple[float, str]]:
        """The last sign of each member: (time, JSON text). Members silent for a day are dropped by `sweep`."""

    async def sweep(self, now: float) -> int:
        """Delete the threads whose time has passed; the number of them. Drops silent members, see `beats`, and blobs
        that no run names and that were put last `BLOB_KEPT_S` ago or more (law 8)."""

    async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
        """Delete these checkpoints with the receipts that hang on them; the number of them. The caller knows that no
        chain needs them (`policies.retention`). Those that are the thread's head, or the head or base of an unfinished
        run, are kept."""

    async def delete_thread(self, thread_id: str) -> None:
        """Delete a thread and all of its runs; not one key stays. Raises Conflict while a run of it is not final.

        A thread that is not there is deleted already: no error.
        """

    # --- documents -----------------------------------------------------------------------------------------------

    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        """Write the next version, `over` + 1, if the present one is `over` (0: there is none); that version.

        The very same write again (these bytes are there as version `over` + 1) changes nothing and is answered alike.
        It is durable when it is answered. One that was erased starts anew at version 1.
        Raises Overtaken, a Conflict with what there is now: another version. CallerError: more than
        `DOCUMENT_BYTES_MAX` bytes, or a name that cannot be kept.
        """

    async def read_document(self, shelf: str, name: str) -> Document | None:
        """None if there is none."""

    async def documents(self, shelf: str, after: str = "", limit: int = 100, *, last: bool = False) -> list[Document]:
        """The first ones behind `after`, at most `limit`, in the order of the UTF-8 bytes of their names; with `last`,
        the last ones of those, in the same order. All as of one moment."""

    async def erase_document(self, shelf: str, name: str, over: int) -> None:
        """Erase it if its version is `over`; one that is not there is erased already. Raises Overtaken."""

    async def shelves(self) -> dict[str, int]:
        """How many documents there are, by shelf; an empty shelf is none."""

    async def adopt_document(self, shelf: str, document: Document) -> bool:
        """Take a document from another store over, version included. False, and no change, if there is one."""

    # --- from one store to another -------------------------------------------------------------------------------

    async def threads(self, after: str = "", limit: int = 1000) -> list[str]:
        """Ids of all threads, in the order of their UTF-8 bytes, from behind `after`."""

    async def dump(self, thread_id: str) -> ThreadDump:
        """All there is of a thread but its chunks, as of one moment. Raises NotFound."""

    async def adopt(self, dump: ThreadDump) -> bool:
        """Take a thread from another store over as it is, ids, epochs and leases included; counts nothing. False, and
        no change, if a thread of this id is there already."""

    async def blobs(self) -> list[str]:
        """Digests of all blobs."""

    async def count(self, counters: Counters) -> None:
        """Add to the counters, as every verb does that is given some."""

    async def info(self) -> StoreInfo: ...

    async def close(self) -> None: ...
