"""The file of a SQLite store, and the one connection to it: opening, patience with other processes, transactions.

Nothing here knows a verb or an event loop. Whatever is called with the connection is a plain function on it.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from understudy.actors.errors import CallerError, Fenced, StoreUnavailable, UnderstudyError
from understudy.cluster.stores import sqlite_step
from understudy.cluster.stores.sqlite_base import roll_back
from understudy.cluster.stores.sqlite_log import Log, has_no_room
from understudy.cluster.stores.statements import script, split

APPLICATION_ID = 0x756E6472
"""`undr`, in the header of our files."""
SCHEMA_VERSION = 4
UPGRADES = {1: "sqlite_2.sql", 2: "sqlite_3.sql", 3: "sqlite_4.sql"}
"""From which version to the next, by which script."""
LOCKED_S = 10.0
"""How long a writer waits for its turn."""
LOOK_EVERY_S = 0.5
"""How often a writer looks whether its file is still in its place: a look can take a tenth of a commit."""
PAGE_BYTES = 2048
"""Of files that are made from now on. A commit changes about six pages, and writes them whole: SQLite's own 4096 take
10 us longer, and twice the room in the log."""
LENGTHEN_AFTER = 50
"""Commits of this process, after which it is one that writes, and the log gets its full length."""

R = TypeVar("R")


@dataclass
class Write:
    """A verb that waits for its transaction, and then what came of it."""

    verb: Callable[[sqlite3.Connection], Any]
    lazy: bool = False
    """It need not be on the disk when it is answered."""
    answer: Any = None
    error: BaseException | None = None


class SqliteFile:
    def __init__(self, path: Path, synchronous: str) -> None:
        self.path = path
        self.synchronous = synchronous
        self.locked_s = LOCKED_S
        self._db: sqlite3.Connection | None = None
        self._place = (0, 0)
        """Device and inode of the file that is open."""
        self._looked_at = 0.0
        self._log: Log | None = None
        self._commits = 0
        self._is_long = False

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None, "connect() comes first"
        return self._db

    @property
    def log(self) -> Log:
        assert self._log is not None, "connect() comes first"
        return self._log

    def close(self) -> None:
        if self._db:
            self._db.close()

    def size_bytes(self) -> int:
        """Of the file and of what is not yet merged into it."""
        return self.path.stat().st_size + self.log.size_bytes()

    def data_version(self) -> int:
        """Changes whenever another connection commits."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    # --- transactions ---

    def read(self, verb: Callable[[sqlite3.Connection], R]) -> R:
        """One snapshot for all statements of the verb."""

        def once() -> R:
            self.db.execute("BEGIN")
            try:
                return verb(self.db)
            finally:
                roll_back(self.db)

        return self._patiently(once)

    def write(self, batch: Sequence[Write]) -> None:
        """Do them in one transaction, with one wait for the disk (law 2). One that fails changes nothing, and hurts
        none of the others; each carries its answer or its error away. Raises nothing."""
        try:
            self._is_in_place()
            lazy = all(write.lazy for write in batch)
            if lazy and self.synchronous == "full":
                self.db.execute("PRAGMA synchronous = normal")
            try:
                self._patiently(lambda: self.db.execute("BEGIN IMMEDIATE"))
                self._write(batch)
            finally:
                if lazy and self.synchronous == "full":
                    self.db.execute("PRAGMA synchronous = full")
        except BaseException as error:
            for write in batch:
                write.error = write.error or error
        if self._commits >= LENGTHEN_AFTER and not self._is_long and self.synchronous == "full":
            self._is_long = True  # once: the log stays that long while anybody has the file open
            self.log.lengthen()

    def write_nowait(self, write: Write) -> bool:
        """As `write`; False if another process has its turn now, and nothing was done."""
        try:
            self._is_in_place()
            self.db.execute("BEGIN IMMEDIATE")
        except StoreUnavailable as error:
            write.error = error
            return True
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return False
            write.error = error
            return True
        try:
            self._write([write])
        except BaseException as error:
            write.error = write.error or error
        return True

    def _is_in_place(self) -> None:
        """Raises StoreUnavailable: who opens the path now finds another file or none, and SQLite would go on writing
        into the one that it has, of which nobody else knows. Looks now and then only."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        if found is not None and (found.st_dev, found.st_ino) == self._place:
            self._looked_at = now
        else:
            raise StoreUnavailable(
                f"{self.path} was moved, removed or replaced while it was open, so nothing is written to it; put it "
                f"back with its -wal, or end all that use it (`understudy down`) and start again with what is there"
            )

    def _write(self, batch: Sequence[Write]) -> None:
        """In the transaction that is open, and to its end; once more, if the disk is full and the log can be emptied.
        If it raises, all of it is undone."""
        try:
            self._try_to_write(batch)
        except sqlite3.OperationalError as error:
            if not has_no_room(error) or not self.log.empty():
                raise
            for write in batch:
                write.answer = write.error = None
            self.db.execute("BEGIN IMMEDIATE")
            self._try_to_write(batch)

    def _try_to_write(self, batch: Sequence[Write]) -> None:
        db, alone = self.db, len(batch) == 1
        try:
            for write in batch:
                if not alone:
                    db.execute("SAVEPOINT verb")
                try:
                    write.answer = write.verb(db)
                except Fenced as error:
                    write.error = error  # it has counted, see sqlite_verbs
                except BaseException as error:
                    write.error = error
                    if alone or not db.in_transaction:  # a full disk ends the transaction of all
                        raise
                    db.execute("ROLLBACK TO verb")
                if not alone:
                    db.execute("RELEASE verb")
            db.execute("COMMIT")
            self._commits += 1
        except BaseException:
            roll_back(db)
            raise

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

    def told(self, error: sqlite3.Error) -> UnderstudyError:
        """SQLite's error as one of ours: whose fault it is. Raises it if it is our own."""
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE:
            return StoreUnavailable(
                f"{self.path} cannot be written now ({error}); has its user used up a quota? It goes on by itself"
            )
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreUnavailable(f"{self.path} was locked for {self.locked_s} s by another process")
            case sqlite3.SQLITE_FULL:
                return StoreUnavailable(
                    f"no space left for {self.path}; free some on its disk, and it goes on by itself (what is in "
                    f"{self.path.name}-wal is part of it: do not delete that)"
                )
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

    def connect(self) -> None:
        """Open the file, make it if there is none, bring an older one up to date. Raises CallerError."""
        if self.path.is_dir():
            raise CallerError(f"store {self.path} is a folder; name a file in it, e.g. {self.path / 'understudy.db'}")
        try:
            _make_private(self.path)
        except OSError as error:
            raise CallerError(f"cannot make the store {self.path}: {error}; choose another --store") from None
        # timeout 0: waiting is ours, see _patiently. One thread at a time uses it: the worker's turn sees to that.
        db = sqlite3.connect(
            self.path, timeout=0.0, isolation_level=None, cached_statements=512, check_same_thread=False
        )
        self._db = db
        db.row_factory = sqlite3.Row
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        version = self.read(lambda _: self._version())  # as of one moment: somebody may be making it just now
        self._patiently(lambda: db.execute("PRAGMA journal_mode = WAL"))
        db.execute(f"PRAGMA synchronous = {self.synchronous}")
        db.execute("PRAGMA temp_store = MEMORY")
        self._log = Log(self.path, db)
        self._log.bound()
        if version != SCHEMA_VERSION:
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            try:
                self._make_or_upgrade()
                db.execute("COMMIT")
            except BaseException:
                roll_back(db)
                raise
        sqlite_step.prepare(db)
        found = os.stat(self.path)  # now that it is open: on an overlay, that may have copied it
        self._place = (found.st_dev, found.st_ino)

    def _make_or_upgrade(self) -> None:
        """In a transaction, so that of several who open it at once the first does it, and the others find it done."""
        version = self._version()
        while version != SCHEMA_VERSION:
            for statement in split(script(UPGRADES.get(version, "sqlite_schema.sql"))):
                self.db.execute(statement)
            version = version + 1 if version else SCHEMA_VERSION
            self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self.db.execute(f"PRAGMA user_version = {version}")

    def _version(self) -> int:
        """Of the schema; 0 if there is nothing yet. Raises CallerError if it is not ours, or newer; nothing is touched
        then."""
        owner = self.db.execute("PRAGMA application_id").fetchone()[0]
        version = int(self.db.execute("PRAGMA user_version").fetchone()[0])
        tables = self.db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not owner and not tables:
            return 0
        if owner != APPLICATION_ID:
            raise CallerError(f"{self.path} is another program's database; choose another file")
        if version != SCHEMA_VERSION and version not in UPGRADES:
            raise CallerError(
                f"{self.path} has schema version {version}, this understudy knows {SCHEMA_VERSION}; "
                f"upgrade understudy, or choose another file"
            )
        return version


def parsed(url: str) -> tuple[Path, str]:
    """Path and `synchronous` of a sqlite:// URL. Raises CallerError."""
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
