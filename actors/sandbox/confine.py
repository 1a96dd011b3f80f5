"""Gives up rights, for good, from inside a process that is about to load a tool. Standard library only.

What is given up here binds everything that the process becomes or starts. Raises OSError where the kernel refuses: then
nothing may be loaded.
"""

import ctypes
import os
import struct

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS = 21, 39
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
_INSTRUCTION_BYTES = 8
_CAPABILITIES = tuple(ctypes.c_ulong(each) for each in range(64))
"""More than there are. Made here: each spare would make them anew."""

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def prctl(option: int, value: int, third: int = 0) -> int:
    arguments = [ctypes.c_ulong(each) for each in (value, third, 0, 0)]
    return check(libc.prctl(option, *arguments), f"prctl {option}")


def drop_capabilities() -> None:
    """All, also those that a program with capabilities of its own could bring back."""
    for capability in _CAPABILITIES:
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # no such capability any more; or no right to, and then no_new_privileges does it
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    check(libc.capset(header, b"\0" * 24), "capset")


def capabilities() -> int:
    """Those that this process has, or could get back: effective, permitted and inheritable, as bits."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0))
    sets = ctypes.create_string_buffer(24)
    check(libc.capget(header, sets), "capget")
    low, high = struct.unpack("=6I", sets.raw)[:3], struct.unpack("=6I", sets.raw)[3:]
    return int(low[0] | low[1] | low[2] | (high[0] | high[1] | high[2]) << 32)


def filter_system_calls(bpf: bytes) -> None:
    """Let the kernel ask this filter about every call; see `seccomp.py`. No privileges can be gained any more."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(bpf, len(bpf))
    program = struct.pack("@HP", len(bpf) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    held = ctypes.create_string_buffer(program, len(program))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(held))
