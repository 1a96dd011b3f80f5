"""Ends what a killed worker may have left: the first process of a sandbox whose bubblewrap is gone.

A worker that is killed takes its sandboxes with it, but for one tenth of a millisecond of their start: bubblewrap is
bound to the worker's life already, and its first process inside still waits for a word from it. Such a process has no
request, executes nothing and sleeps for ever. So whoever starts looks for them (law 9: starting is recovering).
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

from understudy.actors.sandbox import watch


def end_strays() -> int:
    """How many there were. Safe at any time: this process is meant to die with its bubblewrap in any case."""
    count = 0
    for name in os.listdir("/proc"):
        with suppress(OSError):  # it ended between two looks, or is another user's
            if name.isdigit() and _is_stray(int(name)):
                pidfd = os.pidfd_open(int(name))
                try:
                    if _is_stray(int(name)):  # still the same process, now that it cannot be another one any more
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        count += 1
                finally:
                    os.close(pidfd)
    return count


def _is_script(word: bytes) -> bool:
    """Of those that are started inside bubblewrap."""
    folder, _, name = word.rpartition(b"/")
    return word.startswith(b"/") and b"/sandbox" in folder and name.startswith((b"runner.", b"zygote_inside."))


def _is_stray(pid: int) -> bool:
    facts = watch.status(pid)
    numbers = facts.get("NSpid", "").split()
    if facts.get("Name") != "bwrap" or len(numbers) < 2 or numbers[-1] != "1":
        return False
    line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return any(map(_is_script, line)) and watch.status(int(facts["PPid"])).get("Name") != "bwrap"
