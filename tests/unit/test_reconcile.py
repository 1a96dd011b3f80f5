"""Tools that can tell how a call ended (`@tool(reconcile=...)`): asked in a sandbox, under the same rules."""

import asyncio
import os
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage, YesPolicy
from support.waiting import run_async
from understudy import END, START, Context, Done, EndUnknown, Graph, NeverHappened, append, tool
from understudy.actors.calls import Asked, Granted, Refused
from understudy.actors.errors import Fenced
from understudy.actors.memory import MemoryStore
from understudy.actors.tool import Tool
from understudy.cluster.client import Run, open_questions


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


class Bank:
    """What the outside knows, and was asked."""

    def __init__(self, told: Any) -> None:
        self.told = told
        self.asked: list[tuple[str, str]] = []
        """Order and effect key of every question."""
        self.paid: list[tuple[str, str]] = []

    def tool(self) -> "Tool[..., Any]":
        def look(order: str) -> Any:
            self.asked.append((order, os.environ["UNDERSTUDY_EFFECT_KEY"]))
            if isinstance(self.told, Exception):
                raise self.told
            return self.told

        @tool(reconcile=look)
        def pay(order: str) -> str:
            self.paid.append((order, os.environ["UNDERSTUDY_EFFECT_KEY"]))
            return f"paid {len(self.paid)}"

        return pay


def on_stage(pay: "Tool[..., Any]", policy: YesPolicy | None = None) -> Stage:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(pay, order="A1")]}

    graph = Graph("pays", Note)
    graph.node(work, name="work")
    graph.edge(START, "work").edge("work", END)
    assert pay.reconciler is not None
    return Stage(MemoryStore(), graph, policy=policy or YesPolicy()).tools(pay, pay.reconciler)


async def unknown(stage: Stage) -> Run:
    """A run whose call was at work when its sandbox and its owner died."""
    run = await stage.start()
    stage.sandboxes.hold = asyncio.Event()
    driver = await stage.driver(run)
    driving = asyncio.ensure_future(driver.drive())
    await stage.sandboxes.called.wait()
    driver.fence()
    with pytest.raises(Fenced):
        await driving
    stage.sandboxes.hold = None
    await stage.crash(run)
    return run


@pytest.mark.parametrize(
    ("told", "ends", "times"), [(Done("paid long ago"), "succeeded", 1), (NeverHappened(), "succeeded", 2)]
)
def test_a_tool_that_got_no_answer_says_that_it_does_not_know(told: Any, ends: str, times: int) -> None:
    async def played() -> None:
        tried: list[str] = []

        @tool(reconcile=lambda order: told)
        def pay(order: str) -> str:
            tried.append(order)
            if len(tried) == 1:
                raise EndUnknown("the bank hung up")
            return "paid at last"

        stage = on_stage(pay)
        run = await stage.start()
        assert await stage.drive(run) == ends
        assert len(tried) == times
        assert (await run.state())["seen"] == ["paid long ago" if times == 1 else "paid at last"]
        told_of = [e.data for e in await stage.store.events(run.run_id) if e.kind == "tool_finished"]
        assert (told_of[0]["outcome"], told_of[0]["error"]) == ("unknown", "EndUnknown: the bank hung up")

    run_async(played())


@pytest.mark.parametrize("told", [{"done": "paid long ago"}, Done("paid long ago")])
def test_it_was_done(told: Any):
    async def played() -> None:
        bank = Bank(told)
        stage = on_stage(bank.tool())
        run = await unknown(stage)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["paid long ago"]
        assert bank.paid == []
        receipts = {r.tool: r for r in await stage.store.receipts(run.run_id)}
        assert bank.asked == [("A1", receipts["pay"].key)], "it is told the key of the call that it is about"
        assert receipts["pay"].standing == receipts["pay#reconcile"].standing == "done"
        told_of = [e.data for e in await stage.store.events(run.run_id) if e.kind == "reconciled"]
        assert [(t["answer"], t["by"]) for t in told_of] == [("done", "reconcile")]

    run_async(played())


@pytest.mark.parametrize("told", ["never happened", NeverHappened()])
def test_it_never_happened(told: Any):
    async def played() -> None:
        bank = Bank(told)
        stage = on_stage(bank.tool())
        run = await unknown(stage)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["paid 1"]
        assert bank.asked == bank.paid, "made again under the key that was asked about"

    run_async(played())


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "reconcile told None, which is none of Done(value), NeverHappened() and Unsure(why)"),
        ({"unsure": "two of them"}, "two of them"),
        (ConnectionError("the bank is closed"), "ended with error: ConnectionError: the bank is closed"),
    ],
)
def test_it_cannot_tell_so_a_person_is_asked(told: Any, words: str):
    async def played() -> None:
        bank = Bank(told)
        stage = on_stage(bank.tool())
        run = await unknown(stage)
        assert await stage.drive(run) == "waiting"
        (question,) = open_questions(await run.record())
        assert question.kind == "unknown"
        assert words in question.payload["question"]
        assert bank.paid == []
        await run.resume("retry")
        assert await stage.drive(run) == "succeeded"
        assert len(bank.asked) == 1, "what it told is on record"
        assert len(bank.paid) == 1

    run_async(played())


def test_the_policy_decides_about_the_question_as_about_the_call():
    async def played() -> None:
        verdicts = [Granted("t", "pay", "test"), Refused("pay", "test", "not any more")]
        policy = YesPolicy({"pay": lambda request, approved: verdicts.pop(0)})
        bank = Bank("never happened")
        pay = bank.tool()
        stage = on_stage(pay, policy)
        run = await unknown(stage)
        assert await stage.drive(run) == "waiting"
        (question,) = open_questions(await run.record())
        assert "pay#reconcile ended with denied: not any more" in question.payload["question"]
        assert bank.asked == bank.paid == []
        call, looking = policy.asked
        assert (looking.tool, looking.args) == (call.tool, call.args) == ("pay", {"order": "A1"})

    run_async(played())


def test_a_person_may_be_asked_about_the_question_too():
    async def played() -> None:
        def judge(request: Any, approved: bool) -> Any:
            return Granted("t", "pay", "test") if approved else Asked("pay", "test", "money")

        bank = Bank({"done": "paid"})
        stage = on_stage(bank.tool(), YesPolicy({"pay": judge}))
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        (call,) = open_questions(await run.record())
        await run.approve(call.interrupt_id)
        stage.sandboxes.hold = asyncio.Event()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await stage.sandboxes.called.wait()
        driver.fence()
        with pytest.raises(Fenced):
            await driving
        stage.sandboxes.hold = None
        await stage.crash(run)
        assert await stage.drive(run) == "waiting"
        (looking,) = open_questions(await run.record())
        assert (looking.kind, looking.payload["tool"]) == ("approval", "pay#reconcile"), "an approval is used once"
        await run.approve(looking.interrupt_id)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["paid"]

    run_async(played())


def test_a_question_of_other_arguments_is_told():
    async def played() -> None:
        def look(number: int) -> Any: ...

        def pay_(order: str) -> str:
            return "paid"

        pay: Callable[..., Any] = tool(name="pay", reconcile=look)(pay_)
        stage = on_stage(pay)  # type: ignore[arg-type]
        run = await unknown(stage)
        assert await stage.drive(run) == "waiting"
        (question,) = open_questions(await run.record())
        assert "tool 'pay#reconcile': missing a required argument: 'number'" in question.payload["question"]

    run_async(played())
