"""A hostile tool gets nowhere, in any tier: real walls, real attempts, and nothing left behind.

Where a tier cannot work these tests fail; they never skip. `attempts.py` holds what is carried in.
"""

import functools
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from escape import attempts
from escape.places import Place, limited, processes_with
from escape.workers import CANARY

from understudy.actors.sandbox.landlock import MEANWHILE
from understudy.actors.sandbox.runner import NICENESS
from understudy.policies.profile import Profile

MIB = 1 << 20


@pytest.fixture
def secret(sandbox: Place) -> str:
    """Another run's file, readable for everybody on the host."""
    return str(sandbox.file("secret", CANARY))


def test_the_machine_isolates(sandbox: Place) -> None:
    preflight = sandbox.worker.ask("preflight", tier=sandbox.tier)
    assert preflight["available"], preflight
    assert (preflight["uid"] == 0) == (sandbox.worker.user == "root")


def test_tools_give_way(sandbox: Place) -> None:
    assert sandbox.tried(attempts.niceness) >= NICENESS


# --- files -----------------------------------------------------------------------------------------------------------


def test_another_runs_file_is_not_there(sandbox: Place, secret: str) -> None:
    assert sandbox.tried(attempts.read, path=secret) == sandbox.hidden
    assert sandbox.tried(attempts.write, path=secret) == sandbox.hidden
    assert sandbox.tried(attempts.f07_read_through_a_link, path=secret) == sandbox.hidden
    assert sandbox.tried(attempts.f09_walk_through_proc, path=secret) == "ENOENT"


def test_the_machines_files_are_not_readable(sandbox: Place) -> None:
    paths = ["/etc/shadow", "/etc/passwd", "/proc/kcore", "/dev/kmsg", "/sys/kernel/notes"]
    told = sandbox.tried(functools.partial(attempts.each, attempts.read), paths=paths)
    assert set(told.values()) <= {"ENOENT", "EACCES", "EPERM"}, told


def test_the_kernels_addresses_are_not_told(sandbox: Place) -> None:
    assert sandbox.tried(attempts.f18_kernel_addresses) == [""]


def test_nothing_of_the_machine_can_be_opened_for_writing(sandbox: Place) -> None:
    paths = [
        "/proc/sys/kernel/core_pattern",  # what it names is executed by root on the host
        "/proc/sysrq-trigger",
        "/proc/1/mem",  # bubblewrap's own process; who writes it could outlive the call
        "/proc/self/mem",
        "/proc/self/oom_score_adj",
        "/usr/bin/env",
    ]
    told = sandbox.tried(functools.partial(attempts.each, attempts.open_for_writing), paths=paths)
    if sandbox.tier == "gvisor":  # a number that its kernel keeps, and nobody heeds
        told.pop("/proc/self/oom_score_adj")
    assert set(told.values()) <= {"EROFS", "EACCES", "ETXTBSY", "ENOENT"}, told


def test_nothing_new_appears_outside_the_working_folder(sandbox: Place) -> None:
    paths = ["/new", "/usr/lib/new", "/etc/new", "/dev/new", "/proc/new", "/root/new", "/var/tmp/new"]
    told = sandbox.tried(functools.partial(attempts.each, attempts.write), paths=paths)
    if sandbox.tier == "gvisor":  # in the call's own memory
        told.pop("/dev/new")
    assert set(told.values()) <= {"EROFS", "ENOENT", "EACCES"}, told


def test_packages_cannot_be_changed(sandbox: Place) -> None:
    assert sandbox.tried(attempts.f04_drop_a_pth) in sandbox.unwritable
    assert sandbox.tried(attempts.f08_hardlink_a_program) in ("EXDEV", "EPERM", "EACCES")


def test_homes_hold_only_the_interpreter(sandbox: Place) -> None:
    for folder in ("/home", "/tmp", "/root"):
        shown = sandbox.shown_below(folder)
        expected = [shown] if folder == "/tmp" else [shown, ["ENOENT"]]
        listed = sandbox.tried(attempts.f03_list, path=folder)
        assert listed == ["EACCES"] if sandbox.tier == "landlock" else listed in expected


def test_devices_are_harmless(sandbox: Place) -> None:
    harmless = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx")}
    if sandbox.tier == "gvisor":  # its kernel's own, which lead nowhere else
        harmless |= {"/dev/fuse", "/dev/net/tun"}
    assert set(sandbox.tried(attempts.f12_open_devices)) <= harmless
    assert sandbox.tried(attempts.f13_make_a_disk) == "EPERM"


def test_no_file_becomes_setuid(sandbox: Place) -> None:
    assert sandbox.tried(attempts.f14_make_setuid) == ["EPERM", "EPERM", "EPERM"]


def test_a_setuid_program_gives_nothing(sandbox: Place) -> None:
    assert sandbox.tried(attempts.f14_become_root) == []
    assert sandbox.tried(attempts.k24_status)[0] == 1  # no new privileges, so no program brings any


# --- processes -------------------------------------------------------------------------------------------------------


def test_the_environment_is_clean(sandbox: Place) -> None:
    assert sandbox.tried(attempts.p01_environment) == [
        *(("GIT_CONFIG_NOSYSTEM",) if sandbox.tier == "landlock" else ()),  # git gives up where it may not look
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        *(("PWD",) if sandbox.tier in ("zygote", "room", "cold") else ()),  # bubblewrap's
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
        "TMPDIR",
        "UNDERSTUDY_EFFECT_KEY",
        "USER",
    ]
    others = sandbox.tried(attempts.p02_environment_of_others)
    assert CANARY not in others
    assert "UNDERSTUDY_STORE" not in others


def test_other_processes_are_not_there(sandbox: Place) -> None:
    """Neither the first, nor the worker, nor the one who looks."""
    alone = sandbox.tier != "landlock"
    assert sandbox.tried(attempts.p03_processes) == (2 if alone else 0)
    told = sandbox.tried(attempts.p_into, pids=[1, sandbox.worker.pid, os.getpid()])
    assert told.pop("p08 kill")[1:] == (["ESRCH", "ESRCH"] if alone else ["EPERM", "EPERM"])
    assert told.pop("p06 mem")[1:] == (["ENOENT", "ENOENT"] if alone else ["EACCES", "EACCES"])
    assert {word for words in told.values() for word in words} == {"EPERM"}, told


def test_only_its_own_descriptors_are_open(sandbox: Place) -> None:
    """Standard input is /dev/null; two for what it prints, one for the result."""
    assert sandbox.tried(attempts.p10_descriptors) == ["/dev/null", "pipe", "pipe", "pipe"]


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_hosts_ports_cannot_be_reached(sandbox: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert sandbox.tried(attempts.n01_connect, port=listener.getsockname()[1]) == "EPERM"


def _sockets_refused(place: Place, path: str, profile: Profile) -> None:
    """Ray's raylet and plasma listen on such sockets."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        for attempt in (attempts.n03_connect_unix, attempts.n14_turn_a_stream_pair, attempts.n13_datagram_pair):
            assert place.tried(attempt, profile, path=path) == "EPERM"


def test_the_hosts_abstract_sockets_cannot_be_reached(sandbox: Place) -> None:
    _sockets_refused(sandbox, f"\0{CANARY}-{os.getpid()}", Profile())


def test_the_hosts_sockets_cannot_be_reached(sandbox: Place) -> None:
    _sockets_refused(sandbox, str(sandbox.folder / "s"), Profile())


def test_a_socket_in_a_granted_folder_cannot_be_reached(granting: Place) -> None:
    folder = str(granting.folder)
    _sockets_refused(granting, f"{folder}/s", Profile(write=(folder,)))


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


def test_no_socket_opens(sandbox: Place) -> None:
    assert sandbox.tried(attempts.n_open, families=FAMILIES) == dict.fromkeys(FAMILIES, "EPERM")


def test_names_do_not_resolve(sandbox: Place) -> None:
    assert sandbox.tried(attempts.n05_resolve) == "gaierror"


def test_socketpairs_work(sandbox: Place) -> None:
    """asyncio cannot do without."""
    assert sandbox.tried(attempts.n12_socketpair) == "done"


# --- kernel ----------------------------------------------------------------------------------------------------------

# Numbers on x86_64 and aarch64; arguments are such that the call would get far, were it allowed.
CALLS: dict[str, tuple[Any, ...]] = {
    "f15 open_by_handle_at": (304, 265, -100, 0, 0),
    "f16 chroot": (161, 51, b"/tmp"),
    "i01 shmget": (29, 194, 0, 4096, 0o1600),
    "i01 shmat": (30, 196, 0, 0, 0),
    "i01 semget": (64, 190, 0, 1, 0o1600),
    "i01 msgget": (68, 186, 0, 0o1600),
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
    "k20 mount proc": (165, 40, b"proc", b"/tmp", b"proc", 0, 0),
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


def test_the_kernel_refuses(sandbox: Place) -> None:
    assert sandbox.tried(functools.partial(attempts.calls, CALLS)) == dict.fromkeys(CALLS, "EPERM")


NAMESPACES = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000}
NAMESPACES |= {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}


def test_no_namespace_is_made(sandbox: Place) -> None:
    assert sandbox.tried(attempts.k_clone, namespaces=NAMESPACES) == dict.fromkeys(NAMESPACES, "EPERM")


def test_clone3_looks_absent_so_that_libc_falls_back(sandbox: Place) -> None:
    assert sandbox.tried(attempts.k02_clone3) == "ENOSYS"
    assert "Operation not permitted" in sandbox.tried(attempts.k23_unshare_program, how="-Ur")


def test_nothing_privileged_is_left(sandbox: Place) -> None:
    assert sandbox.tried(attempts.k21_capabilities) == 0
    if sandbox.tier != "landlock":  # without privileges the bounding set stays; and says nothing, if none can be gained
        assert sandbox.tried(attempts.k21_capabilities_to_come) == []
    assert sandbox.tried(attempts.k24_status) == [1, 2]


def test_terminals_get_no_keystrokes(sandbox: Place) -> None:
    assert sandbox.tried(attempts.k25_terminal_input) == "EPERM"  # of any descriptor, before it is looked at


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86_64 only")
def test_a_foreign_calling_convention_is_deadly(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.k13_x32)
    assert (outcome.kind, "SIGSYS" in outcome.error) == ("killed", True), outcome


# --- resources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [attempts.r01_fork_without_end, attempts.r02_threads_without_end])
def test_forks_are_bounded(sandbox: Place, attempt: Callable[..., Any]) -> None:
    if sandbox.tier != "landlock":
        assert 10 <= sandbox.tried(attempt, limited(processes=20)) < 20
        return
    # The kernel counts all processes of the user there, so others get room to come and go; the watchdog counts the
    # call's, and ends it unless it ended itself before that looked.
    outcome = sandbox.outcome(attempt, limited(processes=20))
    if outcome.kind == "killed":
        assert "the limit is 20 (processes)" in outcome.error
    else:
        assert outcome.value < 20 + 2 * MEANWHILE, outcome


def test_the_threads_of_one_call_take_none_from_another(sandbox: Place) -> None:
    """Where the kernel counts by user, two calls of one user share that count."""
    first = sandbox.begin(attempts.one_thread_after_another, limited(processes=4), seconds=1.5)
    second = sandbox.begin(attempts.many_threads, limited(processes=80), count=60, seconds=1.0)
    assert [outcome.value for outcome in sandbox.answers([first, second])] == ["all started", 60]


def test_memory_of_one_process_is_bounded(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.r03_fill_memory, limited(memory_bytes=128 * MIB))
    assert outcome.kind == "out_of_memory", outcome
    assert "128 MiB" in outcome.error
    assert 100 * MIB < outcome.peak_memory_bytes < 700 * MIB
    assert sandbox.outcome(attempts.r03_ask_for_too_much).kind == "out_of_memory"


def test_memory_of_many_processes_is_bounded_together(sandbox: Place) -> None:
    profile = limited(memory_bytes=128 * MIB, wall_s=20)
    outcome = sandbox.outcome(attempts.r04_fill_memory_together, profile, children=6, each=40 * MIB)
    assert outcome.kind == "out_of_memory", outcome
    assert outcome.duration_s < 10


def test_memory_that_is_taken_all_at_once_is_bounded(sandbox: Place) -> None:
    """By the watchdog, or by the kernel where the call has a cgroup; the first to see it ends the call."""
    profile = limited(memory_bytes=64 * MIB, disk_bytes=MIB, wall_s=20)
    outcome = sandbox.outcome(attempts.r04_fill_memory_until_one_dies, profile, children=8, each=60 * MIB)
    assert outcome.kind == "out_of_memory", outcome


def test_shared_memory_counts_once(sandbox: Place) -> None:
    profile = limited(memory_bytes=200 * MIB)
    assert sandbox.tried(attempts.r04_share_memory, profile, children=4, size=80 * MIB) == 80 * MIB


def test_the_disk_is_bounded(sandbox: Place) -> None:
    small = limited(disk_bytes=8 * MIB)
    assert sandbox.tried(attempts.r05_fill_the_disk, small) in ("EFBIG", "ENOSPC")
    outcome = sandbox.outcome(attempts.r06_fill_the_disk_in_pieces, small, folders=[".", "/dev/shm"])
    if sandbox.tier == "landlock":
        assert (outcome.kind, "disk_bytes" in outcome.error) == ("killed", True), outcome
    else:
        assert outcome.value == ["ENOSPC", "ENOSPC"]


def test_the_number_of_files_is_bounded(sandbox: Place) -> None:
    """They are the kernel's memory."""
    small = limited(memory_bytes=96 * MIB) if sandbox.tier == "gvisor" else Profile()
    outcome = sandbox.outcome(attempts.r07_make_files_without_end, small)
    if sandbox.tier == "gvisor":  # the memory of its kernel is the call's
        assert outcome.kind == "out_of_memory", outcome
    elif sandbox.tier in ("zygote", "room"):  # the kernel keeps to a number there; bubblewrap cannot tell it one
        assert (outcome.kind, "No space left" in outcome.error) == ("error", True), outcome
    else:
        assert (outcome.kind, "16384 files" in outcome.error) == ("killed", True), outcome


def test_open_files_are_bounded(sandbox: Place) -> None:
    assert sandbox.tried(attempts.r08_open_without_end) == "EMFILE"


def test_output_is_bounded_and_its_tail_is_kept(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.r09_print_without_end, limited(output_bytes=10_000))
    assert outcome.kind == "output_too_large", outcome
    assert "10000" in outcome.error
    assert 9_000 < len(outcome.printed) <= 10_000


def test_computing_is_bounded(sandbox: Place) -> None:
    for attempt in (attempts.r10_compute_without_end, attempts.r10_compute_and_ignore_the_limit):
        outcome = sandbox.outcome(attempt, limited(cpu_s=1, wall_s=60))
        assert (outcome.kind, "cpu_s" in outcome.error) == ("timeout", True), outcome


@pytest.mark.parametrize("attempt", [attempts.r11_never_return, attempts.r12_ignore_every_signal])
def test_the_deadline_ends_everything(sandbox: Place, attempt: Callable[..., Any], token: str) -> None:
    outcome = sandbox.outcome(attempt, limited(wall_s=0.7), token=token)
    assert (outcome.kind, "0.7 s" in outcome.error) == ("timeout", True), outcome
    assert outcome.duration_s < 3
    assert processes_with(token) == []


def test_the_deadline_does_not_need_open_pipes(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.r13_close_everything, limited(wall_s=0.7))
    assert outcome.kind == "timeout", outcome


def test_a_daemon_ends_with_its_call(sandbox: Place, token: str) -> None:
    assert sandbox.tried(attempts.r14_daemonise, token=token) == "returned"
    assert processes_with(token) == []


def test_a_crash_is_told(sandbox: Place) -> None:
    outcome = sandbox.outcome(attempts.r15_crash)
    assert (outcome.kind, "SIGSEGV" in outcome.error) == ("killed", True), outcome
    assert sandbox.outcome(attempts.c_kill_me).kind == "killed"


def test_a_crash_leaves_no_core(sandbox: Place) -> None:
    limit, written, *files = sandbox.tried(attempts.r15_dump_core)
    assert (limit, written) == ("1", "False")  # any other limit, a program that reads cores on the host would not heed
    assert not [name for name in files if "core" in name]


def test_limits_cannot_be_raised(sandbox: Place) -> None:
    assert sandbox.tried(attempts.r16_raise_limits) != "done"


# --- the way back ----------------------------------------------------------------------------------------------------


FORGED = {
    "pickle bomb": b"\x80\x04\x95cos\nsystem\n",
    "deep": b"[" * 200_000,
    "nan": b'{"kind":"ok","peak":0,"value":NaN}',
    "truncated": b'{"kind":"ok","peak":0,"va',
    "other": b'{"kind":"denied","error":""}',
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_an_error(sandbox: Place, name: str) -> None:
    outcome = sandbox.outcome(functools.partial(attempts.c_answer, FORGED[name]))
    assert (outcome.kind, outcome.error_type) == ("error", "BadResult"), outcome
