"""Whether paths of the host are still what a zygote shows at them: looked at from outside, before each call.

A sandbox that is made for one call binds what a path leads to at that moment. One that was made before shows what the
path led to then: after a rename, another mount or a changed link, that is something else, and perhaps no longer what
was granted. What a zygote has bound stays in use as long as it lives, so no new file can have its number.

Blocking: a file system may be somewhere in a network, and then that takes a thread. Where all are of this machine
(`is_near`), it takes 20 to 60 us a path.
"""

import os
import select
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.policies.profile import covers

Identity = tuple[int, int]
"""Device and inode: what a path leads to, said the same inside of a sandbox and outside."""
MOUNTS = "/proc/self/mountinfo"
NEAR = frozenset(
    {"btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "squashfs", "tmpfs", "xfs", "zfs"}
)
"""File systems that wait for nobody but this machine."""
NEAR_MOST = 8
"""Paths that are looked at in passing."""


@dataclass(frozen=True)
class Look:
    """What a path leads to, and what a bind of it depends on."""

    identity: Identity
    access: tuple[int, int, int]
    """Mode, owner and group: what a call is refused for, and how owners are exchanged (`launcher.py`)."""
    listed_ns: int = 0
    """When names came to this folder or left it; 0 where that does not matter."""


def look(paths: Sequence[str], listing: Sequence[str] = ()) -> tuple[Look, ...] | None:
    """At each of these; None: one is not there, or goes through a link. `listing`: folders of which the names matter,
    too."""
    found = []
    for path in (*paths, *listing):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != path:
                return None
            status = os.fstat(fd)
        finally:
            os.close(fd)
        listed_ns = status.st_mtime_ns if path in listing else 0
        access = status.st_mode, status.st_uid, status.st_gid
        found.append(Look((status.st_dev, status.st_ino), access, listed_ns))
    return tuple(found)


class Shown:
    """How things are at some paths, from when this is made; `close` it."""

    def __init__(self, paths: Sequence[str], listing: Sequence[str] = ()) -> None:
        self._paths, self._listing = tuple(paths), tuple(listing)
        # The kernel says by it that mounts have changed, so that a call need not read them all.
        self._is_mounted_anew = False
        self._asking = threading.Lock()  # the kernel tells of a change once: whoever hears of it tells the others
        self._table = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._changes = select.poll()
            self._changes.register(self._table, select.POLLPRI)
            self._mounts = _mounts_at(self._paths)
            self._looks = look(self._paths, self._listing)
        except BaseException:
            self.close()
            raise

    @property
    def identities(self) -> list[Identity]:
        """Of the paths, in their order; of none of them, where one was not there."""
        return [each.identity for each in (self._looks or ())[: len(self._paths)]]

    @property
    def is_near(self) -> bool:
        """Whether a look takes no longer than this machine does."""
        kinds = {row.partition(" - ")[2].split(" ")[0] for row in self._mounts}
        return kinds <= NEAR and len(self._paths) <= NEAR_MOST

    def is_same(self) -> bool:
        """Whether all is as it was."""
        with self._asking:
            if self._table < 0 or self._changes.poll(0):
                before, self._is_mounted_anew = self._is_mounted_anew, True  # also where it cannot be read
                self._is_mounted_anew = before or self._table < 0 or _mounts_at(self._paths) != self._mounts
        if self._is_mounted_anew or self._looks is None:
            return False
        return look(self._paths, self._listing) == self._looks

    def close(self) -> None:
        with self._asking:
            if self._table >= 0:
                os.close(self._table)
            self._table = -1


def _mounts_at(paths: Sequence[str]) -> list[str]:
    """The rows of what is mounted on the way to these, at them, and below them."""
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as rows:
        return [row for row in rows if _concerns(row.split(" ", 5)[4], paths)]


def _concerns(point: str, paths: Sequence[str]) -> bool:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, letter)
    return covers(paths, point) or any(covers([point], path) for path in paths)
