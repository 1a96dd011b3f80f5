"""How long the write-ahead log of a SQLite file gets, and that it has that length early.

A commit that makes a file longer waits twice as long for the disk as one that writes over what is there (ext4: 0.4 and
0.2 ms): the file system has to make its own note of the new length durable, too. SQLite begins the log anew when it
has moved it into the file, and makes it longer only in its first 1,500 commits or so; those that have a store for a
day never see it, those that have it for a minute see nothing else.
"""

import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

from understudy.cluster.stores.sqlite_base import do, roll_back

LOG_BYTES = 16_000_000
"""How long the log grows before somebody's commit moves it into the file. Hot pages are then written once for a
thousand commits."""
PAGES_MIN = 100
SHARE = 4
"""The log has at most one in so many of the bytes that are free: it holds each page as often as it was written, and
would fill a small disk with a few that change all the time. A disk that is full has no room to empty it into."""
FRAME_HEAD_BYTES = 24
LONG_ENOUGH = 0.9
SPILL_PAGES = 10


def has_no_room(error: sqlite3.Error) -> bool:
    """A quota is no full disk to SQLite, but an error like any other."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE


class Log:
    """Of the file that a connection has open."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = Path(f"{path}-wal")
        self._db = db
        self._page_bytes: int = db.execute("PRAGMA page_size").fetchone()[0]  # older files have larger ones
        self._pages = PAGES_MIN
        self._room = LOG_BYTES * SHARE
        """There is no more, as far as it was tried: what a quota leaves, the disk does not tell."""

    def size_bytes(self) -> int:
        """0 if there is none."""
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0

    def _missing(self) -> int:
        """Pages, to its full length."""
        return self._pages - self.size_bytes() // (self._page_bytes + FRAME_HEAD_BYTES)

    def bound(self) -> None:
        """As the disk is now."""
        with suppress(OSError):  # its folder was moved just now: whoever writes next is told
            there = shutil.disk_usage(self._path.parent).free + self.size_bytes()
            self._pages = max(PAGES_MIN, min(LOG_BYTES, there // SHARE, self._room // SHARE) // self._page_bytes)
        self._db.execute(f"PRAGMA wal_autocheckpoint = {self._pages}")

    def empty(self) -> bool:
        """Move all that is in it into the file, which has most of its pages already; whether that was done."""
        try:
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:  # there is no room for it, either
            return False
        self.bound()
        return not busy

    def lengthen(self) -> None:
        """Give it its full length (50 ms), by a large write that is undone: what finds no room in memory goes to the
        end of the log, and counts for nothing there. Where that cannot be done just now, it is left. Between
        transactions, on a thread that may wait."""
        self.bound()  # the disk may have been filled since
        if self._missing() < self._pages * (1 - LONG_ENOUGH):
            return
        self.empty()  # if there is no room for this, emptying it again takes none
        db, is_full = self._db, False
        kept = db.execute("PRAGMA cache_size").fetchone()[0]
        try:
            db.execute(f"PRAGMA cache_size = {SPILL_PAGES}")
            db.execute("BEGIN IMMEDIATE")
            do(db, "large_blob", self._missing() * self._page_bytes)
        except sqlite3.Error as error:  # another process writes; the disk, or what we may have of it, is full
            is_full = has_no_room(error)
        finally:
            roll_back(db)
            db.execute(f"PRAGMA cache_size = {kept}")
        if is_full:
            self._room = self.size_bytes()
            self.empty()
