"""What a run has been granted before, read from its event log for rules that ask ("after reading a secret, ...").

A call's decision is on record before its tool starts (law 4), and so before the run can know its result: whoever reads
the log when the next call is judged finds it. What was read is remembered; the log is only ever continued.
"""

from collections import OrderedDict
from dataclasses import dataclass

from understudy.actors.errors import NotFound
from understudy.actors.records import RunRecord
from understudy.actors.store import Store
from understudy.policies.history import ANYTHING, NOTHING, History, Past

REMEMBERED_MAX = 4096
"""Runs whose past is kept at hand (law 8)."""
PAGE = 1000
LISTED = (20, 1000)
"""Runs of a thread that are looked at for the one before: most often it is among the first. On a thread with more runs
than that, nobody can tell what was done at its beginning."""
UNKNOWN = "?"


@dataclass
class _Read:
    after: int = 0
    past: Past = NOTHING
    origins: tuple[str, ...] | None = None
    """Those that it comes from: the origin of a fork, the parent of a child."""
    before: str | None = None
    """The run before it on its thread, whose state it goes on with; empty: there is none; None: nobody has looked."""
    children: tuple[str, ...] = ()
    over: bool = False
    """It has ended, and its log was read to the end."""


class RunHistories:
    """The pasts of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: OrderedDict[str, _Read] = OrderedDict()

    async def of(self, run_id: str) -> History:
        """What the run has done, and what those did whose findings may have reached it: all that it comes from, those
        before it on their threads, and the children of all of these, whose results are their parents'. Raises NotFound,
        StoreUnavailable."""
        own = await self._continued(run_id)
        inherited, seen, waiting = NOTHING, {run_id}, self._relatives(own)
        while waiting:
            relative = waiting.pop()
            if relative in seen:
                continue
            seen.add(relative)
            if relative == UNKNOWN:
                inherited |= ANYTHING
                continue
            try:
                read = await self._continued(relative)
            except NotFound:  # its thread was deleted: what it has read may well live on in this run
                inherited |= ANYTHING
                continue
            inherited |= read.past
            waiting += self._relatives(read)
        return History(own.past, inherited)

    def _relatives(self, read: _Read) -> list[str]:
        return [*(read.origins or ()), *read.children, *([read.before] if read.before else [])]

    async def _continued(self, run_id: str) -> _Read:
        """What is known of a run, with what its log has more by now."""
        read = self._of(run_id)
        if read.over:
            return read
        record = await self._store.run(run_id)
        if read.before is None:
            read.before = await self._before(record)
        forked_from = record.labels.get("forked_from", "").partition("@")[0]
        read.origins = tuple(origin for origin in (record.parent, forked_from) if origin)
        while True:
            events = await self._store.events(run_id, read.after, PAGE)
            allowed = [e.data for e in events if e.kind == "decided" and e.data.get("decision") == "allow"]
            if allowed:
                marks = frozenset(mark for data in allowed for mark in data.get("marks", ()))
                tools = frozenset(str(data[name]) for data in allowed for name in ("tool", "judged_as") if name in data)
                read.past |= Past(tools, marks)
            read.children += tuple(str(e.data["run_id"]) for e in events if e.kind == "child_started")
            read.after = max([read.after, *(event.n for event in events)])
            if len(events) < PAGE:
                read.over = record.status in ("succeeded", "cancelled")  # others can be retried
                return read

    async def _before(self, record: RunRecord) -> str:
        """Of the runs of a thread, the one before this; what is listed on the way is noted for the others."""
        for limit in LISTED:
            ids = [each.run_id for each in await self._store.runs(limit=limit, thread_id=record.thread_id)]
            for run_id, before in zip(ids, [*ids[1:], "" if len(ids) < limit else None], strict=True):
                if run_id in self._read and before is not None:
                    self._read[run_id].before = before
            at = ids.index(record.run_id) if record.run_id in ids else len(ids)
            if at + 1 < len(ids) or len(ids) < limit:
                return ids[at + 1] if at + 1 < len(ids) else ""
        return UNKNOWN

    def _of(self, run_id: str) -> _Read:
        read = self._read.setdefault(run_id, _Read())
        self._read.move_to_end(run_id)
        while len(self._read) > REMEMBERED_MAX:
            self._read.popitem(last=False)
        return read
