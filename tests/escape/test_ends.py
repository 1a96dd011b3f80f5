"""However a call ends, and whoever dies, nothing of it is left on the host: no process, no descriptor, no folder."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape import attempts
from escape.conftest import TIERS, folders_of
from escape.places import Place, places_of, processes_with
from escape.workers import USERS, Raised, Worker

from support.processes import is_alive
from support.waiting import wait_until
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.landlock import sweep
from understudy.actors.sandbox.strays import end_strays


def test_cancelling_leaves_nothing(sandbox: Place, token: str) -> None:
    call = sandbox.running(attempts.r11_never_return, token)
    sandbox.worker.ask("cancel", of=call)
    with pytest.raises(Raised, match="CancelledError"):
        sandbox.answer(call)
    assert processes_with(token) == []


@pytest.mark.parametrize("rounds", [0, 1, 3, 10, 30, 100, 300])
def test_cancelling_during_the_start_leaves_nothing(sandbox: Place, token: str, rounds: int) -> None:
    """At any point of it: the loop takes some turns first."""
    assert sandbox.cancelled(rounds, attempts.r11_never_return, token=token) == "CancelledError"
    assert processes_with(token) == []


@pytest.fixture(params=places_of(TIERS), ids="-".join)
def doomed(request: pytest.FixtureRequest, owned: Path) -> Iterator[Place]:
    """A worker of the test's own, to be killed."""
    tier, user = request.param
    worker = Worker(user)
    yield Place(tier, worker, owned)
    worker.close()


def killed_with_all_it_started(worker: Worker) -> list[int]:
    """SIGKILL the worker. What lived below it at that moment."""
    worker.process.send_signal(signal.SIGSTOP)  # so that it starts nothing more while we look
    below = watch.tree(worker.process.pid)
    worker.process.kill()
    worker.process.wait()
    return [pid for pid in below if pid != worker.process.pid]


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.06, 0.1, 0.2])
def test_a_killed_worker_takes_its_calls_with_it(doomed: Place, token: str, after_s: float) -> None:
    """Ray's workers die without a word, at any moment of a call and of a zygote's start."""
    doomed.worker.ask("shown")  # it is up
    doomed.begin(attempts.r11_never_return, token=token)
    time.sleep(after_s)  # not to wait for something: to be early, or late
    below = killed_with_all_it_started(doomed.worker)
    end_strays()  # as the next worker does
    sweep()
    wait_until(lambda: not [pid for pid in below if is_alive(pid)], 10, "all that the worker had started to end")
    assert not processes_with(token)
    assert not folders_of(doomed.worker)


def test_a_killed_worker_takes_its_running_calls_and_spares_with_it(doomed: Place, token: str) -> None:
    doomed.worker.ask("preflight", tier=doomed.tier)
    doomed.running(attempts.r11_never_return, token)
    below = killed_with_all_it_started(doomed.worker)
    assert below
    wait_until(lambda: not [pid for pid in below if is_alive(pid)], 10, "all that the worker had started to end")
    assert not processes_with(token)


def keeper_of(worker: Worker) -> int:
    [keeper] = [pid for pid in watch.tree(worker.process.pid) if parent_of(pid) == worker.process.pid]
    return keeper


@pytest.mark.parametrize("user", USERS)
def test_a_keeper_that_is_killed_leaves_nothing(user: str, owned: Path, token: str) -> None:
    """Not even what the tool had orphaned, which is nobody's child by then."""
    worker = Worker(user)
    try:
        place = Place("landlock", worker, owned)
        call = place.begin(attempts.r14_daemonise_and_wait, token=token)
        wait_until(lambda: processes_with(token), 20, "the daemon to run")
        os.kill(keeper_of(worker), signal.SIGKILL)
        outcome = place.answer(call)
        assert (outcome.kind, "SIGKILL" in outcome.error) == ("killed", True), outcome
        assert not processes_with(token)
        assert not folders_of(worker)
    finally:
        worker.close()


@pytest.mark.parametrize("user", USERS)
def test_when_everything_is_killed_the_next_worker_ends_what_is_left(user: str, owned: Path, token: str) -> None:
    worker = Worker(user)
    try:
        Place("landlock", worker, owned).begin(attempts.r14_daemonise_and_wait, token=token)
        wait_until(lambda: processes_with(token), 20, "the daemon to run")
        keeper = keeper_of(worker)
        sweep()
        assert processes_with(token)  # its worker lives, so it is none that is left over
        worker.process.send_signal(signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
    finally:
        worker.close()
    assert processes_with(token)
    assert folders_of(worker)
    sweep()
    assert not processes_with(token)
    assert not folders_of(worker)


@pytest.mark.parametrize("user", USERS)
def test_a_zygote_that_dies_takes_its_calls_with_it_and_another_takes_over(user: str, owned: Path, token: str) -> None:
    worker = Worker(user)
    try:
        place = Place("zygote", worker, owned)
        assert place.tried(attempts.p03_processes) == 2
        call = place.begin(attempts.r11_never_return, token=token)
        wait_until(lambda: processes_with(token), 20, "the tool to run")
        [outermost] = [pid for pid in watch.tree(worker.process.pid) if parent_of(pid) == worker.process.pid]
        os.kill(outermost, signal.SIGKILL)
        outcome = place.answer(call)
        assert (outcome.kind, "SIGKILL" in outcome.error) == ("killed", True), outcome
        assert not processes_with(token)
        assert place.tried(attempts.p03_processes) == 2
    finally:
        worker.close()


def parent_of(pid: int) -> int:
    return int(watch.status(pid).get("PPid", 0))


def test_what_a_killed_worker_left_is_ended(token: str) -> None:
    """bubblewrap, held where it has made its first process inside, which waits for its word, and killed there."""
    held, release = os.pipe()
    line = ["bwrap", "--unshare-user", "--unshare-pid", "--userns-block-fd", str(held), "--info-fd", "1"]
    line += ["--ro-bind", "/", "/", "/any/sandbox/runner.py", token]
    outer = subprocess.Popen(line, pass_fds=(held,), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(processes_with(token)) == 2, 10, "its first process inside")
        end_strays()
        assert len(processes_with(token)) == 2  # its bubblewrap lives, so it is none
        outer.kill()
        outer.wait()
        assert len(processes_with(token)) == 1
        end_strays()
        wait_until(lambda: not processes_with(token), 10, "the stray to end")
    finally:
        os.close(held)
        os.close(release)


def test_many_calls_at_once_do_not_meet(sandbox: Place) -> None:
    calls = [sandbox.begin(attempts.p03_processes) for _ in range(8)]
    assert [outcome.value for outcome in sandbox.answers(calls)] == [0 if sandbox.tier == "landlock" else 2] * 8
