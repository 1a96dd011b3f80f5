"""What `up` and `down` know of a daemon before it has said that it is ready."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from understudy.actors.process import born
from understudy.cluster import daemon
from understudy.cluster.daemon import Daemon
from understudy.cluster.host import Host
from understudy.cluster.settings import Settings

STARTING = """
import fcntl, sys
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_down_waits_for_one_that_is_just_starting_and_ends_it(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert daemon.stop(settings) is None
    words = [sys.executable, "-c", STARTING, str(tmp_path / "daemon.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starting:
        assert starting.stdout is not None
        assert starting.stdout.readline() == b"held\n"
        down = subprocess.Popen([sys.executable, "-c", DOWN, str(tmp_path)], stdout=subprocess.PIPE)
        assert down.stdout is not None
        assert down.stdout.readline() == b"looking\n"
        ready = Daemon(starting.pid, born(starting.pid), "", "", "", {}, 0.0)
        (tmp_path / "draft").write_text(json.dumps(asdict(ready)))
        os.rename(tmp_path / "draft", tmp_path / "daemon.json")
        assert down.communicate(timeout=30)[0] == f"{starting.pid}\n".encode()
        assert starting.wait(10) == -15
    assert daemon.stop(settings) is None


DOWN = """
import sys
from pathlib import Path
from understudy.cluster.daemon import stop
from understudy.cluster.settings import Settings
print("looking", flush=True)
found = stop(Settings(state_dir=Path(sys.argv[1])))
print(found and found.pid)
"""


def test_paths_that_were_given_here_are_not_looked_for_in_the_daemons_folder() -> None:
    names = ("state_dir", "secrets", "policy", "secret_file")
    given = Settings.model_validate({name: Path(name) for name in names})
    found = daemon._absolute(given)
    for name in names:
        assert getattr(found, name) == Path(getattr(given, name)).absolute()


def test_a_host_that_ends_takes_along_what_its_sandboxes_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr("ray.shutdown", lambda: ended.append("ray"))
    monkeypatch.setattr("understudy.actors.sandbox.tiers.end_leftovers", lambda: ended.append("leftovers"))
    host = Host(Settings(state_dir=tmp_path))
    host._ours, host.session = True, str(tmp_path / "session")
    host._stop_ray()
    assert ended == ["ray", "leftovers"]


def test_of_rays_that_died_the_last_one_leaves_its_logs(tmp_path: Path) -> None:
    sessions = [tmp_path / f"session_{n}" for n in range(4)]
    other = tmp_path / "nobodys"
    for folder in (*sessions, other):
        folder.mkdir()
    noted = tmp_path / "sessions"
    noted.write_text(f"{other}\n")
    for n, folder in enumerate(sessions):
        daemon.keep_last_session(noted, str(folder))
        assert [each.exists() for each in sessions] == [number >= n - 1 for number in range(4)]
    daemon.keep_last_session(noted, "")
    assert other.exists()
