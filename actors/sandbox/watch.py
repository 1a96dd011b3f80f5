"""Looks at a sandbox from outside: which processes are in it, and how much memory they really hold together.

RLIMIT_AS bounds one process; nothing without privileges bounds the sum. So the sum is read from /proc, some fifty times
a second (0.3 to 0.6 ms a look), and whoever is over it is ended from outside.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_AGAIN = 3
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What a process and all below it used at one moment."""

    memory_bytes: int
    processes: int
    threads: int
    """Of all processes together; each has one at least."""
    cpu_s: float
    """CPU seconds of the busiest process."""
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
    threads = sum(int(facts.get("Threads", 1)) for facts in seen)
    return Sample(memory, len(pids), threads, max((cpu_s(pid) for pid in pids), default=0.0))


def _together(pids: list[int], limit_bytes: int) -> int:
    """Bytes that all of these hold, shared pages counted once.

    A process that ends while the others are read leaves its part of what they share to those that are read after it,
    so that this part is counted twice: then all are read again, as often as `_AGAIN` at most, because some tool may end
    processes all the time.
    """
    ended: set[int] = set()
    for _ in range(1 + _AGAIN):
        before, ended, memory = ended, set(), 0
        for pid in pids:
            own = proportional(pid)
            held = own if own is not None else resident(pid)
            memory += held
            if not held:
                ended.add(pid)
        if memory <= limit_bytes or ended == before:
            break
    return memory


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
            waiting.extend(int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own or shared with its kind; not files, which the kernel can drop."""
    return _resident(status(pid))


def _resident(facts: dict[str, str]) -> int:
    return (_number(facts.get("RssAnon")) + _number(facts.get("RssShmem"))) * _KIB


def proportional(pid: int) -> int | None:
    """The same, with each shared page divided among those that share it."""
    rows = _rows(_read(f"/proc/{pid}/smaps_rollup"))
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
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, readable for processes of any kind. Empty if there is no such process."""
    return _rows(_read(f"/proc/{pid}/status"))


def _rows(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _number(value: str | None) -> int:
    return int(value.split()[0]) if value else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it ended between two looks
        return ""
