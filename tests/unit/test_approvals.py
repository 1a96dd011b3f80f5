"""Calls that the policy asks about: approved, denied, changed, or answered; for the very call, once, by somebody."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage, YesPolicy
from support.waiting import run_async, wait_until_async
from understudy import END, START, Context, Graph, Outcome, Retry, ToolDenied, append, tool
from understudy.actors.approvals import Approval, approval_answer, read_approval
from understudy.actors.calls import Asked, Granted, Refused, Verdict
from understudy.actors.errors import CallerError, Fenced, NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Event, Interrupt
from understudy.cluster.client import Run, open_questions
from understudy.policies.permission import Request


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


class Receipt(BaseModel):
    id: str
    amount: int


@tool
def pay(order: str, amount: int = 100) -> Receipt:
    """Money leaves the house."""
    return Receipt(id=f"R-{order}", amount=amount)


def up_to(most: int) -> Callable[[Request, bool], Verdict]:
    """Asks about every payment; refuses what is too much, whoever approves it."""

    def judge(request: Request, approved: bool) -> Verdict:
        if int(str(request.args["amount"])) > most:
            return Refused("limit", "test", f"more than {most}")
        return Granted("t", "ask-pay", "test") if approved else Asked("ask-pay", "test", "money leaves the house")

    return judge


def on_stage(work: Callable[..., Any], most: int = 1000, **node: Any) -> Stage:
    graph = Graph("pays", Note)
    graph.node(work, name="work", **node)
    graph.edge(START, "work").edge("work", END)
    return Stage(MemoryStore(), graph, policy=YesPolicy({"pay": up_to(most)})).tools(pay)


async def one_payment(state: Note, ctx: Context) -> dict[str, Any]:
    paid = await ctx.call(pay, order="A1")
    return {"seen": [paid.id, paid.amount]}


async def asked(stage: Stage, run: Run) -> Interrupt:
    assert await stage.drive(run) == "waiting"
    (call,) = open_questions(await run.record())
    assert call.kind == "approval"
    return call


async def decisions(stage: Stage, run: Run) -> list[Event]:
    return [e for e in await stage.store.events(run.run_id) if e.kind == "decided"]


def test_an_approval_says_who_and_why():
    async def played() -> None:
        stage = on_stage(one_payment)
        run = await stage.start()
        call = await asked(stage, run)
        await run.approve(call.interrupt_id, note="order checked", by="ann")
        assert await stage.drive(run) == "succeeded"
        ask, allow = await decisions(stage, run)
        assert (ask.data["decision"], ask.data["by"], ask.data["digest"]) == ("ask", "policy", call.digest)
        assert (allow.data["decision"], allow.data["by"]) == ("allow", "a person (ann)")
        assert allow.data["reason"] == "approved by a person (ann): order checked"
        assert allow.data["call"] == 'pay(order="A1", amount=100)'
        assert allow.data["digest"] == call.digest

    run_async(played())


def test_a_denial_says_who_and_why_and_stands():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            said = []
            for _ in range(2):
                try:
                    await ctx.call(pay, order="A1")
                except ToolDenied as error:
                    said.append(str(error))
                    await ctx.interrupt("?")
                    break
            return {"seen": said}

        stage = on_stage(work)
        run = await stage.start()
        call = await asked(stage, run)
        await run.deny(call.interrupt_id, note="wrong customer", by="ann")
        assert await stage.drive(run) == "waiting"
        with pytest.raises(NotFound, match="has no call"):
            await run.approve(call.interrupt_id)
        await run.resume("go on")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["tool 'pay': denied: a person said no: wrong customer"]
        assert not stage.sandboxes.calls
        assert [(d.data["decision"], d.data["by"]) for d in await decisions(stage, run)] == [
            ("ask", "policy"), ("deny", "a person (ann)"),
        ]  # fmt: skip

    run_async(played())


# --- other arguments -----------------------------------------------------------------------------------------------


def test_a_changed_call_is_made_instead_and_has_a_digest_of_its_own():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            paid = await ctx.call(pay, order="A1")
            await ctx.interrupt("?")  # so that the node runs again, and finds the changed call's receipt
            return {"seen": [paid.id, paid.amount]}

        stage = on_stage(work)
        run = await stage.start()
        call = await asked(stage, run)
        await run.approve(call.interrupt_id, args={"amount": 40}, by="ann")
        assert await stage.drive(run) == "waiting"
        await run.resume("go on")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["R-A1", 40]
        assert stage.sandboxes.calls == [("pay", {"order": "A1", "amount": 40})]
        (receipt,) = await stage.store.receipts(run.run_id)
        judged = [request.digest for request in stage.policy.asked]
        assert judged[0] == call.digest
        assert judged[-1] == receipt.digest != call.digest
        told = (await decisions(stage, run))[-1].data
        assert told["call"] == 'pay(order="A1", amount=40)'
        assert told["reason"] == "approved by a person (ann), with other arguments"

    run_async(played())


def test_a_changed_call_is_judged_again():
    async def played() -> None:
        stage = on_stage(one_payment, most=500)
        run = await stage.start()
        call = await asked(stage, run)
        await run.approve(call.interrupt_id, args={"amount": 600})
        assert await stage.drive(run) == "failed"
        assert "denied: more than 500" in (await run.record()).error
        assert not stage.sandboxes.calls

    run_async(played())


def test_changed_arguments_that_do_not_fit_are_asked_about_again():
    async def played() -> None:
        stage = on_stage(one_payment)
        run = await stage.start()
        first = await asked(stage, run)
        with pytest.raises(CallerError, match="has no argument 'amuont'; it has order, amount"):
            await run.approve(first.interrupt_id, args={"amuont": 3})
        await run.approve(first.interrupt_id, args={"amount": "three"})
        again = await asked(stage, run)
        assert again.interrupt_id != first.interrupt_id
        assert "argument 'amount': what is given (a str) does not fit" in again.payload["problem"]
        assert again.payload["args"] == {"order": "A1", "amount": 100}
        await run.approve(again.interrupt_id, args={"amount": 3})
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["R-A1", 3]

    run_async(played())


# --- an answer in its place ----------------------------------------------------------------------------------------


def test_a_person_answers_in_the_tools_place():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            outcome: Outcome = await ctx.outcome(pay, order="A1")
            paid = await ctx.call(pay, order="A2")
            return {"seen": [outcome.kind, outcome.value["id"], outcome.note, paid.amount]}

        stage = on_stage(work)
        run = await stage.start()
        await run_through(stage, run, {"id": "by hand", "amount": 7}, by="ann")
        call = await asked(stage, run)
        await run.answer_call(call.interrupt_id, {"id": "x", "amount": 9})
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["ok", "by hand", "answered by a person (ann)", 9]
        assert not stage.sandboxes.calls, "nothing is executed"
        told = [(d.data["decision"], d.data["by"]) for d in await decisions(stage, run)]
        assert told == [
            ("ask", "policy"), ("answer", "a person (ann)"), ("ask", "policy"), ("answer", "a person"),
        ]  # fmt: skip

    async def run_through(stage: Stage, run: Run, value: Any, by: str) -> None:
        call = await asked(stage, run)
        await run.answer_call(call.interrupt_id, value, by=by)

    run_async(played())


def test_an_answer_that_is_no_result_of_the_tool_is_asked_for_again():
    async def played() -> None:
        stage = on_stage(one_payment)
        run = await stage.start()
        first = await asked(stage, run)
        await run.answer_call(first.interrupt_id, "paid, trust me")
        again = await asked(stage, run)
        assert "tool 'pay' answered" in again.payload["problem"]
        await run.answer_call(again.interrupt_id, {"id": "R", "amount": 1})
        assert await stage.drive(run) == "succeeded"

    run_async(played())


# --- the very call, once -------------------------------------------------------------------------------------------


def test_an_approval_is_not_good_for_other_arguments():
    """The model wants something else after the approval: that is another call, and nobody has approved it."""

    async def played() -> None:
        wish = ["A1"]

        async def work(state: Note, ctx: Context) -> None:
            await ctx.call(pay, order=wish[0])

        stage = on_stage(work)
        run = await stage.start()
        first = await asked(stage, run)
        wish[0] = "B2"
        await run.approve(first.interrupt_id)
        second = await asked(stage, run)
        assert second.interrupt_id != first.interrupt_id
        assert second.payload["args"]["order"] == "B2"
        assert not stage.sandboxes.calls

    run_async(played())


def test_an_approval_is_not_good_for_another_version_of_the_tool():
    """The tool was changed and deployed while a person thought about it: what they approved is not what would run."""

    @tool(name="pay")
    def pay_twice(order: str, amount: int = 100) -> Receipt:
        """Money leaves the house, twice."""
        return Receipt(id=f"R-{order}", amount=2 * amount)

    async def played() -> None:
        deployed = [pay]

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            return {"seen": [(await ctx.call(deployed[0], order="A1")).amount]}

        stage = on_stage(work)
        run = await stage.start()
        first = await asked(stage, run)
        deployed[0] = pay_twice
        await run.approve(first.interrupt_id)
        second = await asked(stage, run)
        assert second.digest != first.digest
        assert second.payload["args"] == first.payload["args"]
        assert not stage.sandboxes.calls

    run_async(played())


def test_an_approval_is_good_for_one_attempt():
    """The call was approved, made, and failed; the node is tried again: that is another payment."""

    async def played() -> None:
        calls: list[int] = []

        @tool(name="pay")
        def flaky(order: str, amount: int = 100) -> int:
            calls.append(amount)
            if len(calls) == 1:
                raise ConnectionError("no answer")
            return amount

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            return {"seen": [await ctx.call(flaky, order="A1")]}

        stage = on_stage(work, retry=Retry(attempts=2, base_s=0))
        run = await stage.start()
        first = await asked(stage, run)
        await run.approve(first.interrupt_id)
        second = await asked(stage, run)
        assert second.interrupt_id != first.interrupt_id
        assert len(calls) == 1
        await run.approve(second.interrupt_id)
        assert await stage.drive(run) == "succeeded"
        assert len(calls) == 2

    run_async(played())


def test_an_approval_survives_the_death_of_the_owner_and_is_used_once():
    async def played() -> None:
        stage = on_stage(one_payment)
        run = await stage.start()
        call = await asked(stage, run)
        await run.approve(call.interrupt_id)
        with pytest.raises(NotFound, match="waiting calls: none"):
            await run.deny(call.interrupt_id)
        stage.sandboxes.hold = asyncio.Event()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await stage.sandboxes.called.wait()
        driver.fence()
        with pytest.raises(Fenced):
            await driving
        await stage.crash(run)
        stage.sandboxes.hold.set()
        stage.sandboxes.hold = None

        async def done() -> bool:
            return (await stage.store.receipts(run.run_id))[0].state == "done"

        await wait_until_async(done, 10, "the call to end without its owner")
        assert await stage.drive(run) == "succeeded"
        assert stage.sandboxes.calls == [("pay", {"order": "A1", "amount": 100})]

    run_async(played())


@pytest.mark.parametrize(
    "answer",
    [
        *({"approve": said} for said in (1, "true", "yes", [True], {"a": 1}, None, False)),
        *({"approve": True, "args": args} for args in ("amount=1", [1], 5, True)),
        *(True, "approve", 1, None, [], ["approve"], {}, {"Approve": True}),
    ],
)
def test_whatever_is_not_plainly_a_yes_is_a_no(answer: Any):
    assert not read_approval(answer).approve


def test_a_plain_yes_is_one():
    assert read_approval({"approve": True}).approve
    assert read_approval(approval_answer(Approval(True, {"amount": 1}))).args == {"amount": 1}
