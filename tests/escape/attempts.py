"""What a hostile tool tries. Each function is carried into a sandbox by value, and says how far it got.

An attempt answers the name of the error that stopped it, or "done" if nothing did. The ids are those of the study that
the sandbox was built from: f files, p processes, n network, i shared memory and keys, k kernel, r resources.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DONE = "done"


def stopped(act: Callable[[], Any]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return DONE


def call(x86_64: int, aarch64: int, *args: Any) -> str:
    """A raw system call, past whatever libc would check first."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = x86_64 if platform.machine() == "x86_64" else aarch64
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(number, *args)
    return DONE if result >= 0 else errno.errorcode[ctypes.get_errno()]


def calls(rows: dict[str, tuple[Any, ...]]) -> dict[str, str]:
    return {name: call(*row) for name, row in rows.items()}


# --- files -----------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    return stopped(lambda: Path(path).read_bytes())


def write(path: str) -> str:
    return stopped(lambda: Path(path).write_bytes(b"x"))


def open_for_writing(path: str) -> str:
    return stopped(lambda: os.close(os.open(path, os.O_WRONLY)))


def each(attempt: Callable[[str], str], paths: list[str]) -> dict[str, str]:
    return {path: attempt(path) for path in paths}


def f03_list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return [errno.errorcode[error.errno or 0]]


def f04_drop_a_pth() -> str:
    folder = next(path for path in sys.path if path.endswith("site-packages"))
    return write(f"{folder}/evil.pth")


def f07_read_through_a_link(path: str) -> str:
    os.symlink(path, "link")
    return read("link")


def f08_hardlink_a_program() -> str:
    return stopped(lambda: os.link(os.path.realpath(sys.executable), "mine"))


def f09_walk_through_proc(path: str) -> str:
    answers = {
        read(f"/proc/{pid}/{way}{path}") for pid in f03_list("/proc") if pid.isdigit() for way in ("root", "cwd")
    }
    return DONE if DONE in answers else "ENOENT"


def f12_open_devices() -> list[str]:
    paths = [f"{folder}/{name}" for folder, _, names in os.walk("/dev") for name in names]
    devices = [path for path in paths if not os.path.islink(path)]  # links lead to descriptors, see p10
    return [path for path in devices if stopped(lambda path=path: os.close(os.open(path, os.O_RDWR))) == DONE]


def f13_make_a_disk() -> str:
    return stopped(lambda: os.mknod("disk", 0o60600, os.makedev(8, 0)))


def f14_make_setuid() -> list[str]:
    Path("program").write_bytes(b"")
    created = stopped(lambda: os.close(os.open("other", os.O_CREAT | os.O_WRONLY, 0o4755)))
    return [stopped(lambda: os.chmod("program", 0o4755)), stopped(lambda: os.chmod("program", 0o2755)), created]


def f14_become_root() -> list[str]:
    """Through a program that everybody may execute as root: who it is while it waits for a password, where that can be
    seen, and who its own program would be."""
    pipe = subprocess.PIPE
    with subprocess.Popen(["/usr/bin/su", "-c", "id -u"], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as su:
        assert su.stderr is not None
        su.stderr.read(1)  # it asks, or has given up: it is itself by now
        status = Path(f"/proc/{su.pid}/status")
        row = (
            next((row for row in status.read_text().splitlines() if row.startswith("Uid:")), "")
            if readable(status)
            else ""
        )
        output, _ = su.communicate("")
    return [*({*row.split()[1:]} - {str(os.getuid())}), *output.split()]


def readable(path: Path) -> bool:
    return read(str(path)) == DONE


def f18_kernel_addresses() -> list[str]:
    """Those that /proc tells; zero says nothing."""
    path = Path("/proc/kallsyms")
    return sorted({row.split()[0].strip("0") for row in path.open()})[:3] if readable(path) else [""]


def f15_open_by_handle() -> str:
    return call(304, 265, -100, b"\0" * 64, 0)


def f16_chroot() -> str:
    return stopped(lambda: os.chroot("/tmp"))


# --- processes -------------------------------------------------------------------------------------------------------


def p01_environment() -> list[str]:
    return sorted(os.environ)


def p02_environment_of_others() -> str:
    found = []
    for pid in f03_list("/proc"):
        with contextlib.suppress(OSError):
            found.append(Path("/proc", pid, "environ").read_text().replace("\0", " "))
    return " ".join(found)


def p03_processes() -> int:
    return len([pid for pid in f03_list("/proc") if pid.isdigit()])


def p_into(pids: list[int]) -> dict[str, list[str]]:
    """What one would do to get hold of other processes."""
    return {
        "p04 ptrace": [call(101, 117, 16, pid, 0, 0) for pid in pids],
        "p05 process_vm_readv": [call(310, 270, pid, 0, 0, 0, 0, 0) for pid in pids],
        "p06 mem": [open_for_writing(f"/proc/{pid}/mem") for pid in pids],
        "p07 pidfd_getfd": [p07_take_a_descriptor(pid) for pid in pids],
        "p08 kill": [p08_signal(pid) for pid in pids],
        "p09 prlimit": [call(302, 261, pid, 7, 0, 0) for pid in pids],
    }


def p07_take_a_descriptor(pid: int) -> str:
    """Of a process that one can open; else of whatever has that number here."""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            return call(438, 438, fd, 0, 0)
        finally:
            os.close(fd)
    return call(438, 438, 0, 0, 0)


def p08_signal(pid: int) -> str:
    return stopped(lambda: os.kill(pid, 0))


def p10_descriptors() -> list[str]:
    """What each leads to."""
    found = []
    for fd in range(4096):
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            null = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
            found.append("/dev/null" if null else "pipe" if stat.S_ISFIFO(status.st_mode) else str(status))
    return sorted(found)


# --- network ---------------------------------------------------------------------------------------------------------


def n_open(families: dict[str, tuple[int, int, int]]) -> dict[str, str]:
    return {name: stopped(lambda row=row: socket.socket(*row).close()) for name, row in families.items()}


def n01_connect(port: int) -> str:
    return stopped(lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close())


def n03_connect_unix(path: str) -> str:
    def act() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)

    return stopped(act)


def n05_resolve() -> str:
    try:
        socket.getaddrinfo("example.com", 80)
    except socket.gaierror:
        return "gaierror"
    return DONE


def n12_socketpair() -> str:
    one, other = socket.socketpair()
    one.send(b"x")
    return DONE if other.recv(1) == b"x" else "nothing"


def n13_datagram_pair(path: str) -> str:
    """Such a pair could be turned to any socket whose path can be seen."""
    return stopped(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].connect(path))


def n14_turn_a_stream_pair(path: str) -> str:
    return stopped(lambda: socket.socketpair()[0].connect(path))


# --- kernel ----------------------------------------------------------------------------------------------------------


def k02_clone3() -> str:
    return call(435, 435, b"\0" * 88, 88)


def k_clone(namespaces: dict[str, int]) -> dict[str, str]:
    return {name: call(56, 220, flag | signal.SIGCHLD, 0, 0, 0, 0) for name, flag in namespaces.items()}


def k13_x32() -> None:
    ctypes.CDLL(None).syscall(0x40000000 + 39)


def k21_capabilities() -> int:
    from understudy.actors.sandbox.confine import capabilities

    return capabilities()


def k21_capabilities_to_come() -> list[str]:
    return [
        line for line in Path("/proc/self/status").read_text().splitlines() if line[:3] == "Cap" and int(line[8:], 16)
    ]


def k23_unshare_program(how: str) -> str:
    """What the filter binds, it binds in what is started, too."""
    return subprocess.run(["/usr/bin/unshare", how, "true"], capture_output=True, text=True).stderr


def k24_status() -> list[int]:
    from understudy.actors.sandbox.confine import PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, prctl

    return [prctl(PR_GET_NO_NEW_PRIVS, 0), prctl(PR_GET_SECCOMP, 0)]


def k25_terminal_input() -> str:
    import fcntl

    return stopped(lambda: fcntl.ioctl(0, 0x5412, b"x"))


# --- resources -------------------------------------------------------------------------------------------------------


def r01_fork_without_end() -> int:
    count = 0
    while count < 2000:
        try:
            pid = os.fork()
        except OSError:
            return count
        if pid == 0:
            signal.pause()
        count += 1
    return count


def r02_threads_without_end() -> int:
    import threading

    count = 0
    try:
        while count < 2000:
            threading.Thread(target=signal.pause, daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    return count


def one_thread_after_another(seconds: float) -> str:
    import threading
    import time

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        thread = threading.Thread(target=time.sleep, args=(0.001,))
        try:
            thread.start()
        except RuntimeError as error:
            return str(error)
        thread.join()
    return "all started"


def many_threads(count: int, seconds: float) -> int:
    import threading
    import time

    threading.stack_size(256 * 1024)  # of address space, which is bounded, too
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(seconds,), daemon=True).start()
    time.sleep(seconds)
    return count


def r03_fill_memory() -> None:
    held = []
    while True:
        held.append(b"x" * (8 << 20))


def r03_ask_for_too_much() -> None:
    bytearray(1 << 40)


def r04_fill_memory_together(children: int, each: int) -> None:
    for _ in range(children):
        if os.fork() == 0:
            held = b"x" * each
            signal.pause()
            print(len(held))
    signal.pause()


def r04_fill_memory_until_one_dies(children: int, each: int) -> int:
    """All at once, and touched as fast as it goes."""
    for _ in range(children):
        if os.fork() == 0:
            held = b"x" * each
            signal.pause()
            print(len(held))
    return os.waitstatus_to_exitcode(os.wait()[1])


def r04_share_memory(children: int, size: int) -> int:
    """Forked processes hold the same pages: that is not more memory."""
    held = b"x" * size
    for _ in range(children):
        if os.fork() == 0:
            signal.pause()
    time.sleep(0.3)  # some looks of the watchdog; there is nothing to wait for
    return len(held)


def r05_fill_the_disk() -> str:
    def act() -> None:
        with open("big", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))

    return stopped(act)


def r06_fill_the_disk_in_pieces(folders: list[str]) -> list[str]:
    def act(folder: str) -> None:
        for number in range(1000):
            Path(folder, str(number)).write_bytes(b"x" * (1 << 20))

    return [stopped(lambda folder=folder: act(folder)) for folder in folders]  # type: ignore[misc]


def r07_make_files_without_end() -> None:
    number = 0
    while True:
        number += 1
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))


def r08_open_without_end() -> str:
    held: list[Any] = []
    return stopped(lambda: [held.append(open("/dev/null")) for _ in range(5000)])


def r09_print_without_end() -> None:
    while True:
        print("all work and no play")


def r10_compute_without_end() -> None:
    while True:
        pass


def r10_compute_and_ignore_the_limit() -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    r10_compute_without_end()


def r11_never_return(token: str, mark: str = "") -> None:
    """`token` marks a process of its own, which must be gone as well; that it is there can be seen from outside; or a
    file, that it makes then."""
    with subprocess.Popen(["/usr/bin/sleep", token]):
        if mark:
            Path(mark).touch()
        signal.pause()


def r12_ignore_every_signal(token: str) -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    r11_never_return(token)


def r13_close_everything() -> None:
    os.closerange(0, 256)
    signal.pause()


def r14_daemonise(token: str) -> str:
    ready = Path("ready")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 256)
            ready.touch()
            os.execv("/usr/bin/sleep", ["sleep", token])
        os._exit(0)
    while not ready.exists():
        time.sleep(0.005)
    return "returned"


def r14_daemonise_and_wait(token: str) -> None:
    r14_daemonise(token)
    signal.pause()


def r15_crash() -> None:
    ctypes.string_at(1)


def r15_dump_core() -> list[str]:
    """The limit, once one has tried to raise it; whether the kernel wrote what a child had in memory; what is here."""
    import resource

    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pid = os.fork()
    if pid == 0:
        r15_crash()
    dumped = os.WCOREDUMP(os.waitpid(pid, 0)[1])
    return [str(resource.getrlimit(resource.RLIMIT_CORE)[1]), str(dumped), *f03_list(".")]


def r16_raise_limits() -> str:
    import resource

    most = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, most)
    except ValueError as error:  # Python's word for EPERM here
        return str(error)
    return DONE


# --- the way back ----------------------------------------------------------------------------------------------------


def c_answer(raw: bytes) -> None:
    """Write these bytes in the place of a result, and end."""
    os.write(int(sys.argv[1]), raw)
    os._exit(0)


def c_kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def c_value(size: int) -> str:
    return "x" * size


# --- beyond the study: what the host and other calls have ------------------------------------------------------------


def b01_change_from_outside(path: str) -> dict[str, str]:
    """All ways to change a file by its name; none needs it to be opened."""
    import shutil

    return {
        "chmod": stopped(lambda: os.chmod(path, 0o777)),
        "chown": stopped(lambda: os.chown(path, os.getuid(), os.getgid())),
        "utime": stopped(lambda: os.utime(path, (0, 0))),
        "truncate": stopped(lambda: os.truncate(path, 0)),
        "unlink": stopped(lambda: os.unlink(path)),
        "rename": stopped(lambda: os.rename(path, "mine")),
        "link": stopped(lambda: os.link(path, "mine")),
        "move": stopped(lambda: shutil.move(path, "mine")),
        "setxattr": stopped(lambda: os.setxattr(path, "user.x", b"x")),
        "mkdir": stopped(lambda: os.mkdir(path + ".d")),
        "symlink": stopped(lambda: os.symlink("x", path + ".l")),
        "mkfifo": stopped(lambda: os.mkfifo(path + ".f")),
    }


def b02_watch(path: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(0)
    if fd < 0 or libc.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return DONE


def b03_kill_everybody() -> str:
    return stopped(lambda: os.kill(-1, signal.SIGKILL))


def b04_stop_the_first() -> str:
    return stopped(lambda: os.kill(1, signal.SIGSTOP))


def b05_slow_down(pid: int) -> dict[str, str]:
    return {
        "priority": stopped(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        "affinity": stopped(lambda: os.sched_setaffinity(pid, {0})),
        "scheduler": stopped(lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))),
    }


def b06_be_signalled_for(pid: int) -> str:
    import fcntl

    one, _other = socket.socketpair()
    return stopped(lambda: fcntl.fcntl(one.fileno(), 8, pid))  # F_SETOWN: the kernel then sends SIGIO to that one


def b07_leave_traces(word: str) -> list[str]:
    """In every place where the next call could find them."""
    import json

    os.environ["TRACE"] = word
    json.load = lambda *_args, **_more: word
    sys.modules["trace_of_a_call"] = sys
    return [stopped(lambda folder=folder: Path(folder, word).touch()) for folder in (".", "/tmp", "/dev/shm")]  # type: ignore[misc]


def b07_find_traces(word: str) -> list[str]:
    import json

    found = [folder for folder in (".", "/tmp", "/dev/shm") if os.path.lexists(f"{folder}/{word}")]
    found += [name for name in ("TRACE",) if name in os.environ]
    found += [name for name in ("trace_of_a_call",) if name in sys.modules]
    return [*found, *(["json"] if json.load.__module__ != "json" else [])]


def b08_terminals() -> list[str]:
    """Terminals of others, while one of our own is open."""
    ours, theirs = os.openpty()
    mine = os.path.basename(os.ttyname(theirs))
    return [*sorted(set(os.listdir("/dev/pts")) - {"ptmx", mine}), str(ours > 0)]


def b08_hold_a_terminal(token: str, mark: str = "") -> None:
    os.openpty()
    r11_never_return(token, mark)


def b09_mark() -> str:
    import resource

    return stopped_by_value(lambda: resource.setrlimit(resource.RLIMIT_RTTIME, (1, 1)))


def stopped_by_value(act: Callable[[], Any]) -> str:
    """As `stopped`, of calls for which Python has another word."""
    try:
        return stopped(act)
    except ValueError as error:
        return str(error)


def b10_stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def b11_answer_and_stay(raw: bytes, token: str) -> None:
    """Forge an answer, close the way back, and go on."""
    os.write(int(sys.argv[1]), raw)
    os.close(int(sys.argv[1]))
    r11_never_return(token)


def b12_answer_through_a_child(token: str) -> None:
    """A child that holds the way back open, so that its end is never seen."""
    if os.fork() == 0:
        os.execv("/usr/bin/sleep", ["sleep", token])


def b14_user_namespaces_left() -> str:
    return Path("/proc/sys/user/max_user_namespaces").read_text().strip()


def b15_int80() -> None:
    """getpid in the convention of 32-bit programs: mov eax, 20; int 0x80; ret."""
    import mmap

    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def b16_priority() -> str:
    return stopped(lambda: os.nice(-10))


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def b17_lock_memory() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(64 << 20)
    return DONE if libc.mlock(held, ctypes.c_size_t(len(held))) == 0 else errno.errorcode[ctypes.get_errno()]


def b18_deep_folders() -> None:
    """Deeper than any path, and closed: whoever removes it has to walk there."""
    for _ in range(300):
        os.mkdir("d" * 200, 0o700)
        os.chdir("d" * 200)


def b19_closed_folder() -> str:
    os.mkdir("closed")
    Path("closed/file").touch()
    os.mkdir("closed/never", 0)
    os.mkdir("never", 0)
    os.chmod("closed", 0)
    return DONE


def b20_halt_the_first() -> None:
    print("before", flush=True)
    os.kill(1, signal.SIGTERM)
    while True:
        pass


def b21_answer_and_work_on(token: str) -> str:
    """Its child is busy, and knows itself by the token, when the answer is given."""
    line = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(flush=True)\nwhile True: pass",
    ]
    child = subprocess.Popen([*line, token], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    return "answered"
