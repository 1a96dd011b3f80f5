"""How a call is told which limit it came to: what it did, the limit with its value, and what to change. Pure."""

import errno
from typing import Final

from understudy.policies.budget_reader import LIMITS
from understudy.policies.profile import Limits

IN_POLICIES: Final = {kept: name for name, (kept, _) in LIMITS.items()}
"""What a policy calls a field of `Limits`."""


def limit_of(name: str, value: float) -> str:
    """The end of a sentence that says what the call did."""
    named = f"the limit is {amount(name, value)} ({name})"
    return f"{named}; its rule can give it more, by limits: {{{IN_POLICIES[name]}: ...}}"


def amount(name: str, value: float) -> str:
    """With its unit."""
    if name.endswith("_bytes"):
        return size(int(value))
    return f"{value:g} s" if name.endswith("_s") else f"{value:g}"


def size(count: int) -> str:
    """Of whole units only what is exact, or nearly so."""
    for unit, bytes_in in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= bytes_in and (count % bytes_in == 0 or count >= 10 * bytes_in):
            return f"{count / bytes_in:.0f} {unit}"
    return "1 byte" if count == 1 else f"{count} bytes"


def refused(number: int, limits: Limits) -> str:
    """Which limit it may be that had the kernel refuse something with this error number; empty: none of ours."""
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            files = files_most(limits)
            return (
                f"each of its folders holds {files} files and as much as: {limit_of('disk_bytes', limits.disk_bytes)}"
            )
        case errno.EFBIG:
            return f"of a file, {limit_of('disk_bytes', limits.disk_bytes)}"
        case errno.EMFILE:
            return limit_of("open_files", limits.open_files)
        case errno.EAGAIN:
            return f"of processes and threads at once, {limit_of('processes', limits.processes)}"
    return ""


def files_most(limits: Limits) -> int:
    """Files that a working folder may hold: each costs the kernel memory, however little is in it."""
    return max(1024, limits.disk_bytes // 4096)
