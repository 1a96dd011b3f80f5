"""Working folders on the host, for a tier that has no mounts of its own: made for one call, measured, and removed.

A folder's name says whose it is, so that whoever comes later can remove what a killed worker left. What lies in it was
made by a tool: nothing is followed, and nothing is believed, here.
"""

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "understudy-call-"
_BLOCK_BYTES = 512
DEEPEST = 100
"""Folders in folders that are measured; a deeper one counts as one that is too large."""


@dataclass(frozen=True)
class Owner:
    """The worker that a call belongs to, and the call's mark."""

    pid: int
    started: int
    """Clock ticks since boot: a pid comes back, this does not."""
    mark: int

    def is_alive(self) -> bool:
        return started_at(self.pid) == self.started


def started_at(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def make(owner: Owner, uid: int) -> str:
    """An empty folder that belongs to this user. Raises OSError."""
    path = f"{tempfile.gettempdir()}/{_PREFIX}{owner.pid}-{owner.started}-{owner.mark:x}"
    os.mkdir(path, 0o700)
    if uid != os.geteuid():
        os.chown(path, uid, uid)
    return os.path.realpath(path)


def measure(path: str) -> tuple[int, int]:
    """Files and bytes in it, by blocks. A folder that was closed is opened."""
    files = size = 0
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > DEEPEST:
            return files, 1 << 62
        for name, found in _inside(folder):
            files += 1
            size += found.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(found.st_mode):
                waiting.append((f"{folder}/{name}", depth + 1))
    return files, size


def remove(path: str) -> None:
    """Remove it with all that is in it. Raises OSError where something cannot be removed."""
    for _ in range(DEEPEST):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except PermissionError as error:
            _open_up(os.path.dirname(error.filename or path))
            _open_up(error.filename or path)
    if os.path.lexists(path):
        shutil.rmtree(path)


def left_over() -> list[tuple[str, Owner]]:
    """Folders of workers that are dead."""
    found = []
    for name in os.listdir(tempfile.gettempdir()):
        if name.startswith(_PREFIX):
            with suppress(ValueError):  # not a name of ours
                pid, started, mark = name.removeprefix(_PREFIX).split("-")
                owner = Owner(int(pid), int(started), int(mark, 16))
                if not owner.is_alive():
                    found.append((f"{tempfile.gettempdir()}/{name}", owner))
    return found


def _inside(folder: str) -> list[tuple[str, os.stat_result]]:
    """Names and what they are; no link is followed, also not one that takes the folder's place meanwhile."""
    try:
        fd = _opened(folder)
    except OSError:
        return []
    try:
        return [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(fd)]
    except FileNotFoundError:  # removed between two looks; the next one counts again
        return []
    finally:
        os.close(fd)


def _opened(folder: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(folder, flags)
    except PermissionError:
        _open_up(folder)
        return os.open(folder, flags)


def _open_up(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
