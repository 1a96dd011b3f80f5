"""Whether a call may connect to a host and a port: what its grant lists, and nothing else. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.policies.hosts import HostPattern, Target, read_host_pattern


@dataclass(frozen=True)
class Allowed:
    """By this entry of the grant."""

    by: str


@dataclass(frozen=True)
class Denied:
    """Says what was wanted, and what is granted."""

    reason: str


Decision = Allowed | Denied
SHOWN_MAX = 10


def decide(target: Target, granted: Sequence[HostPattern]) -> Decision:
    """`target` is where a request leads, in its one spelling; its port is known."""
    for pattern in granted:
        if pattern.fits(target):
            return Allowed(str(pattern))
    shown = ", ".join(map(str, granted[:SHOWN_MAX])) + (", ..." if len(granted) > SHOWN_MAX else "")
    place = target.place
    return Denied(
        f"{place} is not granted; the grant lists {shown or 'nothing'}. If this call may reach it, let the policy's "
        f'rule for it say network: ["{place}"]'
    )


def patterns(network: Sequence[str]) -> tuple[HostPattern, ...]:
    """Of a profile. Raises NotCanonical, which a policy's reader has seen to before."""
    return tuple(read_host_pattern(text) for text in network)
