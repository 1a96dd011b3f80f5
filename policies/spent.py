"""Grants that are good no more before their time: used by another order, or revoked.

Kept by whoever checks grants, in memory: a grant ends by itself after minutes, and what it was used for is on record
under its effect key, so one that starts anew has forgotten nothing that still matters.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from understudy.policies.grant import Grant, GrantRefused

REVOKED_MAX = 10_000
"""Revocations that are kept at once; each goes when every grant that it is about has ended."""


class Granted(Protocol):
    """What tells grants apart."""

    @property
    def run_id(self) -> str: ...
    @property
    def tool(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def issued_at(self) -> float: ...


@dataclass(frozen=True)
class Revocation:
    """Which grants are good no more: all that fit what is given. With nothing given, all that were issued before."""

    issued_until: float
    """Seconds since the epoch: grants that are given later are not meant."""
    run_id: str = ""
    tool: str = ""
    rule: str = ""
    grant_id: str = ""
    key: str = ""
    """The effect key of one call."""

    def covers(self, grant: Granted) -> bool:
        asked = (self.run_id, self.tool, self.rule, self.grant_id, self.key)
        found = (grant.run_id, grant.tool, grant.rule, grant.id, grant.key)
        fits = all(mine in ("", theirs) for mine, theirs in zip(asked, found, strict=True))
        return fits and grant.issued_at <= self.issued_until


class Spent:
    """What is known of grants beyond what they say themselves. `ttl_s`: the longest that one lasts, in seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._used: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """By grant id: the order that used it, and when; oldest first."""
        self._revoked: tuple[Revocation, ...] = ()

    def use(self, grant: Grant, order: str, now: float) -> None:
        """Use a grant up. Raises GrantRefused if it was revoked, or used by another order.

        Args:
            order: names the order; the same one again (its reply was lost) is not another use.
            now: seconds since the epoch.
        """
        if any(revocation.covers(grant) for revocation in self._revoked):
            raise GrantRefused("revoked", "it was taken back; ask for a new decision")
        user, _ = self._used.setdefault(grant.id, (order, now))
        if user != order:
            raise GrantRefused("replayed", "it was used for another order already; ask for a new decision")
        self._forget(now)

    def revoke(self, revocation: Revocation, now: float) -> None:
        """From now on, none of these grants is good. Raises ValueError: there are too many revocations already."""
        self._forget(now)
        if len(self._revoked) >= REVOKED_MAX:
            raise ValueError(
                f"there are {len(self._revoked)} revocations already, the most that are kept; revoke everything with "
                f"Revocation(issued_until={now!r})"
            )
        self._revoked = (*self._revoked, revocation)

    def __len__(self) -> int:
        """How much is kept (law 8)."""
        return len(self._used) + len(self._revoked)

    def _forget(self, now: float) -> None:
        """What is about grants that have all ended."""
        while self._used and next(iter(self._used.values()))[1] + self._ttl_s <= now:
            self._used.popitem(last=False)
        if self._revoked and self._revoked[0].issued_until + self._ttl_s <= now:
            self._revoked = tuple(each for each in self._revoked if each.issued_until + self._ttl_s > now)
