"""What is kept of each attempt to connect: where to, whether it was let through and why, how much and how long.

A tool can make any number of attempts; so the first ones are kept whole, and all that follow are counted (law 8).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

KEPT_MAX: Final = 50
"""Connections of a call that are told one by one."""


@dataclass(frozen=True)
class Connection:
    """One attempt, once it is over."""

    key: str
    """Effect key of the call; of a sandbox that lives longer, its name."""
    run_id: str
    at: float
    """Seconds since the epoch when it began."""
    method: str
    """Empty where no request could be read."""
    host: str
    port: int
    address: str
    """What the name was resolved to, and connected to; empty where it did not come to that."""
    decision: Literal["allow", "deny"]
    reason: str
    """The entry of the grant that allows it, or what is wrong; and what cut it short."""
    sent_bytes: int
    received_bytes: int
    duration_s: float
    secrets: tuple[str, ...] = ()
    """Names of those that were put into the request."""

    def told(self) -> dict[str, Any]:
        """JSON values for the event log."""
        data = asdict(self)
        del data["run_id"], data["at"]
        return {**data, "duration_s": round(self.duration_s, 6), "secrets": list(self.secrets)}


def ignore(connection: Connection) -> None:
    """For who does not want to be told."""


@dataclass
class ConnectionLog:
    """Of one call. `seen` is told of each connection when it is over: the place where an audit trail hooks in."""

    seen: Callable[[Connection], None] = ignore
    kept: list[Connection] = field(default_factory=list)
    more: int = 0
    """Connections that came after those that are kept."""
    more_denied: int = 0
    more_sent_bytes: int = 0
    more_received_bytes: int = 0

    def told(self) -> list[dict[str, Any]]:
        """JSON values for the event log: each connection that is kept, and one more for all others together."""
        told = [connection.told() for connection in self.kept]
        if self.more:
            others = {"more": self.more, "denied": self.more_denied}
            told.append({**others, "sent_bytes": self.more_sent_bytes, "received_bytes": self.more_received_bytes})
        return told

    def add(self, connection: Connection) -> None:
        self.seen(connection)
        if len(self.kept) < KEPT_MAX:
            self.kept.append(connection)
            return
        self.more += 1
        self.more_denied += connection.decision == "deny"
        self.more_sent_bytes += connection.sent_bytes
        self.more_received_bytes += connection.received_bytes
