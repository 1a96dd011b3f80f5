"""The command line on real parts: a daemon that is started, killed and started again, and the runs that outlive it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.processes import free_port
from support.servers import RedisServer
from support.waiting import wait_until
from understudy.actors.process import born
from understudy.cluster.daemon import Daemon, read_daemon
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

FLOWS = """
import time
from typing import Annotated
from pydantic import BaseModel
from understudy import END, START, Context, Graph, append, tool

class State(BaseModel):
    order: str = "A1"
    notes: Annotated[list[str], append] = []

@tool
def pay(order: str) -> str:
    return f"paid {order}"

ask = Graph("ask", State)

@ask.node
def first(state: State):
    return {"notes": ["first"]}

@ask.node
async def question(state: State, ctx: Context):
    return {"notes": [await ctx.interrupt({"refund": state.order})]}

ask.edge(START, "first"); ask.edge("first", "question"); ask.edge("question", END)

paying = Graph("paying", State)

@paying.node
async def charge(state: State, ctx: Context):
    return {"notes": [await ctx.call(pay, order=state.order)]}

paying.edge(START, "charge"); paying.edge("charge", END)

talking = Graph("talking", State)

@talking.node
def speak(state: State, ctx):
    for word in ("Hel", "lo, ", state.order):
        ctx.stream(word)
        time.sleep(0.05)

talking.edge(START, "speak"); talking.edge("speak", END)
"""
POLICY = "policy: live\nversion: 1\nrules:\n  - {id: pay, effect: ask, tool: pay, reason: money leaves}\n"


@dataclass
class Shell:
    """A folder with flows.py in it, and `understudy` called from there."""

    folder: Path
    store: str

    def __call__(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "understudy.cluster.cli", *words],
            cwd=self.folder,
            env={**os.environ, "UNDERSTUDY_STATE_DIR": str(self.state), "UNDERSTUDY_STORE": self.store, **environ},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=150,
            check=False,
        )

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status_of(self, run_id: str) -> str:
        return str(self.json("show", run_id)["status"])

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def daemon(self) -> Daemon:
        daemon = read_daemon(Settings(state_dir=self.state))
        assert daemon is not None
        return daemon


@pytest.fixture(params=["sqlite", "redis"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        folder = Path(name)
        (folder / "flows.py").write_text(FLOWS)
        (folder / "policy.yaml").write_text(POLICY)
        redis = request.param == "redis"
        store = str(request.getfixturevalue("redis_url")) if redis else f"sqlite://{folder}/runs.db"
        shell = Shell(folder, store)
        try:
            yield shell
        finally:
            shell("down")


@pytest.mark.parametrize("shell", ["sqlite"], indirect=True)
def test_a_day_with_a_daemon(shell: Shell) -> None:
    up = shell("up")
    assert up.returncode == 0, up.stderr
    assert shell.daemon.metrics_url in up.stdout
    assert "zygote: stands" in up.stdout
    assert "already" in shell("up").stdout

    done = shell("run", "flows:paying", "--policy", "policy.yaml", "--input", '{"order": "A7"}')
    assert done.returncode == 0, done.stderr
    assert "is waiting" in done.stderr
    [asked] = shell.json("status")["questions"]
    assert asked["payload"]["args"] == {"order": "A7"}
    assert shell(*asked["commands"][0].split()[1:]).returncode == 0
    wait_until(lambda: shell.status_of(asked["run_id"]) == "succeeded", 60, "the approved run to end")
    assert shell.json("show", asked["run_id"])["result"]["notes"] == ["paid A7"]

    said = shell("run", "flows:talking", "--input", '{"order": "A8"}')
    assert said.returncode == 0, said.stderr
    assert "speak: Hello, A8\n" in said.stderr

    status = shell.json("status")
    assert status["daemon"]["pid"] == shell.daemon.pid
    [supervisor] = status["supervisors"]
    assert supervisor["isolation"]["available"] is True
    assert all(born(actor["pid"]) for actor in supervisor["actors"] if actor["ready"])
    [row] = shell.json("history", asked["run_id"])
    forked = shell("fork", asked["run_id"], "--at", row["checkpoint_id"], "--update", '{"notes": ["again"]}')
    assert forked.returncode == 0, forked.stderr

    guarded = dict(shell.daemon.guarded)
    down = shell("down")
    assert down.returncode == 0, down.stderr
    assert "is down" in down.stderr
    assert not [pid for pid, since in guarded.items() if born(pid) == since]
    assert shell.json("status")["daemon"] is None


@pytest.mark.parametrize("shell", ["redis"], indirect=True)  # the day has SQLite
def test_a_run_that_waits_outlives_a_killed_daemon(shell: Shell, request: pytest.FixtureRequest) -> None:
    """It must show, 4: everything is killed, all is started again, and an answer finishes the run."""
    assert shell("up").returncode == 0
    run_id = shell("run", "flows:ask", "--detach").stdout.strip()
    wait_until(lambda: shell.status_of(run_id) == "waiting", 60, "the run to ask")

    killed = shell.daemon
    os.kill(killed.pid, signal.SIGKILL)
    if shell.store.startswith("redis"):
        server: RedisServer = request.getfixturevalue("redis_server")
        server.kill()
        assert "error: " in shell("ps").stderr
        server.start()
    wait_until(
        lambda: not [pid for pid, since in killed.guarded.items() if born(pid) == since], 20, "Ray's processes to end"
    )
    assert shell.json("status")["daemon"] is None
    assert "understudy up" in shell("resume", run_id, '"sure"').stderr

    up = shell("up")
    assert "1 unfinished, taken up" in up.stdout, up.stderr
    wait_until(lambda: shell.status_of(run_id) == "succeeded", 60, "the answered run to end")
    run = shell.json("show", run_id)
    assert run["result"]["notes"] == ["first", "sure"]
    kinds = [event["kind"] for event in shell.json("events", run_id)]
    assert kinds.count("node_finished") == 2
    assert kinds.count("answered") == 1


@pytest.mark.parametrize("shell", ["sqlite"], indirect=True)
def test_a_daemon_whose_ray_dies_starts_over(shell: Shell) -> None:
    """Actors that live would go on without their raylet, and none could be created: it looks well and is not."""
    assert shell("up").returncode == 0
    run_id = shell("run", "flows:ask", "--detach").stdout.strip()
    wait_until(lambda: shell.status_of(run_id) == "waiting", 60, "the run to ask")
    before = shell.daemon
    [raylet] = [pid for pid in before.guarded if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"]
    os.kill(raylet, signal.SIGKILL)
    wait_until(lambda: shell.daemon.started_at > before.started_at, 90, "the daemon to start over")
    assert shell.daemon.pid == before.pid
    assert not [pid for pid, since in before.guarded.items() if born(pid) == since]
    assert shell("resume", run_id, '"sure"').returncode == 0
    wait_until(lambda: shell.status_of(run_id) == "succeeded", 60, "the answered run to end")


@pytest.mark.parametrize("shell", ["sqlite"], indirect=True)
def test_a_run_without_a_daemon_is_served_from_here(shell: Shell) -> None:
    done = shell("run", "flows:ask", "--key", "k")
    assert done.returncode == 0, done.stderr
    assert "is waiting" in done.stderr
    assert "understudy up" in done.stderr
    [run] = shell.json("ps")
    assert shell("resume", run["run_id"], '"later"').returncode == 0
    again = shell("run", "flows:ask", "--key", "k")  # the same run, served once more
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["notes"] == ["first", "later"]


@pytest.mark.parametrize("shell", ["sqlite"], indirect=True)
def test_a_daemon_that_cannot_start_says_why(shell: Shell) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = shell("up", UNDERSTUDY_METRICS_PORT=port)
    assert done.returncode == 1
    assert f"metrics port {port}" in done.stderr
    assert "UNDERSTUDY_METRICS_PORT" in done.stderr
    done = shell("up", UNDERSTUDY_POLICY="nowhere.yaml")
    assert done.returncode == 1
    assert "nowhere.yaml" in done.stderr
    assert read_daemon(Settings(state_dir=shell.state)) is None
