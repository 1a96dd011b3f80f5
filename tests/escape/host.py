"""What calls could leave on a host: looked at before and after each test, from outside.

Memory that no process holds is in files, in System V's tables, or behind descriptors of the worker's; so are mounts.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from escape.places import Place

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.folders import table
from understudy.actors.sandbox.launch import HOST_ID

FOLDERS = (tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/dev/mqueue")
GROWTH_MOST = 48 << 20
"""Bytes that the worker may hold longer than a call: Python gives back what it had for a large answer when it likes."""
MOUNTED_ON = ("/", "/usr", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp")
OWNER = HOST_ID if os.geteuid() == 0 else os.geteuid()
"""Whose processes and files those of every sandbox are."""


@dataclass(frozen=True)
class Host:
    """`held`: how many of each kind; of things that have names, those."""

    held: Counter[str]
    memory_bytes: int

    def or_more(self, other: "Host") -> "Host":
        """Of two looks at the same: the kernel may leave out a child while its sibling ends (proc_pid_children(5))."""
        return Host(self.held | other.held, max(self.memory_bytes, other.memory_bytes))

    def more_than(self, before: "Host") -> str:
        """What there is now that was not there, in words."""
        more = [f"{count} x {kind}" for kind, count in (self.held - before.held).items()]
        grown = self.memory_bytes - before.memory_bytes
        return ", ".join([*more, *([f"{grown >> 20} MiB of memory"] if grown > GROWTH_MOST else [])])


def look(place: Place) -> Host:
    """Once as many spares wait as should."""
    pid = place.worker.pid
    told = place.worker.ask("holds", tier=place.tier)
    held = Counter({f"{kind} (held by the worker)": count for kind, count in told["held"].items()})
    below = watch.tree(pid)
    held.update(f"process {watch.status(each).get('Name')} below the worker" for each in below)
    held.update(f"orphan {each}" for each in orphans())
    held.update(mounts(pid, told["places"]))
    held.update(files(pid))
    return Host(held, sum(map(watch.resident, below)))


def orphans() -> Iterator[str]:
    """Processes behind walls that have lost their parents."""
    for pid in Path("/proc/1/task/1/children").read_text().split():
        facts = watch.status(int(pid))
        ours = facts.get("Uid", "").split()[:1] == [str(OWNER)]
        if ours and facts.get("Seccomp") == "2" and not facts["State"].startswith("Z"):
            yield f"{pid} ({facts['Name']})"


def mounts(worker: int, shown: list[str]) -> Iterator[str]:
    """Where sandboxes mount; elsewhere others may, meanwhile."""
    for line in Path(f"/proc/{worker}/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if point in MOUNTED_ON or point in shown or re.fullmatch(r"/tmp/\d+|.*understudy.*", point):
            yield f"mount {line}"


def mark_of_calls(worker: int) -> str:
    """How the names of the working folders of a worker's calls begin."""
    return f"understudy-call-{table()}-{worker}-"


def files(worker: int) -> Iterator[str]:
    """Of the sandboxes' user, and working folders of the worker's calls; not those of other workers and other tests on
    this machine, which come and go."""
    mine = mark_of_calls(worker)
    for folder in FOLDERS:
        for entry in os.scandir(folder) if os.path.isdir(folder) else ():
            if entry.name.startswith(mine) or (not entry.name.startswith("understudy-") and _is_sandboxes(entry)):
                yield entry.path
    for kind in ("shm", "sem", "msg"):
        for row in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            if str(OWNER) in row.split():
                yield f"System V {kind}: {row}"


def _is_sandboxes(entry: "os.DirEntry[str]") -> bool:
    """Where the tests are of that user as well, other tests have files, too."""
    try:
        return os.geteuid() == 0 and entry.stat(follow_symlinks=False).st_uid == OWNER
    except FileNotFoundError:
        return False
