"""Several runs on one thread, and a run that is taken up again after it failed: what each of them sees as state."""

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, ToolError, append, tool
from understudy.actors.errors import Conflict
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Busy
from understudy.cluster.client import Run


class Log(BaseModel):
    who: str = ""
    seen: Annotated[list[str], append] = []


turns = Graph("turns", Log)


@turns.node
async def hear(state: Log) -> dict[str, Any]:
    return {"seen": [f"{state.who} heard"]}


@turns.node
async def wait(state: Log, ctx: Context) -> dict[str, Any]:
    return {"seen": [f"{state.who} got {await ctx.receive()}"]}


turns.edge(START, hear).edge(hear, wait).edge(wait, END)


async def begun(stage: Stage) -> Run:
    """A first run that is done, and a second one that waits in the middle."""
    first = await stage.start({"who": "first"}, thread="t")
    await stage.store.send(first.run_id, "m", '"hi"', stage.clock())
    await stage.settle()
    second = await stage.start({"who": "second"}, thread="t")
    await stage.settle()
    assert (await second.record()).status == "waiting"
    return second


async def third(stage: Stage, busy: Busy) -> Run:
    return await stage.start({"who": "third"}, thread="t", busy=busy)


BEFORE = ["first heard", "first got hi"]


def test_enqueue_stands_behind_and_sees_what_came_before():
    async def played() -> None:
        stage = Stage(MemoryStore(), turns)
        second, last = await begun(stage), await third(stage, "enqueue")
        await stage.settle()
        assert (await last.record()).status == "queued"
        for run in (second, last):
            await stage.store.send(run.run_id, "m", '"on"', stage.clock())
        await stage.settle()
        assert (await last.result(1)).seen == [
            *BEFORE, "second heard", "second got on", "third heard", "third got on",
        ]  # fmt: skip

    run_async(played())


def test_reject_refuses_and_changes_nothing():
    async def played() -> None:
        stage = Stage(MemoryStore(), turns)
        second = await begun(stage)
        with pytest.raises(Conflict, match="is busy with run " + second.run_id):
            await third(stage, "reject")
        assert (await second.record()).status == "waiting"
        assert len(await stage.store.runs()) == 2

    run_async(played())


@pytest.mark.parametrize(
    ("busy", "kept"), [("interrupt", [*BEFORE, "second heard"]), ("rollback", BEFORE)], ids=["interrupt", "rollback"]
)
def test_interrupt_goes_on_from_what_was_committed_and_rollback_from_before(busy: Busy, kept: list[str]):
    async def played() -> None:
        stage = Stage(MemoryStore(), turns)
        second = await begun(stage)
        last = await third(stage, busy)
        assert (await second.record()).status == "cancelled"
        await stage.store.send(last.run_id, "m", '"on"', stage.clock())
        await stage.settle()
        assert (await last.result(1)).seen == [*kept, "third heard", "third got on"]
        again = await third(stage, "enqueue")  # the thread is as usable as any
        await stage.store.send(again.run_id, "m", '"on"', stage.clock())
        await stage.settle()
        assert (await again.result(1)).seen[len(kept) :] == ["third heard", "third got on"] * 2

    run_async(played())


@pytest.mark.parametrize("busy", ["interrupt", "rollback"])
def test_a_running_run_is_stopped_first_and_the_next_waits_for_that(busy: Busy):
    """What its finished tasks wrote is kept, or goes with the rest."""
    graph = Graph("turns", Log)
    at_work = {}

    @graph.node
    async def quick(state: Log) -> dict[str, Any]:
        return {"seen": [f"{state.who} quick"]}

    @graph.node
    async def slow(state: Log) -> dict[str, Any]:
        if state.who == "second":
            at_work["slow"].set()
            await asyncio.Event().wait()
        return {"seen": [f"{state.who} slow"]}

    graph.edge(START, quick).edge(quick, slow).edge(slow, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        await stage.start({"who": "first"}, thread="t")
        await stage.settle()
        second = await stage.start({"who": "second"}, thread="t")
        at_work["slow"] = asyncio.Event()
        driver = await stage.driver(second)
        driving = asyncio.ensure_future(driver.drive())
        await at_work["slow"].wait()
        last = await stage.start({"who": "third"}, thread="t", busy=busy)
        assert (await stage.store.due(stage.clock(), 10)).ready == ()
        driver.cancel()  # as renewing the lease tells its owner
        assert await driving == "cancelled"
        await stage.settle()
        kept = ["second quick"] if busy == "interrupt" else []
        assert (await last.result(1)).seen == ["first quick", "first slow", *kept, "third quick", "third slow"]

    run_async(played())


# --- retry ---------------------------------------------------------------------------------------------------------


def test_a_failed_run_is_taken_up_again_from_where_it_stood():
    """Its finished sibling is not run again, calls that went well are not made again, and the one that failed is."""
    ran: list[str] = []
    calls: list[str] = []
    broken = [True]

    @tool
    def good() -> str:
        calls.append("good")
        return "good"

    @tool
    def bad() -> str:
        calls.append("bad")
        if broken:
            raise ValueError("out of order")
        return "mended"

    graph = Graph("retried", Log)

    @graph.node
    async def first() -> dict[str, Any]:
        ran.append("first")
        return {"seen": ["first"]}

    @graph.node
    async def sibling() -> dict[str, Any]:
        ran.append("sibling")
        return {"seen": ["sibling"]}

    @graph.node
    async def calling(ctx: Context) -> dict[str, Any]:
        ran.append("calling")
        await asyncio.sleep(0)  # its sibling is done by then
        answer = await ctx.interrupt("go on?")
        said = await ctx.call(good)
        try:
            return {"seen": [answer, said, await ctx.call(bad)]}
        except ToolError:
            ran.append("caught")
            raise

    graph.edge(START, first).edge(first, sibling).edge(first, calling).edge(sibling, END).edge(calling, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph).tools(good, bad)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        await run.resume("yes")
        assert await stage.drive(run) == "failed"
        assert calls == ["good", "bad"]
        with pytest.raises(Conflict):
            await run.resume("again")
        broken.clear()
        assert (await run.retry()).status == "queued"
        assert (await run.retry()).status == "queued", "asking twice is the same"
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["first", "sibling", "yes", "good", "mended"]
        assert calls == ["good", "bad", "bad"]
        assert ran.count("first") == ran.count("sibling") == 1
        with pytest.raises(Conflict, match="succeeded"):
            await run.retry()

    run_async(played())


def test_a_run_whose_thread_went_on_is_not_retried():
    graph = Graph("failing", Log)

    @graph.node
    async def fails(state: Log) -> dict[str, Any]:
        if state.who == "bad":
            raise ValueError("no")
        return {"seen": [state.who]}

    graph.edge(START, fails).edge(fails, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        bad = await stage.start({"who": "bad"}, thread="t")
        await stage.settle()
        await stage.start({"who": "good"}, thread="t")
        await stage.settle()
        with pytest.raises(Conflict, match="fork it instead"):
            await bad.retry()

    run_async(played())
