"""Marks the processes of a call that has no pid namespace, so that they can be found whoever has died meanwhile.

The mark is a resource limit that means nothing to programs that are not of real-time priority: every child inherits it,
everybody can read it in /proc, nobody without privileges can raise it, and the tool's filter lets nobody lower it.
Standard library only.
"""

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ROOM = 0x5AFE << 44
"""In microseconds: more than thousand years, so that it never binds."""
MARKS = 1 << 40
SWEEP_S = 5.0


def wear(mark: int) -> None:
    """For this process and all that it will start. `mark`: from 0 to MARKS - 1."""
    resource.setrlimit(resource.RLIMIT_RTTIME, (_ROOM + mark, _ROOM + mark))


def mark_of(pid: int) -> int | None:
    """The mark that a process wears."""
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    for row in text.splitlines():
        if row.startswith("Max realtime timeout"):
            hard = row.split()[-2]
            return int(hard) - _ROOM if hard.isdigit() and 0 <= int(hard) - _ROOM < MARKS else None
    return None


def wearing(wanted: Callable[[int], bool]) -> list[int]:
    """Living processes with such a mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            mark = mark_of(int(name))
            if mark is not None and wanted(mark) and not _is_dead(int(name)):
                found.append(int(name))
    return found


def end_all(wanted: Callable[[int], bool]) -> int:
    """Kill all with such a mark, and what they start meanwhile. How many there were.

    Raises TimeoutError if there are some left after SWEEP_S seconds: they are not ours to kill, or hang in the kernel.
    """
    ended: set[int] = set()
    until = time.monotonic() + SWEEP_S
    while found := wearing(wanted):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: what is stopped starts nothing
            for pid in found:
                with suppress(OSError):
                    send(pid, number, wanted)
        ended.update(found)
        if time.monotonic() > until:
            raise TimeoutError(f"processes {found} of a sandbox do not end")
    return len(ended)


def send(pid: int, number: signal.Signals, wanted: Callable[[int], bool]) -> None:
    """A signal for a process, if it wears such a mark. Raises OSError if there is no such process."""
    pidfd = os.pidfd_open(pid)
    try:
        mark = mark_of(pid)  # still the same process, now that it cannot be another one any more
        if mark is not None and wanted(mark):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True
