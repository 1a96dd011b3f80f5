"""What a run has been granted before, read from its event log for rules that ask ("after reading a secret, ...").

A call's decision is on record before its tool starts (law 4), and so before the run can know its result: whoever reads
the log when the next call is judged finds it. What was read is remembered; the log is only ever continued.
"""

from collections import OrderedDict
from dataclasses import dataclass

from understudy.actors.errors import NotFound
from understudy.actors.store import Store
from understudy.policies.history import ANYTHING, NOTHING, History, Past

REMEMBERED_MAX = 1024
"""Runs whose past is kept at hand (law 8)."""
PAGE = 1000


@dataclass
class _Read:
    after: int = 0
    past: Past = NOTHING
    origins: tuple[str, ...] | None = None


class RunHistories:
    """The pasts of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: OrderedDict[str, _Read] = OrderedDict()

    async def of(self, run_id: str) -> History:
        """What the run has done, and what those did that it comes from. Raises NotFound, StoreUnavailable."""
        own = await self._past(run_id)
        inherited, seen, waiting = NOTHING, {run_id}, [*await self._origins(run_id)]
        while waiting:
            origin = waiting.pop()
            if origin in seen:
                continue
            seen.add(origin)
            try:
                inherited |= await self._past(origin)
                waiting += await self._origins(origin)
            except NotFound:  # its thread was deleted: what it has read may well live on in this run
                inherited |= ANYTHING
        return History(own, inherited)

    async def _past(self, run_id: str) -> Past:
        read = self._of(run_id)
        while True:
            events = await self._store.events(run_id, read.after, PAGE)
            tools: set[str] = set()
            marks: set[str] = set()
            for event in events:
                if event.kind == "decided" and event.data.get("decision") == "allow":
                    tools.add(str(event.data["tool"]))
                    marks.update(event.data.get("marks", ()))
                read.after = max(read.after, event.n)
            if tools or marks:
                read.past |= Past(frozenset(tools), frozenset(marks))
            if len(events) < PAGE:
                return read.past

    async def _origins(self, run_id: str) -> tuple[str, ...]:
        """The origin of a fork, and the parent of a child."""
        read = self._of(run_id)
        if read.origins is None:
            record = await self._store.run(run_id)
            forked_from = record.labels.get("forked_from", "").partition("@")[0]
            read.origins = tuple(origin for origin in (record.parent, forked_from) if origin)
        return read.origins

    def _of(self, run_id: str) -> _Read:
        read = self._read.setdefault(run_id, _Read())
        self._read.move_to_end(run_id)
        while len(self._read) > REMEMBERED_MAX:
            self._read.popitem(last=False)
        return read
