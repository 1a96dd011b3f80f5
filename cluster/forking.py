"""Time travel: a new run from a checkpoint of another one, which knows what that one did to the world beyond it."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.actors.checkpoint import Checkpoint, restore, seed
from understudy.actors.errors import CallerError
from understudy.actors.forks import MODES, Beyond, Mode, beyond_point, carrying, fork_of
from understudy.actors.ledger import calls_of
from understudy.actors.plan import Plan
from understudy.actors.records import NewRun, RunRecord, run_id_on
from understudy.actors.start import updated
from understudy.actors.store import Store
from understudy.actors.take_up import take_up


@dataclass(frozen=True)
class ForkPoint:
    """A checkpoint of a run, and what lies beyond it."""

    checkpoint: Checkpoint
    effects: tuple[Beyond, ...]
    """In the order of their steps."""


async def fork_point(store: Store, record: RunRecord, checkpoint_id: str) -> ForkPoint:
    """What a fork of a run at a checkpoint of its thread would find done already. Raises NotFound.

    The effects are those of the run that made the checkpoint: that is the one which the fork does again. What it has
    not come to itself, as it is a fork too, it hands on.
    """
    checkpoint = restore(await store.chain(record.thread_id, checkpoint_id))
    origin = record if checkpoint.run_id == record.run_id else await store.run(checkpoint.run_id)
    receipts = await store.receipts(origin.run_id)
    calls = await calls_of(store, origin.run_id)
    return ForkPoint(checkpoint, tuple(beyond_point(receipts, calls, fork_of(origin.input), checkpoint.step)))


def new_fork(
    record: RunRecord, point: ForkPoint, plan: Plan | None, update: Mapping[str, Any] | None, effects: Mode
) -> NewRun:
    """The run to be created. `plan` is needed for an update. Raises InvalidWrite, CallerError."""
    if effects not in MODES:
        raise CallerError(f"effects={effects!r} is none of {', '.join(MODES)}")
    checkpoint = point.checkpoint
    if update:
        assert plan is not None
        checkpoint, _ = take_up(plan, record, checkpoint, {})  # the update is one of this version's state
        checkpoint = replace(checkpoint, values=updated(plan, checkpoint.values, update))
    thread_id = f"fork-{uuid.uuid4().hex[:20]}"
    run_id = run_id_on(thread_id, uuid.uuid4().hex[:16])
    return NewRun(
        run_id=run_id,
        thread_id=thread_id,
        graph=record.graph,
        version=record.version,
        code=record.code,
        input=carrying(record.input, effects, point.effects),
        digest=record.digest,
        policy=record.policy,
        labels={**record.labels, "forked_from": f"{record.run_id}@{checkpoint.checkpoint_id}"},
        seed=seed(checkpoint.values, checkpoint, run_id),
        blobs=record.blobs,
    )
