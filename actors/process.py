"""A process is named for ever by its host, its pid and when it was born; a pid alone is given again to others."""

import contextlib
import getpass
import os
import resource
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass


def name_of_this_process() -> str:
    """`host:pid:born`."""
    return f"{socket.gethostname()}:{os.getpid()}:{born(os.getpid())}"


def keep_no_core() -> None:
    """Whatever this process dies of, its memory is not written to a file: there are secrets in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@dataclass(frozen=True)
class Bearings:
    """What holds for a whole process, and code of a node's may change: its limits, where it is, and with which rights
    it makes files."""

    limits: Mapping[int, tuple[int, int]]
    folder: str
    umask: str

    @classmethod
    def of_this_process(cls) -> "Bearings":
        names = (name for name in dir(resource) if name.startswith("RLIMIT_"))
        limits = {(which := getattr(resource, name)): resource.getrlimit(which) for name in names}
        with open("/proc/self/status") as status:
            umask = next((line.split()[1] for line in status if line.startswith("Umask:")), "")
        try:
            folder = os.getcwd()
        except FileNotFoundError:  # it was removed meanwhile
            folder = ""
        return cls(limits, folder, umask)

    def restore(self) -> bool:
        """Make it so again, for whatever runs here later; False if that cannot be done, as a limit was lowered for
        good."""
        try:
            now = Bearings.of_this_process()
            if now == self:
                return True
            for which, limit in self.limits.items():
                if now.limits[which] != limit:
                    resource.setrlimit(which, limit)
            if self.umask:
                os.umask(int(self.umask, 8))
            if self.folder:
                os.chdir(self.folder)
        except (OSError, ValueError):  # also that nothing can be opened any more
            return False
        return True


def user_name() -> str:
    """Who runs this process, as the system knows them; empty if it does not."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in a container
        return ""


def is_dead(name: str) -> bool:
    """Whether the process of this name is known to be dead. Of other machines' processes nothing is known."""
    host, pid, started, *_ = (*name.split(":"), "", "")
    return host == socket.gethostname() and pid.isdigit() and born(int(pid)) != started


def pid_of(name: str) -> int:
    """The pid in a name."""
    return int(name.split(":")[1])


def end(name: str) -> None:
    """Kill the process of this name, if it is one of this machine: also one that is stopped, which Ray cannot."""
    host, pid, started, *_ = (*name.split(":"), "", "")
    if host == socket.gethostname() and pid.isdigit() and started and born(int(pid)) == started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), signal.SIGKILL)


def born(pid: int) -> str:
    """When a process of this machine started, in clock ticks since boot; empty if there is none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # "pid (any text, even with parentheses) state ppid ..."
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
