"""After an outage of the store nobody is late: a living owner could not renew its leases there either.

A lease that has passed counts as a death. Right after an outage all of them have passed, and taking the runs away would
count as many crashes as there are runs, for nothing. So whoever saw that the store was away for long gives all owners
the time of one lease to renew, from its first answer on. Deaths that are known otherwise (an actor's pending call) are
not waited for.
"""

from dataclasses import dataclass

SHARE = 0.5
"""An outage of this share of a lease is one. Owners renew four times within a lease, so a shorter one costs none."""


@dataclass
class Grace:
    """`now` is any clock that only grows, in seconds."""

    lease_s: float
    until: float = 0.0
    away_since: float | None = None
    """Since when the store was asked in vain. One that is full answers at once, each time, that it takes nothing."""

    def asked(self, began: float, ended: float, *, answered: bool = True) -> None:
        """The store was asked to keep something, from `began` until it did (`answered`) or gave up."""
        since = began if self.away_since is None else self.away_since
        if ended - since >= SHARE * self.lease_s:
            self.until = ended + self.lease_s
        self.away_since = None if answered else since

    def holds(self, now: float) -> bool:
        """Whether leases that have passed mean nothing yet."""
        return now < self.until
