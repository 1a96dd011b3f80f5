"""That the crash kit finds what it is there to find: each test breaks one law, and reads the report."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Graph, append, tool
from understudy.actors import calls, driver
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Commit, Committed, Receipt
from understudy.actors.store import Store
from understudy.cluster.testing.crash import CrashReport, crash_points


class Tale(BaseModel):
    told: Annotated[list[str], append] = []


@tool
def mail(to: str) -> str:
    return f"mailed {to}"


tale = Graph("tale", Tale)


@tale.node
async def think(state: Tale) -> dict[str, Any]:
    return {"told": ["thought"]}


@tale.node
async def act(state: Tale, ctx: Context) -> dict[str, Any]:
    return {"told": [await ctx.call(mail, to="Ada")]}


tale.edge(START, think).edge(think, act).edge(act, END)


def report_on(store: Callable[[], Store], graph: Graph = tale, **how: Any) -> CrashReport:
    async def opened() -> Store:
        return store()

    return crash_points(graph, store=opened, **how)


def test_a_sound_store_passes_and_the_report_says_so():
    report = report_on(MemoryStore)
    assert report.ok
    told = f"graph 'tale': 5 durable operations, {report.plays} disturbed plays"
    assert str(report) == f"{told}, all ended as the undisturbed one"


def test_a_store_that_does_not_fence_is_found():
    class Lenient(MemoryStore):
        async def commit(self, *commits: Commit) -> Committed:
            record = await self.run(commits[0].run_id)
            return await super().commit(*(replace(c, epoch=record.epoch) for c in commits))

    report = report_on(Lenient, victims=["owner"])
    assert not report.ok
    assert "the first owner changed the thread by 'commit' after that" in str(report)
    assert "a second owner claimed the run just" in str(report)


def test_a_store_that_forgets_receipts_is_found():
    class Forgetful(MemoryStore):
        async def load(self, run_id: str) -> Any:
            return replace(await super().load(run_id), receipts={})

        async def begin(self, receipt: Receipt, *args: Any) -> Any:
            self._runs[receipt.run_id].receipts.clear()
            return await super().begin(receipt, *args)

    report = report_on(Forgetful, victims=["run"])
    assert "effect ('mail', '" in str(report)
    assert "took place 2 times, not 1" in str(report)
    assert "the run's actor died just" in str(report)


def test_a_store_that_loses_what_it_acknowledged_is_found():
    class Losing(MemoryStore):
        """Its newest checkpoint is gone after a crash."""

        async def requeue(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
            run = self._runs[run_id]
            thread = self._threads[run.record.thread_id]
            if len(thread.checkpoints) > 1:
                thread.checkpoints.popitem()
                thread.head = next(reversed(thread.checkpoints))
                run.record = replace(run.record, head=thread.head)
            return await super().requeue(run_id, *args, **kwargs)

    long = Graph("long", Tale)
    for name in ("one", "two", "three"):
        long.node(lambda state, name=name: {"told": [name]}, name=name)
    long.edge(START, "one").edge("one", "two").edge("two", "three").edge("three", END)
    report = report_on(Losing, long, victims=["run"])
    assert not report.ok
    assert "of which ended otherwise" in str(report)


def test_an_effect_that_does_not_wait_for_its_checkpoint_is_found(monkeypatch: pytest.MonkeyPatch):
    async def at_once() -> None: ...

    class Hasty(calls.Caller):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.durable = at_once

    assert report_on(MemoryStore, slow_commits=True).ok
    monkeypatch.setattr(driver, "Caller", Hasty)
    with pytest.raises(AssertionError, match=r"'mail' was begun before.*\(law 3\)"):
        report_on(MemoryStore, slow_commits=True)


def test_what_nodes_do_by_other_ways_is_counted_when_asked():
    done: list[str] = []

    def world() -> Iterator[str]:
        while done:
            yield done.pop()

    careless = Graph("careless", Tale)

    @careless.node
    async def send(state: Tale, ctx: Context) -> dict[str, Any]:
        done.append("sent by hand")  # no ctx.call: nothing remembers it
        return {"told": [await ctx.call(mail, to="Bob")]}

    careless.edge(START, send).edge(send, END)
    assert report_on(MemoryStore, careless).ok, "nobody looked"
    assert "effect sent by hand took place 2 times, not 1" in str(report_on(MemoryStore, careless, world=world))


def test_a_graph_that_is_no_function_of_its_state_is_refused():
    turns = iter(range(1000))
    fickle = Graph("fickle", Tale)
    fickle.node(lambda state: {"told": [str(next(turns))]}, name="turn")
    fickle.edge(START, "turn").edge("turn", END)
    with pytest.raises(AssertionError, match="played twice, undisturbed, and differs"):
        report_on(MemoryStore, fickle)


def test_a_sample_is_the_same_for_a_seed():
    first, second = (report_on(MemoryStore, victims=["machine"], sample=2, seed=7) for _ in range(2))
    assert first.plays == second.plays == 4


def test_no_thread_is_left_behind():
    store = MemoryStore()
    assert report_on(lambda: store).ok
    assert not store._threads
    assert not store._runs
