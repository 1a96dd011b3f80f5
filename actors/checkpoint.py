"""A checkpoint is all channels at the end of a superstep, stored as what changed, with a snapshot now and then.

Law 8, with numbers. Let N be the bytes that deltas would take: what was written, and about 200 bytes a superstep.

- Every 32nd row is a segment, which says all changes since the segment before it (see chain.py), or, where that would
  be longer than the state, a snapshot in its place. Either is at most as long as the 32 deltas: N for all of them.
- A snapshot is stored when the rows to load have become more than twice as long as the state (and are 8 at least). It
  is at most half of the snapshot before it and of the rows between them: N for all of them. A list that only grows
  needs none.
- One of S bytes is stored when there are 1,000 rows to load and S / 500, whichever is more. Nearly all of those are
  segments, and 32 deltas have 6,400 bytes at least: N / 10 for all of them.

Together: bytes <= 2 N where the state is made of what is written, and never more than 3.1 N and the first snapshot.
Loading step n reads n / 32 rows and 31 more at most, and never more than twice the state and 31 deltas.

Where a graph keeps only some of its checkpoints, a snapshot is stored as well once the deltas weigh as much as the last
one: snapshots then double, 2 N more are written, and what is kept is twice the state and what the graph asks for.

A delta holds, for each changed channel, its new value, or, of one that grows (see values.py), only what was written.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from understudy.actors.chain import SEGMENT_ROWS, Chain, Changes, merged
from understudy.actors.quick import quick
from understudy.actors.records import CheckpointRow, NewCheckpoint
from understudy.actors.values import Change, Op, Values, compact

SNAPSHOT_ROWS_MAX = 1000
SNAPSHOT_ROWS_MIN = 8
OPS: tuple[Op, ...] = get_args(Op)
BODY_BYTES = 200
"""What a body has beside the channels, about."""
ROW_BYTES = 500
"""How many bytes of a snapshot take as long to load as one more row."""


@dataclass(frozen=True)
class TaskSpec:
    """A task of the next superstep: a node, and what a Send gives it in the place of the state."""

    node: str
    arg: str | None = None


@quick
@dataclass(frozen=True)
class Checkpoint:
    """All that a run stands on between two supersteps."""

    checkpoint_id: str = ""
    run_id: str = ""
    step: int = 0
    base_step: int = 0
    """The step of the thread at which the present run began; its supersteps are step - base_step."""
    values: Values = field(default_factory=Values)
    """JSON text of each channel that has a value."""
    frontier: tuple[TaskSpec, ...] = ()
    """What comes next; empty once the run is done."""
    arrived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each join under way: which of its sources have finished."""
    fingerprint: str = ""
    version: str = ""
    """Of the graph that wrote it."""
    migrated: bool = False
    """The channels were migrated since it was stored: what follows is no difference to it, but a snapshot."""
    unsaved: Mapping[str, Change] = field(default_factory=dict)
    """What `values` has beyond the stored checkpoint: the input of a run that has finished no superstep yet."""
    chain: Chain = field(default_factory=Chain)
    """How it is stored."""


def following(
    before: Checkpoint,
    run_id: str,
    values: Values,
    changes: Mapping[str, Change],
    frontier: tuple[TaskSpec, ...],
    arrived: Mapping[str, tuple[str, ...]],
    fingerprint: str,
    version: str = "",
    *,
    pruned: bool = False,
) -> tuple[Checkpoint, NewCheckpoint]:
    """The checkpoint after `before`, and the row that stores it.

    `pruned`: older ones are deleted, so that a snapshot now and then makes the chain before it needless.
    Its id follows from parent, run and step alone, so that a step that is done again makes the same checkpoint.
    """
    step = before.step + 1
    checkpoint_id = f"{step:06d}-{_digest(before.checkpoint_id, run_id, str(step))}"
    rest = _Rest(frontier, arrived, before.base_step, fingerprint, version)
    body, chain, since = _stored(before, checkpoint_id, values, changes, rest, pruned)
    after = Checkpoint(
        checkpoint_id=checkpoint_id,
        run_id=run_id,
        step=step,
        base_step=before.base_step,
        values=values,
        frontier=frontier,
        arrived=arrived,
        fingerprint=fingerprint,
        version=version,
        chain=chain,
    )
    return after, NewCheckpoint(checkpoint_id, before.checkpoint_id, step, since is None, body, since=since or "")


def _stored(
    before: Checkpoint, checkpoint_id: str, values: Values, changes: Changes, rest: "_Rest", pruned: bool
) -> tuple[str, Chain, str | None]:
    """The body of the next row, the chain with it, and what it is a difference to: empty for the checkpoint before it,
    an id for a segment, None for a snapshot."""
    chain, live = before.chain, values.size
    body = _body(changes, rest)
    rows, size = chain.rows + 1, chain.bytes + len(body)
    outweighed = chain.snapshot_bytes + size > 2 * live + BODY_BYTES or (pruned and size >= chain.snapshot_bytes)
    snapshot = not before.checkpoint_id or before.migrated or (outweighed and rows >= SNAPSHOT_ROWS_MIN)
    if not snapshot and rows < max(SNAPSHOT_ROWS_MAX, live // ROW_BYTES):
        if len(chain.tail) + 1 < SEGMENT_ROWS:
            return body, chain.with_delta(changes, len(body)), ""
        segment = _body(merged([*chain.tail, changes]), rest)
        if len(segment) <= live + BODY_BYTES:
            return segment, chain.with_segment(checkpoint_id, len(segment)), chain.base
    body = _body({name: Change(text) for name, text in values.items()}, rest)
    return body, chain.with_snapshot(checkpoint_id, len(body)), None


def seed(values: Mapping[str, str], origin: Checkpoint, run_id: str) -> NewCheckpoint:
    """The first checkpoint of a fork's own thread: the origin's frontier over the given channels."""
    checkpoint_id = f"{origin.step:06d}-{_digest('fork', origin.checkpoint_id, run_id)}"
    whole = {name: Change(text) for name, text in values.items()}
    rest = _Rest(origin.frontier, origin.arrived, origin.step, origin.fingerprint, origin.version)
    body = _body(whole, rest)
    return NewCheckpoint(checkpoint_id, "", origin.step, True, body)


@quick
@dataclass(frozen=True)
class _Rest:
    """What a body holds beside the channels."""

    frontier: tuple[TaskSpec, ...]
    arrived: Mapping[str, tuple[str, ...]]
    base_step: int
    fingerprint: str
    version: str


def _body(changes: Changes, rest: _Rest) -> str:
    """JSON by hand around the channels' own text, so that no value is read and written again."""
    ops: dict[str, list[str]] = {"set": []}
    for name, change in changes.items():
        ops.setdefault(change.op, []).append(f"{_quoted(name)}:{change.text}")
    written = ",".join(f'"{op}":{{{",".join(items)}}}' for op, items in ops.items())
    following = ",".join(
        f"[{_quoted(spec.node)}]" if spec.arg is None else f"[{_quoted(spec.node)},{spec.arg}]"
        for spec in rest.frontier
    )
    joins = json.dumps(rest.arrived) if rest.arrived else "{}"
    return (
        f'{{{written},"next":[{following}],"arrived":{joins},"base":{rest.base_step},'
        f'"schema":"{rest.fingerprint}","version":{_quoted(rest.version)}}}'
    )


_quoted = lru_cache(maxsize=4096)(json.dumps)
"""A name as JSON. Names of channels and nodes come again and again."""


def restore(chain: Sequence[CheckpointRow]) -> Checkpoint:
    """The checkpoint at the end of a chain: a snapshot, then segments and deltas, oldest first. Empty for none."""
    if not chain:
        return Checkpoint()
    values, stored, last = Values(), Chain(), chain[-1]
    for row in chain:
        changes = _changes(row.body)
        if row.snapshot:
            values = Values()
            stored = stored.with_snapshot(row.checkpoint_id, len(row.body))
        elif row.since:
            stored = stored.with_segment(row.checkpoint_id, len(row.body))
        else:
            stored = stored.with_delta(changes, len(row.body))
        values.put(changes)
    body: dict[str, Any] = json.loads(last.body)
    return Checkpoint(
        checkpoint_id=last.checkpoint_id,
        run_id=last.run_id,
        step=last.step,
        base_step=body["base"],
        values=values,
        frontier=tuple(TaskSpec(s[0], compact(s[1]) if len(s) > 1 else None) for s in body["next"]),
        arrived={name: tuple(sources) for name, sources in body["arrived"].items()},
        fingerprint=body["schema"],
        version=body["version"],
        chain=stored,
    )


def _changes(body: str) -> dict[str, Change]:
    """What a body says of the channels, letter for letter as it was written, without making values of it and text of
    those again: half of the time of loading went there."""
    changes: dict[str, Change] = {}
    at = 1
    while True:
        op, at = _scan(body, at)
        if op not in OPS:
            return changes
        at += 2  # :{
        while body[at] != "}":
            at += body[at] == ","
            name, at = _scan(body, at)
            end = _scan(body, at + 1)[1]
            changes[name] = Change(body[at + 1 : end], op)
            at = end
        at += 2  # },


_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
"""The JSON value that begins at an index, and where it ends."""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
