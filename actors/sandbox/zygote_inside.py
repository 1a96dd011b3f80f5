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
what every Python knows. What spares share is the layout of that memory; who minds takes the tier `cold`. It has
made itself cheap to fork (`settle.py`) before it takes orders.

Run as `python -I -S -B zygote_inside.py CONTROL_FD`. The first message is what `prepare` in `zygote_process.py`
writes; each later one makes a spare: what `terms` in `spare.py` says, with the far ends of its three pipes, a socket
for its first process, and a way into a cgroup, if there is one.
"""

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import sys
from types import ModuleType
from typing import Any

CLONE_NEW_ALL = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
CLONE_ARGUMENTS = struct.pack("=8Q", CLONE_NEW_ALL, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
SYS_CLONE3 = 435  # the same number on every architecture
REHEARSALS = 20
"""After so many, the interpreter has settled on how it executes this, and writes to less of its memory."""
TYPED_REHEARSALS = 5
"""What `rehearsal.py` shows takes longer, and there the first counts."""
UNBOUNDED = 1 << 60
CPU_UNBOUNDED_S = 1 << 32  # the kernel counts it in nanoseconds, in 64 bits
LONGEST_MESSAGE = 65536
REASON_BYTES = 300
LOADED = "loaded"
LOAD_S = 15.0
"""How long a module may take to be imported."""
TYPED = {"note": {"text": "a", "day": "2026-01-01"}, "kind": "one", "notes": [{"text": "b"}]}
LONGEST_ORDER = 400
"""For more, Python asks the C library, which then tidies its heap, and the zygote copies what it shares with spares."""
ROOM_FOR_FDS = socket.CMSG_SPACE(8 * struct.calcsize("i"))
PLANS_MOST = 16
"""That are kept."""

c_with_gil = ctypes.PyDLL(None, use_errno=True)
"""The C library, called without letting go of the interpreter's lock, which a forked child would else wait for."""


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    prepare = json.loads(control.recv(LONGEST_MESSAGE))
    sys.path[:] = prepare["import_paths"]
    sys.executable = prepare["python"]
    hooks: list[dict[str, Any]] = []  # see `first.py`, which does what of it has to be done
    register, os.register_at_fork = os.register_at_fork, lambda **wanted: hooks.append(wanted)
    runner = module_at(prepare["runner"])
    foreign = None
    if prepare["packages"]:
        lent = runner.Lent(prepare["lent"])
        sys.meta_path.append(lent)
        from understudy.actors.sandbox.foreign import Foreign

        foreign = Foreign(prepare["packages"], lent.names, lent)
        prepare["preload"] = foreign.harmless(prepare["preload"])
    for name in prepare["preload"]:
        try:
            __import__(name)
        except ImportError:  # it is only a matter of speed
            continue
    clean = dict(os.environ)
    refused = {name: why for name in prepare["wanted"] if (why := load(name))}
    os.environ.clear()
    os.environ.update(clean)
    from understudy.actors.sandbox import confine, first, settle

    rehearsal = rehearsal_of(prepare, "json:dumps", {"obj": [1]})
    typed = rehearsal_of(prepare, "understudy.actors.sandbox.rehearsal:rehearsed", TYPED)
    for _ in range(TYPED_REHEARSALS):
        runner.perform(runner.take_up(rehearsal if foreign and foreign.has_own else typed))
    if foreign:
        foreign.leave()
    for _ in range(REHEARSALS):
        runner.perform(runner.take_up(rehearsal))
        confine.make([confine.prctl_call(confine.PR_SET_DUMPABLE, 1)] * REHEARSALS)
    filters = {each: bytes.fromhex(prepare["filters"][each]) for each in ("alone", "network")}
    rights = {each: first.rights_given_up(bpf) for each, bpf in filters.items()}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps spares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (null := os.open("/dev/null", os.O_RDONLY)) < first.FREE_FROM:
        pass
    os.close(null)
    os.register_at_fork = register
    runner.open_streams()
    sees = [(seen.st_dev, seen.st_ino) for seen in map(os.stat, prepare["looks_at"])]
    ready = b"ready" + json.dumps({"refused": refused, "sees": sees}).encode()
    stage = first.Stage(runner, rehearsal, prepare["keep"], hooks)
    # Python's own preparation for a fork, once: the locks that it takes stay taken, and each runner lets go of its own.
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        gc.collect()
        gc.freeze()
        settle.settle()
        control.send(ready)
        take_orders(control, first, stage, rights)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:  # Python's own way to end would wait for these locks
        os._exit(0)


def take_orders(control: socket.socket, first: ModuleType, stage: Any, rights: dict[str, Any]) -> None:
    """Until nobody can give any."""
    receive = control.recvmsg
    plans: dict[tuple[Any, ...], Any] = {}
    while True:
        # Not `recv_fds`: what is looked at here is copied after each clone, a page at a time.
        message, ancillary, _flags, _address = receive(LONGEST_ORDER, ROOM_FOR_FDS)
        if not message:
            return
        fds = [fd for _level, _kind, data in ancillary for fd in struct.unpack(f"{len(data) // 4}i", data)]
        order = message, *fds
        if order not in plans:
            if len(plans) == PLANS_MOST:
                plans.clear()
            terms = json.loads(message)
            plans[order] = first.plan(terms, rights["network" if terms["port"] else "alone"], stage, fds)
        pid = clone()
        if pid == 0:
            first.become_first(plans[order])
        if pid < 0:  # whoever waits for the spare reads it
            os.write(fds[1], f"no process: {os.strerror(ctypes.get_errno())}".encode())
        for fd in fds:
            os.close(fd)


def load(name: str) -> str:
    """Have a module at hand for every call. Why it cannot be; empty: it is. Another process tries it first: what is
    loaded here stays; and threads, processes and timers would not be there in a spare, where others may wait for them.
    """
    told_in, told_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            __import__(name)
            told = left_at_work() or LOADED
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(told_out, told.encode(errors="replace")[:REASON_BYTES])
        os._exit(0)
    os.close(told_out)
    in_time = bool(select.select([told_in], [], [], LOAD_S)[0])
    told = os.read(told_in, REASON_BYTES).decode(errors="replace") if in_time else f"it took longer than {LOAD_S:g} s"
    os.close(told_in)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _pid, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if in_time and (status or not told):
        told = f"it ended the process that imported it (status {os.waitstatus_to_exitcode(status)})"
    if told != LOADED:
        return told
    mask, umask = signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.umask(0)
    os.umask(umask)
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    __import__(name)
    for number, handler in signals.items():  # what it has changed of these, each call would have
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.umask(umask)
    return ""


def left_at_work() -> str:
    """What the import of a module has begun and not ended; empty: nothing."""
    threads = len(os.listdir("/proc/self/task")) - 1
    if threads:
        return f"it starts {threads} thread{'s' if threads > 1 else ''} when it is imported"
    if any(any(signal.getitimer(each)) for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)):
        return "it sets a timer when it is imported"
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return ""
    return "it starts a process when it is imported"


def rehearsal_of(prepare: dict[str, Any], ref: str, args: dict[str, Any]) -> bytes:
    """A request that changes nothing. Each runner takes up a plain one before it waits for its own: the memory that a
    call writes to is then the runner's own already, and to copy a page takes microseconds, and there are a hundred."""
    names = ("memory_bytes", "processes", "open_files", "disk_bytes", "output_bytes")
    request = {
        "key": "",
        "ref": ref,
        "blob": "",
        "args": args,
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
    """Fork into namespaces of its own. 0 in the child. There is one thread here: no lock that it finds is another's."""
    return int(c_with_gil.syscall(SYS_CLONE3, CLONE_ARGUMENTS, len(CLONE_ARGUMENTS)))


if __name__ == "__main__":
    main()
