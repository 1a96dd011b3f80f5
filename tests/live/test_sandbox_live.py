"""Tools in every tier from inside a real Ray worker: they see nothing of Ray, and end with it, however it ends."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from escape import attempts, ray_driver
from escape.places import CANARY, by_value, processes_with
from escape.ray_driver import TIERS

from support.processes import is_alive
from support.waiting import wait_until
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.landlock import sweep
from understudy.policies.profile import Tier

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


def tried(caller: Any, tier: Tier, attempt: Any, **args: Any) -> Any:
    return ray.get(caller.call.remote(tier, by_value(attempt).blob, args))


def test_a_tool_sees_nothing_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool without walls finds in a worker: its token and addresses, its sockets, its processes, its files."""
    monkeypatch.setenv("UNDERSTUDY_STORE", f"redis://:{CANARY}@127.0.0.1")
    with ray_driver.caller() as caller:
        worker = ray.get(caller.pid.remote())
        session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[union-attr]
        raylet = str(session / "sockets" / "raylet")
        assert Path(raylet).exists()
        gcs = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
        for tier in TIERS:
            hidden = "EACCES" if tier == "landlock" else "ENOENT"
            names = tried(caller, tier, attempts.p01_environment)
            assert [name for name in names if name.startswith(("RAY", "UNDERSTUDY"))] == ["UNDERSTUDY_EFFECT_KEY"]
            assert CANARY not in tried(caller, tier, attempts.p02_environment_of_others)
            assert tried(caller, tier, attempts.p03_processes) == (0 if tier == "landlock" else 2)
            assert tried(caller, tier, attempts.p08_signal, pid=worker) in ("ESRCH", "EPERM")
            assert tried(caller, tier, attempts.p10_descriptors) == ["/dev/null", "pipe", "pipe", "pipe"]
            assert tried(caller, tier, attempts.n01_connect, port=gcs) == "EPERM"
            assert tried(caller, tier, attempts.n03_connect_unix, path=raylet) == "EPERM"
            assert tried(caller, tier, attempts.read, path=str(session / "logs" / "raylet.out")) == hidden
            assert tried(caller, tier, attempts.b03_kill_everybody) in ("done", "EPERM", "ESRCH")
            assert ray.get(caller.pid.remote()) == worker


@pytest.mark.parametrize("dies", ["the actor", "Ray", "everything"])
def test_calls_end_with_what_they_belong_to(dies: str) -> None:
    token = str(2_000_000_000 + int.from_bytes(os.urandom(4), "big"))
    line = [sys.executable, ray_driver.__file__, token]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=environment, text=True) as driver:
        everyone: list[int] = []
        try:
            assert driver.stdout is not None
            worker = int(driver.stdout.readline())
            wait_until(lambda: len(processes_with(token)) == len(TIERS) + 1, 30, "the tools to run")  # and the driver
            below, everyone = watch.tree(worker), watch.tree(driver.pid)
            for pid in _dying(dies, worker, driver.pid):
                with suppress(ProcessLookupError):  # some end with those before them
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(worker), 60, "the worker to end")

            def ended() -> bool:
                if dies == "everything":
                    sweep()  # as the next worker does
                left = set(processes_with(token)) - {str(driver.pid)}
                return not left and not [pid for pid in below if is_alive(pid)]

            wait_until(ended, 20, "all that belonged to the worker to end")
        finally:
            for pid in {*everyone, *watch.tree(driver.pid)}:
                with suppress(ProcessLookupError):  # some end with those before them
                    os.kill(pid, signal.SIGKILL)


def _dying(dies: str, worker: int, driver: int) -> list[int]:
    names = {pid: watch.status(pid).get("Name", "") for pid in watch.tree(driver)}
    match dies:
        case "the actor":
            return [worker]
        case "Ray":  # and its worker, which Ray may leave alive for ever: `cluster/guard.py` ends it then
            return [*(pid for pid, name in names.items() if name in ("raylet", "gcs_server")), worker]
        case _:  # but not what the tools have started: nobody would need to end that
            return [pid for pid, name in names.items() if name != "sleep"]
