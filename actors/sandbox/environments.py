"""The folder of a machine's built environments: finds what a tool's call needs, lends it, and removes what nobody uses.

Laws:
- What is lent is what was built: its files are verified by a digest before a process lends it first.
- Nothing is half there: an environment is built aside, by `build.py`, and renamed; whoever dies before that leaves a
  folder that the next one removes.
- It stays as long as a call has it: calls share a lock that building and removing want for themselves. The kernel gives
  a dead process's locks back.
- What was not used for a month is removed (law 8).

A tool's environment is read-only, in a sandbox that is made for the call; the packages of the worker are not in it, but
for the few that understudy itself needs there, and only where it has none of its own.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from understudy.actors.environment import Environment
from understudy.actors.errors import CallerError

UNUSED_S: Final = 30 * 86400.0
MANIFEST: Final = "understudy.json"
BUILDING, REMOVING = "building-", "removing-"
LENT_NAMES: Final = (
    "understudy",
    "cloudpickle",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
)
"""What a tool's process needs of the worker's packages: to load code by value, to check arguments, to write results."""


class EnvironmentUnusable(CallerError):
    """The environment is missing, or not what it should be; the call was not made. Says which, and what to do."""


@dataclass(frozen=True)
class Built:
    """An environment in the folder."""

    key: str
    folder: str
    wanted: Environment
    installed: tuple[str, ...]
    built_at: float
    used_at: float
    problem: str = ""
    """Why it is not lent; empty: it is as it was built."""


def interpreter() -> str:
    """What an environment is built for."""
    return f"{sys.implementation.cache_tag}-{platform.machine()}"


class Environments:
    """`folder` need not exist."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self._good: dict[str, int] = {}
        """Verified by this process: when each was built."""

    @contextlib.contextmanager
    def lent(self, wanted: Environment) -> Iterator[str]:
        """Its folder, as long as a call has it. Raises EnvironmentUnusable."""
        if wanted.venv:
            _refuse_shape(wanted.venv, wanted)
            yield os.path.realpath(wanted.venv)
            return
        key = wanted.key(interpreter())
        folder = f"{self.folder}/{key}"
        if not os.path.isdir(folder):
            raise missing(wanted)
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(self.locked(key, fcntl.LOCK_SH | fcntl.LOCK_NB))
            except BlockingIOError:
                raise EnvironmentUnusable(f"the environment of the tool ({wanted}) is being built right now") from None
            self.verify(key, wanted)
            os.utime(lock)
            yield os.path.realpath(folder)

    def prepare(self, wanted: Environment) -> None:
        """What takes its time of `lent`, once a process; to be done in a thread. Raises EnvironmentUnusable."""
        with self.lent(wanted):
            pass

    def verify(self, key: str, wanted: Environment) -> None:
        """Whether it is as it was built; the whole of it once a process. Raises EnvironmentUnusable."""
        folder = f"{self.folder}/{key}"
        try:
            built = os.stat(f"{folder}/{MANIFEST}").st_mtime_ns
            if self._good.get(key) == built:
                return
            manifest = _manifest(folder)
            digest = tree_digest(folder)
        except FileNotFoundError:
            raise missing(wanted) from None
        except (OSError, ValueError) as error:
            raise _broken(wanted, str(error)) from None
        if digest != manifest.get("tree"):
            raise _broken(wanted, "its files are not those that were built")
        _refuse_shape(folder, wanted)
        self._good[key] = built

    def all(self) -> list[Built]:
        """What is there, with what is wrong with it; oldest first."""
        found = []
        for key in self._names():
            if not key.startswith((BUILDING, REMOVING)) and os.path.isdir(f"{self.folder}/{key}"):
                found.append(self._look(key))
        return sorted(found, key=lambda each: each.built_at)

    def clean(self, unused_s: float = UNUSED_S) -> list[str]:
        """Remove what was not used for so long, and what the dead have left; their names."""
        now, removed, names = time.time(), [], self._names()
        drafts = [name for name in names if name.startswith((BUILDING, REMOVING))]
        for key in sorted({_key_in(name) for name in names}):
            with contextlib.suppress(BlockingIOError), self.locked(key, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
                for name in drafts:
                    if _key_in(name) == key:
                        remove(f"{self.folder}/{name}")
                there = os.path.isdir(f"{self.folder}/{key}")
                if there and now - os.fstat(lock).st_mtime > unused_s:
                    self.take_away(key)
                    removed.append(key)
                if not there or key in removed:
                    os.unlink(self._lock_of(key))
        return removed

    def take_away(self, key: str) -> None:
        """Only with its lock, for oneself."""
        aside = f"{self.folder}/{REMOVING}{key}-{os.getpid()}-{time.monotonic_ns()}"
        os.rename(f"{self.folder}/{key}", aside)
        remove(aside)

    @contextlib.contextmanager
    def locked(self, key: str, how: int) -> Iterator[int]:
        """Raises BlockingIOError: somebody has it, and `how` does not wait."""
        os.makedirs(self.folder, 0o755, exist_ok=True)
        while True:
            fd = os.open(self._lock_of(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
                if self._is_lock_of(key, fd):
                    yield fd
                    return
            finally:
                os.close(fd)  # and with it the lock

    def _is_lock_of(self, key: str, fd: int) -> bool:
        """False: the file was removed between opening and locking it, and locks nothing any more."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._lock_of(key)))
        except FileNotFoundError:
            return False

    def _lock_of(self, key: str) -> str:
        return f"{self.folder}/{key}.lock"

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def _look(self, key: str) -> Built:
        folder, wanted, manifest, problem = f"{self.folder}/{key}", Environment(packages=["?"]), dict[str, Any](), ""
        used = 0.0
        with contextlib.suppress(OSError):
            used = os.stat(self._lock_of(key)).st_mtime
        try:
            manifest = _manifest(folder)
            wanted = Environment(packages=manifest["packages"])
            self._good.pop(key, None)
            self.verify(key, wanted)
        except EnvironmentUnusable as error:
            problem = str(error)
        except (OSError, ValueError, KeyError) as error:
            problem = f"it says nothing of itself that can be read ({error})"
        installed = tuple(manifest.get("installed", ()))
        return Built(key, folder, wanted, installed, manifest.get("built_at", 0.0), used, problem)


def _key_in(name: str) -> str:
    """Of an environment, of what is left of one, and of a lock."""
    return name.removeprefix(BUILDING).removeprefix(REMOVING).removesuffix(".lock").partition("-")[0]


def site_packages(folder: str) -> str:
    return f"{folder}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def stdlib() -> str:
    return sysconfig.get_path("stdlib")


def tree_digest(folder: str) -> str:
    """Of all files and links in it, their names, contents and whether they can be executed; without its manifest."""
    digest = hashlib.sha256()
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *(each for each in folders if os.path.islink(f"{root}/{each}"))]):
            path = f"{root}/{name}"
            inner = os.path.relpath(path, folder)
            if inner == MANIFEST:
                continue
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                kind, content = "l", hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
            else:
                kind = "x" if status.st_mode & 0o100 else "f"
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{kind} {content} {len(inner)} {inner}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def remove(path: str) -> None:
    """A folder, also one whose files nobody may write."""
    for root, _folders, _files in os.walk(path):
        os.chmod(root, 0o700)
    shutil.rmtree(path)


def missing(wanted: Environment) -> EnvironmentUnusable:
    return EnvironmentUnusable(
        f"the environment of the tool ({wanted}) is not built on this machine for {interpreter()}; build it: "
        f"understudy environments build MODULE, with the module that holds the tool"
    )


def _broken(wanted: Environment, why: str) -> EnvironmentUnusable:
    return EnvironmentUnusable(
        f"the environment of the tool ({wanted}) is broken: {why}; build it anew: understudy environments build MODULE"
    )


def _manifest(folder: str) -> dict[str, Any]:
    with open(f"{folder}/{MANIFEST}", encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"{MANIFEST} holds no object")
    return found


def _refuse_shape(folder: str, wanted: Environment) -> None:
    """What is shown of it has to be its own, and of the interpreter that will run it. Raises EnvironmentUnusable."""
    real = os.path.realpath(folder)
    if not os.path.isfile(f"{real}/pyvenv.cfg") or os.path.islink(f"{real}/pyvenv.cfg"):
        raise EnvironmentUnusable(
            f"{folder} is no virtual environment (no pyvenv.cfg); make one: python -m venv {folder}"
        )
    for name in ("bin", "lib"):
        if os.path.islink(f"{real}/{name}") or not os.path.isdir(f"{real}/{name}"):
            raise EnvironmentUnusable(f"{folder}/{name} is no folder of the environment itself; make it anew")
    theirs, ours = os.path.realpath(f"{real}/bin/python"), os.path.realpath(sys.executable)
    if theirs != ours or not os.path.isdir(site_packages(real)):
        raise EnvironmentUnusable(
            f"the environment of the tool ({wanted}) is of {theirs}, and tools run on {ours}; make it with that one"
        )
