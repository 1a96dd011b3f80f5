"""Writes the filter that the kernel asks about every system call of a sandboxed tool: a list of what is allowed.

The filter is classic BPF, made here in plain Python: no libseccomp, nothing to install, and a test can interpret it.
Laws: what is not listed fails with EPERM; a foreign calling convention (x32, 32-bit) kills the process, since its
numbers mean other calls; what libc knows how to do without (clone3, openat2, calls newer than us) fails with ENOSYS, so
that libc falls back to the call whose arguments can be read here.
"""

import errno
import struct
from functools import cache

from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.syscalls import ALLOWED, BY_ARGUMENT, NETWORK, NEWEST, SOCKET

ALLOW = 0x7FFF0000
KILL = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
ABSENT = 0x00050000 | errno.ENOSYS
PRETEND = 0x00050000
"""Success, without doing it."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

CLONE_NEW_ANY = 0x7E020000  # mount, cgroup, uts, ipc, user, pid and network namespaces
AF_UNIX, SOCK_TYPE_MASK, SOCK_STREAM, SOCK_SEQPACKET = 1, 0xF, 1, 5
AF_INET, IPPROTO_TCP = 2, 6
# Push keystrokes into a terminal, take over the console, switch a line discipline.
TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423
# Have the kernel signal somebody when there is input.
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
IOCTLS_REFUSED = (TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD, FIOSETOWN, SIOCSPGRP)
S_ISUID_OR_SGID, S_IFMT, S_IFIFO = 0o6000, 0o170000, 0o010000
RLIMIT_RTTIME = 15
O_CREAT, O_TMPFILE = 0o100, 0o20000000

# Instructions: class, size and mode are or-ed, as in <linux/bpf_common.h>.
LOAD, AND, JEQ, JGT, JGE, JSET, RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def program(
    machine: str,
    refused: frozenset[str] = frozenset(),
    pretended: frozenset[str] = frozenset(),
    network: bool = False,
) -> bytes:
    """The filter for this machine's architecture, as `struct sock_filter[]`. Raises IsolationUnavailable.

    Args:
        refused: calls that this filter does not allow, though they are listed.
        pretended: calls that do nothing and are told yes, where tools expect no other answer.
        network: TCP over IPv4 may be used; where it leads is for the network namespace to bound.
    """
    return b"".join(struct.pack("=HBBI", *each) for each in instructions(machine, refused, pretended, network))


@cache
def instructions(
    machine: str,
    refused: frozenset[str] = frozenset(),
    pretended: frozenset[str] = frozenset(),
    network: bool = False,
) -> tuple[Instruction, ...]:
    if machine not in AUDIT_ARCH:
        raise IsolationUnavailable(
            f"there is no system call filter for the architecture {machine!r}",
            f"run sandboxes on {' or '.join(AUDIT_ARCH)}, or add its numbers to actors/sandbox/syscalls.py",
        )
    code = [(LOAD, 0, 0, _ARCH), (JEQ, 1, 0, AUDIT_ARCH[machine]), _end(KILL), (LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += _when(JGE, X32_BIT, [_end(KILL)])
    judged = BY_ARGUMENT[machine] | (SOCKET[machine] if network else {})
    listed = ALLOWED[machine] | (NETWORK[machine] if network else {})
    for name, number in judged.items():
        rule = [_end(REFUSE)] if name in refused else _RULES[name]
        code += _when(JEQ, number, [_pretending(step) for step in rule] if name in pretended else rule)
    for name in sorted(pretended & ALLOWED[machine].keys()):
        code += _when(JEQ, ALLOWED[machine][name], [_end(PRETEND)])
    allowed = [number for name, number in listed.items() if name not in refused]
    for low, high in _ranges(sorted(allowed)):
        # In ascending order: below this range and not in the one before means not listed.
        code += [(JGE, 1, 0, low), _end(REFUSE), *_when_not(JGT, high, [_end(ALLOW)])]
    code += [*_when(JGT, NEWEST, [_end(ABSENT)]), _end(REFUSE)]
    return tuple(code)


def _pretending(step: Instruction) -> Instruction:
    return _end(PRETEND) if step == _end(ALLOW) else step


def _end(verdict: int) -> Instruction:
    return (RETURN, 0, 0, verdict)


def _when(test: int, k: int, block: list[Instruction]) -> list[Instruction]:
    return [(test, 0, len(block), k), *block]


def _when_not(test: int, k: int, block: list[Instruction]) -> list[Instruction]:
    return [(test, len(block), 0, k), *block]


def _argument(index: int, mask: int = 0xFFFFFFFF) -> list[Instruction]:
    """Load the low half: all the arguments judged here are 32 bits wide, and the kernel ignores the rest as well."""
    load = [(LOAD, 0, 0, _FIRST_ARGUMENT + 8 * index)]
    return load if mask == 0xFFFFFFFF else [*load, (AND, 0, 0, mask)]


def _unless_bits(index: int, bits: int) -> list[Instruction]:
    return [*_argument(index), *_when(JSET, bits, [_end(REFUSE)]), _end(ALLOW)]


def _opens(flags: int, mode: int) -> list[Instruction]:
    # Only a call that creates has a mode; otherwise that register holds whatever was left in it.
    return [*_argument(flags), *_when(JSET, O_CREAT | O_TMPFILE, _unless_bits(mode, S_ISUID_OR_SGID)), _end(ALLOW)]


def _makes_fifo(mode: int) -> list[Instruction]:
    return [
        *_argument(mode, S_IFMT | S_ISUID_OR_SGID),
        *_when(JEQ, S_IFIFO, [_end(ALLOW)]),
        _end(REFUSE),
    ]


# Why one limit may not be touched: it carries the mark of the call; see `marks.py`.
# Why no setuid bit may be set: a file in a granted folder belongs to the granted path's owner, on a host where others
# could execute it (as systemd's RestrictSUIDSGID=).
# Why socketpairs of streams only: a datagram one can be sent to any socket whose path is visible.
_RULES: dict[str, list[Instruction]] = {
    "clone": _unless_bits(0, CLONE_NEW_ANY),
    "clone3": [_end(ABSENT)],  # its flags lie behind a pointer
    "openat2": [_end(ABSENT)],
    "open": _opens(1, 2),
    "openat": _opens(2, 3),
    "creat": _unless_bits(1, S_ISUID_OR_SGID),
    "chmod": _unless_bits(1, S_ISUID_OR_SGID),
    "fchmod": _unless_bits(1, S_ISUID_OR_SGID),
    "fchmodat": _unless_bits(2, S_ISUID_OR_SGID),
    "fchmodat2": _unless_bits(2, S_ISUID_OR_SGID),
    "mknod": _makes_fifo(1),
    "mknodat": _makes_fifo(2),
    "socketpair": [
        *_argument(0),
        *_when_not(JEQ, AF_UNIX, [_end(REFUSE)]),
        *_argument(1, SOCK_TYPE_MASK),
        *_when(JEQ, SOCK_STREAM, [_end(ALLOW)]),
        *_when(JEQ, SOCK_SEQPACKET, [_end(ALLOW)]),
        _end(REFUSE),
    ],
    "socket": [
        *_argument(0),
        *_when_not(JEQ, AF_INET, [_end(REFUSE)]),
        *_argument(1, SOCK_TYPE_MASK),
        *_when_not(JEQ, SOCK_STREAM, [_end(REFUSE)]),
        *_argument(2),
        *_when(JEQ, 0, [_end(ALLOW)]),
        *_when(JEQ, IPPROTO_TCP, [_end(ALLOW)]),
        _end(REFUSE),  # MPTCP and SCTP are streams as well
    ],
    "ioctl": [
        *_argument(1),
        *[step for request in IOCTLS_REFUSED for step in _when(JEQ, request, [_end(REFUSE)])],
        _end(ALLOW),
    ],
    "prlimit64": [
        *_argument(0),
        *_when_not(JEQ, 0, [_end(REFUSE)]),
        *_argument(1),
        *_when(JEQ, RLIMIT_RTTIME, [_end(REFUSE)]),
        _end(ALLOW),
    ],
    "fcntl": [
        *_argument(1),
        *[step for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX) for step in _when(JEQ, command, [_end(REFUSE)])],
        _end(ALLOW),
    ],
    "setrlimit": [*_argument(0), *_when(JEQ, RLIMIT_RTTIME, [_end(REFUSE)]), _end(ALLOW)],
}


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
