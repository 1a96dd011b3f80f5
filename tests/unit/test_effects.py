"""Effects of nodes (`ctx.effect`): once, on record, and settled by the one who can tell where nobody knows the end."""

import asyncio
import threading
from collections.abc import Callable
from datetime import date, timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async, wait_until_async
from understudy import (
    END,
    START,
    Context,
    Done,
    EffectFailed,
    Graph,
    NeverHappened,
    Retry,
    Unsure,
    append,
    tool,
)
from understudy.actors import own_effects
from understudy.actors.blocking import BlockingContext
from understudy.actors.errors import Fenced, StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Receipt
from understudy.actors.store import Store
from understudy.cluster.client import Run, open_questions


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


@tool
def pay(order: str) -> str:
    return f"paid {order}"


def graph_of(work: Callable[..., Any], **node: Any) -> Graph:
    graph = Graph("effects", Note)
    graph.node(work, name="work", **node)
    return graph.edge(START, "work").edge("work", END)


async def receipts(stage: Stage, run: Run) -> list[Receipt]:
    return await stage.store.receipts(run.run_id)


async def interrupted_in(stage: Stage, run: Run, begun: asyncio.Event) -> None:
    """The run's owner is lost while an effect is at work."""
    driver = await stage.driver(run)
    driving = asyncio.ensure_future(driver.drive())
    await asyncio.wait_for(begun.wait(), 10)
    driver.fence()
    with pytest.raises(Fenced):
        await driving
    await stage.crash(run)


# --- once ----------------------------------------------------------------------------------------------------------


def test_an_effect_happens_once_though_its_node_runs_again():
    async def played() -> None:
        done: list[str] = []

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            async def ask() -> dict[str, int]:
                done.append("asked")
                return {"tokens": len(done)}

            first = await ctx.effect("model", ask)
            second = await ctx.effect("model", ask)
            await ctx.interrupt("go on?")
            return {"seen": [first, second]}

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        await run.resume("yes")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [{"tokens": 1}, {"tokens": 2}]
        assert done == ["asked", "asked"], "two places, each once, though the node ran twice"
        assert [(r.place, r.standing) for r in await receipts(stage, run)] == [
            ("1/0/work/effect:model/0", "done"),
            ("1/0/work/effect:model/1", "done"),
        ]
        events = await stage.store.events(run.run_id)
        told = [e for e in events if e.kind.startswith("effect_")]
        assert [e.kind for e in told] == ["effect_started", "effect_finished"] * 2
        assert counters_of("g", told) == {'effects_total{name="model",outcome="ok"}': 2.0}

    run_async(played())


def test_the_key_is_handed_on_and_results_have_types():
    class Bill(BaseModel):
        due: date
        amount: float

    async def played() -> None:
        keys: list[str] = []
        kinds: list[str] = []

        def in_a_thread(key: str) -> Bill:
            keys.append(key)
            kinds.append(threading.current_thread().name)
            return Bill(due=date(2026, 5, 1), amount=3)

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            bill = await ctx.effect("bill", in_a_thread, type=Bill)
            assert isinstance(bill, Bill)
            days = await ctx.effect("days", lambda: asyncio.sleep(0, [bill.due]), type=list[date])
            await ctx.interrupt("?")
            return {"seen": [bill.amount, (days[0] + timedelta(days=1)).isoformat()]}

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        await stage.drive(run)
        await run.resume(1)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [3.0, "2026-05-02"]
        assert keys == [(await receipts(stage, run))[0].key]
        assert kinds[0].startswith("effects"), "a plain function may block; the loop of the run does not"

    run_async(played())


def test_nodes_in_threads_have_effects_too():
    async def played() -> None:
        def work(state: Note, ctx: BlockingContext) -> dict[str, Any]:
            return {"seen": [ctx.effect("plain", lambda: 1), ctx.effect("typed", lambda: "2", type=int)]}

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [1, 2]

    run_async(played())


def test_what_fails_is_on_record_and_raised_again():
    async def played() -> None:
        tries: list[int] = []

        def refuse() -> None:
            tries.append(1)
            raise ConnectionError("no route")

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            said: list[str] = []
            try:
                await ctx.effect("post", refuse)
            except EffectFailed as error:
                said += [error.name, error.error_type, error.error, str(error)]
            await ctx.interrupt("?")
            return {"seen": said}

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        await stage.drive(run)
        await run.resume(1)
        await stage.drive(run)
        assert (await run.result()).seen == [
            "post", "ConnectionError", "no route", "effect 'post': ConnectionError: no route",
        ]  # fmt: skip
        assert len(tries) == 1
        (receipt,) = await receipts(stage, run)
        assert (receipt.state, receipt.standing) == ("done", "failed")

    run_async(played())


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (object(), "Unable to serialize unknown type: <class 'object'>"),
        (float("nan"), "Out of range float"),
        ("\ud800", "surrogates"),
        ("x" * 2000, "the limit is 1000"),
    ],
)
def test_a_result_that_cannot_be_kept_is_told(monkeypatch: pytest.MonkeyPatch, result: Any, told: str):
    monkeypatch.setattr(own_effects, "RESULT_BYTES_MAX", 1000)

    async def played() -> None:
        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect("odd", lambda: result)

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        error = (await run.record()).error
        assert "effect 'odd': " in error
        assert "it was performed, but its result cannot be kept" in error
        assert told in error

    run_async(played())


@pytest.mark.parametrize(
    ("name", "fn", "more", "told"),
    [
        ("", len, {}, "wants a name"),
        ("a\0b", len, {}, "the name of an effect, 'a\\x00b' has a NUL"),
        ("x" * 1001, len, {}, "has 1001 bytes, and 1000 is the limit"),
        ("x", 3, {}, "wants a function that performs it, not 3"),
        ("x", len, {"reconcile": 3}, "reconcile is a function of the effect key"),
        ("x", len, {"about": object()}, "about= is not JSON"),
    ],
)
def test_what_cannot_be_meant_is_told(name: str, fn: Any, more: dict[str, Any], told: str):
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect(name, fn, **more)

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert told in (await run.record()).error

    run_async(played())


def test_a_coroutine_in_the_place_of_a_function_is_told():
    async def played() -> None:
        async def ask() -> None: ...

        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect("ask", ask())  # type: ignore[arg-type]

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert "give the function, and do not call it" in (await run.record()).error

    run_async(played())


# --- a later attempt -----------------------------------------------------------------------------------------------


def test_a_retried_node_reuses_what_went_well_and_makes_again_what_failed():
    async def played() -> None:
        keys: dict[str, list[str]] = {"good": [], "bad": []}

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            async def good(key: str) -> int:
                keys["good"].append(key)
                return 1

            async def bad(key: str) -> int:
                keys["bad"].append(key)
                if len(keys["bad"]) < 3:
                    raise ConnectionError("again, please")
                return 2

            return {"seen": [await ctx.effect("good", good), await ctx.effect("bad", bad)]}

        stage = Stage(MemoryStore(), graph_of(work, retry=Retry(attempts=3, base_s=0, on=(ConnectionError,))))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [1, 2]
        assert len(keys["good"]) == 1
        assert len(set(keys["bad"])) == 3, "each attempt under a name of its own: it is known to have failed"

    run_async(played())


# --- nobody knows --------------------------------------------------------------------------------------------------


def at_work(**declared: Any) -> tuple[Stage, asyncio.Event, asyncio.Event, list[str]]:
    """A stage whose effect waits for a signal; what it was called with."""
    begun, go, keys = asyncio.Event(), asyncio.Event(), list[str]()

    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        async def slow(key: str) -> str:
            keys.append(key)
            begun.set()
            await go.wait()
            return f"call {len(keys)}"

        return {"seen": [await ctx.effect("slow", slow, **declared)]}

    return Stage(MemoryStore(), graph_of(work)), begun, go, keys


def test_a_question_does_not_cancel_what_a_task_group_has_beside_it():
    """It takes the question for an error; what it then ended was unknown to everybody, and a person was asked."""

    async def played() -> None:
        thoughts: list[str] = []
        tools = {"pay": lambda order: thoughts.append(order) or f"paid {order}"}

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            asked = asyncio.Event()

            async def think() -> str:
                await asked.wait()
                for _ in range(20):  # the group has heard of it by then
                    await asyncio.sleep(0)
                thoughts.append("thought")
                return "deep"

            async def ask() -> Any:
                try:
                    return await ctx.interrupt("go on?")
                finally:
                    asked.set()

            async def wait_for(begun: Any) -> Any:
                return await begun

            async with asyncio.TaskGroup() as group:
                begun = [ctx.effect("think", think), ctx.call(pay, order="A1"), ask()]
                tasks = [group.create_task(wait_for(each)) for each in begun]
            return {"seen": [task.result() for task in tasks]}

        final = await graph_of(work).run_inline_async(answers={"work": "yes"}, tools=tools)
        assert final.seen == ["deep", "paid A1", "yes"]
        assert sorted(thoughts) == ["A1", "thought"]

    run_async(played())


def test_a_cancelled_run_ends_what_is_at_work_beside_a_question():
    async def played() -> None:
        ended: list[str] = []
        begun = asyncio.Event()

        async def work(state: Note, ctx: Context) -> None:
            async def hang() -> None:
                try:
                    begun.set()
                    await asyncio.Event().wait()
                finally:
                    ended.append("hang")

            await asyncio.gather(ctx.effect("hang", hang), ctx.interrupt("go on?"))

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await begun.wait()
        driver.cancel()
        assert await driving == "cancelled"
        assert ended == ["hang"]

    run_async(played())


def test_an_idempotent_effect_is_made_again_under_the_same_key():
    async def played() -> None:
        stage, begun, go, keys = at_work(idempotent=True)
        run = await stage.start()
        await interrupted_in(stage, run, begun)
        (before,) = await receipts(stage, run)
        assert before.standing == "started"
        go.set()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["call 2"]
        assert keys == [before.key] * 2
        outcomes = [e.data["outcome"] for e in await stage.store.events(run.run_id) if e.kind == "effect_finished"]
        assert outcomes == ["unknown", "ok"]

    run_async(played())


@pytest.mark.parametrize(
    ("told", "seen", "calls"),
    [(Done("it was there"), ["it was there"], 1), (NeverHappened(), ["call 2"], 2), (NeverHappened, ["call 2"], 2)],
)
def test_the_outside_is_asked(told: Any, seen: list[str], calls: int):
    async def played() -> None:
        asked: list[str] = []

        async def look(key: str) -> Any:
            asked.append(key)
            return told

        stage, begun, go, keys = at_work(reconcile=look)
        run = await stage.start()
        await interrupted_in(stage, run, begun)
        go.set()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == seen
        assert asked == keys[:1]
        assert len(keys) == calls
        (receipt,) = await receipts(stage, run)
        assert receipt.standing == "done"

    run_async(played())


@pytest.mark.parametrize("how", ["nothing declared", "unsure", "raises", "nonsense"])
@pytest.mark.parametrize(
    ("answer", "ends", "calls", "standing"),
    [
        ("retry", "succeeded", 2, "done"),
        ({"value": "seen it"}, "succeeded", 1, "done"),
        ("fail", "failed", 1, "unknown"),
    ],
)
def test_a_person_is_asked(how: str, answer: Any, ends: str, calls: int, standing: str):
    async def played() -> None:
        def look(key: str) -> Any:
            if how == "raises":
                raise TimeoutError("the bank does not answer")
            return Unsure("no such order, yet") if how == "unsure" else None

        stage, begun, go, keys = at_work(**({} if how == "nothing declared" else {"reconcile": look}))
        run = await stage.start()
        await interrupted_in(stage, run, begun)
        go.set()
        assert await stage.drive(run) == "waiting"
        (question,) = open_questions(await run.record())
        assert question.kind == "unknown"
        assert "the run's process died during this effect (slow())" in question.payload["question"]
        words = {
            "unsure": "no such order, yet",
            "raises": "the bank does not answer",
            "nonsense": "reconcile told None",
        }
        assert words.get(how, "nobody knows") in question.payload["question"]
        assert len(keys) == 1, "it is not made again before somebody has answered"
        await run.resume(answer)
        assert await stage.drive(run) == ends
        assert len(keys) == calls
        (receipt,) = await receipts(stage, run)
        assert receipt.standing == standing
        told = [e.data["by"] for e in await stage.store.events(run.run_id) if e.kind == "reconciled"]
        assert told == ([] if answer == "retry" else ["person"])

    run_async(played())


@pytest.mark.parametrize("by", ["a person", "the other side"])
def test_a_value_that_is_no_result_is_not_taken(by: str):
    async def played() -> None:
        look = (lambda: Done("seven")) if by == "the other side" else None
        stage, begun, go, keys = at_work(type=int, reconcile=look)
        run = await stage.start()
        await interrupted_in(stage, run, begun)
        go.set()
        assert await stage.drive(run) == "waiting"
        (first,) = open_questions(await run.record())
        assert ("'seven' does not fit its type" in first.payload["question"]) == (by == "the other side")
        await run.resume({"value": "eight"})
        assert await stage.drive(run) == "waiting"
        (again,) = open_questions(await run.record())
        assert again.interrupt_id != first.interrupt_id
        assert '"eight" does not fit its type' in again.payload["problem"]
        await run.resume({"value": 8})
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [8]
        assert len(keys) == 1

    run_async(played())


def test_a_late_end_is_knowledge():
    """The owner that lost the run was only slow: what its effect came to is taken, and nobody is asked."""

    async def played() -> None:
        stage, begun, _, keys = at_work()
        run = await stage.start()
        await interrupted_in(stage, run, begun)
        (receipt,) = await receipts(stage, run)
        place = (run.run_id, receipt.key, receipt.checkpoint_id, receipt.token)
        outcome = '{"kind": "ok", "value": "late"}'
        assert await stage.store.finish(*place, outcome, [], {}, stage.clock())
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["late"]
        assert len(keys) == 1

    run_async(played())


def test_a_cancelled_effect_is_unknown_and_a_thread_that_goes_on_spoils_its_process():
    async def played() -> None:
        begun, go = threading.Event(), threading.Event()

        def stuck() -> None:
            begun.set()
            go.wait(30)

        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect("stuck", stuck)

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())

        async def has_begun() -> bool:
            return begun.is_set()

        await wait_until_async(has_begun, 10, "the effect to begin")
        driver.cancel()
        assert await driving == "cancelled"
        go.set()
        assert driver.dirty, "its thread cannot be stopped"
        (receipt,) = await receipts(stage, run)
        assert receipt.standing == "unknown"

    run_async(played())


# --- laws ----------------------------------------------------------------------------------------------------------


class Flaky:
    """A store whose `finish` fails some times, or whose commits wait for a signal."""

    def __init__(self, store: Store, finishes_to_fail: int = 0) -> None:
        self.store = store
        self.left = finishes_to_fail
        self.open = asyncio.Event()
        self.open.set()
        self.begun: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def finish(self, *args: Any) -> bool:
        if self.left:
            self.left -= 1
            raise StoreUnavailable("away")
        return await self.store.finish(*args)

    async def commit(self, *commits: Any) -> Any:
        await self.open.wait()
        return await self.store.commit(*commits)

    async def begin(self, receipt: Receipt, *more: Any) -> Any:
        self.begun.append(receipt.tool)
        return await self.store.begin(receipt, *more)


def test_an_outcome_is_not_lost_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_effects, "PAUSE_S", 0.001)

    async def played() -> None:
        done: list[int] = []

        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect("post", lambda: done.append(1))

        store = Flaky(MemoryStore(), finishes_to_fail=5)
        stage = Stage(store, graph_of(work))  # type: ignore[arg-type]
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert done == [1]

    run_async(played())


def test_nothing_leaves_before_what_it_stands_on_is_durable():
    """Law 3: the second node runs while the first one's commit is on its way; its effect waits for it."""

    async def played() -> None:
        at: list[str] = []

        async def second(state: Note, ctx: Context) -> None:
            at.append("second runs")
            await ctx.effect("post", lambda: at.append("post"))

        graph = Graph("order", Note)
        graph.node(lambda state: {"seen": ["first"]}, name="first")
        graph.node(second, name="second")
        graph.edge(START, "first").edge("first", "second").edge("second", END)
        store = Flaky(MemoryStore())
        stage = Stage(store, graph)  # type: ignore[arg-type]
        run = await stage.start()
        store.open.clear()
        driving = asyncio.ensure_future(stage.drive(run))

        async def runs() -> bool:
            return bool(at)

        await wait_until_async(runs, 10, "the second node to run")
        for _ in range(50):
            await asyncio.sleep(0)
        assert (at, store.begun) == (["second runs"], [])
        store.open.set()
        assert await driving == "succeeded"
        assert (at, store.begun) == (["second runs", "post"], ["effect:post"])

    run_async(played())


def test_another_effect_in_the_same_place_is_noticed_and_both_are_named():
    async def played() -> None:
        prompt, done = ["summarise A"], list[str]()

        async def work(state: Note, ctx: Context) -> None:
            await ctx.effect("model", lambda: done.append(prompt[0]), about={"prompt": prompt[0]})
            await ctx.interrupt("?")

        stage = Stage(MemoryStore(), graph_of(work))
        run = await stage.start()
        await stage.drive(run)
        prompt[0] = "summarise B"
        await run.resume(1)
        assert await stage.drive(run) == "failed"
        error = (await run.record()).error
        assert "asks for another call of effect 'model' than the one on record in this place" in error
        assert 'on record is model(about={"prompt": "summarise A"}), which is done' in error
        assert 'now it asks for model(about={"prompt": "summarise B"})' in error
        assert done == ["summarise A"]

    run_async(played())
