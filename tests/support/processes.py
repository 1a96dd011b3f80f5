"""Starting programs that cannot outlive pytest, and finding those that try.

Two ways lead from a process back to the pytest that caused it: its chain of parents, and a mark in its environment.
The mark also finds what was reparented (Ray's workers, once their raylet is gone); the parents also find what was
started with an empty environment (sandboxes).
"""

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

MARK = "UNDERSTUDY_TEST_RUN"

# The kernel sends a parent-death signal when the *thread* that started the program ends. Tests start servers from
# threads that come and go (asyncio.to_thread); this one stays as long as pytest does.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starts-servers")


def find_program(name: str, package: str, *folders: Path) -> str:
    """The path of a program, or a failure that says how to get it. Never a reason to skip a test."""
    path = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    if path is None:
        raise RuntimeError(f"{name} is not installed; `make test` installs it, or: apt-get install {package}")
    return path


def start_program(command: Sequence[str], directory: Path, log: IO[bytes], user: str | None) -> subprocess.Popen[bytes]:
    """Start a program that is killed when pytest dies, and that a Ctrl-C for pytest does not reach."""
    # setpriv rather than preexec_fn: Python code between fork and exec may deadlock once threads run (gRPC's, in Ray).
    # It must set the signal after the user, for the kernel forgets the signal when the user changes; it does.
    become = ["--reuid", user, "--regid", user, "--init-groups"] if user else []
    launcher = [find_program("setpriv", "util-linux"), "--pdeathsig", "KILL", *become]
    return _starter.submit(
        subprocess.Popen[bytes],
        [*launcher, *command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    ).result()


def free_port() -> int:
    """A port on loopback that nobody listens on, and that stays ours while a server is down between kill and start.

    It lies below the range from which the kernel and Ray take ports for outgoing connections and workers.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def leftovers(mark: str) -> Mapping[int, str]:
    """The living processes that this pytest caused, by pid, with their command lines. It reaps zombies of ours."""
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
    marked = f"{MARK}={mark}\0".encode()
    us, ours = os.getpid(), dict[int, str]()
    everyone = {int(entry.name): entry for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    parents = {pid: parent for pid, proc in everyone.items() if (parent := _living_parent(proc)) is not None}
    for pid in parents:
        proc = everyone[pid]
        if pid != us and (_descends(pid, us, parents) or marked in _read(proc / "environ")):
            ours[pid] = _read(proc / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip() or "(gone)"
    return {pid: command for pid, command in ours.items() if command != "(gone)"}


def is_alive(pid: int) -> bool:
    """Not just gone: a zombie is dead too. In a container nobody may reap it, and /proc keeps its entry."""
    return _living_parent(Path("/proc", str(pid))) is not None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended between two looks, or is not ours to read
        return b""


def _living_parent(proc: Path) -> int | None:
    """The parent's pid; None for a zombie and for what is gone."""
    # "pid (any text, even with parentheses) state ppid ..."
    fields = _read(proc / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields and fields[0] not in (b"Z", b"X") else None


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) != 0:
        if pid == ancestor:
            return True
    return False
