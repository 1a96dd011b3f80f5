"""Of Ray, a tool sees nothing: without walls it finds a worker's token, addresses, sockets, processes and logs."""

import functools
from pathlib import Path

from escape import attempts
from escape.places import Place, processes_with
from escape.workers import CANARY


def test_rays_own_is_not_there(sandbox: Place) -> None:
    worker, session = sandbox.worker, Path(sandbox.worker.hello["session"])
    raylet, log = session / "sockets" / "raylet", session / "logs" / "raylet.out"
    assert raylet.exists()
    assert log.exists()
    assert processes_with("raylet", str(session), within=True)
    names = sandbox.tried(attempts.p01_environment)
    assert [name for name in names if name.startswith(("RAY", "UNDERSTUDY"))] == ["UNDERSTUDY_EFFECT_KEY"]
    others = sandbox.tried(attempts.p02_environment_of_others)
    assert not [word for word in (CANARY, "RAY_", str(session)) if word in others]
    assert sandbox.tried(attempts.n01_connect, port=int(worker.hello["gcs"].rpartition(":")[2])) == "EPERM"
    assert sandbox.tried(attempts.n03_connect_unix, path=str(raylet)) == "EPERM"
    paths = [str(raylet), str(log), str(session), f"/proc/{worker.pid}/environ"]
    told = sandbox.tried(functools.partial(attempts.each, attempts.read), paths=paths)
    assert set(told.values()) == {sandbox.hidden}, told
    assert worker.ask("shown")["places"], "the worker lives"
