"""After an outage nobody is late: whatever kept the supervisor from its store kept living owners from renewing, too.

A lease that has passed counts as a death. Right after an outage all of them have passed, and taking the runs away would
count as many crashes as there are runs, for nothing. So whoever saw that the store was away for long gives all owners
the time of one lease to renew, from its first answer on. The same holds for whoever was not there itself, as on a
machine that slept or stood still, and for a clock that was set: leases are written in its time. Deaths that are known
otherwise (an actor's pending call) are not waited for.
"""

from dataclasses import dataclass

SHARE = 0.25
"""An outage of this share of a lease is one. Owners renew four times within a lease, and whoever looks may have noticed
the outage half a second late: after a shorter one, they still have the time of half a lease to come back."""
ABSENCE_SHARE = 0.5
ABSENCE_S_MIN = 2.0
"""A shorter absence is nothing unusual on a busy machine: one that is busy all the time would have grace for ever."""


@dataclass
class Grace:
    """`now` is any clock that only grows, in seconds."""

    lease_s: float
    until: float = 0.0
    away_since: float | None = None
    """Since when the store was asked in vain. One that is full answers at once, each time, that it takes nothing."""

    _looked_at: float | None = None

    def looks(self, wall: float, now: float) -> None:
        """To be called before each look at the leases, `wall` being the time in which they are written."""
        if self._looked_at is not None and wall - self._looked_at >= max(ABSENCE_S_MIN, ABSENCE_SHARE * self.lease_s):
            self.until = now + self.lease_s

    def looked(self, wall: float) -> None:
        """To be called after each look. The next one follows within a second."""
        self._looked_at = wall

    def asked(self, began: float, ended: float, *, answered: bool = True) -> None:
        """The store was asked to keep something, from `began` until it did (`answered`) or gave up."""
        since = began if self.away_since is None else self.away_since
        if ended - since >= SHARE * self.lease_s:
            self.until = ended + self.lease_s
        self.away_since = None if answered else since

    def holds(self, now: float) -> bool:
        """Whether leases that have passed mean nothing yet."""
        return now < self.until
