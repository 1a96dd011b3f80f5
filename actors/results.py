"""What a run gives: the state at its end. A large one is not stored twice; it is in the last checkpoint.

Law 8: on a thread of many runs, each with the state of all before it, a copy of the state for each run would grow with
the square of the history. So a result of more than RESULT_BYTES_MAX is read from the checkpoint that the run ended
with, where that is kept and is the same text: not for a child, whose end tells its parent the result, nor for a graph
that keeps only some of its checkpoints.
"""

from dataclasses import replace

from understudy.actors.checkpoint import restore
from understudy.actors.files import without_files
from understudy.actors.plan import Plan
from understudy.actors.records import RunRecord
from understudy.actors.step import result_text, spelled
from understudy.actors.store import Store
from understudy.actors.values import Values
from understudy.policies.retention import All

RESULT_BYTES_MAX = 8192
"""Characters of a result that is stored with its run."""


def stored_result(plan: Plan, values: Values, run: RunRecord, checkpoint: bool) -> str:
    """What the run's last commit says of the result; empty where the checkpoint in that commit tells it, if any."""
    text = result_text(plan, values)
    if len(text) <= RESULT_BYTES_MAX or run.parent or not checkpoint or not isinstance(plan.keep, All):
        return text
    return "" if text == _told_by(values) else text


async def with_result(store: Store, record: RunRecord) -> RunRecord:
    """The record of a run, with its result if it has one. Raises NotFound: its thread was deleted."""
    if record.result or record.status != "succeeded" or not record.head:
        return record
    values = restore(await store.chain(record.thread_id, record.head)).values
    return replace(record, result=_told_by(values))


def _told_by(values: Values) -> str:
    """The result, if the channels are shown as they are stored."""
    return spelled(without_files(values))
