"""The system call filter, run by a small interpreter of BPF: what it allows, and that nothing slips past."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.sandbox import seccomp
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.syscalls import ALLOWED, BY_ARGUMENT, NETWORK, NEWEST, SOCKET

MACHINES = sorted(seccomp.AUDIT_ARCH)
ALLOW, KILL, PRETEND = "allow", "kill", "pretend"
OTHER_HALF = 0xDEADBEEF << 32
"""Set in every argument: the kernel ignores what does not fit the argument's type, and so must the filter."""


def verdict(machine: str, number: int, *args: int, arch: int | None = None, code: bytes = b"") -> str:
    """What the kernel would do, from the bytes that it is given."""
    code = code or seccomp.program(machine)
    program = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    wide = [(arg | OTHER_HALF) & (1 << 64) - 1 for arg in (*args, *[0] * (6 - len(args)))]
    data = struct.pack("=IIQ6Q", number, seccomp.AUDIT_ARCH[machine] if arch is None else arch, 0, *wide)
    register = at = 0
    while True:  # jumps lead forward only, so this ends
        operation, jump_true, jump_false, k = program[at]
        at += 1
        if operation == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x00050000: PRETEND}.get(k) or errno.errorcode[k & 0xFFFF]
        if operation == 0x20:
            (register,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            register &= k
        else:
            test = {0x15: register == k, 0x25: register > k, 0x35: register >= k, 0x45: bool(register & k)}
            at += jump_true if test[operation] else jump_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_program_is_one_the_kernel_takes(machine: str) -> None:
    assert len(seccomp.instructions(machine)) < 4096
    assert all(0 <= part < 256 for row in seccomp.instructions(machine) for part in row[1:3])
    assert len(seccomp.program(machine)) == 8 * len(seccomp.instructions(machine))


def test_exactly_the_listed_calls_are_allowed(machine: str) -> None:
    listed = set(ALLOWED[machine].values())
    judged = set(BY_ARGUMENT[machine].values())
    assert not listed & judged
    for number in set(range(NEWEST + 1)) - judged:
        assert verdict(machine, number) == (ALLOW if number in listed else "EPERM"), number


@given(number=st.integers(NEWEST + 1, (1 << 30) - 1))
def test_newer_calls_look_absent(number: int) -> None:
    assert {verdict(machine, number) for machine in MACHINES} == {"ENOSYS"}


@given(number=st.integers(0, (1 << 32) - 1), arch=st.integers(0, (1 << 32) - 1))
def test_another_architecture_is_deadly(number: int, arch: int) -> None:
    for machine in MACHINES:
        if arch != seccomp.AUDIT_ARCH[machine]:
            assert verdict(machine, number, arch=arch) == KILL


@given(number=st.integers(1 << 30, (1 << 32) - 1))
def test_x32_is_deadly(number: int) -> None:
    assert verdict("x86_64", number) == KILL


NEVER = """
mount umount2 pivot_root chroot unshare setns fsopen open_tree move_mount ptrace process_vm_readv process_vm_writev
pidfd_getfd bpf perf_event_open io_uring_setup userfaultfd seccomp modify_ldt iopl ioperm personality init_module
kexec_load reboot open_by_handle_at keyctl add_key request_key shmget semget msgget mq_open memfd_create memfd_secret
socket connect bind listen accept accept4 quotactl settimeofday clock_settime sethostname
"""


@pytest.mark.parametrize("name", NEVER.split())
def test_dangerous_calls_are_on_no_list(name: str) -> None:
    assert all(name not in table[machine] for table in (ALLOWED, BY_ARGUMENT) for machine in MACHINES)


ARGUMENTS = [
    ("clone", (0x01200011,), ALLOW),  # fork, as glibc does it
    ("clone", (0x003D0F00,), ALLOW),  # a thread
    ("clone", (0x10000011,), "EPERM"),  # a user namespace
    ("clone", (0x40000011,), "EPERM"),  # a network namespace
    ("clone", (0x00020011,), "EPERM"),  # a mount namespace
    ("clone3", (), "ENOSYS"),
    ("openat2", (), "ENOSYS"),
    ("openat", (0, 0, 0o101, 0o644), ALLOW),
    ("openat", (0, 0, 0o101, 0o4755), "EPERM"),
    ("openat", (0, 0, 0o20200001, 0o2755), "EPERM"),  # O_TMPFILE
    ("openat", (0, 0, 0, 0o7777), ALLOW),  # opens only: that register is not a mode
    ("open", (0, 0o101, 0o2755), "EPERM"),
    ("creat", (0, 0o4755), "EPERM"),
    ("chmod", (0, 0o755), ALLOW),
    ("chmod", (0, 0o4755), "EPERM"),
    ("fchmod", (3, 0o2755), "EPERM"),
    ("fchmodat", (0, 0, 0o6755), "EPERM"),
    ("fchmodat", (0, 0, 0o1777), ALLOW),  # sticky is harmless
    ("fchmodat2", (0, 0, 0o4755), "EPERM"),
    ("mknodat", (0, 0, 0o010644), ALLOW),  # a fifo
    ("mknodat", (0, 0, 0o060644), "EPERM"),  # a disk
    ("mknodat", (0, 0, 0o020644), "EPERM"),  # a character device; 0:0 needs no privilege
    ("mknodat", (0, 0, 0o140644), "EPERM"),  # a socket
    ("mknodat", (0, 0, 0o014644), "EPERM"),  # a setuid fifo
    ("mknod", (0, 0o060644), "EPERM"),
    ("socketpair", (1, 1), ALLOW),
    ("socketpair", (1, 0o2004001), ALLOW),  # with SOCK_CLOEXEC and SOCK_NONBLOCK
    ("socketpair", (1, 5), ALLOW),
    ("socketpair", (1, 2), "EPERM"),  # a datagram one
    ("socketpair", (2, 1), "EPERM"),
    ("socketpair", (30, 1), "EPERM"),  # TIPC
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0, 0x5412), "EPERM"),  # TIOCSTI
    ("ioctl", (0, 0x541C), "EPERM"),
    ("ioctl", (0, 0x541D), "EPERM"),
    ("prlimit64", (0,), ALLOW),
    ("prlimit64", (1,), "EPERM"),
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (0, 15), "EPERM"),  # RLIMIT_RTTIME: the mark of the call
    ("setrlimit", (7,), ALLOW),
    ("setrlimit", (15,), "EPERM"),
    ("ioctl", (0, 0x8901), "EPERM"),  # FIOSETOWN
    ("fcntl", (0, 1), ALLOW),
    ("fcntl", (0, 8), "EPERM"),  # F_SETOWN
    ("fcntl", (0, 15), "EPERM"),
]


@pytest.mark.parametrize(("name", "args", "expected"), ARGUMENTS)
def test_arguments_decide(machine: str, name: str, args: tuple[int, ...], expected: str) -> None:
    if name in BY_ARGUMENT[machine]:
        assert verdict(machine, BY_ARGUMENT[machine][name], *args) == expected


def test_a_tier_can_refuse_more_and_pretend(machine: str) -> None:
    refused, pretended = frozenset({"kill", "fcntl"}), frozenset({"chmod", "fchmod", "fchown"})
    code = seccomp.program(machine, refused, pretended)
    numbers = {**ALLOWED[machine], **BY_ARGUMENT[machine]}
    assert verdict(machine, numbers["kill"], code=code) == "EPERM"
    assert verdict(machine, numbers["fcntl"], 0, 1, code=code) == "EPERM"
    assert verdict(machine, numbers["fchown"], code=code) == PRETEND
    assert verdict(machine, numbers["fchmod"], 3, 0o755, code=code) == PRETEND
    assert verdict(machine, numbers["fchmod"], 3, 0o4755, code=code) == "EPERM"
    for number in set(range(NEWEST + 1)) - {numbers[name] for name in refused | pretended if name in numbers}:
        assert verdict(machine, number, code=code) == verdict(machine, number), number


def test_every_rule_is_used_and_every_judged_call_has_one() -> None:
    names = {name for machine in MACHINES for name in BY_ARGUMENT[machine]}
    assert names == set(seccomp._RULES) - {"socket"} == {name for name, _, _ in ARGUMENTS}


def test_an_unknown_machine_is_refused_with_a_remedy() -> None:
    with pytest.raises(IsolationUnavailable, match=r"riscv64.*x86_64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize("machine", MACHINES)
def test_network_adds_tcp_over_ipv4_and_no_more(machine: str) -> None:
    code = seccomp.program(machine, network=True)
    number = SOCKET[machine]["socket"]
    for flags in (0, 0o4000, 0o2000000):  # SOCK_NONBLOCK, SOCK_CLOEXEC
        assert verdict(machine, number, 2, 1 | flags, 0, code=code) == ALLOW
        assert verdict(machine, number, 2, 1 | flags, 6, code=code) == ALLOW
    for family, kind, protocol in ((1, 1, 0), (10, 1, 0), (2, 2, 0), (2, 3, 1), (2, 1, 132), (2, 1, 262), (16, 3, 0)):
        assert verdict(machine, number, family, kind, protocol, code=code) == "EPERM"
    added = {*NETWORK[machine].values(), number}
    for each in set(range(NEWEST + 1)) - added:
        assert verdict(machine, each, code=code) == verdict(machine, each), each
    for each in NETWORK[machine].values():
        assert (verdict(machine, each, code=code), verdict(machine, each)) == (ALLOW, "EPERM")
    assert verdict(machine, number, 2, 1, 0) == "EPERM"
