"""Working folders on the host, for a tier that has no mounts of its own: made for one call, measured, and removed.

A folder's name says whose it is, so that whoever comes later can remove what a killed worker left. What lies in it was
made by a tool: nothing is followed, and nothing is believed, here.
"""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

_PREFIX = "understudy-call-"
_BLOCK_BYTES = 512
DEEPEST = 100
"""Folders in folders that are measured; a deeper one counts as one that is too large."""
TOO_LARGE = 1 << 62


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
    """When a process began, in clock ticks since boot; 0 if there is no such process, or it is dead and not reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def table() -> str:
    """Names the process table of this process: a pid means nothing in another one, and the place of folders and of
    cgroups may be shared with workers that have another."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def worker(pid: int) -> str:
    """`TABLE-PID-STARTED`: how names of what the calls of a worker leave say whose it is."""
    return f"{table()}-{pid}-{started_at(pid)}"


def dead_worker(name: str, prefix: str) -> tuple[Owner, str] | None:
    """Of a name that is this prefix, a worker of this process table that is dead, and one word more: that worker, its
    mark not read, and the word. None: it is another name."""
    if name.startswith(prefix):
        with suppress(ValueError):
            theirs, pid, started, word = name.removeprefix(prefix).split("-")
            owner = Owner(int(pid), int(started), 0)
            if theirs == table() and not owner.is_alive():
                return owner, word
    return None


def make(owner: Owner, uid: int) -> str:
    """An empty folder that belongs to this user. Raises OSError."""
    path = f"{tempfile.gettempdir()}/{_PREFIX}{table()}-{owner.pid}-{owner.started}-{owner.mark:x}"
    os.mkdir(path, 0o700)
    if uid != os.geteuid():
        os.chown(path, uid, uid)
    return os.path.realpath(path)


def measure(path: str) -> tuple[int, int]:
    """Files and bytes in it, by blocks. A folder that was closed is opened. What cannot be measured is too large."""
    files = size = 0
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            inside = _inside(folder)
        except OSError:  # its path is too long, for one
            return files, TOO_LARGE
        if depth > DEEPEST:
            return files, TOO_LARGE
        for name, found in inside:
            files += 1
            size += found.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(found.st_mode):
                waiting.append((f"{folder}/{name}", depth + 1))
    return files, size


def remove(path: str) -> None:
    """Remove it with all that is in it. Only when nobody writes there any more. Raises OSError."""
    try:
        top = _opened(path)
    except FileNotFoundError:
        return
    try:
        while names := os.listdir(top):
            for name in names:
                if not _unlinked(name, top):
                    _emptied(name, top)
                    os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _emptied(name: str, top: int) -> None:
    """Of files; and the folders in it are moved to the top. However deep they lie, nothing here gets deeper."""
    fd = _opened(name, top)
    try:
        for inner in os.listdir(fd):
            if not _unlinked(inner, fd):
                os.close(_opened(inner, fd))  # opened for its owner: who moves a folder writes to it
                os.rename(inner, f"folder-{secrets.token_hex(8)}", src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)


def _unlinked(name: str, folder: int) -> bool:
    """False for a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


def left_over() -> list[tuple[str, Owner]]:
    """Folders of workers of this process table that are dead."""
    found = []
    for name in os.listdir(tempfile.gettempdir()):
        dead = dead_worker(name, _PREFIX)
        if dead is not None:
            with suppress(ValueError):  # not a name of ours
                found.append((f"{tempfile.gettempdir()}/{name}", replace(dead[0], mark=int(dead[1], 16))))
    return found


def _inside(folder: str) -> list[tuple[str, os.stat_result]]:
    """Names and what they are; no link is followed, also not one that takes the folder's place meanwhile."""
    try:
        fd = _opened(folder)
    except (FileNotFoundError, NotADirectoryError):  # removed between two looks; the next one counts again
        return []
    try:
        return [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(fd)]
    except FileNotFoundError:
        return []
    finally:
        os.close(fd)


def _opened(folder: str, within: int | None = None) -> int:
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_RDONLY, dir_fd=within)
    except PermissionError:
        fd = os.open(folder, flags | os.O_PATH, dir_fd=within)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
        return os.open(folder, flags | os.O_RDONLY, dir_fd=within)
