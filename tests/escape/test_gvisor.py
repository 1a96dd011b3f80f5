"""How runsc is called, where a program stands in its place that walls in nothing: flags, ends, and what is left."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape import ends
from escape.places import Place, Worker, by_value

from support.processes import is_alive
from support.waiting import run_async, wait_until
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import gvisor, watch
from understudy.actors.sandbox.folders import table
from understudy.actors.sandbox.gvisor import GvisorBackend
from understudy.actors.sandbox.verdict import seen_by
from understudy.policies.profile import Limits, Profile

RUNSC = f"""#!{sys.executable} -IS
import json, os, sys
command = next(word for word in sys.argv[1:] if not word.startswith("--"))
at = sys.argv.index(command)
before, after = sys.argv[1:at], sys.argv[at + 1:]  # of runsc itself, and of the command
flags = dict(word[2:].partition("=")[::2] for word in before)
assert flags.keys() - {{"rootless"}} == {{"root", "network", "ignore-cgroups", "directfs"}}, flags
assert (flags["network"], flags["directfs"], "rootless" in flags) == ("none", "false", os.geteuid() != 0)
if command == "delete":
    assert after[0] == "--force" and len(after) == 2
    sys.exit(0)
assert command == "run" and len(after) == 3, after
own = dict(word[2:].partition("=")[::2] for word in after[:-1])
with open(own["bundle"] + "/config.json") as file:
    config = json.load(file)
assert "user" not in [each["type"] for each in config["linux"]["namespaces"]]
host, guest = map(int, own["pass-fd"].split(":"))
os.dup2(host, guest)
os.chdir("/tmp")
process = config["process"]
os.execve(process["args"][0], process["args"], dict(each.split("=", 1) for each in process["env"]))
"""


@pytest.fixture
def programs() -> Iterator[str]:
    """A folder with a runsc."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "runsc")
        path.write_text(RUNSC)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        yield name


def bundles(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"understudy-runsc-{table()}-{pid}-*"))


def test_a_call_ends_as_in_every_tier(programs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", programs)

    async def made(how: str, wall_s: float = 20.0) -> Outcome:
        call = ToolCall("k", "t", by_value(ends.prints), {"how": how})
        return await GvisorBackend().execute(call, Profile(limits=Limits(wall_s=wall_s), tier="gvisor"))

    async def played() -> None:
        returned, raised, killed = [await made(how) for how in ("returns", "raises", "is_killed")]
        assert (returned.kind, returned.value, returned.printed) == ("ok", "done", ends.PRINTED)
        assert (raised.kind, raised.error_type, raised.error) == ("error", "LookupError", "no such order")
        assert (killed.kind, "SIGTERM" in killed.error) == ("killed", True)
        assert (await made("never_returns", 0.5)).kind == "timeout"
        waiting = asyncio.ensure_future(made("never_returns"))
        while not bundles(os.getpid()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await waiting
        assert ends.PRINTED.startswith(seen_by(cancelled.value).printed)

    run_async(played())
    assert not bundles(os.getpid())


def test_a_worker_that_is_killed_takes_runsc_with_it_and_its_bundle_is_swept(programs: str, owned: Path) -> None:
    worker = Worker("root" if os.geteuid() == 0 else "unprivileged", programs=programs)
    try:
        Place("gvisor", worker, owned).begin(ends.prints, how="never_returns")
        wait_until(lambda: bundles(worker.process.pid), 20, "runsc to be started")
        wait_until(lambda: len(watch.tree(worker.process.pid)) > 1, 20, "runsc to run")
        gvisor.sweep()
        assert bundles(worker.process.pid), "its worker lives"
        worker.process.send_signal(signal.SIGSTOP)
        below = watch.tree(worker.process.pid)[1:]
    finally:
        worker.close()
    wait_until(lambda: not [pid for pid in below if is_alive(pid)], 10, "runsc to end")
    gvisor.sweep()
    assert not bundles(worker.process.pid)
