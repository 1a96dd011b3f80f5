"""What is particular to runsc; all else is tried in tier gvisor as in every other (`probes.TIERS`)."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from escape import attempts, ends
from escape.places import Place
from escape.probes import OWN_KERNEL
from escape.workers import USERS, Worker

from support.processes import is_alive
from support.waiting import run_async, wait_until
from understudy.actors.sandbox import gvisor, watch
from understudy.actors.sandbox.folders import table
from understudy.actors.sandbox.gvisor import GvisorBackend

with_runsc = pytest.mark.skipif(
    not OWN_KERNEL, reason="runsc is not installed, so nothing is tried in tier gvisor: this distribution has none"
)


def bundles(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"understudy-runsc-{table()}-{pid}-*"))


@with_runsc
@pytest.mark.parametrize("user", USERS)
def test_a_worker_that_is_killed_takes_runsc_with_it_and_its_bundle_is_swept(user: str, owned: Path) -> None:
    worker = Worker(user)
    try:
        place = Place("gvisor", worker, owned)
        place.hand_over()
        place.running(attempts.r11_never_return, "1234567")
        gvisor.sweep()
        assert bundles(worker.process.pid), "its worker lives"
        worker.process.send_signal(signal.SIGSTOP)
        below = watch.tree(worker.process.pid)[1:]
        assert len(below) > 2
    finally:
        worker.close()
    wait_until(lambda: not [pid for pid in below if is_alive(pid)], 10, "runsc to end")
    gvisor.sweep()
    assert not bundles(worker.process.pid)


@with_runsc
def test_runsc_is_never_started_as_root(owned: Path) -> None:
    worker = Worker(USERS[0])
    try:
        place = Place("gvisor", worker, owned)
        place.hand_over()
        call = place.running(ends.prints, "1234568", how="waits_beside")
        users = {watch.status(pid).get("Uid", "").split()[1] for pid in watch.tree(worker.process.pid)[1:]}
        assert "0" not in users
        assert place.worker.ask("cancel", of=call) is not None
        assert place.worker.answer(call)["raised"] == "CancelledError"
    finally:
        worker.close()


def test_what_is_no_runsc_is_told(owned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = owned / "runsc"
    monkeypatch.setenv("PATH", str(owned))
    programs = {
        "#!/bin/sh\nexit 7\n": "runsc did not come up",
        '#!/bin/sh\n[ "$1" = flags ] || kill -9 $$\n': "runsc was killed before the call began",
        "no program": "does not tell its flags",
    }
    for text, words in programs.items():
        program.write_text(text)
        program.chmod(0o755)
        os.utime(program, ns=(len(text), len(text)))  # it is asked anew when it has changed
        found = run_async(GvisorBackend().preflight())
        assert (found.available, words in found.reason) == (False, True), found
    assert not bundles(os.getpid())
