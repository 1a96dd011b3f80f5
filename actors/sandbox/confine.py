"""Gives up rights, for good, from inside a process that is about to load a tool. Standard library only.

What is given up here binds everything that the process becomes or starts. Raises OSError where the kernel refuses: then
nothing may be loaded.

What there is to do can be written down before (`..._calls`), and done later (`make`), by another process.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 4, 22, 23, 24
PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS = 21, 39
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
_INSTRUCTION_BYTES = 8
_NUMBERS_MOST = 64
"""Of capabilities: more than there are."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments; below 0 or an exception: it has failed."""

_word = cache(ctypes.c_ulong)
"""One for each number: a process that was forked copies each page that it reads objects from."""

libc = ctypes.CDLL(None, use_errno=True)
kept = ctypes.PyDLL(None)
"""The C library, called without letting go of the interpreter's lock: nothing here waits for anything."""
kept.__errno_location.restype = ctypes.POINTER(ctypes.c_int)


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def make(calls: Sequence[Call]) -> None:
    """Raises OSError at the first that fails."""
    for function, arguments in calls:
        result = function(*arguments)
        if result is not None and result < 0:
            number = kept.__errno_location()[0]
            raise OSError(number, os.strerror(number), f"{getattr(function, '__name__', function)}{arguments}")


def prctl(option: int, value: int, third: int = 0) -> int:
    arguments = [ctypes.c_ulong(each) for each in (value, third, 0, 0)]
    return check(libc.prctl(option, *arguments), f"prctl {option}")


def prctl_call(option: int, value: int, third: int = 0) -> Call:
    return kept.prctl, (option, *map(_word, (value, third, 0, 0)))


def drop_capabilities() -> None:
    """All, also those that a program with capabilities of its own could bring back."""
    with suppress(PermissionError):  # then no_new_privileges does it
        make(bounding_calls())
    make(capability_calls())


def bounding_calls() -> list[Call]:
    """Nothing that is started brings a capability back."""
    known = [each for each in range(_NUMBERS_MOST) if libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(each), 0, 0, 0) >= 0]
    return [prctl_call(PR_CAPBSET_DROP, each) for each in known]


def capability_calls() -> list[Call]:
    """There is none any more."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    return [prctl_call(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL), (kept.capset, (header, b"\0" * 24))]


def capabilities() -> int:
    """Those that this process has, or could get back: effective, permitted and inheritable, as bits."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0))
    sets = ctypes.create_string_buffer(24)
    check(libc.capget(header, sets), "capget")
    low, high = struct.unpack("=6I", sets.raw)[:3], struct.unpack("=6I", sets.raw)[3:]
    return int(low[0] | low[1] | low[2] | (high[0] | high[1] | high[2]) << 32)


def filter_system_calls(bpf: bytes) -> None:
    """Let the kernel ask this filter about every call; see `seccomp.py`. No privileges can be gained any more."""
    make(filter_calls(bpf))


def filter_calls(bpf: bytes) -> list[Call]:
    code = ctypes.create_string_buffer(bpf, len(bpf))
    program = struct.pack("@HP", len(bpf) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    held = ctypes.create_string_buffer(program, len(program))
    _PROGRAMS.append((code, held))
    return [
        prctl_call(PR_SET_NO_NEW_PRIVS, 1),
        prctl_call(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(held)),
    ]


_PROGRAMS: list[Any] = []
"""Calls name them by their address alone. One for each kind of call, and process."""
