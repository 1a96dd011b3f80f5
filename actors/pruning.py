"""Deletes the checkpoints that a graph does not want to keep (`Graph(keep=...)`): beside the run, never in a commit.

What may go is decided by `policies.retention`. Another owner may move the thread on meanwhile: what it makes hangs on
what is kept here, so no chain is cut.
"""

import contextlib
from collections.abc import Sequence

from understudy.actors.errors import StoreUnavailable
from understudy.actors.plan import Plan
from understudy.actors.records import RunRecord
from understudy.actors.store import Store
from understudy.policies.retention import All, Row, prunable

PRUNE_EVERY = 200
"""Checkpoints of one residence between two looks."""
ROWS_MAX = 1_000_000
RUNS_MAX = 100_000


async def prune(store: Store, plan: Plan, thread_id: str, now: float) -> int:
    """Delete what may go of a thread; how many checkpoints that were. A store that is away is asked another time."""
    if isinstance(plan.keep, All):
        return 0
    with contextlib.suppress(StoreUnavailable):
        # The runs first: where one of them stands by the time the rows are read hangs on where it stood.
        roots = roots_of(await store.runs(limit=RUNS_MAX, thread_id=thread_id))
        history = await store.history(thread_id, limit=ROWS_MAX)
        rows = [Row(row.checkpoint_id, row.stands_on, row.at) for row in reversed(history)]
        gone = prunable(rows, roots, plan.keep, now)
        return await store.prune(thread_id, gone) if gone else 0
    return 0


def roots_of(runs: Sequence[RunRecord]) -> set[str]:
    """Where runs of a thread stand, may go back to, or would begin."""
    begun = [run for run in runs if run.head]
    ended = [run for run in begun if run.final]
    last = max((run.updated_at for run in ended), default=0.0)
    roots = {run.head for run in ended if run.updated_at == last}  # the thread's head
    roots |= {run.base for run in ended if run.updated_at == last and run.rollback}
    for run in begun:
        if run.status not in ("succeeded", "cancelled"):  # one that failed may be retried
            roots |= {run.head, run.base}
    return roots
