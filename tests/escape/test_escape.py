"""A hostile tool gets nowhere: real bubblewrap, real attempts, and nothing left behind.

Where bubblewrap cannot work these tests fail; they never skip. `attempts.py` holds what is carried in.
"""

import asyncio
import functools
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from escape import attempts
from escape.calls import by_value, limited, outcome_of, shown_below, tool_call, tried

from support.waiting import run_async, wait_until
from understudy.actors.outcome import Outcome
from understudy.actors.sandbox.bubblewrap import HOST_ID, BubblewrapBackend
from understudy.actors.sandbox.strays import end_strays
from understudy.policies.profile import Profile

CANARY = "canary-5f2c"
MIB = 1 << 20
WITHOUT_ROOT = ["setpriv", "--reuid", str(HOST_ID), "--regid", str(HOST_ID), "--clear-groups"]


def processes_with(*wanted: str, within: bool = False) -> list[str]:
    """Living processes of the whole host that have these arguments, or (within) this text in their command line."""
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                line = (proc / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if all(text in (line if within else line.split("\0")) for text in wanted):
                found.append(proc.name)
    return found


@pytest.fixture
def token() -> str:
    """An argument for /usr/bin/sleep that nobody else uses."""
    return f"{1_000_000 + uuid.uuid4().int % 1_000_000_000}"


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """Another run's file, readable for everybody on the host."""
    path = tmp_path / "secret"
    path.write_text(CANARY)
    path.chmod(0o666)
    return str(path)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    path.touch()
    return path


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_machine_isolates() -> None:
    preflight = run_async(BubblewrapBackend().preflight())
    assert preflight.available, f"{preflight.reason}; {preflight.remedy}"


# --- files -----------------------------------------------------------------------------------------------------------


def test_another_runs_file_is_not_there(secret: str) -> None:
    assert tried(attempts.read, path=secret) == "ENOENT"
    assert tried(attempts.write, path=secret) == "ENOENT"
    assert tried(attempts.f07_read_through_a_link, path=secret) == "ENOENT"
    assert tried(attempts.f09_walk_through_proc, path=secret) == "ENOENT"


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/passwd", "/proc/kcore", "/dev/kmsg", "/sys/kernel/notes"])
def test_the_machines_files_are_not_readable(path: str) -> None:
    assert tried(attempts.read, path=path) in ("ENOENT", "EACCES", "EPERM")


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",  # what it names is executed by root on the host
        "/proc/sysrq-trigger",
        "/proc/1/mem",  # bubblewrap's own process; who writes it could outlive the call
        "/proc/self/mem",
        "/proc/self/oom_score_adj",
        "/usr/bin/env",
    ],
)
def test_nothing_of_the_machine_can_be_opened_for_writing(path: str) -> None:
    assert tried(attempts.open_for_writing, path=path) in ("EROFS", "EACCES", "ETXTBSY", "ENOENT")


@pytest.mark.parametrize("path", ["/new", "/usr/lib/new", "/etc/new", "/dev/new", "/proc/new", "/root/new"])
def test_nothing_new_appears_outside_the_working_folder(path: str) -> None:
    assert tried(attempts.write, path=path) in ("EROFS", "ENOENT", "EACCES")


def test_packages_cannot_be_changed() -> None:
    assert tried(attempts.f04_drop_a_pth) == "EROFS"
    assert tried(attempts.f08_hardlink_a_program) in ("EXDEV", "EPERM")


def test_homes_hold_only_the_interpreter() -> None:
    assert tried(attempts.f03_list, path="/home") in (["ENOENT"], shown_below("/home"))
    assert ".ray" not in tried(attempts.f03_list, path=os.path.expanduser("~"))
    assert tried(attempts.f03_list, path="/tmp") == shown_below("/tmp")


def test_devices_are_harmless() -> None:
    harmless = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx")}
    assert set(tried(attempts.f12_open_devices)) <= harmless
    assert tried(attempts.f13_make_a_disk) == "EPERM"


def test_no_file_becomes_setuid() -> None:
    assert tried(attempts.f14_make_setuid) == ["EPERM", "EPERM", "EPERM"]


# --- processes -------------------------------------------------------------------------------------------------------


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_STORE", f"redis://:{CANARY}@127.0.0.1")
    assert tried(attempts.p01_environment) == [
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "PWD",
        "PYTHONDONTWRITEBYTECODE",
        "TMPDIR",
        "UNDERSTUDY_EFFECT_KEY",
        "USER",
    ]
    others = tried(attempts.p02_environment_of_others)
    assert CANARY not in others
    assert "UNDERSTUDY_STORE" not in others


def test_other_processes_are_not_there() -> None:
    assert tried(attempts.p03_processes) == 2
    assert tried(attempts.p08_signal, pid=os.getpid()) == "ESRCH"
    assert tried(attempts.p04_ptrace, pid=1) == "EPERM"
    assert tried(attempts.p05_read_memory_of, pid=1) == "EPERM"
    assert tried(attempts.p07_take_a_descriptor) == "EPERM"
    assert tried(attempts.p09_limits_of_the_first) == "EPERM"


def test_only_its_own_descriptors_are_open() -> None:
    """Standard input is /dev/null; two for what it prints, one for the result."""
    with open("/proc/self/status") as held:
        os.set_inheritable(held.fileno(), True)
        assert tried(attempts.p10_descriptors) == ["/dev/null", "pipe", "pipe", "pipe"]


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_hosts_ports_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert tried(attempts.n01_connect, port=listener.getsockname()[1]) == "EPERM"


@pytest.mark.parametrize("where", ["a path that was granted", "an abstract name"])
def test_the_hosts_unix_sockets_cannot_be_reached(tmp_path: Path, where: str) -> None:
    """Ray's raylet and plasma listen on such sockets."""
    granted = where == "a path that was granted"
    path = str(tmp_path / "s") if granted else f"\0{CANARY}-{os.getpid()}"
    profile = Profile(write=(str(tmp_path),)) if granted else Profile()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        assert tried(attempts.n03_connect_unix, profile, path=path) == "EPERM"
        assert tried(attempts.n14_turn_a_stream_pair, profile, path=path) == "EPERM"
        assert tried(attempts.n13_datagram_pair, profile, path=path) == "EPERM"


FAMILIES = {
    "n02 unix": (1, 1, 0),
    "n04 inet": (2, 1, 0),
    "n04 inet6": (10, 1, 0),
    "n05 udp": (2, 2, 0),
    "n06 raw": (2, 3, 1),
    "n07 netlink": (16, 3, 0),
    "n08 vsock": (40, 1, 0),
    "n09 packet": (17, 3, 0),
    "n10 alg": (38, 5, 0),
    "bluetooth": (31, 3, 0),
}


def test_no_socket_opens() -> None:
    assert tried(attempts.n_open, families=FAMILIES) == dict.fromkeys(FAMILIES, "EPERM")


def test_names_do_not_resolve() -> None:
    assert tried(attempts.n05_resolve) == "gaierror"


def test_socketpairs_work() -> None:
    """asyncio cannot do without."""
    assert tried(attempts.n12_socketpair) == "done"


# --- kernel ----------------------------------------------------------------------------------------------------------

# Numbers on x86_64 and aarch64; arguments are such that the call would get far, were it allowed.
CALLS: dict[str, tuple[Any, ...]] = {
    "f15 open_by_handle_at": (304, 265, -100, 0, 0),
    "f16 chroot": (161, 51, b"/tmp"),
    "i01 shmget": (29, 194, 0, 4096, 0o1600),
    "i02 mq_open": (240, 180, b"q", 0o102, 0o600, 0),
    "i03 add_key": (248, 217, b"user", b"k", b"v", 1, -4),
    "i03 keyctl": (250, 219, 0, -4, 0),
    "i03 request_key": (249, 218, b"user", b"k", 0, -4),
    "i05 memfd_create": (319, 279, b"m", 0),
    "i05 memfd_secret": (447, 447, 0),
    "k01 unshare user": (272, 97, 0x10000000),
    "k01 unshare net": (272, 97, 0x40000000),
    "k03 mount": (165, 40, b"tmpfs", b"/tmp", b"tmpfs", 0, 0),
    "k03 umount": (166, 39, b"/proc", 2),
    "k03 pivot_root": (155, 41, b"/tmp", b"/tmp"),
    "k04 fsopen": (430, 430, b"tmpfs", 0),
    "k04 open_tree": (428, 428, -100, b"/", 1),
    "k04 mount_setattr": (442, 442, -100, b"/", 0, 0, 0),
    "k05 setns": (308, 268, 0, 0),
    "k06 bpf": (321, 280, 0, 0, 0),
    "k07 perf_event_open": (298, 241, 0, 0, -1, -1, 0),
    "k08 io_uring_setup": (425, 425, 8, 0),
    "k09 userfaultfd": (323, 282, 1),
    "k10 init_module": (175, 105, 0, 0, b""),
    "k10 finit_module": (313, 273, 0, b"", 0),
    "k11 reboot": (169, 142, 1, 1, 0, 0),
    "k11 kexec_load": (246, 104, 0, 0, 0, 0),
    "k15 personality": (135, 92, 0x0400000),
    "k16 syslog": (103, 116, 3, 0, 0),
    "k17 sethostname": (170, 161, b"x", 1),
    "k18 clock_settime": (227, 112, 0, 0),
    "k18 adjtimex": (159, 171, 0),
    "k20 swapon": (167, 224, b"/tmp/x", 0),
    "k20 quotactl": (179, 60, 0, 0, 0, 0),
    "k26 kcmp": (312, 272, 1, 1, 0, 0, 0),
    "k26 process_vm_writev": (311, 271, 1, 0, 0, 0, 0, 0),
    "k26 fanotify_init": (300, 262, 0, 0),
    "k26 seccomp": (317, 277, 0, 0, 0),
    "k26 setuid": (105, 146, 0),
    "k26 landlock_create_ruleset": (444, 444, 0, 0, 1),
    "k26 name_to_handle_at": (303, 264, -100, b"/", 0, 0, 0),
    "k26 vmsplice": (278, 75, 0, 0, 0, 0),
    "k26 connect": (42, 203, 0, 0, 0),
}


def test_the_kernel_refuses() -> None:
    assert tried(functools.partial(attempts.calls, CALLS)) == dict.fromkeys(CALLS, "EPERM")


NAMESPACES = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000}
NAMESPACES |= {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}


def test_no_namespace_is_made() -> None:
    assert tried(attempts.k_clone, namespaces=NAMESPACES) == dict.fromkeys(NAMESPACES, "EPERM")


def test_clone3_looks_absent_so_that_libc_falls_back() -> None:
    assert tried(attempts.k02_clone3) == "ENOSYS"
    assert tried(attempts.k23_unshare_program) != 0


def test_nothing_privileged_is_left() -> None:
    assert tried(attempts.k21_capabilities) == []
    assert tried(attempts.k24_status) == ["NoNewPrivs:1", "Seccomp:2"]


def test_terminals_get_no_keystrokes() -> None:
    assert tried(attempts.k25_terminal_input) in ("EPERM", "ENOTTY")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86_64 only")
def test_a_foreign_calling_convention_is_deadly() -> None:
    outcome = outcome_of(attempts.k13_x32)
    assert (outcome.kind, "SIGSYS" in outcome.error) == ("killed", True), outcome


# --- resources -------------------------------------------------------------------------------------------------------


def test_forks_are_bounded() -> None:
    assert 10 <= tried(attempts.r01_fork_without_end, limited(processes=20)) < 20
    assert 10 <= tried(attempts.r02_threads_without_end, limited(processes=20)) < 20


def test_memory_of_one_process_is_bounded() -> None:
    outcome = outcome_of(attempts.r03_fill_memory, limited(memory_bytes=128 * MIB))
    assert outcome.kind == "out_of_memory", outcome
    assert "128 MiB" in outcome.error
    assert 100 * MIB < outcome.peak_memory_bytes < 700 * MIB
    assert outcome_of(attempts.r03_ask_for_too_much).kind == "out_of_memory"


def test_memory_of_many_processes_is_bounded_together() -> None:
    profile = limited(memory_bytes=128 * MIB, wall_s=20)
    outcome = outcome_of(attempts.r04_fill_memory_together, profile, children=6, each=40 * MIB)
    assert outcome.kind == "out_of_memory", outcome
    assert outcome.duration_s < 10


def test_shared_memory_counts_once() -> None:
    profile = limited(memory_bytes=200 * MIB)
    assert tried(attempts.r04_share_memory, profile, children=4, size=80 * MIB) == 80 * MIB


def test_the_disk_is_bounded() -> None:
    small = limited(disk_bytes=8 * MIB)
    assert tried(attempts.r05_fill_the_disk, small) in ("EFBIG", "ENOSPC")
    assert tried(attempts.r06_fill_the_disk_in_pieces, small) == ["ENOSPC", "ENOSPC"]


def test_the_number_of_files_is_bounded() -> None:
    """They are the kernel's memory."""
    outcome = outcome_of(attempts.r07_make_files_without_end)
    assert (outcome.kind, "16384 files" in outcome.error) == ("killed", True), outcome


def test_open_files_are_bounded() -> None:
    assert tried(attempts.r08_open_without_end) == "EMFILE"


def test_output_is_bounded_and_its_tail_is_kept() -> None:
    outcome = outcome_of(attempts.r09_print_without_end, limited(output_bytes=10_000))
    assert outcome.kind == "output_too_large", outcome
    assert "10000" in outcome.error
    assert 9_000 < len(outcome.printed) <= 10_000


def test_computing_is_bounded() -> None:
    for attempt in (attempts.r10_compute_without_end, attempts.r10_compute_and_ignore_the_limit):
        outcome = outcome_of(attempt, limited(cpu_s=1, wall_s=60))
        assert (outcome.kind, "cpu_s" in outcome.error) == ("timeout", True), outcome


@pytest.mark.parametrize("attempt", [attempts.r11_never_return, attempts.r12_ignore_every_signal])
def test_the_deadline_ends_everything(attempt: Callable[..., Any], token: str) -> None:
    outcome = outcome_of(attempt, limited(wall_s=0.7), token=token)
    assert (outcome.kind, "0.7 s" in outcome.error) == ("timeout", True), outcome
    assert outcome.duration_s < 3
    assert processes_with(token) == []


def test_the_deadline_does_not_need_open_pipes() -> None:
    assert outcome_of(attempts.r13_close_everything, limited(wall_s=0.7)).kind == "timeout"


def test_a_daemon_ends_with_its_call(token: str, ready: Path) -> None:
    value = tried(attempts.r14_daemonise, Profile(write=(str(ready),)), token=token, ready=str(ready))
    assert (value, ready.read_text()) == ("returned", "ready")
    assert processes_with(token) == []


def test_a_crash_is_told() -> None:
    outcome = outcome_of(attempts.r15_crash)
    assert (outcome.kind, "SIGSEGV" in outcome.error) == ("killed", True), outcome
    assert outcome_of(attempts.c_kill_me).kind == "killed"


def test_limits_cannot_be_raised() -> None:
    assert tried(attempts.r16_raise_limits) != "done"


# --- endings from outside --------------------------------------------------------------------------------------------


def test_cancelling_leaves_nothing(token: str, ready: Path) -> None:
    async def scenario() -> None:
        call = tool_call(attempts.r11_never_return, token=token, ready=str(ready))
        task = asyncio.create_task(BubblewrapBackend().execute(call, Profile(write=(str(ready),))))
        await asyncio.to_thread(wait_until, lambda: ready.read_text() == "ready", 20, "the tool to run")
        assert processes_with(token)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes_with(token) == []

    run_async(scenario())


@pytest.mark.parametrize("rounds", [0, 1, 3, 10, 30, 100, 300])
def test_cancelling_during_the_start_leaves_nothing(token: str, rounds: int) -> None:
    """At any point of it: the loop takes some turns first."""

    async def scenario() -> None:
        call = tool_call(attempts.r11_never_return, token=token)
        task = asyncio.create_task(BubblewrapBackend().execute(call, Profile()))
        for _ in range(rounds):
            await asyncio.sleep(0.0002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes_with(token) == []
        assert not [name for name in children_of_this_process() if name == "bwrap"]

    run_async(scenario())


def children_of_this_process() -> list[str]:
    threads = [Path("/proc/self/task", thread, "children") for thread in os.listdir("/proc/self/task")]
    return [Path("/proc", pid, "comm").read_text().strip() for file in threads for pid in file.read_text().split()]


@pytest.mark.parametrize("moment", ["launch", "set-up", "run"])
def test_a_killed_worker_takes_its_calls_with_it(token: str, ready: Path, tmp_path: Path, moment: str) -> None:
    """Ray's workers die without a word, at any moment of a call."""
    script = tmp_path / "worker.py"
    blob = tmp_path / "blob"
    blob.write_bytes(by_value(attempts.r11_never_return).blob)
    script.write_text(
        "import asyncio, pathlib, sys\n"
        "from understudy.actors.outcome import ToolCall, ToolCode\n"
        "from understudy.actors.sandbox.bubblewrap import BubblewrapBackend\n"
        "from understudy.policies.profile import Profile\n"
        "blob, token, ready = sys.argv[1:]\n"
        "call = ToolCall('k', 't', ToolCode(blob=pathlib.Path(blob).read_bytes()), {'token': token, 'ready': ready})\n"
        "asyncio.run(BubblewrapBackend().execute(call, Profile(write=(ready,))))\n"
    )
    worker = subprocess.Popen([sys.executable, str(script), str(blob), token, str(ready)])
    reached = {
        "launch": lambda: len(processes_with(str(ready), within=True)) > 1,
        "set-up": lambda: processes_with("--json-status-fd", str(ready)),
        "run": lambda: ready.read_text() == "ready",
    }
    try:
        wait_until(reached[moment], 20, f"the call to reach its {moment}")
    finally:
        worker.kill()
        worker.wait()
    run_async(BubblewrapBackend().preflight())  # as the next worker does; see strays.py
    wait_until(lambda: not processes_with(str(ready), within=True), 10, "the orphaned call to end")
    assert not processes_with(token)


def test_what_a_killed_worker_left_is_ended(token: str) -> None:
    """bubblewrap, held where it has made its first process inside, which waits for its word, and killed there."""
    held, release = os.pipe()
    line = ["bwrap", "--unshare-user", "--unshare-pid", "--userns-block-fd", str(held), "--info-fd", "1"]
    line += ["--ro-bind", "/", "/", "/any/sandbox/runner.py", token]
    outer = subprocess.Popen(line, pass_fds=(held,), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(processes_with(token)) == 2, 10, "its first process inside")
        end_strays()
        assert len(processes_with(token)) == 2  # its bubblewrap lives, so it is none
        outer.kill()
        outer.wait()
        assert len(processes_with(token)) == 1
        end_strays()
        wait_until(lambda: not processes_with(token), 10, "the stray to end")
    finally:
        os.close(held)
        os.close(release)


def test_many_calls_at_once_do_not_meet(tmp_path: Path) -> None:
    async def scenario() -> list[Outcome]:
        backend = BubblewrapBackend()
        calls = [tool_call(attempts.p03_processes) for _ in range(8)]
        return list(await asyncio.gather(*(backend.execute(call, Profile()) for call in calls)))

    assert [outcome.value for outcome in run_async(scenario())] == [2] * 8


# --- the way back ----------------------------------------------------------------------------------------------------


FORGED = {
    "pickle bomb": b"\x80\x04\x95cos\nsystem\n",
    "deep": b"[" * 200_000,
    "nan": b'{"kind":"ok","peak":0,"value":NaN}',
    "truncated": b'{"kind":"ok","peak":0,"va',
    "other": b'{"kind":"denied","error":""}',
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_an_error(name: str) -> None:
    outcome = outcome_of(functools.partial(attempts.c_answer, FORGED[name]))
    assert (outcome.kind, outcome.error_type) == ("error", "BadResult"), outcome


def test_ends_without_an_answer_are_told() -> None:
    outcome = outcome_of(attempts.c_leave, status=0)
    assert (outcome.kind, "without a result" in outcome.error) == ("error", True), outcome
    outcome = outcome_of(attempts.c_exit)
    assert (outcome.kind, outcome.error_type) == ("error", "SystemExit"), outcome


def test_results_that_are_no_json_are_told() -> None:
    assert outcome_of(attempts.c_nan).error_type == "ValueError"
    assert outcome_of(attempts.c_object).kind == "error"
    outcome = outcome_of(attempts.c_value, limited(output_bytes=1000), size=2000)
    assert (outcome.kind, "2002" in outcome.error) == ("output_too_large", True), outcome


def test_the_same_walls_stand_without_root() -> None:
    """Most workers are not root: then there is no launcher, and bubblewrap uses its caller's own namespace rights."""
    if os.geteuid() != 0:
        pytest.skip("all these tests have just run without root")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        _run_without_root(Path(folder), _python_for_everybody())


def _run_without_root(folder: Path, python: str) -> None:
    script = folder / "worker.py"
    script.write_text(
        "import asyncio, json, os, pathlib, sys\n"
        "from understudy.actors.outcome import ToolCall, ToolCode\n"
        "from understudy.actors.sandbox.bubblewrap import BubblewrapBackend\n"
        "from understudy.policies.profile import Limits, Profile\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "limits = Limits(wall_s=20, memory_bytes=128 << 20, processes=20)\n"
        "grant = Profile(write=(str(folder / 'ledger'),), limits=limits)\n"
        "async def main():\n"
        "    backend, out = BubblewrapBackend(), {'euid': os.geteuid()}\n"
        "    out['available'] = (await backend.preflight()).available\n"
        "    for name, args in json.loads((folder / 'calls').read_text()):\n"
        "        call = ToolCall('k', name, ToolCode(blob=(folder / name).read_bytes()), args)\n"
        "        outcome = await backend.execute(call, grant)\n"
        "        out[name] = [outcome.kind, outcome.value]\n"
        "    print(json.dumps(out))\n"
        "asyncio.run(main())\n"
    )
    (folder / "ledger").touch()
    calls = {
        attempts.write: {"path": str(folder / "ledger")},
        attempts.open_for_writing: {"path": "/proc/sys/kernel/core_pattern"},
        attempts.p03_processes: {},
        attempts.r01_fork_without_end: {},
        attempts.r04_fill_memory_together: {"children": 6, "each": 40 * MIB},
        attempts.r04_share_memory: {"children": 4, "size": 50 * MIB},
        attempts.r07_make_files_without_end: {},
        attempts.f14_make_setuid: {},
    }
    for function in calls:
        (folder / function.__name__).write_bytes(by_value(function).blob)
    (folder / "calls").write_text(json.dumps([[function.__name__, args] for function, args in calls.items()]))
    for path in (folder, *folder.iterdir()):
        os.chown(path, HOST_ID, HOST_ID)
    command = [*WITHOUT_ROOT, python, str(script)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(_packages_for_everybody(folder))}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("euid") == HOST_ID
    forks = seen.pop("r01_fork_without_end")
    assert 10 <= forks[1] < 20
    assert seen == {
        "available": True,
        "write": ["ok", "done"],
        "open_for_writing": ["ok", seen["open_for_writing"][1]],
        "p03_processes": ["ok", 2],
        "r04_fill_memory_together": ["out_of_memory", None],
        "r04_share_memory": ["ok", 50 * MIB],
        "r07_make_files_without_end": ["killed", None],
        "f14_make_setuid": ["ok", ["EPERM", "EPERM", "EPERM"]],
    }
    assert seen["open_for_writing"][1] in ("EROFS", "EACCES")
    assert (folder / "ledger").read_text() == "x"


def _packages_for_everybody(within: Path) -> Path:
    """What the worker imports, where an unprivileged user can read it: this clone may lie under /root."""
    packages = within / "site-packages"  # by this name a sandbox shows it
    bare = shutil.ignore_patterns("__pycache__")
    for name in ("understudy", "cloudpickle"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        shutil.copytree(Path(found.origin).parent, packages / name, ignore=bare)
    return packages


def _python_for_everybody() -> str:
    """An interpreter of this version that an unprivileged user can reach. Ours may lie under /root."""
    # setpriv gives its capabilities up as late as when it starts the program, so it finds more than the program can.
    question = "import os, sys; print(*sys.version_info[:2], os.access(sys.executable, os.X_OK))"
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run([*WITHOUT_ROOT, python, "-c", question], capture_output=True, text=True)
        if done.stdout.split() == [str(part) for part in (*sys.version_info[:2], True)]:
            return python
    pytest.skip("no interpreter of this version is reachable for an unprivileged user")
