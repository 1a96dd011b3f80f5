"""The command lines of bubblewrap, for one call and for a zygote: an empty root, and what the profile lets in. Pure.

Every namespace is spelled out (`--unshare-all` leaves out, silently, what the kernel refuses). Order matters: later
mounts cover earlier ones, so grants come after the private folders, and the interpreter's folders after the grants, for
no grant may make those writable.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.actors.sandbox.backend import BadGrant
from understudy.actors.sandbox.egress.listener import PORT
from understudy.actors.sandbox.runtime import Runtime
from understudy.policies.profile import Profile, covers

HostRoot = Sequence[tuple[str, str | None]]
"""Names at the top of the host (bin, lib64, ...), with their links' targets; None for a folder."""
INSIDE_ID = 1000
SHOWN_OF_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
ZYGOTE_FOLDER_BYTES = 1 << 20
"""Of folders in the zygote that every spare covers with its own."""
WORKING_FOLDER = "/tmp"
NOTHING = Profile()
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


def command(bwrap: str, host_root: HostRoot, runtime: Runtime, profile: Profile, fds: "Descriptors") -> list[Part]:
    """Of a bubblewrap for one call."""
    parts = _begin(bwrap, runtime)
    parts += ["--disable-userns", *_root(host_root, profile.limits.disk_bytes)]
    parts += [*_granted(profile), *_interpreter(runtime)]
    # /proc, because /proc/1/mem is bubblewrap.
    parts += ["--remount-ro", "/proc", *_sealed()]
    parts += ["--seccomp", str(fds.seccomp), "--json-status-fd", str(fds.status), "--"]
    outlet = [] if fds.outlet < 0 else [str(fds.outlet), str(PORT)]
    return [*parts, os.path.realpath(runtime.python), "-I", "-S", "-B", runtime.runner, str(fds.reply), *outlet]


def zygote_command(
    bwrap: str, host_root: HostRoot, runtime: Runtime, control: int, profile: Profile = NOTHING
) -> list[Part]:
    """Of a bubblewrap that stays, and shows what this profile grants of the host's files, as `command` does. What it
    leaves open (/proc, further namespaces), `zygote_inside.py` needs and closes in each spare."""
    parts = [*_begin(bwrap, runtime), *_root(host_root, ZYGOTE_FOLDER_BYTES), *_granted(profile)]
    parts += [*_interpreter(runtime), *_sealed(), "--"]
    return [*parts, os.path.realpath(runtime.python), "-I", "-S", "-B", runtime.zygote, str(control)]


def _begin(bwrap: str, runtime: Runtime) -> list[Part]:
    parts: list[Part] = [bwrap]
    for namespace in ("user", "ipc", "pid", "net", "uts", "cgroup"):
        parts.append(f"--unshare-{namespace}")
    parts += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    parts += ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--hostname", "sandbox", "--clearenv"]
    for name, value in environment(runtime).items():
        parts += ["--setenv", name, value]
    return parts


def _root(host_root: HostRoot, disk_bytes: int) -> list[Part]:
    """What every sandbox shows of the machine, and private folders."""
    parts: list[Part] = ["--ro-bind", "/usr", "/usr"]
    for name, link in host_root:
        parts += ["--ro-bind", f"/{name}", f"/{name}"] if link is None else ["--symlink", link, f"/{name}"]
    # Where the loader finds libraries, and where names like /usr/bin/awk lead to. Nothing else of /etc.
    for path in SHOWN_OF_ETC:
        parts += ["--ro-bind-try", path, path]
    disk = str(disk_bytes)
    parts += ["--proc", "/proc", "--dev", "/dev", "--size", disk, "--tmpfs", "/dev/shm"]
    return [*parts, "--size", disk, "--tmpfs", WORKING_FOLDER]


def grants_of(profile: Profile) -> list[tuple[str, Literal["read", "write"]]]:
    """Paths, and what each is granted for; parents first, for what is mounted later covers what was there."""
    grants: dict[str, Literal["read", "write"]] = dict.fromkeys(profile.read, "read")
    return sorted((grants | dict.fromkeys(profile.write, "write")).items())


def _granted(profile: Profile) -> list[Part]:
    how_of = {"read": "--ro-bind", "write": "--bind"}
    return [part for path, how in grants_of(profile) for part in (how_of[how], Source(path, how), path)]


def _interpreter(runtime: Runtime) -> list[Part]:
    return [part for real, place in runtime.folders for part in ("--ro-bind", Source(real, "show"), place)]


def _sealed() -> list[Part]:
    """The root, because new names in it would be outside every limit."""
    return ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKING_FOLDER]


@dataclass(frozen=True)
class Descriptors:
    """The open files that bubblewrap and the runner inherit, besides 0, 1 and 2."""

    seccomp: int
    status: int
    reply: int
    outlet: int = -1
    """Where the runner hands its listening socket out, for a call that has network."""


def environment(runtime: Runtime) -> dict[str, str]:
    """All that a tool finds in its environment, besides its effect key."""
    return {
        "PATH": f"{runtime.first_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": WORKING_FOLDER,
        "TMPDIR": WORKING_FOLDER,
        "USER": "tool",
        "LOGNAME": "tool",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",  # what a program has printed is known, also when a limit ends it
    }


def host_root() -> HostRoot:
    """The host's /bin, /lib and so on: links into /usr nowadays, folders on older machines."""
    names = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
    present = [name for name in names if os.path.exists(f"/{name}")]
    return [(name, os.readlink(f"/{name}") if os.path.islink(f"/{name}") else None) for name in present]
