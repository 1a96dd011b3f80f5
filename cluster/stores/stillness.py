"""Whether a file was written to, told by its times: a hundredth of what it takes to ask SQLite."""

import os
import time
from pathlib import Path

COARSE_NS = 100_000_000
"""Times of files are those of a clock that ticks every 1 to 10 ms. Two writes in one tick look like one: so a file that
was written just now is not believed to be still."""
SECOND_NS = 1_000_000_000
WHOLE_NS = 2 * SECOND_NS
"""Some filesystems (ext3, ext4 with small inodes, FAT) know whole seconds or pairs of them only."""


class Stillness:
    """Of one file, for one reader who reads whenever it may have changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int, int] | None = None
        """What the file was when it was last read, if nothing can have been written in that tick since."""

    def may_have_changed(self) -> bool:
        """Whether it has to be read now; this counts as having read it."""
        try:
            found = os.stat(self._path)
        except OSError:
            self._read = None
            return True
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._read:
            return False
        tick_ns = COARSE_NS if found.st_mtime_ns % SECOND_NS else WHOLE_NS + COARSE_NS
        self._read = seen if time.time_ns() - found.st_mtime_ns > tick_ns else None
        return True

    def was_not_read(self) -> None:
        """After all: whoever was to read it was cut off."""
        self._read = None
