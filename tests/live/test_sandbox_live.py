"""Tools in every tier from inside a real Ray worker end with it, however it ends. What they see there: tests/escape."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from escape import attempts
from escape.places import Place, processes_with
from escape.workers import USERS, Worker

from support.processes import is_alive
from support.waiting import wait_until
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.landlock import sweep
from understudy.policies.profile import Tier

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

TIERS: tuple[Tier, ...] = ("landlock", "zygote", "cold")


@pytest.mark.parametrize("dies", ["the actor", "Ray", "everything"])
def test_calls_end_with_what_they_belong_to(dies: str, tmp_path: Path) -> None:
    token = str(2_000_000_000 + int.from_bytes(os.urandom(4), "big"))
    worker = Worker(USERS[0], in_ray=True)
    driver, everyone = worker.process.pid, list[int]()
    try:
        for tier in TIERS:
            Place(tier, worker, tmp_path).begin(attempts.r14_daemonise_and_wait, token=token)
        wait_until(lambda: len(processes_with(token)) == len(TIERS), 30, "the tools to run")
        below, everyone = watch.tree(worker.pid), watch.tree(driver)
        for pid in _dying(dies, worker.pid, driver):
            with suppress(ProcessLookupError):  # some end with those before them
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker.pid), 60, "the worker to end")

        def ended() -> bool:
            if dies == "everything":
                sweep()  # as the next worker does
            return not processes_with(token) and not [pid for pid in below if is_alive(pid)]

        wait_until(ended, 20, "all that belonged to the worker to end")
    finally:
        for pid in {*everyone, *watch.tree(driver)}:
            with suppress(ProcessLookupError):  # some end with those before them
                os.kill(pid, signal.SIGKILL)
        worker.close()


def _dying(dies: str, worker: int, driver: int) -> list[int]:
    names = {pid: watch.status(pid).get("Name", "") for pid in watch.tree(driver)}
    match dies:
        case "the actor":
            return [worker]
        case "Ray":  # and its worker, which Ray may leave alive for ever: `cluster/guard.py` ends it then
            return [*(pid for pid, name in names.items() if name in ("raylet", "gcs_server")), worker]
        case _:  # but not what the tools have started: nobody would need to end that
            return [pid for pid, name in names.items() if name != "sleep"]
