"""A store in one SQLite file: every verb is one transaction, on the one thread that has the connection.

For one machine. Several processes share the file (write-ahead log; writers take turns, readers never wait). Laws:
1. `BEGIN IMMEDIATE` comes before the epoch is read, so nobody can take the run between the look and the write.
2. A verb is answered after its COMMIT. With `synchronous=full`, the default, that is on the disk; with
   `?synchronous=normal` the last commits may be lost in a power cut, never in a crash of a process, and are never torn.
9. There is nothing to recover: SQLite rolls back what a killed process left.
10. A process that is stopped in the middle of a write holds the turn of all: the others get StoreUnavailable after
   `LOCKED_S`, until the supervisor that misses its progress kills it.

URL: `sqlite:///var/lib/understudy.db` is always an absolute path (workers have other working directories), taken as it
is up to a `?`. The folder has to be a local one; network filesystems break SQLite's locks.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import parse_qsl

from understudy.actors.bell import Bell
from understudy.actors.errors import CallerError, Fenced, StoreUnavailable, UnderstudyError
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
from understudy.actors.store import StoreInfo
from understudy.cluster.stores import sqlite_verbs as verbs
from understudy.cluster.stores.statements import script
from understudy.cluster.stores.worker import Worker

APPLICATION_ID = 0x756E6472
"""`undr`, in the header of our files."""
SCHEMA_VERSION = 1
LOCKED_S = 10.0
"""How long a writer waits for its turn."""
POLL_S = 0.01
"""How often `wait_work` looks whether another process has committed."""
SWEEP_BATCH = 20
WAL_PAGES = 4000
"""How long the write-ahead log grows (16 MB) before somebody's commit moves it into the file. Hot pages are then
written once for some 500 commits; with SQLite's 1000 it is every 125."""

P = ParamSpec("P")
R = TypeVar("R")


class SqliteStore:
    def __init__(self, path: Path, synchronous: str = "full", locked_s: float = LOCKED_S) -> None:
        self.path = path
        self.synchronous = synchronous
        self.locked_s = locked_s
        self._worker = Worker(f"the store {path}")
        self._db: sqlite3.Connection | None = None
        self._bell = Bell()
        self._seen = -1
        """`PRAGMA data_version` of the last look: another one means that somebody else committed."""

    @classmethod
    async def open(cls, url: str) -> Self:
        """Raises CallerError (not our database, a newer one, a folder that cannot be written), StoreUnavailable."""
        path, synchronous = _parsed(url)
        store = cls(path, synchronous)
        try:
            await store._do(store._connect)
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
        return await self._read(verbs.due, now, limit)

    async def wait_work(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while True:
            version = await self._do(self._data_version)
            if version != self._seen:
                self._seen = version
                return
            left = until - time.monotonic()
            if left <= 0 or await self._bell.wait(min(left, POLL_S)):
                return

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        return await self._write(verbs.claim, run_id, owner, lease_s, now)

    async def load(self, run_id: str) -> Loaded:
        return await self._read(verbs.load, run_id)

    async def commit(self, commit: Commit) -> Committed:
        try:
            done = self._worker.do_here(lambda: self._commit_now(commit))
        except sqlite3.Error as error:
            raise self._told(error) from error
        committed, may_be_ready = done if done is not None else await self._write(verbs.commit, commit)
        if may_be_ready:
            self._bell.ring()
        return committed

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

    async def cancel(self, run_id: str, now: float) -> RunRecord:
        run = await self._write(verbs.cancel, run_id, now)
        self._bell.ring()
        return run

    # --- effects ---

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        return await self._write(verbs.begin, receipt, epoch, events, counters)

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
        return await self._write(verbs.end_effect, "finish", values, events, counters)

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        values = {"run_id": run_id, "key": key, "checkpoint_id": checkpoint_id, "token": token}
        return await self._write(verbs.end_effect, "forget", values, events, counters)

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        return await self._read(verbs.find_receipt, run_id, key, checkpoint_id)

    # --- reading ---

    async def run(self, run_id: str) -> RunRecord:
        return await self._read(verbs.record, run_id)

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        return await self._read(verbs.runs, status, limit, thread_id)

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        return await self._read(verbs.events, run_id, after, limit)

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        return await self._read(verbs.history, thread_id, limit)

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        return await self._read(verbs.chain, thread_id, checkpoint_id)

    async def counts(self) -> dict[Status, int]:
        return await self._read(verbs.counts)

    async def counters(self) -> dict[str, float]:
        return await self._read(verbs.all_counters)

    # --- around it ---

    async def put_blob(self, digest: str, data: bytes) -> None:
        await self._write(verbs.put_blob, digest, data)

    async def get_blob(self, digest: str) -> bytes:
        return await self._read(verbs.get_blob, digest)

    async def beat(self, member: str, data: str, now: float) -> None:
        await self._write(verbs.beat, member, data, now)

    async def beats(self) -> dict[str, tuple[float, str]]:
        return await self._read(verbs.beats)

    async def sweep(self, now: float) -> int:
        swept = 0
        while True:
            batch = await self._write(verbs.sweep_some, now, SWEEP_BATCH)
            swept += batch
            if batch < SWEEP_BATCH:
                return swept

    async def delete_thread(self, thread_id: str) -> None:
        await self._write(verbs.delete_thread, thread_id)

    async def info(self) -> StoreInfo:
        detail = {
            "synchronous": self.synchronous,
            "sqlite": sqlite3.sqlite_version,
            "bytes": str(self.path.stat().st_size),
        }
        if self.synchronous != "full":
            detail["note"] = "the last commits may be lost in a power cut; leave ?synchronous= out to keep them"
        return StoreInfo("sqlite", f"sqlite://{self.path}", durable=self.synchronous == "full", detail=detail)

    async def close(self) -> None:
        def close() -> None:
            if self._db:
                self._db.close()

        if not self._worker.closed:
            await self._worker.do(close)
            self._worker.close_nowait()

    def _commit_now(self, commit: Commit) -> tuple[Committed, bool] | None:
        """A commit in the caller's thread, which blocks its loop for as long as the disk takes; None if another process
        has the file, for waiting is the thread's. The way to the thread and back costs as much as the commit itself,
        and the run whose commit it is has nothing else to do meanwhile. (Leases are renewed on a loop of their own.)"""
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return None
            raise
        return _finished(db, lambda: verbs.commit(db, commit))

    # --- on the thread ---

    async def _do(self, function: Callable[[], R]) -> R:
        try:
            return await self._worker.do(function)
        except sqlite3.Error as error:
            raise self._told(error) from error

    async def _write(
        self, verb: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        def write() -> R:
            db = self._connection()
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            return _finished(db, lambda: verb(db, *args, **kwargs))

        return await self._do(write)

    async def _read(
        self, verb: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        def read() -> R:
            db = self._connection()
            db.execute("BEGIN")  # one snapshot for all statements of the verb
            try:
                return verb(db, *args, **kwargs)
            finally:
                _roll_back(db)

        return await self._do(lambda: self._patiently(read))

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None, "open() comes first"
        return self._db

    def _data_version(self) -> int:
        return int(self._connection().execute("PRAGMA data_version").fetchone()[0])

    def _patiently(self, step: Callable[[], R]) -> R:
        """Do what needs a lock. SQLite's own busy handler sleeps up to 100 ms at a time, which with some dozens of
        workers is what their commits would then take; so this one looks again sooner."""
        until = time.monotonic() + self.locked_s
        pause_s = 0.0002
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 1.5, 0.005)

    def _told(self, error: sqlite3.Error) -> UnderstudyError:
        """SQLite's error as one of ours: whose fault it is."""
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreUnavailable(f"{self.path} was locked for {self.locked_s} s by another process")
            case sqlite3.SQLITE_FULL:
                return StoreUnavailable(f"no space left for {self.path}; free some and it goes on by itself")
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
                return StoreUnavailable(f"{self.path} cannot be read or written now: {error}")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return CallerError(f"{self.path} cannot be written by this user ({error}); choose another --store")
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                return CallerError(
                    f"{self.path} is no SQLite database, or a damaged one ({error}); choose another file"
                )
        raise error

    # --- opening ---

    def _connect(self) -> None:
        try:
            _make_private(self.path)
        except OSError as error:
            raise CallerError(f"cannot make the store {self.path}: {error}; choose another --store") from None
        # timeout 0: waiting is ours, see _patiently. One thread at a time uses it: the worker's turn sees to that.
        db = sqlite3.connect(
            self.path, timeout=0.0, isolation_level=None, cached_statements=256, check_same_thread=False
        )
        self._db = db
        db.row_factory = sqlite3.Row
        fresh = self._patiently(lambda: self._is_fresh(db))
        self._patiently(lambda: db.execute("PRAGMA journal_mode = WAL"))
        db.execute(f"PRAGMA synchronous = {self.synchronous}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        if fresh:
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            if self._is_fresh(db):  # nobody was faster
                for statement in _split(script("sqlite_schema.sql")):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        self._seen = self._data_version()

    def _is_fresh(self, db: sqlite3.Connection) -> bool:
        """Whether there is nothing yet. Raises CallerError if it is not ours; nothing is touched then."""
        owner = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not owner and not tables:
            return True
        if owner != APPLICATION_ID:
            raise CallerError(f"{self.path} is another program's database; choose another file")
        if version != SCHEMA_VERSION:
            raise CallerError(
                f"{self.path} has schema version {version}, this understudy knows {SCHEMA_VERSION}; "
                f"upgrade understudy, or choose another file"
            )
        return False


def _parsed(url: str) -> tuple[Path, str]:
    location, _, query = url.removeprefix("sqlite://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full").lower()
    if options or synchronous not in ("full", "normal"):
        raise CallerError(f"store {url!r}: its only option is synchronous, full (the default) or normal")
    if not location.strip("/") or not location.startswith("/"):
        raise CallerError(f"store {url!r} names no file; write sqlite:///an/absolute/path.db")
    return Path("/" + location.lstrip("/")), synchronous


def _make_private(path: Path) -> None:
    """The folders down to the file, and the file, for this user only: it holds what agents know."""
    for folder in reversed([folder for folder in path.parents if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):  # SQLite gives its -wal and -shm the mode of the file
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _finished(db: sqlite3.Connection, verb: Callable[[], R]) -> R:
    """Do the verb in the transaction that is open, and end it."""
    try:
        answer = verb()
        db.execute("COMMIT")
    except Fenced:
        db.execute("COMMIT")  # its counter, see sqlite_verbs
        raise
    except BaseException:
        _roll_back(db)
        raise
    return answer


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:  # a full disk may have ended it already
        db.execute("ROLLBACK")


def _split(text: str) -> list[str]:
    """The statements of a script; `executescript` would commit the transaction first."""
    found, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found
