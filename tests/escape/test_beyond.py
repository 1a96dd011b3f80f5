"""Beyond the study: what else the host and other calls have that a tool could want, and what it could leave behind."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from escape import attempts
from escape.places import Place, by_value, limited, processes_with
from escape.workers import CANARY

from support.processes import is_alive
from support.waiting import run_async
from understudy.actors.outcome import ToolCall
from understudy.actors.sandbox.landlock import LandlockBackend
from understudy.policies.profile import Profile

MIB = 1 << 20


def test_a_file_outside_cannot_be_changed_by_its_name(sandbox: Place) -> None:
    """Landlock does not look at modes, owners and times: without a mount namespace, that is for the filter."""
    path = sandbox.file("theirs", CANARY, 0o644)
    before = path.stat()
    told = sandbox.tried(attempts.b01_change_from_outside, path=str(path))
    after = path.stat()
    assert path.read_text() == CANARY
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    lies = {"chmod", "chown"} if sandbox.tier == "landlock" else set()
    assert {name for name, word in told.items() if word == "done"} == lies


def test_names_outside_cannot_be_watched(sandbox: Place) -> None:
    assert sandbox.tried(attempts.b02_watch, path=str(sandbox.folder)) in ("ENOENT", "EPERM", "EACCES")


def test_killing_everybody_kills_nobody_else(sandbox: Place, token: str) -> None:
    """Of the worker's own user there is at least the worker; of root's sandboxes, another call."""
    other = sandbox.running(attempts.r11_never_return, token)
    assert sandbox.tried(attempts.b03_kill_everybody) in ("done", "EPERM", "ESRCH")
    if sandbox.tier == "gvisor":  # whose kernel lets it be stopped: that hurts nobody else, either
        assert sandbox.outcome(attempts.b04_stop_the_first, limited(wall_s=2)).kind == "timeout"
    else:
        assert sandbox.tried(attempts.b04_stop_the_first) in ("done", "EPERM")
    assert processes_with(token) or sandbox.tier == "gvisor"
    assert is_alive(sandbox.worker.pid)
    sandbox.worker.ask("cancel", of=other)
    assert sandbox.worker.answer(other)["raised"] == "CancelledError"


def test_others_cannot_be_slowed_down(sandbox: Place) -> None:
    pid = sandbox.worker.pid
    before = os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)
    told = sandbox.tried(attempts.b05_slow_down, pid=pid)
    assert set(told.values()) <= {"ESRCH", "EPERM", "EINVAL"}
    assert (os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)) == before


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_what_an_older_landlock_does_not_refuse_the_filter_does(version: int, owned: Path) -> None:
    """The same kernel, asked for less: then nobody is signalled at all, and no file is cut by its name."""
    path = owned / "theirs"
    path.write_text(CANARY)
    path.chmod(0o666)
    owned.chmod(0o777)

    def tried(attempt: Callable[..., Any], **args: Any) -> Any:
        call = ToolCall("k", "t", by_value(attempt), args)
        outcome = run_async(LandlockBackend(version).execute(call, Profile(tier="landlock")))
        assert outcome.kind == "ok", outcome
        return outcome.value

    told = tried(attempts.b01_change_from_outside, path=str(path))
    assert {name for name, word in told.items() if word == "done"} == {"chmod", "chown"}
    assert path.read_text() == CANARY
    assert tried(attempts.p08_signal, pid=os.getpid()) == "EPERM"
    if version < 6:
        assert tried(attempts.b03_kill_everybody) == "EPERM"
    assert tried(attempts.f03_list, path=str(owned)) == ["EACCES"]


def test_the_kernel_signals_nobody_for_a_tool(sandbox: Place) -> None:
    assert sandbox.tried(attempts.b06_be_signalled_for, pid=sandbox.worker.pid) == "EPERM"


def test_nothing_of_a_call_is_left_for_the_next(sandbox: Place) -> None:
    """A zygote makes the second one, too."""
    for _ in range(3):
        traces = sandbox.tried(attempts.b07_leave_traces, word=CANARY)
        assert traces[0] == "done"
        assert sandbox.tried(attempts.b07_find_traces, word=CANARY) == []


def test_terminals_of_another_call_are_not_there(sandbox: Place, token: str) -> None:
    if sandbox.tier == "landlock":  # no terminal opens at all
        refused = sandbox.outcome(attempts.b08_hold_a_terminal, token=token)
        assert refused.error_type in ("PermissionError", "OSError")
        return
    other = sandbox.running(attempts.b08_hold_a_terminal, token)
    assert sandbox.tried(attempts.b08_terminals) == ["True"]
    sandbox.worker.ask("cancel", of=other)
    assert sandbox.worker.answer(other)["raised"] == "CancelledError"


def test_the_mark_cannot_be_taken_off(sandbox: Place) -> None:
    assert sandbox.tried(attempts.b09_mark) != "done"


def test_a_stopped_tool_meets_its_deadline(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.b10_stop_myself, limited(wall_s=0.7))
    assert outcome.kind == "timeout", outcome


def test_who_has_answered_is_ended(sandbox: Place, token: str) -> None:
    forged = b'{"kind":"ok","peak":0,"value":1}'
    outcome = sandbox.outcome(functools.partial(attempts.b11_answer_and_stay, forged), limited(wall_s=20), token=token)
    assert (outcome.kind, outcome.value) == ("ok", 1)  # a tool can always say what it likes: it is data
    assert outcome.duration_s < 10
    assert not processes_with(token)


def test_a_child_that_holds_the_way_back_does_not_hold_the_call(sandbox: Place, token: str) -> None:
    outcome = sandbox.outcome(attempts.b12_answer_through_a_child, limited(wall_s=20), token=token)
    assert outcome.kind == "ok", outcome
    assert outcome.duration_s < 10
    assert not processes_with(token)


def test_no_namespace_is_made_by_what_a_tool_starts(sandbox: Place) -> None:
    assert "Operation not permitted" in sandbox.tried(attempts.k23_unshare_program, how="-Urmp")


def test_a_spare_has_no_user_namespaces_to_give(sandbox: Place) -> None:
    """Should the filter ever have a hole."""
    outcome = sandbox.outcome(attempts.b14_user_namespaces_left)
    if sandbox.tier in ("zygote", "room"):  # bubblewrap says it to the namespace around this one
        assert outcome.value == "0"
    else:
        assert outcome.kind == "ok" or outcome.error_type in ("PermissionError", "FileNotFoundError")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="there is no int 0x80 elsewhere")
def test_the_convention_of_32_bits_is_deadly(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.b15_int80)
    if sandbox.tier == "gvisor":  # whose kernel knows one convention: it takes the call for another, as the filter does
        assert outcome.kind in ("ok", "killed"), outcome
    else:
        assert outcome.kind == "killed", outcome


def test_priority_and_locked_memory_are_bounded(sandbox: Place) -> None:
    if sandbox.tier != "gvisor":  # whose kernel keeps numbers that nobody heeds
        assert sandbox.tried(attempts.b16_priority) in ("EPERM", "EACCES")
    assert sandbox.tried(attempts.b17_lock_memory) in ("ENOMEM", "EPERM")


def test_the_kernels_own_files_are_closed(sandbox: Place) -> None:
    paths = [
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/tasks",
    ]
    there = [path for path in [*paths, "/sys/kernel/notes"] if os.path.exists(path)]  # on the host
    assert there
    told = sandbox.tried(functools.partial(attempts.each, attempts.open_for_writing), paths=there)
    assert set(told.values()) == {sandbox.hidden}, told
    assert sandbox.tried(attempts.f03_list, path="/sys") == ([] if sandbox.tier == "gvisor" else [sandbox.hidden])
    paths = ["/proc/self/net/tcp", "/proc/kallsyms"]
    told = sandbox.tried(functools.partial(attempts.each, attempts.open_for_writing), paths=paths)
    assert set(told.values()) <= {"ENOENT", "EACCES", "EROFS"}, told


def test_shared_memory_of_the_host_is_not_there(sandbox: Place) -> None:
    path = Path(f"/dev/shm/{CANARY}-{os.getpid()}")
    path.touch(0o666)
    try:
        assert sandbox.tried(attempts.read, path=str(path)) == sandbox.hidden
    finally:
        path.unlink()


def test_a_large_answer_is_refused(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.c_value, limited(output_bytes=MIB), size=20 * MIB)
    assert outcome.kind == "output_too_large", outcome


@pytest.mark.parametrize("attempt", [attempts.b18_deep_folders, attempts.b19_closed_folder])
def test_no_folder_is_too_deep_or_too_closed_to_be_removed(sandbox: Place, attempt: object) -> None:
    """That nothing is left is looked at after every test."""
    assert callable(attempt)
    outcome = sandbox.outcome(attempt, limited(wall_s=20))
    assert outcome.kind in ("ok", "error", "killed"), outcome
