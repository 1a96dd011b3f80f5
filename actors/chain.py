"""What it takes to load a checkpoint: the rows that it is stored as differences to, and how that is kept short.

A thread of a thousand supersteps would be a thousand rows to read, each of which costs as much as 500 bytes to 1 KB of
a snapshot (4 us). So every SEGMENT_ROWS-th row is a segment: it says the difference not to the checkpoint before it,
but to the segment before it (or the snapshot), all changes since then as one. Loading passes by the rows in between.
(As a log-structured merge tree does; O'Neil and others, 1996.)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from understudy.actors.values import Change

SEGMENT_ROWS = 32
Changes = Mapping[str, Change]


class Chain(NamedTuple):
    """The rows from the newest snapshot to a checkpoint, as loading reads them. (A tuple: it is made at each step.)"""

    snapshot_bytes: int = 0
    bytes: int = 0
    """Of the rows after the snapshot."""
    rows: int = 0
    """After the snapshot."""
    base: str = ""
    """Id of the newest of them that is a segment or the snapshot."""
    base_bytes: int = 0
    """`bytes`, as far as the base."""
    base_rows: int = 0
    tail: tuple[Changes, ...] = ()
    """What changed since the base, a superstep each."""

    def with_snapshot(self, checkpoint_id: str, size: int) -> "Chain":
        return Chain(snapshot_bytes=size, base=checkpoint_id)

    def with_segment(self, checkpoint_id: str, size: int) -> "Chain":
        total, rows = self.base_bytes + size, self.base_rows + 1
        return Chain(self.snapshot_bytes, total, rows, checkpoint_id, total, rows)

    def with_delta(self, changes: Changes, size: int) -> "Chain":
        tail = (*self.tail, changes)
        return Chain(
            self.snapshot_bytes, self.bytes + size, self.rows + 1, self.base, self.base_bytes, self.base_rows, tail
        )


def merged(several: Sequence[Changes]) -> dict[str, Change]:
    """The changes of several supersteps as those of one. Pairs first, so that what is long is not copied each time."""
    if len(several) == 1:
        return dict(several[0])
    half = len(several) // 2
    first, second = merged(several[:half]), merged(several[half:])
    for name, change in second.items():
        first[name] = first[name].then(change) if name in first else change
    return first
