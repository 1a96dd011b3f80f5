"""Where sandboxed calls are made from in these tests: each tier, from a worker that is root and one that is not."""

import base64
import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from escape import attempts, callers, ends, file_attempts, tools

from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.sandbox.launch import HOST_ID
from understudy.policies.profile import Limits, Profile, Tier

NOTHING = Profile()
BY_VALUE = (attempts, ends, file_attempts, callers, tools)
CANARY = "canary-5f2c"
"""A secret in the worker's environment."""
WITHOUT_ROOT = ["setpriv", "--reuid", str(HOST_ID), "--regid", str(HOST_ID), "--clear-groups"]
USERS = ("root", "unprivileged") if os.geteuid() == 0 else ("unprivileged",)
PACKAGES = ("understudy", "cloudpickle", "pydantic", "pydantic_core", "annotated_types", "typing_inspection")
"""What a worker imports, directly or not; and `typing_extensions`, which is a file."""


class Raised(Exception):
    """What a call raised in the worker."""


class Worker:
    """A process as some user; as root, one that is not needs an interpreter and packages that it can reach."""

    def __init__(self, user: str, within: Sequence[str] = (), programs: str = "", pass_fds: Sequence[int] = ()) -> None:
        """`within`: what it is started by, and `pass_fds` for that. `programs`: where it finds any."""
        script = Path(__file__).with_name("worker.py")
        self.user = user
        self._numbers = itertools.count(1)
        self._early: dict[int, dict[str, Any]] = {}
        self._folder: Path | None = None
        found = ["/usr/bin/env", f"PATH={programs}"] if programs else []
        command, environment = [*found, sys.executable, str(script)], dict(os.environ)
        if user == "unprivileged" and os.geteuid() == 0:
            self._folder = Path(tempfile.mkdtemp())
            shutil.copy(script, self._folder)
            packages = _packages_for_everybody(self._folder)
            for path in (self._folder, *self._folder.rglob("*")):
                os.chown(path, HOST_ID, HOST_ID, follow_symlinks=False)
            command = [*WITHOUT_ROOT, *found, python_for_everybody(), str(self._folder / script.name)]
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)}
        environment["UNDERSTUDY_STORE"] = f"redis://:{CANARY}@127.0.0.1"
        pipe = subprocess.PIPE
        line = [*within, *command]
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, env=environment, pass_fds=pass_fds)

    def send(self, do: str, **wanted: Any) -> int:
        """The number by which to ask for its answer."""
        assert self.process.stdin is not None
        number = next(self._numbers)
        self.process.stdin.write(json.dumps({"id": number, "do": do, **wanted}).encode() + b"\n")
        self.process.stdin.flush()
        return number

    def answer(self, number: int) -> dict[str, Any]:
        assert self.process.stdout is not None
        if number in self._early:
            return self._early.pop(number)
        while line := self.process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer["id"] == number:
                return answer
            self._early[answer["id"]] = answer
        raise AssertionError(f"the worker (pid {self.process.pid}) ended with {self.process.wait()}")

    def ask(self, do: str, **wanted: Any) -> dict[str, Any]:
        return self.answer(self.send(do, **wanted))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)


@dataclasses.dataclass(frozen=True)
class Place:
    """A tier, tried from one worker; `folder` is one that the worker's user owns, for this test."""

    tier: Tier
    worker: Worker
    folder: Path

    def outcome(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> Outcome:
        return self.answer(self.begin(function, profile, **args))

    def tried(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> Any:
        """What an attempt that ends by itself says of how far it got."""
        outcome = self.outcome(function, profile, **args)
        assert outcome.kind == "ok", outcome
        return outcome.value

    def referred(self, ref: str, /, **args: Any) -> Outcome:
        return self.answer(self._send(ToolCode(ref=ref), NOTHING, args))

    def in_workspace(self, function: Callable[..., Any], profile: Profile, files: str, /, **args: Any) -> Outcome:
        """Called with these files, of which what changes is kept."""
        return self.answer(self._send(by_value(function), profile, args, files=files))

    def begin(self, function: Callable[..., Any], profile: Profile = NOTHING, /, **args: Any) -> int:
        return self._send(by_value(function), profile, args)

    def cancelled(self, after: int, function: Callable[..., Any], /, **args: Any) -> str:
        """What a call raises that is cancelled after so many turns of the loop."""
        number = self._send(by_value(function), NOTHING, args, cancel_after=after)
        return str(self.worker.answer(number).get("raised"))

    def _send(self, code: ToolCode, profile: Profile, args: dict[str, Any], **more: Any) -> int:
        blob = base64.b64encode(code.blob).decode()
        told = dataclasses.asdict(dataclasses.replace(profile, tier=self.tier))
        return self.worker.send("call", tier=self.tier, ref=code.ref, blob=blob, args=args, profile=told, **more)

    def answer(self, number: int) -> Outcome:
        answer = self.worker.answer(number)
        if "raised" in answer:
            raise Raised(f"{answer['raised']}: {answer.get('words')}")
        return Outcome(**answer["outcome"])

    def answers(self, numbers: Sequence[int]) -> list[Outcome]:
        return [self.answer(number) for number in numbers]

    def shown_below(self, folder: str) -> list[str]:
        """What of a folder a sandbox has to show, because the interpreter or this very clone lies in it."""
        places = [Path(place) for place in self.worker.ask("shown")["places"]]
        return sorted({place.relative_to(folder).parts[0] for place in places if place.is_relative_to(folder)})

    @property
    def hidden(self) -> str:
        """How a tool is told that it cannot have a file: it is not there, or, without mounts, closed."""
        return "EACCES" if self.tier == "landlock" else "ENOENT"

    @property
    def unwritable(self) -> str:
        return "EACCES" if self.tier == "landlock" else "EROFS"

    def descriptors(self) -> int:
        """How many the worker has open."""
        return int(self.worker.ask("descriptors", tier=self.tier)["count"])

    def hand_over(self) -> None:
        """Give all in the folder to the worker's user."""
        for path in (self.folder, *self.folder.rglob("*")):
            if self.worker.user == "unprivileged" and os.geteuid() == 0:
                os.chown(path, HOST_ID, HOST_ID, follow_symlinks=False)

    def file(self, name: str, text: str = "", mode: int = 0o666) -> Path:
        """A file of the worker's user."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        if self.worker.user == "unprivileged" and os.geteuid() == 0:
            os.chown(path, HOST_ID, HOST_ID)
        return path


def by_value(function: object) -> ToolCode:
    for module in BY_VALUE:
        cloudpickle.register_pickle_by_value(module)
    try:
        return ToolCode(blob=cloudpickle.dumps(function))
    finally:
        for module in BY_VALUE:
            cloudpickle.unregister_pickle_by_value(module)


def limited(**limits: Any) -> Profile:
    return Profile(limits=Limits(**limits))


def processes_with(*wanted: str, within: bool = False) -> list[str]:
    """Living processes of the whole host that have these arguments, or (within) this text in their command line."""
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                line = (proc / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if all(text in (line if within else line.split("\0")) for text in wanted):
                found.append(proc.name)
    return found


def _packages_for_everybody(within: Path) -> Path:
    """What the worker imports, where an unprivileged user can read it: this clone may lie under /root."""
    packages = within / "site-packages"  # by this name a sandbox shows it
    bare = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:  # older versions of pydantic need fewer
            shutil.copytree(Path(found.origin).parent, packages / name, ignore=bare)
    extensions = importlib.util.find_spec("typing_extensions")
    assert extensions is not None
    assert extensions.origin is not None
    shutil.copy(extensions.origin, packages)
    return packages


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


def places_of(tiers: Sequence[Tier]) -> list[tuple[Tier, str]]:
    return [(tier, user) for tier in tiers for user in USERS]
