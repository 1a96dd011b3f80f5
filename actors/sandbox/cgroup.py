"""Has the kernel bound the memory of a whole call, where a part of the cgroup tree is ours: a cell, for one call.

The watchdog looks fifty times a second; what a tool grabs between two looks, only the kernel can refuse. It counts more
than the watchdog (files in /tmp and /dev/shm, page tables), so a cell has room for those besides `memory_bytes`, which
the watchdog keeps exactly. Where nothing is ours, the watchdog is alone: `find` says why, and what to change.

Laws: a process enters its cell before the request is sent, so before there is a tool. A cell is named after its worker;
`sweep`, run by whoever starts next, ends and removes those of workers that are dead.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from understudy.actors.sandbox.cell import NO_CELLS, PREFIX, Cell, Cells, Place, inside
from understudy.actors.sandbox.folders import dead_worker
from understudy.actors.sandbox.left_over import LeftOver
from understudy.policies.profile import Limits

EMPTY_WITHIN_S = 5.0
REMEDY = (
    "give the workers a cgroup of their own (systemd: Delegate=yes with DelegateSubgroup=workers; a container: a "
    "writable /sys/fs/cgroup with memory in its cgroup.subtree_control)"
)


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
        while pids := inside(path):
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
            for name in [each for each in names if each.startswith(PREFIX)]:
                names.remove(name)
                if dead_worker(name, PREFIX) is not None:
                    yield f"{folder}/{name}"


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
        if "memory" in offered and not inside(path):
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
