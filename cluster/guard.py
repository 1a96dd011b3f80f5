"""A guard is a small process that outlives a killed driver, and ends what Ray leaves behind of it.

Ray's own processes follow a driver that dies by SIGKILL, but two of its agents do not (Ray 2.60: DashboardAgent and
RuntimeEnvAgent, for as long as we cared to watch). They have to be noted while they have a parent: afterwards nothing
tells whose they were, for they overwrite their environment with their title.

The process runs this file on the standard library alone, without `site`: 9 MB that wait on a pipe.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PATIENCE_S = 3.0
"""What ends by itself is left to do so for this long."""

Pids = Mapping[int, str]
"""Processes by pid, with the time of birth that tells them from later ones of the same pid."""


class Guard:
    """Held by the driver, from before Ray is started."""

    def __init__(self) -> None:
        self.guarded: Pids = {}
        # The driver's end of the pipe closes with the driver, however that ends. A session of its own keeps a Ctrl-C
        # for the driver from the guard.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch_over(self, roots: Iterable[int]) -> None:
        """These processes and their children are not to outlive the driver."""
        assert self._process.stdin is not None
        self.guarded = dict(_family(set(roots)))
        words = " ".join(f"{pid}:{born}" for pid, born in self.guarded.items())
        self._process.stdin.write(f"{words}\n".encode())
        self._process.stdin.flush()

    def end(self) -> None:
        """End what is left, and the guard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def end_all(pids: Pids, patience_s: float = PATIENCE_S) -> None:
    """Wait until none of them is left; kill those that take longer."""
    until = time.monotonic() + patience_s
    while left := [pid for pid, born in pids.items() if _stat(pid)[1] == born]:
        if time.monotonic() >= until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


def _family(roots: set[int]) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            parent, born = _stat(pid)
            if born and (pid in roots or parent in roots):
                yield pid, born


def _stat(pid: int) -> tuple[int, str]:
    """Parent and time of birth (see `understudy.actors.process`, which a process without `site` cannot import)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return (0, "") if fields[0] in "ZX" else (int(fields[1]), fields[19])


def main() -> None:
    told = sys.stdin.read().splitlines()
    pairs = (word.partition(":") for word in (told[-1].split() if told else ()))
    end_all({int(pid): born for pid, _, born in pairs})


if __name__ == "__main__":
    main()
