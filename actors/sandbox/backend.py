"""A backend makes one call of untrusted code behind walls, and says how it ended; it never makes it without them.

One tier, one file, this protocol. From the weakest to the strongest:

    landlock   no namespaces: Landlock, a system call filter, limits, a subreaper. Works in any pod; the process table,
               the network stack and the disk are the pod's, and kept away by rules rather than absent
    zygote     fresh namespaces for each call, from a Python that is warm: the default. Calls that see files of the
               host, or an environment, are made in tier cold until there is a zygote that shows these, see `rooms.py`
    cold       a bubblewrap and a Python of its own for each call: no memory layout is shared between calls
    gvisor     a kernel of its own, in user space: runsc, where it is installed

A backend that cannot isolate on this machine raises IsolationUnavailable; falling back to something weaker is nobody's
decision to make here (the silent fallback is what users of other sandboxes report as their bug).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.policies.profile import Profile, Tier

NOT_LOADED = "not loaded: "
"""In the details of a preflight, before the name of a module that was wanted, and the reason."""


class IsolationUnavailable(Exception):
    """This machine cannot isolate the call, so it was not made. Says why, and what to change on the machine."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)  # both, so that it survives pickling on its way through Ray
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}; remedy: {self.remedy}" if self.remedy else self.reason


class BadGrant(Exception):
    """A granted path cannot be handed in as it is; the call was not made. Says which, and what to grant instead."""


@dataclass(frozen=True)
class Preflight:
    """What a real call, made to find out, has shown about this machine."""

    available: bool
    reason: str = ""
    """Why not; empty when available."""
    remedy: str = ""
    """What to change; empty when available."""
    details: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """One way to isolate a call."""

    name: str
    tier: Tier

    def fits(self, profile: Profile) -> bool:
        """Whether this tier can make such a call at all. If not, a stronger one is looked for."""

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises."""

    async def close(self) -> None:
        """End what waits for calls, where something does. The worker's death does it, too."""
