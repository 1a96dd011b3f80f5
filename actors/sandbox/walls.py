"""The command line of bubblewrap for one call: an empty root, and what the profile lets in. Pure.

Every namespace is spelled out (`--unshare-all` leaves out, silently, what the kernel refuses). Order matters: later
mounts cover earlier ones, so grants come after the private folders, and the interpreter's folders after the grants, for
no grant may make those writable.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.actors.sandbox.backend import BadGrant
from understudy.actors.sandbox.runtime import Runtime
from understudy.policies.profile import Profile, covers

INSIDE_ID = 1000
WORKING_FOLDER = "/tmp"
_RESERVED = ("/proc", "/sys", "/dev")
_HIDDEN_TREES = ("/", "/tmp", "/usr", "/etc", "/var", "/run", "/home", "/root")


@dataclass(frozen=True)
class Source:
    """A host path in a command line; as root, the launcher puts the place where it has bound the path."""

    path: str
    how: Literal["show", "read", "write"]


Part = str | Source


def refuse_bad_grants(profile: Profile, runtime: Runtime) -> None:
    """Raises BadGrant for a path that cannot be handed in at its own place, or that would hand in much more."""
    own = [place for _, place in runtime.folders]
    for path in (*profile.read, *profile.write):
        if not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
            raise BadGrant(f"the granted path {path!r} is not absolute and plain; grant {os.path.abspath(path)!r}")
        if path in _HIDDEN_TREES or covers(_RESERVED, path):
            raise BadGrant(f"the granted path {path!r} belongs to the machine; grant the file or folder that is meant")
        if covers(["/usr", *own], path) and path in profile.write:
            raise BadGrant(f"the granted path {path!r} lies in the interpreter's folders, which no tool may change")


def command(
    bwrap: str, host_root: Sequence[tuple[str, str | None]], runtime: Runtime, profile: Profile, fds: "Descriptors"
) -> list[Part]:
    """`host_root`: names at the top of the host (bin, lib64, ...), with their links' targets; None for a folder."""
    disk = str(profile.limits.disk_bytes)
    parts: list[Part] = [bwrap]
    for namespace in ("user", "ipc", "pid", "net", "uts", "cgroup"):
        parts.append(f"--unshare-{namespace}")
    parts += ["--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    parts += ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--hostname", "sandbox", "--clearenv"]
    for name, value in environment(runtime).items():
        parts += ["--setenv", name, value]
    parts += ["--ro-bind", "/usr", "/usr"]
    for name, link in host_root:
        parts += ["--ro-bind", f"/{name}", f"/{name}"] if link is None else ["--symlink", link, f"/{name}"]
    # Where the loader finds libraries, and where names like /usr/bin/awk lead to. Nothing else of /etc.
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        parts += ["--ro-bind-try", path, path]
    parts += ["--proc", "/proc", "--dev", "/dev", "--size", disk, "--tmpfs", "/dev/shm"]
    parts += ["--size", disk, "--tmpfs", WORKING_FOLDER]
    grants = {path: Source(path, "read") for path in profile.read}
    grants |= {path: Source(path, "write") for path in profile.write}
    for path, source in sorted(grants.items(), key=lambda grant: grant[0]):  # parents first
        parts += ["--bind" if source.how == "write" else "--ro-bind", source, path]
    for real, place in runtime.folders:
        parts += ["--ro-bind", Source(real, "show"), place]
    # The root, because new names in it would be outside every limit. /proc, because /proc/1/mem is bubblewrap.
    parts += ["--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKING_FOLDER]
    parts += ["--seccomp", str(fds.seccomp), "--json-status-fd", str(fds.status), "--"]
    return [*parts, os.path.realpath(runtime.python), "-I", "-S", "-B", runtime.runner, str(fds.reply)]


@dataclass(frozen=True)
class Descriptors:
    """The open files that bubblewrap and the runner inherit, besides 0, 1 and 2."""

    seccomp: int
    status: int
    reply: int


def environment(runtime: Runtime) -> dict[str, str]:
    """All that a tool finds in its environment, besides its effect key."""
    return {
        "PATH": f"{runtime.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": WORKING_FOLDER,
        "TMPDIR": WORKING_FOLDER,
        "USER": "tool",
        "LOGNAME": "tool",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def host_root() -> list[tuple[str, str | None]]:
    """The host's /bin, /lib and so on: links into /usr nowadays, folders on older machines."""
    names = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
    present = [name for name in names if os.path.exists(f"/{name}")]
    return [(name, os.readlink(f"/{name}") if os.path.islink(f"/{name}") else None) for name in present]
