"""Runs as root for a moment: makes the paths that a sandbox needs reachable, gives root up, becomes bubblewrap.

bubblewrap started by root keeps root's uid on the host, inside: from there /proc/sys/kernel/core_pattern can be
written, which is root on the host, and limits on processes do not bind. So it is never started by root. But the user
that root gives way to cannot enter /root (0700), where interpreters like to live, nor use what root alone may read. So
each path is first bound to a place that it can reach, in a mount namespace that ends with this process; and a granted
path's owner and that user change places on that mount (an id-mapped mount: nothing changes on the disk).

Run as `python -I -S launcher.py UID show:PATH read:PATH write:PATH ... -- COMMAND`, where `stage:N` in the command
stands for the place of the Nth path; `read` and `write` are grants, `show` is what every call sees. All of them with
`here` instead (`here`, `here-read`, `here-write`): each is made reachable at its own place. It imports little, and only
from the standard library: this is paid by every call (json would be 10 ms). Exit status 96: a granted path is the
trouble. 97: it was replaced or removed just now.
"""

import ctypes
import os
import struct
import sys

STAGE = "/tmp"  # covered by an empty folder, in this namespace only; bubblewrap needs it to exist as well
EXIT_BAD_GRANT = 96
EXIT_MOVED = 97
HERE = "here"
GRANTS = {"read": "r", "write": "rw", "here-read": "r", "here-write": "rw"}
"""What a granted path has to be good for."""

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 1 << 18
AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 0x1000, 0x8000, 0x1, 0x4
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
MOUNT_ATTR_IDMAP = 0x00100000
LAST_ID = 4294967294

libc = ctypes.CDLL(None, use_errno=True)


class BadGrant(Exception):
    """A granted path that cannot be bound as it is."""


class Moved(Exception):
    """A granted path that led to something else when it was bound than when it was opened."""


def main() -> None:
    border = sys.argv.index("--")
    uid = int(sys.argv[1])
    wanted = [(how, path) for how, _, path in (arg.partition(":") for arg in sys.argv[2:border])]
    places = [path for _how, path in wanted]
    if os.geteuid() == 0:
        if enter_private_mounts():
            if wanted and wanted[0][0].startswith(HERE):
                reach_here(wanted, uid)
            else:
                places = [stage(index, fd, how, uid) for index, (how, fd) in enumerate(opened(wanted))]
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        for (how, path), place in zip(wanted, places, strict=True):
            refuse_closed(how, path, place, uid)
    os.chdir("/")
    os.umask(0o022)
    # No parent-death signal from here: if the worker died while bubblewrap clones its first process inside, bubblewrap
    # would die with it and leave that one waiting for ever. It sets its own when it is ready; and until then there is
    # nothing to stop, for the request is not sent, and without one the runner ends.
    # Everything else in the command is an option, a number or an absolute path.
    command = [places[int(part[6:])] if part.startswith("stage:") else part for part in sys.argv[border + 1 :]]
    os.execve(command[0], command, {"PATH": "/usr/bin:/bin"})


def enter_private_mounts() -> bool:
    """False in a container that is root in name only: then paths have to be reachable as they are."""
    try:
        check(libc.unshare(CLONE_NEWNS), "unshare")
    except PermissionError:
        return False
    mount("none", "/", MS_REC | MS_PRIVATE)
    return True


def opened(wanted: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """Hold every path open before the stage covers some of them."""
    held = held_open(wanted)
    mount("tmpfs", STAGE, MS_NOSUID | MS_NODEV, "tmpfs", "mode=755,size=1m")
    return held


def held_open(wanted: list[tuple[str, str]]) -> list[tuple[str, int]]:
    held = []
    for how, path in wanted:
        try:
            fd = os.open(path, os.O_PATH)
        except OSError as error:
            if how in GRANTS:
                raise BadGrant(f"the granted path {path!r} cannot be opened on this node: {error.strerror}") from None
            raise
        real = os.readlink(f"/proc/self/fd/{fd}")
        if how in GRANTS and real != path:
            raise BadGrant(f"the granted path {path!r} goes through a symbolic link; grant {real!r}")
        held.append((how, fd))
    return held


def reach_here(wanted: list[tuple[str, str]], uid: int) -> None:
    """Make each path reachable at its own place: what is closed above it is covered, and it is shown again there."""
    held = held_open(wanted)
    covered = {closed for _how, path in wanted if (closed := closed_above(path, uid))}
    for folder in sorted(covered):
        if not any(folder.startswith(f"{other}/") for other in covered):
            mount("tmpfs", folder, MS_NOSUID | MS_NODEV, "tmpfs", "mode=755,size=1m")
    for (how, path), (_how, fd) in sorted(zip(wanted, held, strict=True), key=lambda both: both[0][1]):
        status = os.fstat(fd)
        below = any(path.startswith(f"{folder}/") for folder in covered)
        if below and not os.path.exists(path):
            if (status.st_mode & 0o170000) == 0o040000:
                os.makedirs(path, 0o755)
            else:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
        if how in GRANTS and status.st_uid != uid and bind_as(fd, path, status.st_uid, status.st_gid, uid):
            continue
        if below:
            bind(fd, path, how)


def closed_above(path: str, uid: int) -> str:
    """The first folder on the way to it that others than its owner may not pass; empty if there is none."""
    parts = path.split("/")[1:-1]
    for count in range(1, len(parts) + 1):
        folder = "/" + "/".join(parts[:count])
        status = os.stat(folder)
        if not status.st_mode & 0o001 and status.st_uid != uid:
            return folder
    return ""


def stage(index: int, fd: int, how: str, uid: int) -> str:
    """Bind an open path to a place of its own under the stage."""
    place = f"{STAGE}/{index}"
    status = os.fstat(fd)
    if (status.st_mode & 0o170000) == 0o040000:
        os.mkdir(place, 0o755)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    if how in GRANTS and status.st_uid != uid and bind_as(fd, place, status.st_uid, status.st_gid, uid):
        return place
    bind(fd, place, how)
    return place


def bind(fd: int, place: str, how: str) -> None:
    try:
        mount(f"/proc/self/fd/{fd}", place, MS_BIND | MS_REC)
    except FileNotFoundError:  # the kernel binds nothing that has no name any more
        if how in GRANTS:
            raise Moved(os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")) from None
        raise


def refuse_closed(how: str, path: str, place: str, uid: int) -> None:
    """What the sandbox could not use is said now, in words, rather than by the tool as some PermissionError."""
    if how not in GRANTS:
        return
    letters = GRANTS[how]
    if not os.access(place, os.R_OK | (os.W_OK if "w" in letters else 0)):
        raise BadGrant(
            f"the granted path {path!r} is closed to the sandbox (uid {uid}), and its file system cannot exchange "
            f"owners as ext4, xfs, btrfs and tmpfs can; open it: setfacl -m u:{uid}:{letters}X {path}"
        )


def bind_as(fd: int, place: str, owner: int, group: int, uid: int) -> bool:
    """Bind with the owner and the sandbox's uid exchanged. False where the file system does not offer that."""
    try:
        users = user_namespace(exchange(owner, uid), exchange(group, uid))
        flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC
        tree = check(libc.syscall(SYS_OPEN_TREE, fd, b"", flags), "open_tree")
        attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, users)
        check(libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes)), "mount_setattr")
        moved = libc.syscall(SYS_MOVE_MOUNT, tree, b"", -100, place.encode(), MOVE_MOUNT_F_EMPTY_PATH)
        check(moved, "move_mount")
    except OSError:
        return False
    return True


def exchange(one: int, other: int) -> str:
    """An id map in which two ids change places and all others stay as they are."""
    low, high = min(one, other), max(one, other)
    rows = [
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, LAST_ID - high),
    ]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count > 0)


def user_namespace(users: str, groups: str) -> int:
    """A user namespace with these maps, as a file descriptor; nobody lives in it."""
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(say_go)  # or else it would wait for itself, for ever, where its parent is killed
        status = libc.unshare(CLONE_NEWUSER)
        os.write(say_ready, b"y" if status == 0 else b"n")
        os.read(go, 1)
        os._exit(0)
    try:
        if os.read(ready, 1) != b"y":
            raise PermissionError("unshare")
        for name, text in (("uid_map", users), ("gid_map", groups)):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write(text)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    finally:
        os.write(say_go, b"y")
        os.waitpid(child, 0)
        for fd in (ready, say_ready, go, say_go):
            os.close(fd)


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    check(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {source} on {target}")


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


if __name__ == "__main__":
    try:
        main()
    except BadGrant as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_BAD_GRANT)
    except Moved as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_MOVED)
