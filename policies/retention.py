"""Which checkpoints of a thread may go: those that the graph does not want to keep, and that nothing else stands on.

Pure: rows and roots in, ids out; whoever calls it deletes them (`Store.prune`). Safe with deltas, forks and interrupts:
a checkpoint that is kept keeps its whole chain down to a snapshot, and where an unfinished run stands is always kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never


@dataclass(frozen=True)
class All:
    """Every checkpoint is kept, as long as the thread is."""


@dataclass(frozen=True)
class Last:
    """The newest checkpoints of a thread are kept: this many, and what they are stored as differences to."""

    checkpoints: int

    def __post_init__(self) -> None:
        if isinstance(self.checkpoints, bool) or not isinstance(self.checkpoints, int) or self.checkpoints < 1:
            raise ValueError(f"keep is Last({self.checkpoints!r}); give how many checkpoints, from 1 on")


@dataclass(frozen=True)
class Age:
    """Checkpoints are kept for a time, and the newest one in any case."""

    age: timedelta

    def __post_init__(self) -> None:
        if not isinstance(self.age, timedelta) or self.age <= timedelta():
            raise ValueError(f"keep is Age({self.age!r}); give a timedelta, e.g. Age(timedelta(days=3))")


Keep = All | Last | Age


@dataclass(frozen=True)
class Row:
    """What counts of a checkpoint."""

    checkpoint_id: str
    stands_on: str
    """Id of the checkpoint that it is stored as a difference to; empty for a snapshot."""
    at: float
    """Seconds since the epoch."""


def prunable(rows: Sequence[Row], roots: Collection[str], keep: Keep, now: float) -> list[str]:
    """Ids of the checkpoints that may go, oldest first.

    Args:
        rows: all checkpoints of a thread, in the order of storing.
        roots: ids that have to stay: the thread's head; heads and bases of its runs that may still go on.
    """
    if not rows:
        return []
    match keep:
        case All():
            return []
        case Last(count):
            wanted = {row.checkpoint_id for row in rows[-count:]}
        case Age(age):
            wanted = {row.checkpoint_id for row in rows if row.at >= now - age.total_seconds()}
            wanted.add(rows[-1].checkpoint_id)
        case _:
            assert_never(keep)
    kept = _with_chains(rows, wanted | set(roots))
    return [row.checkpoint_id for row in rows if row.checkpoint_id not in kept]


def _with_chains(rows: Sequence[Row], ids: Collection[str]) -> set[str]:
    """These and everything that it takes to restore them."""
    known = {row.checkpoint_id: row for row in rows}
    kept: set[str] = set()
    for checkpoint_id in ids:
        row = known.get(checkpoint_id)
        while row is not None and row.checkpoint_id not in kept:
            kept.add(row.checkpoint_id)
            row = known.get(row.stands_on)
    return kept
