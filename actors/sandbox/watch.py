"""Looks at a sandbox from outside: which processes are in it, and how much memory they really hold together.

RLIMIT_AS bounds one process; nothing without privileges bounds the sum. So the sum is read from /proc, some fifty times
a second (0.3 to 0.6 ms a look), and whoever is over it is ended from outside.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_KIB = 1024
_BLOCK = 512
_AGAIN = 3
_libc = ctypes.CDLL(None)
_SYSINFO = "@l9L2H2LI"
"""How long it is up, loads, then bytes: total, free, shared and so on; in the end, the unit of these."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What a process and all below it used at one moment."""

    memory_bytes: int
    processes: int
    threads: int
    """Of all processes together; each has one at least."""
    cpu_s: float
    """CPU seconds of all together, also of those that have ended, where whoever had started them waited for that."""
    files: int = 0
    """Files in its private folders, where the kernel does not bound them."""
    disk_bytes: int = 0
    """Bytes in its private folders, where the kernel does not bound them."""


def sample(root: int, limit_bytes: int) -> Sample:
    """Look at the tree below `root`, which adopts its orphans: the first of a pid namespace, or a subreaper."""
    pids = tree(root)
    seen = [status(pid) for pid in pids]
    memory = sum(_resident(facts) for facts in seen)
    if memory > limit_bytes and len(pids) > 1:
        # Pages that forked processes share were counted once for each of them. The exact sum takes milliseconds a
        # process, so it is asked only when it decides.
        memory = _together(pids, limit_bytes)
    if memory <= limit_bytes < memory + machine_shared():
        memory = max(memory, _with_unmapped(pids, seen, limit_bytes))
    threads = sum(int(facts.get("Threads", 1)) for facts in seen)
    return Sample(memory, len(pids), threads, sum(cpu_s(pid) for pid in pids))


def _together(pids: list[int], limit_bytes: int, held_by: Callable[[int], int] | None = None) -> int:
    """Bytes that all of these hold, shared pages counted once.

    A process that ends while the others are read leaves its part of what they share to those that are read after it,
    so that this part is counted twice: then all are read again, as often as `_AGAIN` at most, because some tool may end
    processes all the time.
    """
    ended: set[int] = set()
    for _ in range(1 + _AGAIN):
        before, ended, memory = ended, set(), 0
        for pid in pids:
            held = (held_by or _own)(pid)
            memory += held
            if not held:
                ended.add(pid)
        if memory <= limit_bytes or ended == before:
            break
    return memory


def _own(pid: int) -> int:
    found = proportional(pid)
    return found if found is not None else resident(pid)


def _own_anonymous(pid: int) -> int:
    found = _rows(read(f"/proc/{pid}/smaps_rollup")).get("Pss_Anon")
    return _number(found if found is not None else status(pid).get("RssAnon")) * _KIB


def machine_shared() -> int:
    """Bytes of shared memory on the whole machine: no call can hold more."""
    found = ctypes.create_string_buffer(256)
    if _libc.sysinfo(found) != 0:
        return 1 << 62
    fields = struct.unpack_from(_SYSINFO, found)
    return int(fields[6] * fields[-1])


def _with_unmapped(pids: list[int], seen: list[dict[str, str]], limit_bytes: int) -> int:
    """Bytes held with what is in no process's pages: shared memory that a tool has written, and let go of the pages.

    It stays until the last mapping of it is gone, were that one page of it. Root is told how much there is; others see
    what is mapped of it, and take for granted that all of that is there. What cannot be looked at (a program that may
    not be read, say) counts as large as it could be.
    """
    blind, shared = 0, dict[str, int]()
    for pid in pids:
        rows = read(f"/proc/{pid}/maps").splitlines() or read(f"/proc/{pid}/maps").splitlines()
        if not rows and pid != pids[0]:  # the first is ours, and may hide
            blind += _number(status(pid).get("VmSize")) * _KIB  # of one that has ended meanwhile: nothing
        for row in rows:
            if "/dev/zero" in row:
                place, rights, offset, _device, inode, *_path = row.split()
                if rights.endswith("s"):
                    shared[inode] = max(shared.get(inode, 0), _held_at(pid, place, int(offset, 16)))
    if not blind and not shared:
        return 0
    anonymous = sum(_number(facts.get("RssAnon")) for facts in seen) * _KIB
    held = blind + sum(shared.values())
    if held + anonymous > limit_bytes and len(pids) > 1:
        anonymous = _together(pids, limit_bytes - held, _own_anonymous)
    return held + anonymous


def _held_at(pid: int, place: str, offset: int) -> int:
    """Bytes of the shared memory that is mapped there."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/map_files/{place}").st_blocks * _BLOCK
    start, _, end = place.partition("-")
    return offset + int(end, 16) - int(start, 16)


def tree(root: int) -> list[int]:
    """All living processes from `root` down."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            waiting.extend(int(child) for child in read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own or shared with its kind; not files, which the kernel can drop."""
    return _resident(status(pid))


def _resident(facts: dict[str, str]) -> int:
    return (_number(facts.get("RssAnon")) + _number(facts.get("RssShmem"))) * _KIB


def proportional(pid: int) -> int | None:
    """The same, with each shared page divided among those that share it."""
    rows = _rows(read(f"/proc/{pid}/smaps_rollup"))
    if "Pss_Anon" not in rows:
        return None
    return (_number(rows["Pss_Anon"]) + _number(rows.get("Pss_Shmem"))) * _KIB


def files(root: int, disk_bytes: int) -> int:
    """Inodes of the private folders: memory of the kernel's, which bubblewrap's tmpfs does not bound.

    Until the first process has moved into its own root, these names lead to the host's folders; the size, which is
    exactly what was asked for, tells them apart.
    """
    count = 0
    for folder in ("tmp", "dev/shm"):
        try:
            found = os.statvfs(f"/proc/{root}/root/{folder}")
        except OSError:
            continue
        if found.f_blocks == -(-disk_bytes // found.f_frsize):
            count += found.f_files - found.f_ffree
    return count


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that it has waited for, and so on down."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, readable for processes of any kind. Empty if there is no such process."""
    return _rows(read(f"/proc/{pid}/status"))


def _rows(text: str) -> dict[str, str]:
    rows = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        rows[name] = value.strip()
    return rows


def _number(value: str | None) -> int:
    return int(value.split()[0]) if value else 0


def read(path: str) -> str:
    """A small file; empty if there is none. Not with `open`, which takes three times as long: a call of some length is
    looked at fifty times a second."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError:  # it ended between two looks
        return ""
    return b"".join(parts).decode(errors="replace")
