"""Retention: what may go goes, and nothing that is kept loses what it stands on, whatever happened on the thread."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Age, All, Context, Graph, Last, append
from understudy.actors.checkpoint import restore
from understudy.actors.errors import NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.pruning import PRUNE_EVERY, prune
from understudy.actors.records import CheckpointRow
from understudy.cluster.client import Run
from understudy.policies.retention import Keep, Row, prunable

NOW = 1000.0


@st.composite
def threads(draw: st.DrawFn) -> list[Row]:
    """A tree of checkpoints in the order of storing: each a difference to the newest, or, rolled back or a segment, to
    another, or to none."""
    rows: list[Row] = []
    for n in range(draw(st.integers(1, 40))):
        stands_on = ""
        if rows and draw(st.booleans()):
            back = draw(st.integers(0, 8)) == 0
            stands_on = (draw(st.sampled_from(rows)) if back else rows[-1]).checkpoint_id
        rows.append(Row(f"c{n}", stands_on, NOW - 100 + n))
    return rows


keeps = st.just(All()) | st.integers(1, 45).map(Last) | st.integers(1, 150).map(lambda s: Age(timedelta(seconds=s)))


def chain_of(rows: Sequence[Row], checkpoint_id: str) -> list[str]:
    """What a store would load. Fails where something is missing."""
    known = {row.checkpoint_id: row for row in rows}
    chain = [known[checkpoint_id]]
    while chain[-1].stands_on:
        chain.append(known[chain[-1].stands_on])
    return [row.checkpoint_id for row in chain]


@settings(max_examples=300, deadline=None)
@given(threads(), keeps, st.data())
def test_nothing_that_is_kept_loses_what_it_stands_on(rows: list[Row], keep: Keep, data: st.DataObject) -> None:
    roots = data.draw(st.sets(st.sampled_from([row.checkpoint_id for row in rows] + [""]), max_size=3))
    gone = set(prunable(rows, roots, keep, NOW))
    left = [row for row in rows if row.checkpoint_id not in gone]
    for row in left:
        assert chain_of(left, row.checkpoint_id) == chain_of(rows, row.checkpoint_id)
    assert not gone & roots
    assert rows[-1] in left
    match keep:
        case All():
            assert not gone
        case Last(count):
            assert left[-count:] == rows[-count:]
        case Age(age):
            assert not [row for row in rows if row.checkpoint_id in gone and row.at >= NOW - age.total_seconds()]
    # And what goes is really needed by nothing: each that stays is wanted, or in the chain of one that is.
    wanted = roots | {row.checkpoint_id for row in _wanted(rows, keep)}
    needed = {i for row in rows if row.checkpoint_id in wanted for i in chain_of(rows, row.checkpoint_id)}
    assert {row.checkpoint_id for row in left} == needed
    assert prunable(left, roots, keep, NOW) == [], "there is nothing more to do at once"


def _wanted(rows: list[Row], keep: Keep) -> list[Row]:
    match keep:
        case Last(count):
            return rows[-count:]
        case Age(age):
            return [row for row in rows if row.at >= NOW - age.total_seconds() or row is rows[-1]]
    return rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Last(0), r"Last\(0\); give how many"),
        (lambda: Last(True), "give how many"),
        (lambda: Age(timedelta()), r"give a timedelta, e.g. Age\(timedelta\(days=3\)\)"),
        (lambda: Age(7), "give a timedelta"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Chat(BaseModel):
    said: int = 0
    asks: bool = False
    fails: bool = False
    until: int = 0
    log: Annotated[list[str], append] = []


def chat(keep: Keep, **more: Any) -> Graph:
    graph = Graph("chat", Chat, keep=keep, step_limit=10_000, **more)

    @graph.node
    def say(state: Chat) -> dict[str, Any]:
        return {"said": state.said + 1, "log": [f"{state.said}".ljust(50, ".")]}

    @graph.node
    async def ask(state: Chat, ctx: Context) -> dict[str, Any]:
        if state.fails:
            raise RuntimeError("no")
        await ctx.interrupt("go on?")
        return {"asks": False}

    def choose(state: Chat) -> str:
        return "say" if state.said < state.until else "ask" if state.asks else END

    return graph.edge(START, "say").branch("say", choose, ["say", "ask", END]).edge("ask", END)


async def turn(store: MemoryStore, graph: Graph, thread: str, **given: Any) -> Run:
    """One run on the thread, until it leaves."""
    stage = Stage(store, graph)
    run = await stage.start(given, thread=thread)
    await stage.drive(run)
    return run


async def rows_of(store: MemoryStore, thread: str) -> list[CheckpointRow]:
    return await store.history(thread, limit=100_000)


async def all_restore(store: MemoryStore, thread: str) -> None:
    for row in await rows_of(store, thread):
        checkpoint = restore(await store.chain(thread, row.checkpoint_id))
        assert len(checkpoint.values["log"]) > checkpoint.step * 50, "all that was said, from the first word on"


def test_a_run_that_leaves_prunes_its_thread():
    async def go() -> None:
        store = MemoryStore()
        graph = chat(Last(5))
        first = await turn(store, graph, "t", until=150)
        left = await rows_of(store, "t")
        assert 5 <= len(left) < 100, "five, and what they are differences to"
        for n in range(20):
            await turn(store, graph, "t", until=160 + 10 * n)
            await all_restore(store, "t")
        assert len(await rows_of(store, "t")) < 150
        assert (await first.state())["said"] == 150, "a run whose checkpoints are gone still has its result"
        with pytest.raises(NotFound, match=r"no checkpoint '000001-.*Graph\(keep=\.\.\.\)"):
            await first.fork("000001-no-more")

    asyncio.run(go())


def test_a_long_residence_prunes_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    class Noting(MemoryStore):
        async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
            gone = await super().prune(thread_id, checkpoint_ids)
            looks.append(gone)
            return gone

    async def go() -> None:
        store = Noting()
        await turn(store, chat(Last(10)), "t", until=5 * PRUNE_EVERY)
        assert len(looks) >= 4
        assert sum(looks) == 5 * PRUNE_EVERY - len(await rows_of(store, "t"))
        await all_restore(store, "t")

    asyncio.run(go())


def test_all_is_the_default_and_asks_nothing_of_the_store():
    async def go() -> None:
        store = MemoryStore()
        await turn(store, chat(All()), "t", until=30)
        assert len(await rows_of(store, "t")) == 30
        assert Graph("g", Chat).keep == All()

    asyncio.run(go())


def test_what_unfinished_and_failed_runs_stand_on_stays():
    async def go() -> None:
        store = MemoryStore()
        waits = chat(Last(1))
        asking = await turn(store, waits, "t", until=30, asks=True)
        assert (await asking.record()).status == "waiting"
        assert await prune(store, waits.plan(), "t", NOW) == 0, "done when it left"
        await store.resume(asking.run_id, (await asking.questions())[0].interrupt_id, "1", NOW)
        assert await Stage(store, waits).drive(asking) == "succeeded"
        failed = await turn(store, waits, "t", until=60, asks=True, fails=True)
        assert (await failed.record()).status == "failed"
        await prune(store, waits.plan(), "t", NOW)
        await store.retry(failed.run_id, NOW)
        assert await Stage(store, waits).drive(failed) == "failed", "it came back to the same node"
        await all_restore(store, "t")

    asyncio.run(go())


def test_a_thread_that_was_rolled_back_goes_on_from_where_it_was():
    async def go() -> None:
        store = MemoryStore()
        graph = chat(Last(1))
        before = await turn(store, graph, "t", until=20)
        head = (await before.record()).head
        undone = await turn(store, graph, "t", until=60, asks=True)
        after = await Stage(store, graph).start({"until": 30, "asks": False}, thread="t", busy="rollback")
        assert (await undone.record()).status == "cancelled"
        await prune(store, graph.plan(), "t", NOW)
        assert head in [row.checkpoint_id for row in await rows_of(store, "t")]
        assert await Stage(store, graph).drive(after) == "succeeded"
        state = await after.state()
        assert (state["said"], len(state["log"])) == (30, 30)
        await all_restore(store, "t")

    asyncio.run(go())


def test_where_a_failed_run_began_stays_as_it_may_be_retried_and_rolled_back():
    async def go() -> None:
        store = MemoryStore()
        graph = chat(Last(1))
        head = (await (await turn(store, graph, "t", until=20)).record()).head
        failed = await turn(store, graph, "t", until=60, asks=True, fails=True)
        assert (await failed.record()).status == "failed"
        await prune(store, graph.plan(), "t", NOW)
        assert head in [row.checkpoint_id for row in await rows_of(store, "t")]
        await failed.retry()
        after = await Stage(store, graph).start({"until": 30, "asks": False}, thread="t", busy="rollback")
        assert await Stage(store, graph).drive(after) == "succeeded"
        assert len((await after.state())["log"]) == 30
        await all_restore(store, "t")

    asyncio.run(go())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["talk", "ask", "rollback", "fail", "retry", "fork", "cancel"]), max_size=12),
    st.integers(1, 6),
)
def test_whatever_happens_on_a_thread_all_of_it_restores(what: list[str], kept: int) -> None:
    """Runs that talk, ask, fail, are rolled back, retried, cancelled and forked, with pruning after each."""

    async def go() -> None:
        store, graph = MemoryStore(), chat(Last(kept))
        said = itertools.count(10, 12)
        last: Run | None = None
        for event in what:
            record = await last.record() if last else None
            if event == "retry":
                if last and record and record.status == "failed":
                    await store.retry(last.run_id, NOW)
                    await Stage(store, graph).drive(last)
            elif event == "cancel":
                if last:
                    await store.cancel(last.run_id, NOW)
            elif event == "fork":
                if last and record and record.head:
                    fork = await last.fork(record.head, {"until": 5})
                    assert await Stage(store, graph).drive(fork) in ("succeeded", "waiting", "failed")
            else:
                stage = Stage(store, graph)
                busy = "rollback" if event == "rollback" else "interrupt"
                given = {"until": next(said), "asks": event in ("ask", "fail"), "fails": event == "fail"}
                last = await stage.start(given, thread="t", busy=busy)
                await stage.drive(last)
            await prune(store, graph.plan(), "t", NOW)
            for row in await rows_of(store, "t"):
                chain = await store.chain("t", row.checkpoint_id)
                assert chain[0].snapshot
                assert restore(chain).step == row.step

    asyncio.run(go())
