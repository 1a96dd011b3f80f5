"""A call at work in a sandbox of another Ray cluster, which this one cannot ask: its receipt is waited for.

Two clusters may serve one store. When a run changes from one to the other, a tool of it may be at work over there. As
long as that cluster gives signs of life, its sandbox writes the receipt, at the latest when the call's wall limit ends
it (law 5). If the cluster is gone, so is the call, and its end is unknown (law 4).
"""

import asyncio
import json
import time

from understudy.actors.effects import read_outcome
from understudy.actors.outcome import Outcome
from understudy.actors.records import Receipt
from understudy.actors.store import Store

SILENT_AFTER_S = 10.0
"""A cluster whose supervisor gave no sign for this long is taken for gone; a supervisor is replaced faster."""
GRACE_S = 30.0
"""Over the call's wall limit: for the end of its processes, and for the receipt to be written."""
WALL_S = 60.0
"""Of a call whose start is not in the event log."""
POLL_S = 0.25


async def attend_elsewhere(store: Store, receipt: Receipt) -> Outcome | None:
    """The outcome of the call, once it is on record; None if nobody can be at work on it any more."""
    until = receipt.at + await _wall_s(store, receipt) + GRACE_S
    while True:
        alive = time.time() < until and await lives(store, receipt.sandbox, time.time())
        # Read after the look at its cluster: what was written before that one fell silent is not missed.
        found = await store.receipt(receipt.run_id, receipt.key, receipt.checkpoint_id)
        if found is None or found.token != receipt.token:
            return None
        if found.state == "done":
            return read_outcome(found.outcome)
        if not alive:
            return None
        await asyncio.sleep(POLL_S)


async def lives(store: Store, sandbox: str, now: float) -> bool:
    """Whether the cluster that this sandbox belongs to gave a sign of life lately. (That its supervisor is dead says
    nothing: sandboxes outlive it, and the next one speaks for them. One from far ahead is from before a clock was set
    back; whoever lives has given another since.)"""
    signs = (json.loads(data) for at, data in (await store.beats()).values() if abs(now - at) < SILENT_AFTER_S)
    return any(sandbox in sign.get("sandboxes", ()) for sign in signs)


async def _wall_s(store: Store, receipt: Receipt) -> float:
    after = 0
    wall_s = WALL_S
    while events := await store.events(receipt.run_id, after):
        after = events[-1].n
        for event in events:
            if event.kind == "tool_started" and event.data.get("key") == receipt.key:
                wall_s = float(event.data.get("wall_s", WALL_S))
    return wall_s
