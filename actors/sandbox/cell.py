"""A cgroup that bounds the memory of one call as a whole, while the call lasts; then that of another one.

To make one and remove it takes a tenth of what a warm call does, so those that are found empty, and hold no memory of
the call before, are kept for the next ones.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.folders import worker
from understudy.policies.profile import Limits

PREFIX = "understudy-cell-"
KERNEL_BYTES = 16 * 1024 * 1024
"""Room for what the kernel keeps for the processes of a call."""
LEFT_BYTES_MOST = KERNEL_BYTES // 4
"""That a cell may still hold, after its call, to be there for another one. (The kernel counts in lots, one a core.)"""
KEPT_MOST = 16
OWN_PROCESSES = 2
"""Of each call, besides the tool's: the first of its namespace, and what starts it."""
_numbers = itertools.count(1)
_worker = cache(worker)
"""By its pid: a fork is another one."""


@dataclass(frozen=True)
class Place:
    """Where cells may be made. `version`: of the hierarchy; the older one has other names and kills one at a time."""

    path: str
    version: int

    def __str__(self) -> str:
        return f"cgroup v{self.version}, below {self.path}"


class Cell:
    """For one call at a time. Whoever has it calls `remove`, or `is_free` for another call to have it, when the call's
    processes are dead."""

    def __init__(self, place: Place) -> None:
        """Raises OSError."""
        self.path = f"{place.path}/{PREFIX}{_worker(os.getpid())}-{next(_numbers)}"
        self._version = place.version
        self._bounded_to: Limits | None = None
        self._open: dict[str, int] = {}
        self._killed_before = 0
        os.mkdir(self.path)

    def bound(self, limits: Limits) -> None:
        """Raises OSError."""
        if limits == self._bounded_to:
            return
        self._bounded_to = limits
        most = str(limits.memory_bytes + 2 * limits.disk_bytes + KERNEL_BYTES)
        if self._version == 1:
            # With swap it may never be less than without: so up first, and then down.
            self._write("memory.memsw.limit_in_bytes", "-1", optional=True)
            self._write("memory.limit_in_bytes", most)
            self._write("memory.memsw.limit_in_bytes", most, optional=True)
            return
        self._write("memory.oom.group", "1", optional=True)
        self._write("memory.swap.max", "0", optional=True)
        self._write("pids.max", str(limits.processes + OWN_PROCESSES), optional=True)
        self._write("memory.max", most)

    async def enter(self, pids: Callable[[], Iterable[int]]) -> None:
        """Returns when all of them are in it; what they start later is in it, too. Raises OSError.

        Not on the loop: the kernel waits for every core to take notice, 10 ms, when it has moved nobody for a while.
        """
        await asyncio.to_thread(self.enter_here, pids)

    def enter_here(self, pids: Callable[[], Iterable[int]]) -> None:
        moved = set[int]()  # one that is about to die stays outside, and the kernel says nothing
        while outside := [pid for pid in pids() if pid not in moved and not self._is_in_or_gone(pid)]:
            for pid in outside:
                with suppress(ProcessLookupError):
                    self._write("cgroup.procs", str(pid))
            moved.update(outside)

    def door(self) -> int:
        """A descriptor of this cell's: a process of one thread that writes `0` to it enters, whoever it is. Raises
        OSError.

        Of the older hierarchy it is the one for threads: one that moves itself needs no lock. With `procs` it takes the
        lock of all forks of the machine, which waits until every core has taken notice: 5 to 20 ms, against 40 us.
        """
        return self._opened("tasks" if self._version == 1 else "cgroup.procs", os.O_WRONLY)

    def has(self, pid: int) -> bool:
        return pid in inside(self.path)

    def kills(self) -> int:
        """Processes of the call that the kernel has ended because the cell was full."""
        return self._killed() - self._killed_before

    def is_free(self) -> bool:
        """Whether there is nothing of a call in it any more: then it can be another one's."""
        name = "memory.usage_in_bytes" if self._version == 1 else "memory.current"
        if inside(self.path) or int(self._read(name)) > LEFT_BYTES_MOST:
            return False
        self._killed_before = self._killed()
        return True

    def remove(self) -> bool:
        """False while a process in it is not quite dead."""
        while self._open:
            os.close(self._open.popitem()[1])
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _killed(self) -> int:
        words = self._read("memory.oom_control" if self._version == 1 else "memory.events").split()
        return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words else 0

    def _is_in_or_gone(self, pid: int) -> bool:
        try:
            rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return True
        return any(row.endswith("/" + os.path.basename(self.path)) for row in rows)

    def _opened(self, name: str, flags: int) -> int:
        fd = self._open.get(name)
        if fd is None:
            fd = self._open[name] = os.open(f"{self.path}/{name}", flags | os.O_CLOEXEC)
        return fd

    def _read(self, name: str) -> bytes:
        return os.pread(self._opened(name, os.O_RDONLY), 4096, 0)

    def _write(self, name: str, text: str, *, optional: bool = False) -> None:
        try:
            fd = os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if optional:  # the kernel has no such thing, or this part of the tree was given without it
                return
            raise
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


class Cells:
    """Makes cells, keeps and removes them, if there is a place for them; else there are none, and the watchdog is
    alone."""

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self._free: list[Cell] = []
        self._left: list[Cell] = []
        """Not removed yet."""

    def make(self, limits: Limits) -> Cell | None:
        """Raises OSError."""
        if self.place is None:
            return None
        cell = self._free.pop() if self._free else Cell(self.place)
        try:
            cell.bound(limits)
        except BaseException:
            self._remove(cell)
            raise
        return cell

    @contextmanager
    def one(self, limits: Limits) -> Iterator[Cell | None]:
        """For as long as a call; all in it have to be dead when it is left. Raises OSError."""
        cell = self.make(limits)
        try:
            yield cell
        finally:
            self.give_back(cell)

    def give_back(self, cell: Cell | None) -> None:
        """When all in it are dead."""
        self._remove(*([] if cell is None or self._keeps(cell) else [cell]))

    def remove_free(self) -> None:
        """All that no call has."""
        self._remove(*self._free)
        self._free = []

    def _keeps(self, cell: Cell) -> bool:
        if len(self._free) >= KEPT_MOST:
            return False
        with suppress(OSError):  # somebody else has removed it
            if cell.is_free():
                self._free.append(cell)
                return True
        return False

    def _remove(self, *cells: Cell) -> None:
        """The kernel may take a moment to see that all in them are dead; it is then tried again with the next."""
        self._left = [each for each in [*self._left, *cells] if not each.remove()]


NO_CELLS = Cells(None)


def inside(path: str) -> list[int]:
    """The processes in a cgroup. Opened each time: by a descriptor, the older hierarchy tells the same for a second."""
    return [int(pid) for pid in watch.read(f"{path}/cgroup.procs").split()]
