"""A checkpoint is all channels at the end of a superstep, stored as what changed, with a snapshot now and then.

Law 8: bytes in proportion to the new data. A delta holds, for each changed channel, its new value, or, where the
reducer is `append`, only the new items. A snapshot is written once the deltas since the last one outweigh it, so
that the snapshots of a growing state add up to about twice the state (the doubling argument of a growing array), and
at the latest after 1,000 deltas, so that loading is bounded (a thousand small rows are read in a few milliseconds).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from understudy.actors.channels import joined
from understudy.actors.records import CheckpointRow, NewCheckpoint

SNAPSHOT_ROWS_MAX = 1000
SNAPSHOT_ROWS_MIN = 8


@dataclass(frozen=True)
class TaskSpec:
    """A task of the next superstep: a node, and what a Send gives it in the place of the state."""

    node: str
    arg: str | None = None


@dataclass(frozen=True)
class Change:
    """How one channel changed: its JSON text, or the JSON text of the list of new items."""

    text: str
    appended: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """All that a run stands on between two supersteps."""

    checkpoint_id: str = ""
    run_id: str = ""
    step: int = 0
    base_step: int = 0
    """The step of the thread at which the present run began; its supersteps are step - base_step."""
    values: Mapping[str, str] = field(default_factory=dict)
    """JSON text of each channel that has a value."""
    frontier: tuple[TaskSpec, ...] = ()
    """What comes next; empty once the run is done."""
    arrived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each join under way: which of its sources have finished."""
    fingerprint: str = ""
    unsaved: Mapping[str, Change] = field(default_factory=dict)
    """What `values` has beyond the stored checkpoint: the input of a run that has finished no superstep yet."""
    snapshot_bytes: int = 0
    delta_bytes: int = 0
    delta_rows: int = 0


def apply_changes(values: Mapping[str, str], changes: Mapping[str, Change]) -> dict[str, str]:
    """The channels after the changes."""
    after = dict(values)
    for name, change in changes.items():
        after[name] = joined(after.get(name, "[]"), change.text) if change.appended else change.text
    return after


def following(
    before: Checkpoint,
    run_id: str,
    values: Mapping[str, str],
    changes: Mapping[str, Change],
    frontier: tuple[TaskSpec, ...],
    arrived: Mapping[str, tuple[str, ...]],
    fingerprint: str,
) -> tuple[Checkpoint, NewCheckpoint]:
    """The checkpoint after `before`, and the row that stores it.

    Its id follows from parent, run and step alone, so that a step that is done again makes the same checkpoint.
    """
    step = before.step + 1
    checkpoint_id = f"{step:06d}-{_digest(before.checkpoint_id, run_id, str(step))}"
    body = _body(changes, frontier, arrived, before.base_step, fingerprint)
    rows, size = before.delta_rows + 1, before.delta_bytes + len(body)
    outweighed = size >= before.snapshot_bytes and rows >= SNAPSHOT_ROWS_MIN
    snapshot = not before.checkpoint_id or outweighed or rows >= SNAPSHOT_ROWS_MAX
    if snapshot:
        whole = {name: Change(text) for name, text in values.items()}
        body = _body(whole, frontier, arrived, before.base_step, fingerprint)
    after = Checkpoint(
        checkpoint_id=checkpoint_id,
        run_id=run_id,
        step=step,
        base_step=before.base_step,
        values=values,
        frontier=frontier,
        arrived=arrived,
        fingerprint=fingerprint,
        snapshot_bytes=len(body) if snapshot else before.snapshot_bytes,
        delta_bytes=0 if snapshot else size,
        delta_rows=0 if snapshot else rows,
    )
    return after, NewCheckpoint(checkpoint_id, before.checkpoint_id, step, snapshot, body)


def seed(values: Mapping[str, str], origin: Checkpoint, run_id: str) -> NewCheckpoint:
    """The first checkpoint of a fork's own thread: the origin's frontier over the given channels."""
    checkpoint_id = f"{origin.step:06d}-{_digest('fork', origin.checkpoint_id, run_id)}"
    whole = {name: Change(text) for name, text in values.items()}
    body = _body(whole, origin.frontier, origin.arrived, origin.step, origin.fingerprint)
    return NewCheckpoint(checkpoint_id, "", origin.step, True, body)


def _body(
    changes: Mapping[str, Change],
    frontier: tuple[TaskSpec, ...],
    arrived: Mapping[str, tuple[str, ...]],
    base_step: int,
    fingerprint: str,
) -> str:
    """JSON by hand around the channels' own text, so that no value is read and written again."""
    set_ = ",".join(f"{_quoted(name)}:{change.text}" for name, change in changes.items() if not change.appended)
    app = ",".join(f"{_quoted(name)}:{change.text}" for name, change in changes.items() if change.appended)
    following = ",".join(
        f"[{_quoted(spec.node)}]" if spec.arg is None else f"[{_quoted(spec.node)},{spec.arg}]" for spec in frontier
    )
    joins = json.dumps(arrived) if arrived else "{}"
    return (
        f'{{"set":{{{set_}}},"app":{{{app}}},"next":[{following}],'
        f'"arrived":{joins},"base":{base_step},"schema":"{fingerprint}"}}'
    )


_quoted = lru_cache(maxsize=4096)(json.dumps)
"""A name as JSON. Names of channels and nodes come again and again."""


def restore(chain: Sequence[CheckpointRow]) -> Checkpoint:
    """The checkpoint at the end of a chain (a snapshot, then its deltas, oldest first). Empty for an empty chain."""
    current = Checkpoint()
    for row in chain:
        body: dict[str, Any] = json.loads(row.body)
        changes = {name: Change(_text(value)) for name, value in body["set"].items()}
        changes |= {name: Change(_text(value), True) for name, value in body["app"].items()}
        size = len(row.body)
        current = Checkpoint(
            checkpoint_id=row.checkpoint_id,
            run_id=row.run_id,
            step=row.step,
            base_step=body["base"],
            values=apply_changes({} if row.snapshot else current.values, changes),
            frontier=tuple(TaskSpec(s[0], _text(s[1]) if len(s) > 1 else None) for s in body["next"]),
            arrived={name: tuple(sources) for name, sources in body["arrived"].items()},
            fingerprint=body["schema"],
            snapshot_bytes=size if row.snapshot else current.snapshot_bytes,
            delta_bytes=0 if row.snapshot else current.delta_bytes + size,
            delta_rows=0 if row.snapshot else current.delta_rows + 1,
        )
    return current


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
