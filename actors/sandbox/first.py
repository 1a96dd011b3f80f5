"""The first process of a spare: stands its walls up, starts the runner, reaps, and tells how it ended.

A process that was forked pays for each page of memory that it writes to, and Python writes to whatever it looks at:
hundreds of pages. So the zygote writes down what there is to do (`Plan`), and a first process goes through that list.
"""

import _signal  # type: ignore[import-not-found]
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from understudy.actors.sandbox.confine import (
    PR_SET_DUMPABLE,
    Call,
    bounding_calls,
    capability_calls,
    filter_calls,
    kept,
    make,
    prctl_call,
)

ID = 1000
CLONE_NEWCGROUP = 0x02000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC = 0x1, 0x2, 0x4, 0x8, 0x1000, 0x4000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
WORKING_FOLDER = "/tmp"
# Where the ends lie in a spare: as where bubblewrap puts them.
REPLY, STATUS = 3, 4
FREE_FROM = 5
"""Where other descriptors lie; in the zygote, too, so that what comes with an order lies in no end's place."""
FDS = 4
"""That come with an order; and one more, where a cgroup was made for the call."""
HALTED = b"halted"
_ONLY_LOCKS = frozenset({"threading", "logging", "concurrent.futures.thread"})
"""Modules whose hooks make locks anew that another thread may have held: there was none. They take a hundred pages."""
_ALIKE = os.sched_param(0)
HERE = b"here"
SYS_PIDFD_OPEN = 434  # the same number on every architecture
_SIZE_OF_HEADER = struct.calcsize("@Nii")
_OPEN_MOST = os.sysconf("SC_OPEN_MAX")
# Plain numbers: what an enumeration takes to give one is a dozen calls of Python.
_CHLD, _TERM, _KILL, _REHEARSED = map(int, (signal.SIGCHLD, signal.SIGTERM, signal.SIGKILL, signal.SIGWINCH))
# Looked up here, once for all.
_fork, _after_fork = kept.fork, ctypes.pythonapi.PyOS_AfterFork_Child


@dataclass(frozen=True)
class Plan:
    """What the first process of a spare of some terms does, with an order's descriptors, until there is a runner."""

    walls: Sequence[Call]
    """With every right that there is in a user namespace."""
    port: int
    """Where a proxy is to listen; 0: there is no network."""
    rights: Sequence[Call]
    """No right is left after these; then the host is told that it is there."""
    opened: Sequence[Call]
    """What the runner, which has nothing to hide, takes back of these."""
    stage: "Stage"


@dataclass(frozen=True)
class Stage:
    """What the spares of a zygote have in common."""

    runner: ModuleType
    rehearsal: bytes
    """A request that changes nothing, for a runner to be warm before its own."""
    keep: Sequence[str]
    """What lies below the private folders, and is shown all the same."""
    hooks: Sequence[Mapping[str, Callable[[], Any]]]
    """What modules wanted to register for forks, see `os.register_at_fork`."""


def plan(terms: Mapping[str, Any], rights: Sequence[Call], stage: Stage, fds: Sequence[int]) -> Plan:
    """`terms`: see `spare.py`."""
    # It enters the cgroup that was made for the call, before it has anything of its own there.
    doors: list[Call] = [(kept.write, (door, b"0", 1)) for door in fds[FDS:]]
    alone: list[Call] = [(kept.unshare, (CLONE_NEWCGROUP,)), (kept.setsid, ())]
    walls = [*doors, *_arranged(fds), *alone, *_own_ids(), *_own_mounts(terms, stage.keep)]
    here = _told([FREE_FROM] if not terms["port"] else [FREE_FROM + 1, FREE_FROM])
    return Plan(walls, terms["port"], [*rights, *here], [prctl_call(PR_SET_DUMPABLE, 1)], stage)


def rights_given_up(bpf: bytes) -> list[Call]:
    """The runner, of the same user, may not look into this process, either."""
    return [prctl_call(PR_SET_DUMPABLE, 0), *bounding_calls(), *capability_calls(), *filter_calls(bpf)]


def become_first(plan: Plan) -> None:
    """Never returns; in the runner, which is a process of its own, neither."""
    try:
        make(plan.walls)
        listener = _listen_alone(plan.port) if plan.port else None
        make(plan.rights)
        if listener is not None:
            listener.close()  # whoever has it now accepts; nobody in here can
        _signal.signal(_CHLD, 0)
        _signal.signal(_TERM, _halt)
        _signal.signal(_REHEARSED, _halt)
        child = _fork()
        if child == 0:
            _after_fork()  # what comes before it, the zygote has done, for all
            _become_runner(plan)
        os.closerange(0, STATUS)
        os.closerange(FREE_FROM, FREE_FROM + 2)
        _signal.raise_signal(_REHEARSED)  # what it looks at then is this process's own, and not copied in haste
        while True:
            pid, ended = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(ended)
                os.write(STATUS, b"%d" % (code if code >= 0 else 128 - code))
                os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()  # to whoever waits for the spare; no tool is here yet
        sys.stderr.flush()
        os._exit(1)


def _halt(number: int, _frame: Any) -> None:
    """When the call has answered, none that a tool may have left here executes another instruction; then say so. To
    take their memory down is the kernel's, and nobody has to wait for it. Of `_REHEARSED`, nothing comes."""
    try:  # noqa: SIM105  what `suppress` writes to is more than a process that waits has touched
        # All but this one, at one moment: who forks just then does not come to it.
        os.kill(-1, _KILL if number == _TERM else 0)
    except ProcessLookupError:
        pass
    if number != _TERM:
        return
    os.write(STATUS, HALTED)
    while True:  # to end takes a core half a millisecond, which whoever waits for the word can use better
        _signal.pause()


def _become_runner(plan: Plan) -> None:
    _signal.signal(_TERM, 0)
    os.closerange(STATUS, STATUS + 3)
    make(plan.opened)
    runner, rehearsal = plan.stage.runner, plan.stage.rehearsal
    for hooks in plan.stage.hooks:
        hook = hooks.get("after_in_child")
        if hook is not None and getattr(hook, "__module__", "") not in _ONLY_LOCKS:
            hook()
        os.register_at_fork(**hooks)  # of the tool's own forks
    sys.argv[:] = ["runner.py", str(REPLY)]
    sys.modules["__main__"] = runner
    runner.perform(runner.take_up(rehearsal))
    runner.serve(REPLY, _ask_to_be_halted)


def _ask_to_be_halted() -> None:
    """The host, which sees the answer just now, would ask the same of the first process, one turn later."""
    # The kill wakes this process, to die: as a batch, it does not push aside, on the same core, the one that has still
    # to say so: the outcome would wait while its memory is taken down, 0.4 ms in the median of a busy machine.
    try:  # noqa: SIM105  see `_halt`
        os.sched_setscheduler(0, os.SCHED_BATCH, _ALIKE)
    except OSError:  # it is only a matter of speed
        pass
    os.kill(1, _TERM)
    while True:
        _signal.pause()


def _arranged(fds: Sequence[int]) -> list[Call]:
    """The request at 0, what is printed at 1 and 2, the reply at 3, the status at 4, and nothing else."""
    request, printed, reply, status = fds[:FDS]
    ends = (request, 0), (printed, 1), (printed, 2)
    private = (reply, REPLY, os.O_CLOEXEC), (status, STATUS, os.O_CLOEXEC)
    moved: list[Call] = [*((kept.dup2, each) for each in ends), *((kept.dup3, each) for each in private)]
    return [*moved, (os.closerange, (FREE_FROM, _OPEN_MOST))]


def _told(fds: Sequence[int]) -> list[Call]:
    """That this process is there: its pidfd, and the others of these. They are the numbers that are free just then; of
    another one, the host finds that it is no process, or none that it trusts."""
    word = ctypes.create_string_buffer(HERE)
    text = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(word), len(HERE)))
    size = _SIZE_OF_HEADER + 4 * len(fds)
    rights = struct.pack("@Nii", size, socket.SOL_SOCKET, socket.SCM_RIGHTS) + struct.pack(f"{len(fds)}i", *fds)
    control = ctypes.create_string_buffer(rights, -(-size // 8) * 8)
    parts = 0, 0, ctypes.addressof(text), 1, ctypes.addressof(control), len(control), 0
    message: Any = ctypes.create_string_buffer(struct.pack("@PIPNPNi0P", *parts))
    message.held = word, text, control  # it knows them by their addresses alone
    return [(kept.syscall, (SYS_PIDFD_OPEN, 1, 0)), (kept.sendmsg, (STATUS, message, 0))]


def _own_ids() -> list[Call]:
    """The same id as outside, alone; and no user namespaces below this one."""
    rows = (
        ("/proc/self/setgroups", b"deny"),
        ("/proc/self/uid_map", b"%d %d 1" % (ID, ID)),
        ("/proc/self/gid_map", b"%d %d 1" % (ID, ID)),
        ("/proc/sys/user/max_user_namespaces", b"0"),
    )
    return [call for row in rows for call in _written(*row)]


def _written(path: str, text: bytes) -> list[Call]:
    """All that is open then has a lower number than the file."""
    opened: Call = kept.open, (path.encode(), os.O_WRONLY | os.O_CLOEXEC)
    return [opened, (kept.write, (FREE_FROM, text, len(text))), (kept.close, (FREE_FROM,))]


def _own_mounts(terms: Mapping[str, Any], keep: Sequence[str]) -> list[Call]:
    size = f"size={terms['disk_bytes']},nr_inodes={terms['files']},mode=755"
    held: dict[str, int] = {}
    return [
        # What lies below a folder that is about to be covered is held open, and shown again on top.
        *((_hold, (held, place)) for place in keep),
        _mount("tmpfs", WORKING_FOLDER, MS_NOSUID | MS_NODEV, "tmpfs", size),
        *((_show_again, (held, place)) for place in keep),
        _mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "tmpfs", size),
        _mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "devpts", "newinstance,ptmxmode=0666,mode=620"),
        _mount("proc", "/proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "proc"),
        (os.chdir, (WORKING_FOLDER,)),
    ]


def _hold(held: dict[str, int], place: str) -> None:
    held[place] = os.open(place, os.O_PATH | os.O_CLOEXEC)


def _show_again(held: dict[str, int], place: str) -> None:
    there = f"/proc/self/fd/{held[place]}"
    if os.path.isdir(there):
        os.makedirs(place)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    make([_mount(there, place, MS_BIND | MS_REC)])
    os.close(held[place])


def _mount(source: str, target: str, flags: int, kind: str | None = None, data: str | None = None) -> Call:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    return kept.mount, (texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _listen_alone(port: int) -> socket.socket:
    """A listening socket on a loopback that nobody else has; it is up from then on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    flags = struct.pack("=16sH22x", b"lo", IFF_UP)
    fcntl.ioctl(listener.fileno(), SIOCSIFFLAGS, flags)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener
