"""Runs inside a bubblewrap, as the zygote: an interpreter that is warm, and makes a fresh sandbox when it is told to.

A spare is two processes in namespaces of their own (user, pid, mount, network, ipc, uts, cgroup): the first of the pid
namespace, which reaps and tells the end, and the runner, which waits for a request. It is used once. Its walls stand
before the runner exists, so a request finds nothing that is still to be closed:

- Its user namespace has one id and no right to make further ones; its limit on processes counts itself alone.
- Its /tmp, /dev/shm, /dev/pts and /proc are its own; what was there before is covered for good.
- No capability, a system call filter, nothing open but the request, what it prints and its reply.
- A network stack of its own, with nothing in it. For a call with network, loopback is up, and a socket listens there
  that was handed out before the runner existed: the proxy's, see `egress/proxy.py`.

The zygote has no capability either, loads no tool, and holds no secret: a spare that reads all of its memory learns
what every Python knows. What spares share is the layout of that memory; who minds takes the tier `cold`.

Run as `python -I -S -B zygote_inside.py CONTROL_FD`. The first message is what `prepare` in `zygote_process.py`
writes; each later one makes a spare: what `terms` in `spare.py` says, with the far ends of its three pipes, a socket
for its first process, and a way into a cgroup, if there is one.
"""

import ctypes
import fcntl
import gc
import importlib.util
import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

ID = 1000
CLONE_NEW_ALL = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
CLONE_NEWCGROUP = 0x02000000
SYS_CLONE3 = 435  # the same number on every architecture
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC = 0x1, 0x2, 0x4, 0x8, 0x1000, 0x4000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
WORKING_FOLDER = "/tmp"
# Where the ends lie in a spare: as where bubblewrap puts them.
REPLY, STATUS = 3, 4
FDS = 4
"""That come with an order; and one more, where a cgroup was made for the call."""
REHEARSALS = 20
"""After so many, the interpreter has settled on how it executes this, and writes to less of its memory."""
UNBOUNDED = 1 << 60
CPU_UNBOUNDED_S = 1 << 32  # the kernel counts it in nanoseconds, in 64 bits
HALTED = b"halted"
LONGEST_MESSAGE = 65536

c_with_gil = ctypes.PyDLL(None)
"""The C library, called without letting go of the interpreter's lock, which a forked child would else wait for."""


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    prepare = json.loads(control.recv(LONGEST_MESSAGE))
    sys.path[:] = prepare["import_paths"]
    sys.executable = prepare["python"]
    runner = module_at(prepare["runner"])
    for name in prepare["preload"]:
        try:
            __import__(name)
        except ImportError:  # it is only a matter of speed
            continue
    import understudy.actors.sandbox.confine  # noqa: F401  here, so that no spare has to

    rehearsal = rehearsal_of(prepare)
    for _ in range(REHEARSALS):
        runner.perform(json.loads(rehearsal))
    filters = {each: bytes.fromhex(prepare["filters"][each]) for each in ("alone", "network")}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps spares
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, fds, _flags, _address = socket.recv_fds(control, LONGEST_MESSAGE, 8)
        if not message:
            os._exit(0)
        if clone() == 0:
            control.close()
            become_first(json.loads(message), fds, filters, runner, prepare["keep"], rehearsal)
        for fd in fds:
            os.close(fd)


def rehearsal_of(prepare: dict[str, Any]) -> bytes:
    """A request that changes nothing: each runner takes it up before it waits for its own. The memory that a call
    writes to is then the runner's own already: to copy a page takes microseconds, and there are a hundred."""
    names = ("memory_bytes", "processes", "open_files", "disk_bytes", "output_bytes")
    request = {
        "key": "",
        "ref": "json:dumps",
        "blob": "",
        "args": {"obj": [1]},
        "limits": {"cpu_s": CPU_UNBOUNDED_S, **dict.fromkeys(names, UNBOUNDED)},
        "environment": {},
        "secrets": [],
        "import_paths": prepare["import_paths"],
        "python": prepare["python"],
        "workspace": None,
    }
    return json.dumps(request).encode()


def module_at(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("understudy_runner", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clone() -> int:
    """Fork into namespaces of its own. 0 in the child."""
    ctypes.pythonapi.PyOS_BeforeFork()
    arguments = struct.pack("=8Q", CLONE_NEW_ALL, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = int(c_with_gil.syscall(SYS_CLONE3, arguments, len(arguments)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def become_first(
    order: dict[str, Any],
    fds: list[int],
    filters: dict[str, bytes],
    runner: ModuleType,
    keep: list[str],
    rehearsal: bytes,
) -> None:
    """The first process of a spare: builds the walls, starts the runner, reaps, and tells how it ended."""
    try:
        enter_cgroup(fds[FDS:])
        arrange(fds[:FDS])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.setsid()
        own_ids()
        own_mounts(order, keep)
        listener = listen_alone(order["port"]) if order["port"] else None
        wall_in(filters["alone" if listener is None else "network"])
        status = socket.socket(fileno=STATUS)
        told = [os.pidfd_open(os.getpid()), *([] if listener is None else [listener.fileno()])]
        socket.send_fds(status, [b"here"], told)
        if listener is not None:
            listener.close()  # whoever has it now accepts; nobody in here can
        signal.signal(signal.SIGTERM, lambda *_: halt(status))
        child = os.fork()
        if child == 0:
            become_runner(runner, rehearsal)
        os.closerange(0, STATUS)
        os.close(told[0])
        while True:
            pid, ended = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(ended)
                status.send(b"%d" % (code if code >= 0 else 128 - code))
                os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()  # to whoever waits for the spare; no tool is here yet
        sys.stderr.flush()
        os._exit(1)


def halt(status: socket.socket) -> None:
    """When the call has answered, none that a tool may have left here executes another instruction; then say so. To
    take their memory down is the kernel's, and nobody has to wait for it."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all but this one, at one moment: who forks just then does not come to it
    status.send(HALTED)
    while True:  # to end takes a core half a millisecond, which whoever waits for the word can use better
        signal.pause()


def enter_cgroup(doors: list[int]) -> None:
    """The one that was made for the call, if there is one; from inside, it is all there is."""
    for door in doors:
        os.write(door, b"0")
    from understudy.actors.sandbox.confine import check, libc

    check(libc.unshare(CLONE_NEWCGROUP), "unshare")


def arrange(fds: list[int]) -> None:
    """The request at 0, what is printed at 1 and 2, the reply at 3, the status at 4, and nothing else."""
    request, printed, reply, status = (move_up(fd) for fd in fds)
    for source, target in ((request, 0), (printed, 1), (printed, 2), (reply, REPLY), (status, STATUS)):
        os.dup2(source, target, inheritable=target <= 2)
    os.closerange(STATUS + 1, os.sysconf("SC_OPEN_MAX"))


def move_up(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STATUS + 1)


def own_ids() -> None:
    """The same id as outside, alone; and no user namespaces below this one."""
    for name, text in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{ID} {ID} 1"),
        ("/proc/self/gid_map", f"{ID} {ID} 1"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC)  # not `open`, which takes five times as long
        os.write(fd, text.encode())
        os.close(fd)


def own_mounts(order: dict[str, Any], keep: list[str]) -> None:
    # What lies below a folder that is about to be covered is held open, and shown again on top.
    held = [(os.open(place, os.O_PATH | os.O_CLOEXEC), place) for place in keep]
    size = f"size={order['disk_bytes']},nr_inodes={order['files']},mode=755"
    mount("tmpfs", WORKING_FOLDER, MS_NOSUID | MS_NODEV, "tmpfs", size)
    for fd, place in held:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.makedirs(place)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        mount(f"/proc/self/fd/{fd}", place, MS_BIND | MS_REC)
        os.close(fd)
    mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "tmpfs", size)
    mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "devpts", "newinstance,ptmxmode=0666,mode=620")
    mount("proc", "/proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "proc")
    os.chdir(WORKING_FOLDER)


def listen_alone(port: int) -> socket.socket:
    """A listening socket on a loopback that nobody else has; it is up from then on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    flags = struct.pack("=16sH22x", b"lo", IFF_UP)
    fcntl.ioctl(listener.fileno(), SIOCSIFFLAGS, flags)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str | None = None) -> None:
    from understudy.actors.sandbox.confine import check, libc

    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    check(libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {source} on {target}")


def wall_in(bpf: bytes) -> None:
    from understudy.actors.sandbox.confine import PR_SET_DUMPABLE, drop_capabilities, filter_system_calls, prctl

    prctl(PR_SET_DUMPABLE, 0)  # the runner, of the same user, may not look into this process
    drop_capabilities()
    filter_system_calls(bpf)


def become_runner(runner: ModuleType, rehearsal: bytes) -> None:
    from understudy.actors.sandbox.confine import PR_SET_DUMPABLE, prctl

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.closerange(STATUS, STATUS + 3)
    prctl(PR_SET_DUMPABLE, 1)
    sys.argv[:] = ["runner.py", str(REPLY)]
    sys.modules["__main__"] = runner
    runner.perform(runner.take_up(rehearsal))
    runner.serve(REPLY)


if __name__ == "__main__":
    main()
