"""A cgroup for each call, where a part of the tree is ours: the kernel bounds what the watchdog is too late for."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from escape import attempts
from escape.places import by_value

from support.waiting import run_async, wait_until
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import cgroup, overseer
from understudy.actors.sandbox.backend import Backend
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.cell import KERNEL_BYTES, Cell, Cells, Place
from understudy.actors.sandbox.landlock import LandlockBackend
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Limits, Profile

MIB = 1 << 20
BACKENDS: dict[str, Callable[[Cells], Backend]] = {
    "landlock": lambda cells: LandlockBackend(cells=cells),
    "zygote": lambda cells: ZygoteBackend(1, cells),
    "cold": BubblewrapBackend,
}


def cells_below(place: Place) -> list[str]:
    return [name for name in os.listdir(place.path) if name.startswith("understudy-cell-")]


def outcome_of(make: Callable[[Cells], Backend], cells: Cells) -> Outcome:
    async def made() -> Outcome:
        backend = make(cells)
        try:
            code = by_value(attempts.r04_fill_memory_until_one_dies)
            call = ToolCall("k", "t", code, {"children": 8, "each": 60 * MIB})
            limits = Limits(memory_bytes=64 * MIB, disk_bytes=MIB, wall_s=20)
            return await backend.execute(call, Profile(limits=limits, tier=backend.tier))
        finally:
            await backend.close()

    return run_async(made())


@pytest.mark.parametrize("tier", BACKENDS)
def test_the_kernel_bounds_what_no_look_sees(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog never looks here. Where nothing is ours, there is a sentence for `doctor`, and the watchdog is
    alone (see `test_escape.py`)."""
    place = cgroup.find()
    if isinstance(place, str):
        assert cgroup.cells_here()[1].startswith(f"the watchdog alone ({place}); give the workers")
        return
    monkeypatch.setattr(overseer, "WATCH_EVERY_S", 1000.0)
    cells = Cells(place)
    outcome = outcome_of(BACKENDS[tier], cells)
    assert (outcome.kind, "the kernel ended a process of the call" in outcome.error) == ("out_of_memory", True), outcome
    cells.remove_free()
    wait_until(lambda: not _removed(cells, place), 10, "the call's cgroup to be removed")


def test_a_cell_may_be_bounded_anew() -> None:
    """A spare waits with the limits of the call before."""
    place = cgroup.find()
    cell = Cells(None if isinstance(place, str) else place).make(Limits())
    if cell is None:
        return
    try:
        for memory in (MIB, 1024 * MIB, 8 * MIB, 8 * MIB):
            cell.bound(Limits(memory_bytes=memory, disk_bytes=MIB))
            names = ("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            written = {
                int(Path(cell.path, name).read_text()) for name in names if os.path.exists(f"{cell.path}/{name}")
            }
            assert written == {memory + 2 * MIB + KERNEL_BYTES}
    finally:
        assert cell.remove()


def test_a_cell_that_is_empty_is_there_for_another_call() -> None:
    place = cgroup.find()
    if isinstance(place, str):
        return
    cells, limits = Cells(place), Limits(memory_bytes=MIB, disk_bytes=MIB)
    first, second = cells.make(limits), cells.make(limits)
    assert first is not None
    assert second is not None
    with _started_in(first, f"bytearray({64 * MIB})") as filling:
        filling.communicate()
    assert (filling.returncode, first.kills()) == (-signal.SIGKILL, 1)
    with _started_in(second, "input()") as waits:
        cells.give_back(second)  # there is a process in it
        cells.give_back(first)
        again, third = cells.make(Limits()), cells.make(Limits())
        waits.communicate("\n")
    assert again is first
    assert again.kills() == 0
    assert third is not second
    for each in (again, third):
        cells.give_back(each)
    wait_until(lambda: not _removed(cells, place), 10, "all cgroups to be removed")


def _started_in(cell: Cell, code: str) -> "subprocess.Popen[str]":
    """A Python that executes it, in there."""
    enters = f"import os; os.write({cell.door()}, b'0'); print(flush=True); {code}"
    pipe, door = subprocess.PIPE, (cell.door(),)
    started = subprocess.Popen([sys.executable, "-c", enters], stdin=pipe, stdout=pipe, text=True, pass_fds=door)
    assert started.stdout is not None
    assert started.stdout.readline() == "\n"
    return started


def _removed(cells: Cells, place: Place) -> list[str]:
    cells.remove_free()  # as with the next call
    return [name for name in cells_below(place) if f"-{os.getpid()}-" in name]


HOLDING = """
import os, sys
from understudy.actors.sandbox.cell import Cell
from understudy.actors.sandbox.cgroup import find
cell = Cell(find())
if os.fork() == 0:
    with open(cell.door(), "w") as door:
        door.write("0")
    print(cell.path, os.getpid(), flush=True)
    sys.stdout.close()
sys.stdin.read()
"""


def test_cells_of_dead_workers_are_emptied_and_removed() -> None:
    if isinstance(cgroup.find(), str):
        assert not cgroup.sweep()
        return
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDING], stdin=pipe, stdout=pipe, text=True) as worker:
        assert worker.stdout is not None
        path, left = worker.stdout.readline().split()
        cgroup.sweep()
        assert left in Path(path, "cgroup.procs").read_text().split(), "its worker lives"
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert os.path.exists(path)
        swept = cgroup.sweep()
        assert (swept.processes, swept.folders) == (1, 0)
        wait_until(lambda: _swept(path), 10, "the cell to be removed")
    assert not os.path.exists(f"/proc/{left}") or _is_zombie(left)


def _swept(path: str) -> bool:
    cgroup.sweep()
    return not os.path.exists(path)


def _is_zombie(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def tree_of_version_2(folder: Path, *, controllers: str, enabled: str, inside: str = "") -> str:
    """Of the newer kind this machine may have none that counts memory: what decides are the contents of files."""
    folder.mkdir()
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text(enabled)
    (folder / "cgroup.procs").write_text(inside)
    return str(folder)


def test_of_the_newer_hierarchy_only_an_empty_cgroup_will_do(tmp_path: Path) -> None:
    """Where processes are, the kernel lets nothing be counted below."""
    fits = cgroup.is_empty_and_counts_memory
    assert fits(tree_of_version_2(tmp_path / "on", controllers="memory", enabled="memory pids"))
    assert fits(tree_of_version_2(tmp_path / "to be turned on", controllers="cpu memory pids", enabled=""))
    assert (tmp_path / "to be turned on" / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert not fits(tree_of_version_2(tmp_path / "in use", controllers="memory", enabled="", inside="1"))
    assert not fits(tree_of_version_2(tmp_path / "not given", controllers="cpu", enabled=""))
    assert not fits(str(tmp_path / "nowhere"))
