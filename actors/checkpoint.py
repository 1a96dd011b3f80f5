"""A checkpoint is all channels at the end of a superstep, stored as what changed, with a snapshot now and then.

Law 8, with numbers. Let N be the bytes of all deltas: what was written, and about 150 bytes for each superstep. A
snapshot of S bytes is stored once the deltas since the last one weigh as much as it does (and are 8 at least), or are
1,000 and S / 1,000 in number, whichever is more. The first makes snapshots of a growing state double, so that all of
them come to 2 N at most (the argument of a growing array); the second bounds the loading of a large state that changes
little: a row costs about as much to read as 1,000 bytes, so a chain takes twice the time of its snapshot at most, or
the few milliseconds of 1,000 rows. Its S are paid for by S / 1,000 deltas of 150 bytes at least, which is 7 N.
Together: bytes <= 3 N where the state grows with what is written, and never more than 9 N.

A delta holds, for each changed channel, its new value, or, of one that grows (see values.py), only what was written.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from understudy.actors.records import CheckpointRow, NewCheckpoint
from understudy.actors.values import Change, Op, Values, compact

SNAPSHOT_ROWS_MAX = 1000
SNAPSHOT_ROWS_MIN = 8
OPS: tuple[Op, ...] = get_args(Op)
NOTHING: Mapping[str, Any] = {}
ROW_BYTES = 1000
"""How many bytes of a snapshot take as long to load as one more row."""


@dataclass(frozen=True)
class TaskSpec:
    """A task of the next superstep: a node, and what a Send gives it in the place of the state."""

    node: str
    arg: str | None = None


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
    snapshot_bytes: int = 0
    delta_bytes: int = 0
    delta_rows: int = 0


def following(
    before: Checkpoint,
    run_id: str,
    values: Values,
    changes: Mapping[str, Change],
    frontier: tuple[TaskSpec, ...],
    arrived: Mapping[str, tuple[str, ...]],
    fingerprint: str,
    version: str = "",
) -> tuple[Checkpoint, NewCheckpoint]:
    """The checkpoint after `before`, and the row that stores it.

    Its id follows from parent, run and step alone, so that a step that is done again makes the same checkpoint.
    """
    step = before.step + 1
    checkpoint_id = f"{step:06d}-{_digest(before.checkpoint_id, run_id, str(step))}"
    rest = _Rest(frontier, arrived, before.base_step, fingerprint, version)
    body = _body(changes, rest)
    rows, size = before.delta_rows + 1, before.delta_bytes + len(body)
    outweighed = size >= before.snapshot_bytes and rows >= SNAPSHOT_ROWS_MIN
    many = rows >= max(SNAPSHOT_ROWS_MAX, before.snapshot_bytes // ROW_BYTES)
    snapshot = not before.checkpoint_id or before.migrated or outweighed or many
    if snapshot:
        body = _body({name: Change(text) for name, text in values.items()}, rest)
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
        snapshot_bytes=len(body) if snapshot else before.snapshot_bytes,
        delta_bytes=0 if snapshot else size,
        delta_rows=0 if snapshot else rows,
    )
    return after, NewCheckpoint(checkpoint_id, before.checkpoint_id, step, snapshot, body)


def seed(values: Mapping[str, str], origin: Checkpoint, run_id: str) -> NewCheckpoint:
    """The first checkpoint of a fork's own thread: the origin's frontier over the given channels."""
    checkpoint_id = f"{origin.step:06d}-{_digest('fork', origin.checkpoint_id, run_id)}"
    whole = {name: Change(text) for name, text in values.items()}
    rest = _Rest(origin.frontier, origin.arrived, origin.step, origin.fingerprint, origin.version)
    body = _body(whole, rest)
    return NewCheckpoint(checkpoint_id, "", origin.step, True, body)


@dataclass(frozen=True)
class _Rest:
    """What a body holds beside the channels."""

    frontier: tuple[TaskSpec, ...]
    arrived: Mapping[str, tuple[str, ...]]
    base_step: int
    fingerprint: str
    version: str


def _body(changes: Mapping[str, Change], rest: _Rest) -> str:
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
    """The checkpoint at the end of a chain (a snapshot, then its deltas, oldest first). Empty for an empty chain."""
    current = Checkpoint()
    for row in chain:
        body: dict[str, Any] = json.loads(row.body)
        changes = {name: Change(compact(value), op) for op in OPS for name, value in body.get(op, NOTHING).items()}
        size = len(row.body)
        current = Checkpoint(
            checkpoint_id=row.checkpoint_id,
            run_id=row.run_id,
            step=row.step,
            base_step=body["base"],
            values=(Values() if row.snapshot else current.values).after(changes),
            frontier=tuple(TaskSpec(s[0], compact(s[1]) if len(s) > 1 else None) for s in body["next"]),
            arrived={name: tuple(sources) for name, sources in body["arrived"].items()},
            fingerprint=body["schema"],
            version=body["version"],
            snapshot_bytes=size if row.snapshot else current.snapshot_bytes,
            delta_bytes=0 if row.snapshot else current.delta_bytes + size,
            delta_rows=0 if row.snapshot else current.delta_rows + 1,
        )
    return current


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
