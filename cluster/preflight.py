"""Before a deployment: which unfinished runs of a graph the version that is importable now could not take up.

It asks what a run actor will ask (`understudy.actors.take_up`), and changes nothing.
"""

from dataclasses import dataclass, replace

from understudy.actors.code import Code, CodeMode
from understudy.actors.errors import CallerError, NotFound
from understudy.actors.graph import Graph
from understudy.actors.plan import Plan
from understudy.actors.records import Loaded, RunRecord, Status
from understudy.actors.store import Store
from understudy.actors.take_up import would_take_up

LOOKED_AT: tuple[Status, ...] = ("running", "waiting", "queued", "quarantined")
PAGE = 1_000_000


@dataclass(frozen=True)
class Finding:
    """A run that is not at its end, and what keeps this version from taking it up."""

    record: RunRecord
    mode: CodeMode
    by_value: bool
    """It carries its own code, and does not meet this version at all."""
    problem: str
    """Empty: nothing."""


async def preflight(store: Store, graph: Graph) -> list[Finding]:
    """All unfinished runs of a graph, by its name, oldest first; also those that are set aside, which `retry` brings
    back. Raises GraphError: the graph itself cannot run."""
    plan = graph.plan()
    found = []
    for status in LOOKED_AT:
        for record in await store.runs(status, limit=PAGE):
            if record.graph == plan.name:
                try:
                    found.append(await _finding(store, plan, record.run_id))
                except NotFound:  # it ended and was deleted meanwhile
                    continue
    unfinished = {f.record.run_id: f for f in found if f.record.status in LOOKED_AT}
    return sorted(unfinished.values(), key=lambda f: (f.record.created_at, f.record.run_id))


async def _finding(store: Store, plan: Plan, run_id: str) -> Finding:
    loaded = await store.load(run_id)
    code = Code.read(loaded.run.code)
    if code.blob:
        return Finding(loaded.run, code.mode, True, "")
    if loaded.run.seq == 0 and not loaded.chain:
        loaded = await _on_its_thread(store, loaded)
    try:
        would_take_up(plan, loaded)
    except CallerError as error:
        return Finding(loaded.run, code.mode, False, str(error))
    return Finding(loaded.run, code.mode, False, "")


async def _on_its_thread(store: Store, loaded: Loaded) -> Loaded:
    """A run that was never claimed begins where the run before it on its thread has left the thread."""
    before = [other for other in await store.runs(limit=PAGE, thread_id=loaded.run.thread_id) if other.head]
    earlier = [other for other in before if other.created_at < loaded.run.created_at]
    if not earlier:
        return loaded
    last = earlier[0]  # newest first
    head = last.base if last.rollback and last.status == "cancelled" else last.head
    if not head:
        return loaded
    chain = await store.chain(loaded.run.thread_id, head)
    return replace(loaded, run=replace(loaded.run, head=head), chain=tuple(chain))
