"""A store in one SQLite file: every verb is atomic in a transaction, on the one thread that has the connection.

For one machine. Several processes share the file (write-ahead log; writers take turns, readers never wait). Laws:
1. `BEGIN IMMEDIATE` comes before the epoch is read, so nobody can take the run between the look and the write.
2. A verb is answered after its COMMIT. With `synchronous=full`, the default, that is on the disk; with
   `?synchronous=normal` the last commits may be lost in a power cut, never in a crash of a process, and are never torn.
   Verbs that wait at the same time share one transaction, and so one wait for the disk.
9. There is nothing to recover: SQLite rolls back what a killed process left.
10. A process that is stopped in the middle of a write holds the turn of all: the others get StoreUnavailable after
   `LOCKED_S`, until the supervisor that misses its progress kills it.

URL: `sqlite:///var/lib/understudy.db` is always an absolute path (workers have other working directories), taken as it
is up to a `?`. The folder has to be a local one; network filesystems break SQLite's locks.
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from understudy.actors.bell import Bell
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
from understudy.actors.store import StoreInfo
from understudy.cluster.stores import sqlite_base, sqlite_effects, sqlite_moves, sqlite_reads
from understudy.cluster.stores import sqlite_verbs as verbs
from understudy.cluster.stores.sqlite_documents import SqliteDocuments
from understudy.cluster.stores.sqlite_file import SqliteFile, Write, parsed
from understudy.cluster.stores.stillness import Stillness
from understudy.cluster.stores.worker import Worker

POLL_S = 0.01
"""How often `wait_work` looks whether another process has committed."""
SWEEP_BATCH = 20
TOGETHER_MAX = 64
"""Verbs in one transaction; then other processes have their turn."""
ALONE_ENOUGH = 3
ALONE_PROBED = 16

P = ParamSpec("P")
R = TypeVar("R")


class SqliteStore(SqliteDocuments):
    def __init__(self, path: Path, synchronous: str = "full") -> None:
        self.file = SqliteFile(path, synchronous)
        self._worker = Worker(f"the store {path}")
        self._bell = Bell()
        self._log = Stillness(Path(f"{path}-wal"))
        self._seen = -1
        """`data_version` at the last look: another one means that somebody else committed."""
        self._waiting: deque[Write] = deque()
        self._alone = 0
        """Commits in a row that went to the disk with no other."""

    @classmethod
    async def open(cls, url: str) -> Self:
        """Raises CallerError (not our database, a newer one, a folder that cannot be written), StoreUnavailable."""
        store = cls(*parsed(url))
        try:
            await store._do(store.file.connect)
            store._seen = await store._do(store.file.data_version)
        except BaseException:
            await store.close()
            raise
        return store

    # --- the life of a run ---

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        made = await self._write(verbs.create, run, events, counters, now)
        self._bell.ring()
        return made

    async def due(self, now: float, limit: int) -> Due:
        return await self._read(sqlite_reads.due, now, limit)

    async def wait_work(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while True:
            if self._log.may_have_changed():
                try:
                    version = await self._do(self.file.data_version)
                except BaseException:  # also of who is cancelled: what was there to see is seen by the next
                    self._log.was_not_read()
                    raise
                if version != self._seen:
                    self._seen = version
                    return
            left = until - time.monotonic()
            if left <= 0 or await self._bell.wait(min(left, POLL_S)):
                return

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        return await self._write(verbs.claim, run_id, owner, lease_s, now)

    async def load(self, run_id: str) -> Loaded:
        return await self._do(lambda: self.file.read(lambda db: sqlite_reads.load(db, run_id)), may_be_here=True)

    async def commit(self, *commits: Commit) -> Committed:
        if len(commits) > 1:
            self._alone = 0
        told, may_be_ready = await self._write(verbs.commit, commits)
        if may_be_ready:
            self._bell.ring()
        if not isinstance(told, Committed):
            raise told
        return told

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        return await self._write(verbs.renew, leases, lease_s, now) if leases else Renewed((), ())

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
        run = await self._write(verbs.requeue, run_id, epoch, now, not_before, events, counters, crashed, quarantine)
        self._bell.ring()
        return run

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        run = await self._write(verbs.resume, run_id, interrupt_id, answer, now)
        self._bell.ring()
        return run

    async def cancel(self, run_id: str, now: float, parent_epoch: int = 0) -> RunRecord:
        run = await self._write(verbs.cancel, run_id, now, parent_epoch)
        self._bell.ring()
        return run

    async def retry(self, run_id: str, now: float) -> RunRecord:
        run = await self._write(verbs.retry, run_id, now)
        self._bell.ring()
        return run

    # --- messages and streams ---

    async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
        n, wakes = await self._write(sqlite_effects.send, run_id, message_id, body, now, parent_epoch)
        if wakes:
            self._bell.ring()
        return n

    async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
        write = Write(lambda db: sqlite_effects.stream(db, run_id, epoch, chunks), lazy=True)
        await self._queue(write)
        self._answer_of(write)

    async def chunks(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Chunk]:
        return await self._read(sqlite_reads.chunks, run_id, after, limit)

    # --- effects ---

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        return await self._write(sqlite_effects.begin, receipt, epoch, events, counters)

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
        values = {"run_id": run_id, "key": key, "checkpoint_id": checkpoint_id, "token": token, "outcome": outcome}
        return await self._write(sqlite_effects.end_effect, "finish", values, events, counters)

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        values = {"run_id": run_id, "key": key, "checkpoint_id": checkpoint_id, "token": token}
        return await self._write(sqlite_effects.end_effect, "forget", values, events, counters)

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        return await self._read(sqlite_effects.find_receipt, run_id, key, checkpoint_id)

    async def receipts(self, run_id: str) -> list[Receipt]:
        return await self._read(sqlite_reads.receipts, run_id)

    # --- reading ---

    async def run(self, run_id: str) -> RunRecord:
        return await self._read(sqlite_base.record, run_id)

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        return await self._read(sqlite_reads.runs, status, limit, thread_id)

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        return await self._read(sqlite_reads.events, run_id, after, limit)

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        return await self._read(sqlite_reads.history, thread_id, limit)

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        return await self._read(sqlite_reads.chain, thread_id, checkpoint_id)

    async def counts(self) -> dict[Status, int]:
        return await self._read(sqlite_reads.counts)

    async def counters(self) -> dict[str, float]:
        return await self._read(sqlite_reads.all_counters)

    # --- around it ---

    async def put_blob(self, digest: str, data: bytes, now: float) -> None:
        await self._write_long(sqlite_moves.put_blob, digest, data, now)

    async def get_blob(self, digest: str) -> bytes:
        return await self._read(sqlite_moves.get_blob, digest)

    async def beat(self, member: str, data: str, now: float) -> None:
        await self._write(sqlite_moves.beat, member, data, now)

    async def beats(self) -> dict[str, tuple[float, str]]:
        return await self._read(sqlite_moves.beats)

    async def sweep(self, now: float) -> int:
        swept = 0
        while True:
            batch = await self._write_long(sqlite_moves.sweep_some, now, SWEEP_BATCH)
            swept += batch
            if batch < SWEEP_BATCH:
                return swept

    async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
        return await self._write_long(sqlite_moves.prune, thread_id, checkpoint_ids)

    async def delete_thread(self, thread_id: str) -> None:
        await self._write_long(sqlite_moves.delete_thread, thread_id)

    # --- from one store to another ---

    async def threads(self, after: str = "", limit: int = 1000) -> list[str]:
        return await self._read(sqlite_moves.threads, after, limit)

    async def dump(self, thread_id: str) -> ThreadDump:
        return await self._read(sqlite_moves.dump, thread_id)

    async def adopt(self, dump: ThreadDump) -> bool:
        adopted = await self._write_long(sqlite_moves.adopt, dump)
        self._bell.ring()
        return adopted

    async def blobs(self) -> list[str]:
        return await self._read(sqlite_moves.blobs)

    async def count(self, counters: Counters) -> None:
        await self._write(sqlite_base.count, counters)

    async def info(self) -> StoreInfo:
        synchronous, path = self.file.synchronous, self.file.path
        detail = {"synchronous": synchronous, "sqlite": sqlite3.sqlite_version, "bytes": str(self.file.size_bytes())}
        if synchronous != "full":
            detail["note"] = "the last commits may be lost in a power cut; leave ?synchronous= out to keep them"
        return StoreInfo("sqlite", f"sqlite://{path}", durable=synchronous == "full", detail=detail)

    async def close(self) -> None:
        if not self._worker.closed:
            await self._worker.do(self.file.close)
            self._worker.close_nowait()

    # --- the way to the file ---

    def _is_alone(self) -> bool:
        """Whether to write in the caller's own thread, which blocks its loop for as long as the disk takes. The way to
        the worker's thread and back costs as much as a commit itself, and a run that waits for its commit has nothing
        else to do. But where there are others, they go on meanwhile and their writes come together: so it is tried now
        and then whether there are. (Leases are renewed on a loop of their own.)"""
        self._alone += 1
        return self._alone > ALONE_ENOUGH and self._alone % ALONE_PROBED != 0

    async def _write(
        self, verb: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        write = Write(lambda db: verb(db, *args, **kwargs))
        if not (self._is_alone() and self._worker.do_here(lambda: self.file.write_nowait(write))):
            await self._queue(write)
        answer: R = self._answer_of(write)
        return answer

    async def _write_long(
        self, verb: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `_write`, where it is about much or many: never in the caller's thread."""
        write = Write(lambda db: verb(db, *args, **kwargs))
        await self._queue(write)
        answer: R = self._answer_of(write)
        return answer

    async def _queue(self, write: Write) -> None:
        """Have it done on the thread, with whatever else waits when its turn comes."""
        self._waiting.append(write)
        await self._do(self._write_waiting)

    def _write_waiting(self) -> None:
        """On the thread, once for each that was queued; an earlier call may have taken it along."""
        together: list[Write] = []
        while self._waiting and len(together) < TOGETHER_MAX:
            together.append(self._waiting.popleft())
        if len(together) > 1:
            self._alone = 0
        if together:
            self.file.write(together)

    def _answer_of(self, write: Write) -> Any:
        if isinstance(write.error, sqlite3.Error):
            raise self.file.told(write.error) from write.error
        if write.error is not None:
            raise write.error
        return write.answer

    async def _read(
        self, verb: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        return await self._do(lambda: self.file.read(lambda db: verb(db, *args, **kwargs)))

    async def _do(self, function: Callable[[], R], *, may_be_here: bool = False) -> R:
        try:
            here = self._worker.do_here(function) if may_be_here and self._alone > ALONE_ENOUGH else None
            if here is not None:
                return here
            return await self._worker.do(function)
        except sqlite3.Error as error:
            raise self.file.told(error) from error
