"""Which grants were taken back: a note that says what fits, made by people. Pure; see `actors/revocations.py`."""

from dataclasses import dataclass
from typing import Protocol


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
