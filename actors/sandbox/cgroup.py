"""Has the kernel bound the memory of a whole call, where a part of the cgroup tree is ours: a cell, for one call.

The watchdog looks fifty times a second; what a tool grabs between two looks, only the kernel can refuse. It counts more
than the watchdog (files in /tmp and /dev/shm, page tables), so a cell has room for those besides `memory_bytes`, which
the watchdog keeps exactly. Where nothing is ours, the watchdog is alone: `find` says why, and what to change.

Laws: a process enters its cell before the request is sent, so before there is a tool. A cell is named after its worker;
`sweep`, run by whoever starts next, ends and removes those of workers that are dead.
"""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.folders import dead_worker, worker
from understudy.actors.sandbox.left_over import LeftOver
from understudy.policies.profile import Limits

KERNEL_BYTES = 16 * 1024 * 1024
"""Room for what the kernel keeps for the processes of a call."""
OWN_PROCESSES = 2
"""Of each call, besides the tool's: the first of its namespace, and what starts it."""
EMPTY_WITHIN_S = 5.0
REMEDY = (
    "give the workers a cgroup of their own (systemd: Delegate=yes with DelegateSubgroup=workers; a container: a "
    "writable /sys/fs/cgroup with memory in its cgroup.subtree_control)"
)
_PREFIX = "understudy-cell-"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Where cells may be made. `version`: of the hierarchy; the older one has other names and kills one at a time."""

    path: str
    version: int

    def __str__(self) -> str:
        return f"cgroup v{self.version}, below {self.path}"


class Cell:
    """Made for one call. Whoever has it calls `remove` when the call's processes are dead."""

    def __init__(self, place: Place) -> None:
        """Raises OSError."""
        self.path = f"{place.path}/{_PREFIX}{_worker(os.getpid())}-{next(_numbers)}"
        self._version = place.version
        self._bounded_to: Limits | None = None
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
        """A descriptor: a process of one thread that writes `0` to it enters, whoever it is. Raises OSError.

        Of the older hierarchy it is the one for threads: one that moves itself needs no lock. With `procs` it takes the
        lock of all forks of the machine, which waits until every core has taken notice: 5 to 20 ms, against 40 us.
        """
        name = "tasks" if self._version == 1 else "cgroup.procs"
        return os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CLOEXEC)

    def has(self, pid: int) -> bool:
        return pid in _inside(self.path)

    def kills(self) -> int:
        """Processes that the kernel has ended because the cell was full."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        fd = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(fd, 4096).split()
        finally:
            os.close(fd)
        return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words else 0

    def remove(self) -> bool:
        """False while a process in it is not quite dead."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _is_in_or_gone(self, pid: int) -> bool:
        try:
            rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return True
        return any(row.endswith("/" + os.path.basename(self.path)) for row in rows)

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
    """Makes cells and removes them, if there is a place for them; else there are none, and the watchdog is alone."""

    def __init__(self, place: Place | None) -> None:
        self._place = place
        self._left: list[Cell] = []
        """Not removed yet."""

    def make(self, limits: Limits) -> Cell | None:
        """Raises OSError."""
        if self._place is None:
            return None
        cell = Cell(self._place)
        try:
            cell.bound(limits)
        except BaseException:
            cell.remove()
            raise
        return cell

    @contextmanager
    def one(self, limits: Limits) -> Iterator[Cell | None]:
        """For as long as a call; all in it have to be dead when it is left. Raises OSError."""
        cell = self.make(limits)
        try:
            yield cell
        finally:
            self.remove(cell)

    def remove(self, cell: Cell | None) -> None:
        """When all in it are dead. The kernel may take a moment to see it so; it is then tried again with the next."""
        self._left = [each for each in [*self._left, *([cell] if cell else [])] if not each.remove()]


NO_CELLS = Cells(None)


@cache
def cells_here() -> tuple[Cells, str]:
    """Of this process, and how the memory of its calls is bounded, for people."""
    place = find()
    if isinstance(place, Place):
        return Cells(place), f"the kernel ({place}), and the watchdog"
    return NO_CELLS, f"the watchdog alone ({place}); {REMEDY}"


def find() -> Place | str:
    """Where cells may be made, by having made one; or the sentence that says why not."""
    tried = []
    for place in _candidates():
        try:
            cell = Cell(place)
            try:
                cell.bound(Limits())
                cell.kills()
            finally:
                cell.remove()
            return place
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
    return ", ".join(tried) or "no cgroup with a memory controller is ours"


def sweep() -> LeftOver:
    """End what is in cells of workers that are dead, and remove those."""
    found = LeftOver()
    for path in _left_over():
        until = time.monotonic() + EMPTY_WITHIN_S
        seen = set[int]()
        while pids := _inside(path):
            seen.update(pids)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                break
            time.sleep(0.001)
        found += LeftOver(len(seen))
        with suppress(OSError):  # another worker removes it at the same time, or it will be found again
            os.rmdir(path)
            found += LeftOver(cgroups=1)
    return found


def _left_over() -> Iterator[str]:
    for root in {each for _, each in _mounted()}:
        for folder, names, _files in os.walk(root):
            for name in [each for each in names if each.startswith(_PREFIX)]:
                names.remove(name)
                if dead_worker(name, _PREFIX) is not None:
                    yield f"{folder}/{name}"


def _inside(path: str) -> list[int]:
    return [int(pid) for pid in watch.read(f"{path}/cgroup.procs").split()]


_worker = cache(worker)
"""By its pid: a fork is another one."""


def _candidates() -> Iterator[Place]:
    """In the order of preference. Of the older hierarchy, where this process is: a process may be beside a cell there.
    Of the newer one it may not: so where no process is, that was given to us, and this process is in it or just below.
    """
    for version, own in _own():
        if version == 1:
            yield Place(own, 1)
            continue
        for path in (own, os.path.dirname(own)):
            if (path == own or _is_given(path)) and is_empty_and_counts_memory(path):
                yield Place(path, 2)


def _is_given(path: str) -> bool:
    """Of a cgroup above our own: whether somebody has handed it over, as systemd does."""
    with suppress(OSError):
        if os.getxattr(path, "user.delegate") == b"1":
            return True
    with suppress(OSError):
        return os.geteuid() != 0 and os.stat(path).st_uid == os.geteuid()
    return False


def is_empty_and_counts_memory(path: str) -> bool:
    with suppress(OSError):
        control = Path(path, "cgroup.subtree_control")
        if "memory" in control.read_text().split():
            return True
        offered = Path(path, "cgroup.controllers").read_text().split()
        if "memory" in offered and not _inside(path):
            control.write_text(" ".join(f"+{each}" for each in ("memory", "pids") if each in offered))
            return True
    return False


def _own() -> Iterator[tuple[int, str]]:
    """This process's cgroup in each hierarchy that may count memory."""
    mounted = _mounted()
    for row in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = row.split(":", 2)
        for kind, root in mounted:
            if (kind == 2 and not controllers) or (kind == 1 and "memory" in controllers.split(",")):
                yield kind, os.path.normpath(f"{root}/{path}")


def _mounted() -> list[tuple[int, str]]:
    """Hierarchies that are mounted whole, the newer kind first. Empty where there is no such thing as /proc."""
    found = []
    with suppress(OSError):
        for row in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = row.partition(" - ")
            _id, _parent, _device, root, place, *_ = before.split()
            kind, _source, options = after.split(" ", 2)
            if root == "/" and kind == "cgroup2":
                found.append((2, place))
            elif root == "/" and kind == "cgroup" and "memory" in options.split(","):
                found.append((1, place))
    return sorted(found, reverse=True)
