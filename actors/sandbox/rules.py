"""Landlock: which files a process may still open, whom it may still signal. Standard library only.

Rules bind the process and all that it starts, cannot be taken back, and need no privilege. What the kernel does not
know yet (it tells by its ABI version) it cannot refuse: see `landlock.py` for what is refused instead.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from understudy.actors.sandbox.confine import PR_SET_NO_NEW_PRIVS, check, libc, prctl

SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
READING = EXECUTE | READ_FILE | READ_DIR
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
NEVER = MAKE_CHAR | MAKE_SOCK | MAKE_BLOCK | IOCTL_DEV
TCP_BIND_AND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11


def abi() -> int:
    """The version that this kernel speaks; 0 if it has no Landlock, or has it switched off."""
    return max(0, int(libc.syscall(SYS_CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)))


def restrict(version: int, read: Iterable[str], write: Iterable[str]) -> None:
    """From now on these paths (folders: all below) can be read and executed, those also written; nothing else.

    A path that is not there is left out. Raises OSError where the kernel refuses.
    """
    rights = _rights(version)
    ruleset = struct.pack("=QQQ", rights, TCP_BIND_AND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    fd = check(libc.syscall(SYS_CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    try:
        for path in read:
            _allow(fd, path, rights & READING)
        for path in write:
            _allow(fd, path, rights & ~NEVER)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        check(libc.syscall(SYS_RESTRICT_SELF, fd, 0), "landlock_restrict_self")
    finally:
        os.close(fd)


def _rights(version: int) -> int:
    """All that this version knows of."""
    return (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= OF_A_FILE
        rule = struct.pack("=Qi", rights, fd)
        check(libc.syscall(SYS_ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(fd)
