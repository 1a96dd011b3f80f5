"""Calls of runs that are over, whose sandbox has died: nobody will attend them, and they would be told as started.

A run that goes on finds its calls itself (`calls.py`): started, and nobody at work, is unknown (law 4). Of one that is
cancelled, or failed, nobody looks again. So whoever starts in the place of a sandbox looks, once, at the runs that
ended lately.
"""

from collections.abc import Awaitable, Callable

from understudy.actors.events import counters_of
from understudy.actors.ledger import LOST
from understudy.actors.records import Event, Receipt, RunRecord, Status
from understudy.actors.store import Store

OVER: tuple[Status, ...] = ("cancelled", "failed", "quarantined")
RUNS_MOST = 200
"""Of each status, the newest."""
LATELY_S = 3600.0
YOUNG_S = 5.0
"""What has begun so shortly before may be at work in a sandbox that nobody has heard of yet."""


async def mark_lost(store: Store, is_at_work: Callable[[Receipt], Awaitable[bool]], now: float) -> int:
    """Mark them as unknown; how many there were. Raises StoreUnavailable."""
    count = 0
    for status in OVER:
        for run in await store.runs(status, RUNS_MOST):
            if run.updated_at >= now - LATELY_S:
                count += await _mark_lost_of(store, run, is_at_work, now)
    return count


async def _mark_lost_of(
    store: Store, run: RunRecord, is_at_work: Callable[[Receipt], Awaitable[bool]], now: float
) -> int:
    count = 0
    for receipt in await store.receipts(run.run_id):
        begun = receipt.state == "started" and receipt.sandbox and receipt.at < now - YOUNG_S
        if begun and not await is_at_work(receipt):
            told = {"tool": receipt.tool, "key": receipt.key, "outcome": "unknown", "seconds": 0.0, "error": LOST}
            events = [Event("tool_finished", now, told)]
            place = (receipt.run_id, receipt.key, receipt.checkpoint_id, receipt.token)
            await store.forget(*place, events, counters_of(run.graph, events))
            count += 1
    return count
