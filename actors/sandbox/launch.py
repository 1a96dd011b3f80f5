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


def find_bubblewrap() -> str:
    """Raises IsolationUnavailable."""
    found = shutil.which("bwrap")
    if found is None:
        raise IsolationUnavailable("bubblewrap (bwrap) is not installed on this machine", INSTALL)
    return found


def line(runtime: Runtime, parts: Sequence[Part]) -> list[str]:
    """The command line that starts `parts` without root."""
    if os.geteuid() != 0:
        return [part.path if isinstance(part, Source) else part for part in parts]
    sources = [part for part in parts if isinstance(part, Source)]
    wanted = [f"{source.how}:{source.path}" for source in sources]
    numbers = iter(range(len(sources)))
    staged = [f"stage:{next(numbers)}" if isinstance(part, Source) else part for part in parts]
    return [runtime.python, "-I", "-S", runtime.launcher, str(HOST_ID), *wanted, "--", *staged]


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
