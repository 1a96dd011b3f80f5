"""Starts workers (`worker.py`) for tests: in an actor of Ray's or not, as root and as a user that is not."""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from support.processes import MARK
from support.waiting import wait_until
from understudy.actors.sandbox.launch import HOST_ID

CANARY = "canary-5f2c"
"""A secret in the worker's environment."""
WITHOUT_ROOT = ["setpriv", "--reuid", str(HOST_ID), "--regid", str(HOST_ID), "--clear-groups"]
USERS = ("root", "unprivileged") if os.geteuid() == 0 else ("unprivileged",)
HANDED_ON = ("PATH", MARK, "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
FOLDER = "understudy-tests-"
"""How folders of these tests begin, to tell them from what a tool has left; short, as paths of sockets have to be."""
DISTRIBUTIONS = ("ray", "pydantic", "cloudpickle")
"""What a worker imports, besides our own package."""
START_S = 60.0
STARTS_MOST = 3
"""Ray gives up by itself if its raylet does not start within 30 s, on a machine that has much else to do."""


class Raised(Exception):
    """What a call raised in the worker."""


class Worker:
    """A worker of some user's. `in_ray`: in an actor, of a Ray that is started for it.

    `within`: what it is started by, and `pass_fds` for that. `programs`: where it finds any.
    """

    def __init__(
        self,
        user: str,
        in_ray: bool = False,
        within: Sequence[str] = (),
        programs: str = "",
        pass_fds: Sequence[int] = (),
    ) -> None:
        script = Path(__file__).with_name("worker.py")
        self.user = user
        self.is_gone = False
        self._in_ray = in_ray
        self._numbers = itertools.count(1)
        self._early: dict[int, dict[str, Any]] = {}
        self._hello: dict[str, Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER))
        found = ["/usr/bin/env", f"PATH={programs}"] if programs else []
        command, environment = [*found, sys.executable], dict(os.environ)
        if is_other(user):
            script = Path(shutil.copy(script, self._folder))
            command = [*WITHOUT_ROOT, *found, python_for_everybody()]
            environment = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
            environment |= {"PYTHONPATH": str(packages_for_everybody()), "HOME": str(self._folder)}
        environment["UNDERSTUDY_STORE"] = f"redis://:{CANARY}@127.0.0.1"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "socket"))
        self._listener.listen()
        for path in (self._folder, *self._folder.iterdir()):
            hand_over(path, user)
        words = [str(script), str(self._folder / "socket"), *([str(self._folder)] if in_ray else [])]
        self.process = subprocess.Popen(
            [*within, *command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            cwd=self._folder,
            pass_fds=pass_fds,
        )

    @property
    def pid(self) -> int:
        """Of the process that makes the calls."""
        return int(self.hello["pid"])

    @property
    def hello(self) -> dict[str, Any]:
        """What it says first, once it is up."""
        if not self._hello:
            self._listener.setblocking(False)
            connection, _ = wait_until(self._called, START_S, f"a worker ({self.user}) to start")
            connection.setblocking(True)
            self._stream = connection.makefile("rwb")
            connection.close()  # when the stream is
            self._hello = self._read()
        return self._hello

    def comes_up(self) -> bool:
        """Wait for it."""
        try:
            return bool(self.hello)
        except AssertionError:
            self.is_gone = True
            return False

    def _called(self) -> tuple[socket.socket, Any] | None:
        with suppress(BlockingIOError):
            return self._listener.accept()
        assert self.process.poll() is None, f"the worker ({self.user}) did not start, see above"
        return None

    def send(self, do: str, **wanted: Any) -> int:
        """The number by which to ask for its answer."""
        assert self.hello
        number = next(self._numbers)
        try:
            self._stream.write(json.dumps({"id": number, "do": do, **wanted}).encode() + b"\n")
            self._stream.flush()
        except BrokenPipeError:
            self._lost()
        return number

    def answer(self, number: int) -> dict[str, Any]:
        while number not in self._early:
            answer = self._read()
            self._early[answer["id"]] = answer
        return self._early.pop(number)

    def ask(self, do: str, **wanted: Any) -> dict[str, Any]:
        return self.answer(self.send(do, **wanted))

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            self._lost()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self) -> None:
        self.is_gone = True
        raise AssertionError(f"the worker (pid {self._hello.get('pid')}, user {self.user}) is gone")

    def close(self) -> None:
        """End it, and its Ray with it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if not self._in_ray:
            self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(START_S)
        self.process.kill()
        self.process.wait()
        self._listener.close()
        if self._hello:
            with suppress(BrokenPipeError):
                self._stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Workers:
    """One for each user, each in a Ray of its own; all are started when the first is asked for: Ray takes its time."""

    def __init__(self) -> None:
        self._started: dict[str, Worker] = {}

    def __call__(self, user: str) -> Worker:
        for _ in range(STARTS_MOST):
            for each in USERS:
                if each not in self._started or self._started[each].is_gone:
                    self._end(each)
                    self._started[each] = Worker(each, in_ray=True)
            if self._started[user].comes_up():
                return self._started[user]
        raise AssertionError(f"no Ray of {user} starts, see above")

    def close(self) -> None:
        for each in USERS:
            self._end(each)

    def _end(self, user: str) -> None:
        if user in self._started:
            self._started.pop(user).close()


def is_other(user: str) -> bool:
    """Whether that is another user than the tests'."""
    return user == "unprivileged" and os.geteuid() == 0


def hand_over(path: Path, user: str) -> None:
    """Give a file or folder to that user."""
    if is_other(user):
        os.chown(path, HOST_ID, HOST_ID, follow_symlinks=False)


@cache
def packages_for_everybody() -> Path:
    """What a worker imports, where an unprivileged user can read it: this clone may lie under /root.

    Folders are that user's, so that nothing but a sandbox keeps its tools from writing there. Ray alone has 240 MB, so
    files are linked where they can be; those stay root's, for a link has no owner of its own.
    """
    packages = Path(tempfile.mkdtemp(prefix=FOLDER)) / "site-packages"  # by this name a sandbox shows it
    own = importlib.util.find_spec("understudy")
    assert own is not None
    assert own.origin is not None
    bare = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(own.origin).parent, packages / "understudy", ignore=bare)
    for distribution in _with_what_they_need(DISTRIBUTIONS):
        for file in distribution.files or ():
            if ".." not in file.parts:  # scripts, for bin
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(Path(str(file.locate())), target)
    for path in (packages.parent, *packages.parent.rglob("*")):
        if path.is_dir() or path.is_relative_to(packages / "understudy"):
            hand_over(path, "unprivileged")
    return packages


def forget_packages() -> None:
    """Remove them, if there are any."""
    if packages_for_everybody.cache_info().currsize:
        shutil.rmtree(packages_for_everybody().parent)
        packages_for_everybody.cache_clear()


def _with_what_they_need(names: tuple[str, ...]) -> Iterator[importlib.metadata.Distribution]:
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in seen:
            seen.add(name)
            distribution = importlib.metadata.distribution(name)
            yield distribution
            needed = map(Requirement, distribution.requires or ())
            waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]


def _link_or_copy(source: Path, target: Path) -> None:
    """Linked if everybody may do with it what its owner may, but write."""
    if not source.exists():  # compiled by another Python, or not yet
        return
    mode = source.stat().st_mode
    if mode & 0o005 == mode >> 6 & 0o005:
        with suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copy2(source, target)
    target.chmod(mode | (mode >> 6 & 0o005))


@cache
def python_for_everybody() -> str:
    """An interpreter of this version that an unprivileged user can reach. Ours may lie under /root."""
    # setpriv gives its capabilities up as late as when it starts the program, so it finds more than the program can.
    question = "import os, sys; print(*sys.version_info[:2], os.access(sys.executable, os.X_OK))"
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}", "/usr/bin/python3"):
        try:
            done = subprocess.run([*WITHOUT_ROOT, python, "-c", question], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if done.stdout.split() == [str(part) for part in (*sys.version_info[:2], True)]:
            return python
    pytest.fail(f"no Python 3.{sys.version_info[1]} is reachable for an unprivileged user; install one under /usr")
