"""What policies ask for beyond yes and no, seen in runs: deadlines, redaction, history, and which text decided."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, RunFailed, ToolDenied, append, tool
from understudy.actors import run_history
from understudy.actors.errors import NotFound
from understudy.actors.inline import SteppedClock
from understudy.actors.inline_ports import RulesPolicy
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Event, Interrupt, open_questions
from understudy.actors.run_history import PAGE, RunHistories
from understudy.cluster.client import Run
from understudy.policies.history import ANYTHING, NOTHING
from understudy.policies.policy_file import load_policy


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


@tool
def pay(card: str, amount: int = 100) -> int:
    """Money leaves the house."""
    return amount


@tool
def read_secret() -> str:
    return "s3cret"


@tool
def send(text: str) -> str:
    return text


def begin(state: Note) -> None:
    """So that there is a checkpoint before the work."""


class Scene:
    """A run under real rules, at a time that is set by hand."""

    def __init__(self, rules: str, work: Callable[..., Any], extra: str = "") -> None:
        self.clock = SteppedClock(time.time() + 1)
        self.began = self.clock()
        self.store = MemoryStore()
        text = f"{{policy: shop, version: 7, {extra} rules: [{rules}]}}"
        self.rules = load_policy(text, source="shop.yaml")
        graph = Graph("shop", Note)
        graph.node(begin, name="begin")
        graph.node(work, name="work")
        graph.edge(START, "begin").edge("begin", "work").edge("work", END)
        port: Any = RulesPolicy([self.rules], self.store, self.clock)
        self.stage = Stage(self.store, graph, port, self.clock)

    async def events(self, run: Run, kind: str) -> list[Event]:
        return [event for event in await self.store.events(run.run_id) if event.kind == kind]

    async def question(self, run: Run) -> Interrupt:
        (found,) = open_questions(await run.record())
        return found


async def pays(state: Note, ctx: Context) -> dict[str, Any]:
    try:
        return {"seen": [await ctx.call(pay, card="4111-1111")]}
    except ToolDenied as denied:
        return {"seen": [str(denied)]}


ASK = "{id: ask, effect: ask, tool: pay, reason: money leaves, redact: [card], deadline: 60s, on_timeout: %s}"


def test_an_approval_that_nobody_gives_in_time_is_a_no() -> None:
    async def played() -> None:
        scene = Scene(ASK % "deny", pays)
        run = await scene.stage.start()
        assert await scene.stage.drive(run) == "waiting"
        question = await scene.question(run)
        assert (question.deadline, question.on_timeout) == (scene.began + 60, {"then": "deny"})
        assert (await run.record()).not_before == scene.began + 60  # that is when it wakes, without an answer
        scene.clock.now = scene.began + 60
        assert await scene.stage.drive(run) == "succeeded"
        assert "nobody answered in time; money leaves" in (await run.result()).seen[0]
        (_, denied) = await scene.events(run, "decided")
        assert (denied.data["decision"], denied.data["by"], denied.data["rule"]) == ("deny", "time", "ask")
        assert scene.stage.sandboxes.calls == []

    run_async(played())


def test_an_answer_just_before_the_deadline_counts() -> None:
    async def played() -> None:
        scene = Scene(ASK % "deny", pays)
        run = await scene.stage.start()
        await scene.stage.drive(run)
        await run.approve((await scene.question(run)).interrupt_id)
        scene.clock.now = scene.began + 1000
        assert await scene.stage.drive(run) == "succeeded"
        assert (await run.result()).seen == [100]

    run_async(played())


def test_an_answer_that_comes_too_late_is_none() -> None:
    async def goes_on(state: Note, ctx: Context) -> dict[str, Any]:
        seen = (await pays(state, ctx))["seen"]
        return {"seen": [*seen, await ctx.interrupt("go on?")]}

    async def played() -> None:
        scene = Scene(ASK % "deny", goes_on)
        run = await scene.stage.start()
        await scene.stage.drive(run)
        first = await scene.question(run)
        scene.clock.now = scene.began + 60
        assert await scene.stage.drive(run) == "waiting"
        with pytest.raises(NotFound):
            await run.approve(first.interrupt_id)
        await run.resume("yes")
        assert await scene.stage.drive(run) == "succeeded"
        denied, went_on = (await run.result()).seen
        assert "nobody answered in time" in denied
        assert went_on == "yes"

    run_async(played())


def test_an_approval_can_be_asked_once_more_as_urgent() -> None:
    async def played() -> None:
        for answered in (True, False):
            scene = Scene(ASK % "escalate", pays)
            run = await scene.stage.start()
            await scene.stage.drive(run)
            first = await scene.question(run)
            assert first.on_timeout == {"then": "escalate"}
            scene.clock.now = scene.began + 61
            assert await scene.stage.drive(run) == "waiting"
            second = await scene.question(run)
            assert second.interrupt_id != first.interrupt_id
            assert second.deadline == scene.began + 121
            assert second.on_timeout == {"then": "deny", "escalated_from": first.interrupt_id}
            (told,) = await scene.events(run, "escalated")
            assert told.data["to"] == second.interrupt_id
            if answered:
                await run.approve(second.interrupt_id)
            scene.clock.now = scene.began + 121
            assert await scene.stage.drive(run) == "succeeded"
            (said,) = (await run.result()).seen
            assert said == 100 if answered else "nobody answered in time" in said

    run_async(played())


def test_another_answer_does_not_give_a_question_more_time() -> None:
    async def two(state: Note, ctx: Context) -> dict[str, Any]:
        asked = ctx.interrupt("go on?")
        paid = ctx.call(pay, card="4111-1111")
        return {"seen": [await asked, await paid]}

    async def played() -> None:
        scene = Scene(ASK % "deny", two)
        run = await scene.stage.start()
        await scene.stage.drive(run)
        questions = {question.kind: question for question in open_questions(await run.record())}
        scene.clock.now = scene.began + 30
        await scene.store.resume(run.run_id, questions["question"].interrupt_id, '"yes"', scene.clock())
        assert await scene.stage.drive(run) == "waiting"
        assert (await scene.question(run)).deadline == scene.began + 60

    run_async(played())


def test_what_is_redacted_is_in_no_event_and_in_no_question() -> None:
    async def played() -> None:
        scene = Scene(ASK % "deny", pays)
        run = await scene.stage.start()
        await scene.stage.drive(run)
        question = await scene.question(run)
        assert question.payload["args"] == {"card": "[redacted]", "amount": 100}
        await run.approve(question.interrupt_id)
        assert await scene.stage.drive(run) == "succeeded"
        assert scene.stage.sandboxes.calls == [("pay", {"card": "4111-1111", "amount": 100})]
        said = json.dumps([dict(event.data) for event in await scene.store.events(run.run_id)])
        assert "[redacted]" in said
        assert "4111" not in said

    run_async(played())


def test_nor_in_the_question_after_a_call_whose_end_nobody_knows() -> None:
    async def played() -> None:
        scene = Scene("{id: x, effect: allow, tool: pay, redact: [card]}", pays)
        run = await scene.stage.start()
        scene.stage.sandboxes.hold = asyncio.Event()
        driven = asyncio.ensure_future(scene.stage.drive(run))
        await scene.stage.sandboxes.called.wait()
        driven.cancel()
        await asyncio.wait([driven])
        scene.clock.now += 60
        await scene.stage.crash(run)
        assert await scene.stage.drive(run) == "waiting"
        question = await scene.question(run)
        assert question.kind == "unknown"
        assert "[redacted]" in question.payload["question"]
        assert "4111" not in json.dumps([dict(event.data) for event in await scene.store.events(run.run_id)])

    run_async(played())


@tool(shell="line")
def shell(line: str) -> str:
    """A shell reads the line."""
    return line


@pytest.mark.parametrize(("line", "status"), [("ls -l", "succeeded"), ("ls; rm x", "waiting")])
def test_a_line_for_a_shell_that_cannot_be_read_is_shown_to_a_person(line: str, status: str) -> None:
    async def lists(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(shell, line=line)]}

    async def played() -> None:
        scene = Scene('{id: x, effect: allow, tool: "*"}', lists)
        run = await scene.stage.start()
        assert await scene.stage.drive(run) == status
        if status == "waiting":
            question = await scene.question(run)
            assert "argument 'line' is no plain command: ';' is a second command" in question.payload["reason"]
            await run.approve(question.interrupt_id)
            assert await scene.stage.drive(run) == "succeeded"
        assert scene.stage.sandboxes.calls == [("shell", {"line": line})]

    run_async(played())


@pytest.mark.parametrize(
    "rule",
    [
        "{id: x, effect: deny, tool: pay, redact: [card]}",
        '{id: x, effect: allow, tool: pay, redact: [card], when: {card: {eq: "1"}}}',
        "{id: x, effect: deny, tool: pay, redact: [card], when: {card: {gt: 5}}}",
    ],
)
def test_a_refusal_does_not_show_what_is_redacted(rule: str) -> None:
    async def played() -> None:
        scene = Scene(rule, pays)
        run = await scene.stage.start()
        assert await scene.stage.drive(run) == "succeeded"
        assert "4111" not in json.dumps([dict(event.data) for event in await scene.store.events(run.run_id)])

    run_async(played())


def test_every_decision_names_the_policies_with_version_and_digest() -> None:
    async def played() -> None:
        for effect, kinds in (("allow", ["allow"]), ("deny", ["deny"]), ("ask", ["ask", "allow"])):
            scene = Scene(f"{{id: x, effect: {effect}, tool: pay}}", pays)
            run = await scene.stage.start()
            if await scene.stage.drive(run) == "waiting":
                await run.approve((await scene.question(run)).interrupt_id)
                await scene.stage.drive(run)
            decided = await scene.events(run, "decided")
            assert [event.data["decision"] for event in decided] == kinds
            for event in decided:
                assert event.data["policies"] == [
                    {"policy": "shop", "version": "7", "layer": "deployment", "digest": scene.rules.digest}
                ]

    run_async(played())


# What has happened.

LEAK = """
{id: read, effect: allow, tool: read_secret, marks: [secret]}, {id: send, effect: allow, tool: send},
{id: leak, effect: deny, tool: send, after: {%s}, reason: it has read a secret}
"""
UNLESS = """
{id: read, effect: allow, tool: read_secret, marks: [secret]},
{id: send, effect: allow, tool: send, not_after: {%s}, reason: it has read a secret}
"""


async def leaks(state: Note, ctx: Context) -> dict[str, Any]:
    seen: list[Any] = [await ctx.call(send, text="before")]
    secret = await ctx.call(read_secret)
    try:
        seen.append(await ctx.call(send, text=secret))
    except ToolDenied as denied:
        seen.append(str(denied))
    return {"seen": seen}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (LEAK, "it has read a secret"),
        (UNLESS, "the run has used"),
    ],
)
@pytest.mark.parametrize("earlier", ["tool: [read_secret]", "mark: [secret]"])
def test_after_reading_a_secret_nothing_is_sent(rules: str, said: str, earlier: str) -> None:
    async def played() -> None:
        scene = Scene(rules % earlier, leaks)
        run = await scene.stage.start()
        assert await scene.stage.drive(run) == "succeeded"
        before, after = (await run.result()).seen
        assert before == "before"
        assert said in after
        assert [name for name, _ in scene.stage.sandboxes.calls] == ["send", "read_secret"]

    run_async(played())


def test_a_fork_has_read_what_its_origin_read_as_long_as_that_is_known() -> None:
    async def played() -> None:
        scene = Scene(LEAK % "mark: [secret]", leaks)
        run = await scene.stage.start()
        await scene.stage.drive(run)
        first = (await run.history())[-1]
        fork = await run.fork(first.checkpoint_id, effects="repeat")
        found = await RunHistories(scene.store).of(fork.run_id)
        assert (found.own.marks, found.inherited.marks) == (frozenset(), frozenset(["secret"]))
        assert await scene.stage.drive(fork) == "failed"
        assert "it has read a secret" in (await fork.record()).error
        assert [name for name, _ in scene.stage.sandboxes.calls] == ["send", "read_secret"]
        await scene.store.delete_thread((await run.record()).thread_id)
        assert (await RunHistories(scene.store).of(fork.run_id)).inherited == ANYTHING

    run_async(played())


def test_the_next_run_on_a_thread_has_read_what_those_before_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chats(state: Note, ctx: Context) -> dict[str, Any]:
        if not state.seen:
            return {"seen": [await ctx.call(read_secret)]}
        return {"seen": [await ctx.call(send, text=state.seen[0])]}

    async def played() -> None:
        scene = Scene(LEAK % "mark: [secret]", chats)
        first = await scene.stage.start(thread="chat")
        assert await scene.stage.drive(first) == "succeeded"
        runs = [await scene.stage.start(thread="chat") for _ in range(4)]
        for run in runs:
            assert await scene.stage.drive(run) == "failed"
            assert "it has read a secret" in (await run.record()).error
        assert [name for name, _ in scene.stage.sandboxes.calls] == ["read_secret"]
        other = await scene.stage.start({"seen": ["something else"]}, thread="another")
        assert await scene.stage.drive(other) == "succeeded"

        last = runs[-1].run_id
        for listed in ((1, 2), (1, 4)):  # where fewer runs are listed than there are
            monkeypatch.setattr(run_history, "LISTED", listed)
            assert (await RunHistories(scene.store).of(last)).inherited.anything
            assert not (await RunHistories(scene.store).of(other.run_id)).inherited.anything
        for listed in ((1, 6), (2, 9)):
            monkeypatch.setattr(run_history, "LISTED", listed)
            found = await RunHistories(scene.store).of(last)
            assert (found.own.marks, found.inherited.marks, found.inherited.anything) == (set(), {"secret"}, False)
        assert (await RunHistories(scene.store).of(first.run_id)).inherited == NOTHING

    run_async(played())


def test_what_a_child_has_read_its_parent_has_read_too() -> None:
    async def reads(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(read_secret)]}

    reader = Graph("reader", Note)
    reader.node(reads, name="reads")
    reader.edge(START, "reads").edge("reads", END)

    async def parent(state: Note, ctx: Context) -> dict[str, Any]:
        secret = (await (await ctx.start(reader, Note())).result()).seen[0]
        return {"seen": [await ctx.call(send, text=secret)]}

    graph = Graph("parent", Note)
    graph.node(parent, name="parent")
    graph.edge(START, "parent").edge("parent", END)
    sent: list[str] = []
    text = f"{{policy: shop, version: 7, rules: [{LEAK % 'mark: [secret]'}]}}"
    with pytest.raises(RunFailed, match="it has read a secret"):
        graph.run_inline(Note(), policy=text, tools={"send": sent.append})
    assert sent == []


def test_a_long_log_is_read_to_its_end_and_then_only_continued() -> None:
    async def waits(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(read_secret), await ctx.interrupt("go on?")]}

    async def played() -> None:
        scene = Scene(LEAK % "mark: [secret]", waits)
        run = await scene.stage.start()
        assert await scene.stage.drive(run) == "waiting"
        read: list[int] = []
        events = scene.store.events

        async def padded(run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
            read.append(after)
            real = await events(run_id, 0, limit)
            many = [Event("retried", 1.0, n=n) for n in range(1, PAGE + 2)]
            many += [Event(event.kind, event.at, event.data, event.n + PAGE + 1) for event in real]
            return [event for event in many if event.n > after][:limit]

        scene.store.events = padded  # type: ignore[method-assign]
        histories = RunHistories(scene.store)
        for _ in range(2):
            assert (await histories.of(run.run_id)).own.marks == {"secret"}
        assert read[:2] == [0, PAGE]
        assert len(read) == 3
        assert read[2] > PAGE
        await run.resume("yes")
        assert await scene.stage.drive(run) == "succeeded"
        read.clear()  # at its end the run looks for children that it is to tell
        for _ in range(2):
            assert (await histories.of(run.run_id)).own.marks == {"secret"}
        assert len(read) == 1, "a log that has ended is not read again"

    run_async(played())
