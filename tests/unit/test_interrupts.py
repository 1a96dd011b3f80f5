"""Questions to people: schemas, deadlines that deny, continue or escalate, several at once; and nothing done twice."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Continue, Escalate, Graph, InterruptExpired, append, tool
from understudy.actors.errors import CallerError, Conflict, NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Interrupt
from understudy.cluster.client import Run, open_questions

HOUR = timedelta(hours=1)


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


class Verdict(BaseModel):
    """What a person says."""

    ok: bool
    limit: Annotated[int, Field(ge=0)] = 0
    who: Literal["boss", "clerk"] = "clerk"

    @field_validator("limit")
    @classmethod
    def even(cls, value: int) -> int:
        """No JSON schema says this."""
        if value % 2:
            raise ValueError("limits are even")
        return value


@tool
def pay(order: str) -> str:
    """Pays."""
    return f"paid {order}"


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def on_stage(work: Callable[..., Any]) -> tuple[Stage, Clock]:
    graph = Graph("asks", Note)
    graph.node(work, name="work")
    graph.edge(START, "work").edge("work", END)
    clock = Clock()
    return Stage(MemoryStore(), graph, clock=clock).tools(pay), clock


async def waiting(stage: Stage) -> tuple[Run, Interrupt]:
    run = await stage.start()
    assert await stage.drive(run) == "waiting"
    (question,) = open_questions(await run.record())
    return run, question


# --- schemas -------------------------------------------------------------------------------------------------------


def test_an_answer_is_of_the_type_that_was_asked_for():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            verdict = await ctx.interrupt("may I?", schema=Verdict)
            assert isinstance(verdict, Verdict)
            return {"seen": [verdict.limit, verdict.who]}

        stage, _ = on_stage(work)
        run, question = await waiting(stage)
        assert question.schema["properties"]["limit"]["minimum"] == 0
        await run.resume({"ok": True, "limit": 4})
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [4, "clerk"]

    run_async(played())


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("yes", "'yes' is not of type 'object'"),
        ({}, "'ok' is a required property"),
        ({"ok": True, "limit": -2}, "at $.limit: -2 is less than the minimum of 0"),
        ({"ok": True, "who": "me"}, "at $.who: 'me' is not one of"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_before_it_is_stored(answer: Any, told: str):
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> None:
            await ctx.interrupt("may I?", schema=Verdict)

        stage, _ = on_stage(work)
        run, question = await waiting(stage)
        for named in ("", question.interrupt_id):
            with pytest.raises(CallerError) as caught:
                await run.resume(answer, named)
            assert told in str(caught.value)
            assert f"question {question.interrupt_id} of node 'work'" in str(caught.value)
        record = await run.record()
        assert (record.status, record.answers) == ("waiting", {})

    run_async(played())


def test_what_no_schema_can_say_is_asked_again_with_what_is_wrong():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            verdict = await ctx.interrupt({"may I": "?"}, schema=Verdict)
            return {"seen": [verdict.limit]}

        stage, _ = on_stage(work)
        run, first = await waiting(stage)
        await run.resume({"ok": True, "limit": 3})
        assert await stage.drive(run) == "waiting"
        (again,) = open_questions(await run.record())
        assert again.interrupt_id != first.interrupt_id
        assert again.payload == {"may I": "?", "problem": "limit: Value error, limits are even"}
        await run.resume({"ok": True, "limit": 4})
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [4]

    run_async(played())


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"payload": object()}, "the payload is not JSON"),
        ({"schema": object()}, "schema is a pydantic model or a type"),
        ({"deadline": 3}, "the deadline of ctx.interrupt is a timedelta, not 3"),
        ({"deadline": timedelta.max}, "past any calendar; 36500 days are the most"),
        ({"on_timeout": Continue(1)}, "without a deadline would never come"),
        ({"on_timeout": "deny", "deadline": HOUR}, "on_timeout is Continue(value), Escalate(payload, ...) or None"),
        ({"on_timeout": Continue("no"), "deadline": HOUR, "schema": Verdict}, "Continue('no') is no answer to it"),
        ({"on_timeout": Escalate(object()), "deadline": HOUR}, "the payload is not JSON"),
        ({"on_timeout": Escalate("b", on_timeout=Continue(1)), "deadline": HOUR}, "without a deadline would never"),
    ],
)
def test_what_cannot_be_meant_is_told_when_it_is_asked(how: dict[str, Any], told: str):
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> None:
            await ctx.interrupt(**{"payload": "?", **how})

        stage, _ = on_stage(work)
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        error = (await run.record()).error
        assert told in error
        assert "ctx.interrupt" in error

    run_async(played())


# --- deadlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no", [Continue(Verdict(ok=False)), Continue({"ok": False})])
def test_time_can_go_on_with_an_answer(no: Continue):
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            verdict = await ctx.interrupt("may I?", deadline=HOUR, on_timeout=no, schema=Verdict)
            await ctx.interrupt("and now?")
            return {"seen": [verdict.ok]}

        stage, clock = on_stage(work)
        run, question = await waiting(stage)
        assert question.on_timeout == {"continue": {"ok": False, "limit": 0, "who": "clerk"}}
        clock.now += 3601
        assert await stage.drive(run) == "waiting"
        clock.now -= 7200  # a clock that is set back does not un-expire it
        await run.resume("go")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [False]

    run_async(played())


def test_a_question_escalates_twice_and_is_denied_at_last():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            to_the_boss = Escalate({"to": "boss"}, HOUR, Escalate({"to": "board"}, HOUR))
            try:
                return {"seen": [await ctx.interrupt({"to": "clerk"}, deadline=HOUR, on_timeout=to_the_boss)]}
            except InterruptExpired as error:
                return {"seen": ["denied", str(error)]}

        stage, clock = on_stage(work)
        run, question = await waiting(stage)
        ids = [question.interrupt_id]
        for to in ("boss", "board"):
            clock.now += 3600
            assert (await stage.store.due(clock.now, 10)).ready == (run.run_id,)
            assert await stage.drive(run) == "waiting"
            (question,) = open_questions(await run.record())
            assert question.payload == {"to": to}
            assert question.deadline == clock.now + 3600
            with pytest.raises((NotFound, Conflict)):
                await run.resume("too late", ids[-1])
            ids.append(question.interrupt_id)
        told = [e.data for e in await stage.store.events(run.run_id) if e.kind == "escalated"]
        assert [(t["interrupt_id"], t["to"]) for t in told] == [(ids[0], ids[1]), (ids[1], ids[2])]
        clock.now += 3600
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen[0] == "denied"
        assert ids[2] in (await run.result()).seen[1]

    run_async(played())


def test_whoever_it_was_escalated_to_answers():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            answer = await ctx.interrupt("a", deadline=HOUR, on_timeout=Escalate("b"), schema=int)
            return {"seen": [answer]}

        stage, clock = on_stage(work)
        run, _ = await waiting(stage)
        clock.now += 3600
        await stage.drive(run)
        with pytest.raises(CallerError, match="is not of type 'integer'"):
            await run.resume("seven")
        await run.resume(7)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [7]

    run_async(played())


def test_an_answer_that_comes_too_late_does_not_lead_another_way():
    """The deadline passes, the node acts on it and is killed; then somebody answers. What was acted on stands."""

    async def played() -> None:
        acted = asyncio.Event()
        hold = [True]

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            try:
                await ctx.interrupt("hello?", deadline=HOUR)
                return {"seen": ["answered"]}
            except InterruptExpired:
                paid = await ctx.call(pay, order="without an answer")
                if hold[0]:
                    acted.set()
                    await asyncio.Event().wait()
                return {"seen": [paid]}

        stage, clock = on_stage(work)
        run, question = await waiting(stage)
        clock.now += 3600
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await asyncio.wait_for(acted.wait(), 10)
        driving.cancel()
        await asyncio.wait([driving])
        await stage.crash(run)
        await stage.store.resume(run.run_id, question.interrupt_id, '"here I am"', clock.now)
        hold[0] = False
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["paid without an answer"]
        assert len(stage.sandboxes.calls) == 1

    run_async(played())


def test_an_answer_that_was_faster_than_time_is_taken():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            return {"seen": [await ctx.interrupt("hello?", deadline=HOUR)]}

        stage, clock = on_stage(work)
        run, question = await waiting(stage)
        clock.now += 3600
        driver = await stage.driver(run)  # has loaded the question as it stands: without an answer, and due
        await stage.store.resume(run.run_id, question.interrupt_id, json.dumps("just in time"), clock.now)
        assert await driver.drive() == "succeeded"
        assert (await run.result()).seen == ["just in time"]

    run_async(played())


# --- several, and what was before them -----------------------------------------------------------------------------


def test_several_at_once_are_answered_in_any_order_and_nothing_is_done_again():
    async def played() -> None:
        done: list[str] = []

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            await ctx.call(pay, order="before")
            await ctx.effect("note", lambda: done.append("before"))
            one, two, three = await asyncio.gather(
                ctx.interrupt("one", schema=int), ctx.interrupt("two", schema=str), ctx.interrupt("three")
            )
            await ctx.effect("note", lambda: done.append(f"after {one} {two} {three}"))
            return {"seen": [one, two, three]}

        stage, _ = on_stage(work)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        questions = {q.payload: q.interrupt_id for q in open_questions(await run.record())}
        with pytest.raises(Conflict, match="3 open questions"):
            await run.resume(1)
        for payload, answer in (("three", [3]), ("one", 1), ("two", "2")):
            await run.resume(answer, questions.pop(payload))
            assert await stage.drive(run) == ("waiting" if questions else "succeeded")
            assert {q.payload for q in open_questions(await run.record())} == set(questions)
        assert (await run.result()).seen == [1, "2", [3]]
        assert done == ["before", "after 1 2 [3]"]
        assert len(stage.sandboxes.calls) == 1
        kinds = await stage.kinds(run)
        assert (kinds.count("interrupted"), kinds.count("answered")) == (3, 3)

    run_async(played())


def test_nothing_runs_again_before_there_is_an_answer():
    """Law 4 with a crash while the run waits: the node runs again only with an answer, and its effects do not."""

    async def played() -> None:
        ran: list[str] = []

        async def work(state: Note, ctx: Context) -> dict[str, Any]:
            ran.append("work")
            paid = await ctx.call(pay, order="A1")
            answer = await ctx.interrupt(paid)
            return {"seen": [answer, await ctx.call(pay, order="A2")]}

        stage, clock = on_stage(work)
        run, question = await waiting(stage)
        assert question.payload == "paid A1"
        for _ in range(3):  # whoever looks for work finds none here
            clock.now += 86400 * 365
            assert not (await stage.store.due(clock.now, 10)).ready
        assert (ran, len(stage.sandboxes.calls)) == (["work"], 1)
        await run.resume("fine")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["fine", "paid A2"]
        assert [args["order"] for _, args in stage.sandboxes.calls] == ["A1", "A2"]

    run_async(played())


def test_what_comes_by_itself_is_not_answered_by_people():
    async def played() -> None:
        async def work(state: Note, ctx: Context) -> None:
            await ctx.sleep(HOUR)

        stage, _ = on_stage(work)
        run = await stage.start()
        await stage.drive(run)
        (timer,) = (await run.record()).interrupts
        with pytest.raises(Conflict, match="is a timer: nobody answers it"):
            await run.resume("wake up", timer.interrupt_id)

    run_async(played())
