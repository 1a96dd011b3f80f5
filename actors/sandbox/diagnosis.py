"""Why a sandbox did not come up, and what to change on the machine, from what bubblewrap and the kernel say.

Each row is a machine that users of such sandboxes have met; the last words of bubblewrap are quoted in every case.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.launcher import EXIT_MOVED

INSTALL = "apt-get install bubblewrap (version 0.8 or newer), or put bwrap on the PATH of the workers"
KILLED = (-9, 128 + 9)
"""Exit statuses of what somebody killed: the kernel, most likely."""
LOOK_FOR_MEMORY = "look for memory: in dmesg, and at the limits of the workers"

_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "this kernel lets no unprivileged process make a user namespace"),
    ("user/max_user_namespaces", "0", "this machine allows no user namespaces"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor takes away what user namespaces are made for"),
)
_FIXES = {"0": "1", "1": "0"}
_IN_A_POD = (
    "in a container: allow user namespaces (Kubernetes: hostUsers: false, procMount: Unmasked and a seccomp profile "
    "that permits unshare and mount; Docker: --security-opt seccomp=... --security-opt systempaths=unconfined), or use "
    "a RuntimeClass that isolates the whole pod (gvisor, kata)"
)


def moved(said: str, status: int, granted: Iterable[str]) -> str:
    """The granted path that was replaced or removed just while it was bound, if that was the trouble; else empty.
    `status`: how the launcher, or bubblewrap, has ended."""
    words = said.strip().splitlines()[-1] if said.strip() else ""
    if status == EXIT_MOVED:
        return words
    if not words.startswith(("bwrap: Can't bind mount ", "bwrap: Can't find source path ")):
        return ""
    return max((path for path in granted if f"{path}:" in words), key=len, default="")


def not_started(said: str, sysctl: Callable[[str], str] = lambda name: read_sysctl(name)) -> IsolationUnavailable:
    """`said`: what the launcher and bubblewrap printed before they ended."""
    words = said.strip().splitlines()[-1][:300] if said.strip() else "it said nothing"
    reason = f"bubblewrap did not come up: {words}"
    if "nknown option" in said:
        return IsolationUnavailable(f"bubblewrap is too old: {words}", INSTALL)
    if "bwrap" not in said and "Error" in said:
        return IsolationUnavailable(f"the sandbox's launcher or interpreter did not start: {words}", _IN_A_POD)
    for name, bad, meaning in _SYSCTLS:
        if sysctl(name) == bad:
            dotted = name.replace("/", ".")
            fix = _FIXES[bad] if name != "user/max_user_namespaces" else "10000"
            return IsolationUnavailable(f"{meaning} ({dotted} = {bad}); {reason}", f"sysctl -w {dotted}={fix}")
    return IsolationUnavailable(reason, _IN_A_POD)


def read_sysctl(name: str) -> str:
    """Its value; empty where the kernel does not have it."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
