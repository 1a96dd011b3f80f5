"""How the outermost process of a sandbox is started: through the launcher where the worker is root, else as it is."""

import os
import shutil
from collections.abc import Sequence

from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable
from understudy.actors.sandbox.diagnosis import INSTALL
from understudy.actors.sandbox.runtime import Runtime
from understudy.actors.sandbox.walls import Part, Source
from understudy.policies.profile import Profile

HOST_ID = 65530
"""The uid and gid on the host of sandboxes that root starts: nobody's. In Debian's reserved range, outside systemd's
dynamic users, and below 65536, so that containers with one range of ids have it."""


NOBODY_ELSE = (
    "run workers as a user other than root; or, in a container of a user's own, map it the usual 65536 ids "
    "(/etc/subuid and /etc/subgid)"
)


def host_id() -> int:
    """The uid of this worker's sandboxes. Raises IsolationUnavailable for a root who can be nobody else."""
    if os.geteuid() != 0:
        return os.geteuid()
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as rows:
            spans = [(int(first), int(count)) for first, _outside, count in map(str.split, rows)]
        if not any(first <= HOST_ID < first + count for first, count in spans):
            raise IsolationUnavailable(
                f"workers are root here, which starts no sandbox, and can be nobody else: {HOST_ID} is not in the "
                f"{name} of their user namespace",
                NOBODY_ELSE,
            )
    return HOST_ID


def find_bubblewrap() -> str:
    """Raises IsolationUnavailable."""
    found = shutil.which("bwrap")
    if found is None:
        raise IsolationUnavailable("bubblewrap (bwrap) is not installed on this machine", INSTALL)
    return found


def line(runtime: Runtime, parts: Sequence[Part]) -> list[str]:
    """The command line that starts `parts` without root."""
    uid = host_id()
    if os.geteuid() != 0:
        return [part.path if isinstance(part, Source) else part for part in parts]
    sources = [part for part in parts if isinstance(part, Source)]
    wanted = [f"{source.how}:{source.path}" for source in sources]
    numbers = iter(range(len(sources)))
    staged = [f"stage:{next(numbers)}" if isinstance(part, Source) else part for part in parts]
    return [runtime.python, "-I", "-S", runtime.launcher, str(uid), *wanted, "--", *staged]


def line_here(runtime: Runtime, profile: Profile, command: Sequence[str], programs: Sequence[str] = ()) -> list[str]:
    """The command line that starts `command` without root, where each path is at its own place: what every call is
    shown, what is granted, and the `programs` that it names."""
    uid = host_id()
    if os.geteuid() != 0:
        return list(command)
    places = dict.fromkeys([*(place for both in runtime.folders for place in both), *programs])
    wanted = [f"here:{place}" for place in places]
    wanted += [f"here-read:{path}" for path in profile.read] + [f"here-write:{path}" for path in profile.write]
    return [runtime.python, "-I", "-S", runtime.launcher, str(uid), *wanted, "--", *command]


def refuse_unreachable(profile: Profile) -> None:
    """Where no launcher looks for granted paths, because the worker is not root. Raises BadGrant."""
    if os.geteuid() == 0:
        return
    for path in (*profile.read, *profile.write):
        if not os.path.exists(path):
            raise BadGrant(f"the granted path {path!r} does not exist on this node, or cannot be reached")
        if os.path.realpath(path) != path:
            raise BadGrant(f"the granted path {path!r} goes through a symbolic link; grant {os.path.realpath(path)!r}")
        if not os.access(path, os.W_OK if path in profile.write else os.R_OK):
            raise BadGrant(f"the granted path {path!r} is closed to this process itself (uid {os.geteuid()})")
