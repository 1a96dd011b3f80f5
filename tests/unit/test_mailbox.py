"""Mailboxes: messages to a run are received in order, durably and once, whatever crashes in between."""

import asyncio
import json
from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, BlockingContext, Context, Graph, Retry, append
from understudy.actors.driver import Driver
from understudy.actors.effects import RECEIVE
from understudy.actors.errors import CallerError, InterruptExpired, StoreUnavailable
from understudy.actors.mailbox import MESSAGE_BYTES_MAX, message_text
from understudy.actors.memory import MemoryStore
from understudy.cluster.client import Run


class Log(BaseModel):
    seen: Annotated[list[str], append] = []


def one(fn: Any, *more: Any, **how: Any) -> Graph:
    """A graph of nodes side by side."""
    graph = Graph("mail", Log)
    for node in (fn, *more):
        graph.node(node, **how)
        graph.edge(START, node.__name__).edge(node.__name__, END)
    return graph


async def post(stage: Stage, run: Run, *messages: Any) -> None:
    for message in messages:
        await stage.store.send(run.run_id, f"id-{message}", json.dumps(message), stage.clock())


async def left(stage: Stage, run: Run) -> list[str]:
    return [message.body for message in (await stage.store.load(run.run_id)).messages]


def test_messages_are_received_in_order_and_leave_with_the_commit():
    async def node(ctx: Context) -> dict[str, Any]:
        first, second = await asyncio.gather(ctx.receive(), ctx.receive())
        return {"seen": [first, second, await ctx.receive()]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await post(stage, run, "a", "b", "c", "d")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["a", "b", "c"]

    run_async(played())


def test_a_run_that_waits_for_a_message_holds_no_actor_and_is_woken_by_it():
    ran: list[int] = []

    async def node(ctx: Context) -> dict[str, Any]:
        ran.append(1)
        return {"seen": [await ctx.receive(), await ctx.receive()]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        assert not (await stage.store.due(stage.clock(), 10)).ready
        await post(stage, run, "a")
        assert await stage.drive(run) == "waiting"  # the second is not there yet
        assert await left(stage, run) == ['"a"'], "it leaves with the task's commit, not before"
        await post(stage, run, "b")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["a", "b"]
        assert len(ran) == 3

    run_async(played())


def test_a_message_that_comes_while_the_run_goes_to_sleep_wakes_it():
    """Between the load and the waiting commit: the store compares, so nothing is missed."""

    async def node(ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.receive()]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        driver = await stage.driver(run)
        await post(stage, run, "late")
        assert await driver.drive() == "waiting"
        assert (await stage.store.due(stage.clock(), 10)).ready == (run.run_id,)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["late"]

    run_async(played())


async def until_on_record(stage: Stage, run: Run, count: int) -> None:
    async with asyncio.timeout(5):
        while len(await stage.store.receipts(run.run_id)) < count:  # noqa: ASYNC110 (other tasks of this loop do it)
            await asyncio.sleep(0)


async def crash(stage: Stage, run: Run, driving: "asyncio.Task[Any]") -> None:
    driving.cancel()
    await asyncio.wait([driving])
    await stage.crash(run)


def drive(driver: Driver) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(driver.drive())


@pytest.mark.parametrize("first", ["left", "right"])
def test_two_tasks_that_receive_keep_their_messages_over_a_crash(first: str):
    """Whichever comes first after the crash, each receives what it had received before."""
    hold: dict[str, asyncio.Event] = {}
    got: list[tuple[str, str]] = []

    async def receives(name: str, ctx: Context) -> dict[str, Any]:
        if "order" in hold and name != first:
            await hold["order"].wait()
        message = await ctx.receive()
        got.append((name, message))
        if "order" in hold:
            hold["order"].set()
        await hold["end"].wait()
        return {"seen": [f"{name} {message}"]}

    async def left(ctx: Context) -> dict[str, Any]:
        return await receives("left", ctx)

    async def right(ctx: Context) -> dict[str, Any]:
        return await receives("right", ctx)

    async def played() -> None:
        stage = Stage(MemoryStore(), one(left, right))
        run = await stage.start()
        await post(stage, run, "a", "b", "c")
        hold["end"] = asyncio.Event()
        driving = drive(await stage.driver(run))
        await until_on_record(stage, run, 2)
        await crash(stage, run, driving)
        before = set(got)
        got.clear()
        hold.update(order=asyncio.Event(), end=asyncio.Event())
        hold["end"].set()
        assert await stage.drive(run) == "succeeded"
        assert set(got) == before
        assert sorted((await run.result(1)).seen) == ["left a", "right b"]

    run_async(played())


def test_what_a_finished_task_took_is_not_taken_again_by_the_other():
    end = {}

    async def quick(ctx: Context) -> dict[str, Any]:
        return {"seen": [f"quick {await ctx.receive()}"]}

    async def slow(ctx: Context) -> dict[str, Any]:
        message = await ctx.receive()
        await end["slow"].wait()
        return {"seen": [f"slow {message}"]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(quick, slow))
        run = await stage.start()
        await post(stage, run, "a", "b")
        end["slow"] = asyncio.Event()
        driving = drive(await stage.driver(run))
        async with asyncio.timeout(5):
            while await left(stage, run) != ['"b"']:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await crash(stage, run, driving)
        end["slow"].set()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["quick a", "slow b"]

    run_async(played())


def test_an_attempt_that_failed_gives_its_messages_to_the_next():
    tries: list[list[str]] = []

    async def node(ctx: Context) -> dict[str, Any]:
        got = [await ctx.receive()]
        tries.append(got)
        if len(tries) == 1:
            got.append(await ctx.receive())
            raise ValueError("once")
        return {"seen": got}

    graph = Graph("mail", Log)
    graph.node(node, retry=Retry(2, base_s=0))

    async def after(ctx: Context) -> dict[str, Any]:
        return {"seen": [f"after {await ctx.receive()}"]}

    graph.node(after)
    graph.edge(START, "node").edge("node", "after").edge("after", END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        await post(stage, run, "a", "b")
        assert await stage.drive(run) == "succeeded"
        assert tries == [["a", "b"], ["a"]]
        assert (await run.result(1)).seen == ["a", "after b"]

    run_async(played())


def test_a_deadline_that_passed_stays_passed():
    """The node went on without a message; that one came since must not change what it does when it runs again."""
    now = [2e9]
    gate = {}
    got: list[str] = []

    async def node(ctx: Context) -> dict[str, Any]:
        try:
            got.append(await ctx.receive(deadline=timedelta(seconds=10)))
        except InterruptExpired:
            got.append("expired")
        await gate["open"].wait()
        return {"seen": [got[-1]]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node), clock=lambda: now[0])
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        assert (await run.record()).not_before == 2e9 + 10
        now[0] = 2e9 + 10
        gate["open"] = asyncio.Event()
        driving = drive(await stage.driver(run))
        await until_on_record(stage, run, 1)
        await crash(stage, run, driving)
        # From a machine whose clock is behind.
        await stage.store.send(run.run_id, "m", '"too late"', 2e9 + 9)
        gate["open"].set()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["expired"]
        assert set(got) == {"expired"}

    run_async(played())


def test_a_message_from_before_the_deadline_counts_whenever_the_run_is_taken_up():
    now = [2e9]

    async def node(ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.receive(deadline=timedelta(seconds=10))]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node), clock=lambda: now[0])
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        await stage.store.send(run.run_id, "m", '"in time"', now[0] + 9)
        now[0] += 1000
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["in time"]

    run_async(played())


def test_every_crash_around_a_receive_gives_the_same():
    """The commit that waits, the receipt, the commit that takes: cut the run off after each store call in turn."""

    async def node(ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.receive(), await ctx.receive()]}

    class Cut(MemoryStore):
        left = 10**9

        async def commit(self, *commits: Any) -> Any:
            self._tick()
            return await super().commit(*commits)

        async def begin(self, *args: Any) -> Any:
            self._tick()
            return await super().begin(*args)

        def _tick(self) -> None:
            self.left -= 1
            if self.left == 0:
                raise StoreUnavailable("cut")

    async def played(cut: int) -> bool:
        store = Cut()
        stage = Stage(store, one(node))
        run = await stage.start()
        await post(stage, run, "a")
        store.left = cut
        was_cut = False
        for _ in range(6):
            try:
                status = await stage.drive(run)
            except StoreUnavailable:
                was_cut = True
                await stage.crash(run)
                continue
            if status == "waiting":
                await post(stage, run, "b")
            if status == "succeeded":
                break
        assert (await run.result(1)).seen == ["a", "b"]
        return was_cut

    cuts = [run_async(played(cut)) for cut in range(1, 8)]
    assert cuts == [True] * 4 + [False] * 3


def test_it_works_in_a_thread_and_inline():
    def node(state: Log, ctx: BlockingContext) -> dict[str, Any]:
        return {"seen": [ctx.receive()["word"]]}

    assert one(node).run_inline({}, messages=[{"word": "hello"}]).seen == ["hello"]


def test_receipts_and_events_tell_of_it():
    async def node(ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.receive()]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await post(stage, run, "a")
        await stage.drive(run)
        [receipt] = await stage.store.receipts(run.run_id)
        assert (receipt.tool, receipt.state) == (RECEIVE, "done")
        [received] = [e for e in await stage.store.events(run.run_id) if e.kind == "received"]
        assert (received.data["n"], received.data["message_id"]) == (1, "id-a")

    run_async(played())


@pytest.mark.parametrize("bad", [object(), float("nan"), "\ud800", "x" * MESSAGE_BYTES_MAX])
def test_what_is_no_message_is_refused(bad: Any):
    with pytest.raises(CallerError, match="the message"):
        message_text(bad)


def test_a_run_that_is_retried_has_all_that_it_was_sent():
    """What its failed attempt had received, in the same place, and what it had not come to."""
    broken = [True]

    async def node(ctx: Context) -> dict[str, Any]:
        first = await ctx.receive()
        if broken:
            raise ValueError("out of order")
        return {"seen": [first, await ctx.receive()]}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await post(stage, run, "a", "b")
        assert await stage.drive(run) == "failed"
        broken.clear()
        await run.retry()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1)).seen == ["a", "b"]

    run_async(played())
