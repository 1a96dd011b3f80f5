"""A process may die at any line: at every store operation of a run, just before it and just after it.

First the run is played undisturbed, and its operations are counted. Then it is played again for each of them, and each
side, with a crash there; the supervisor's part is done by hand. Every time: the same final state, every effect exactly
once, and each finished node run once. The operations of the run actor and those of the sandbox crash separately: the
death of a run actor is never seen by a tool, the death of a sandbox makes its call unknown, and a person who looks
answers for it.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import InlineSandboxes, Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, append, tool
from understudy.actors.calls import Order, SandboxDied
from understudy.actors.outcome import Outcome
from understudy.actors.records import Receipt, RunRecord
from understudy.actors.store import Store
from understudy.cluster.client import Run, open_questions
from understudy.cluster.stores import open_store

WORLD: list[str] = []
"""What the tools did."""


class Crash(BaseException):
    """The process is gone: nobody catches this."""


@dataclass
class Faulty:
    """A store whose `at`-th operation is the last thing that its process does."""

    store: Store
    at: int = -1
    side: str = "before"
    count: int = 0
    names: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def called(*args: Any, **kwargs: Any) -> Any:
            here, self.count = self.count, self.count + 1
            self.names.append(name)
            if here == self.at and self.side == "before":
                raise Crash(name)
            result = await verb(*args, **kwargs)
            if here == self.at:
                raise Crash(name)
            return result

        return called


class MortalSandboxes(InlineSandboxes):
    """Its process dies with its store operation; whoever waits for it is told."""

    async def execute(self, order: Order) -> Outcome | Receipt:
        try:
            return await super().execute(order)
        except Crash:
            raise SandboxDied(order.receipt.sandbox) from None


class Story(BaseModel):
    seen: Annotated[list[str], append] = []
    rounds: int = 0
    answer: str = ""


@tool
def act(what: str) -> str:
    """Changes the world."""
    WORLD.append(what)
    return what.upper()


def story(ran: list[str]) -> Graph:
    """Two nodes side by side, a join, a loop with a tool, a question, two calls in one node."""
    graph = Graph("story", Story)

    @graph.node
    async def left(state: Story, ctx: Context) -> dict[str, Any]:
        ran.append("left")
        return {"seen": [await ctx.call(act, what="left")]}

    @graph.node
    async def right(state: Story) -> dict[str, Any]:
        ran.append("right")
        return {"seen": ["right"]}

    @graph.node
    async def again(state: Story, ctx: Context) -> dict[str, Any]:
        ran.append(f"again {state.rounds}")
        return {"seen": [await ctx.call(act, what=f"round {state.rounds}")], "rounds": state.rounds + 1}

    @graph.node
    async def ask(state: Story, ctx: Context) -> dict[str, Any]:
        ran.append("ask")
        first = await ctx.call(act, what="before the question")
        answer = await ctx.interrupt("go on?")
        second = await ctx.call(act, what="after the question")
        return {"seen": [first, second], "answer": answer}

    graph.edge(START, left).edge(START, right).edge([left, right], again)
    graph.branch(again, lambda state: "again" if state.rounds < 3 else "ask", ["again", "ask"])
    graph.edge(ask, END)
    return graph


@dataclass
class Play:
    """One play of the story, from its start to its end, with at most one crash of each kind."""

    real: Store
    actor: Faulty
    sandbox: Faulty
    ran: list[str] = field(default_factory=list)

    async def to_the_end(self) -> tuple[Run, RunRecord]:
        stage = Stage(self.real, story(self.ran))
        run = await stage.start()
        stage.store = self.actor  # type: ignore[assignment]
        stage.sandboxes = MortalSandboxes(self.sandbox, {"act": act})  # type: ignore[arg-type]
        for _ in range(20):
            record = await self.real.run(run.run_id)
            if record.final:
                return run, record
            if record.status == "running":
                # Dead between its claim and its first commit, or later: the supervisor takes it away.
                stage.store = self.real
                await stage.crash(run)
                stage.store = self.actor  # type: ignore[assignment]
            elif record.status == "waiting":
                await self.answer(run, record)
            else:
                await self.reside(stage, run)
        raise AssertionError(f"no end: {record}")

    async def reside(self, stage: Stage, run: Run) -> None:
        residence = asyncio.ensure_future(stage.drive(run))
        await asyncio.wait([residence])
        error = residence.exception()
        if error is not None and not isinstance(error, Crash):
            raise error

    async def answer(self, run: Run, record: RunRecord) -> None:
        for question in open_questions(record):
            if question.kind == "question":
                await run.resume("yes", question.interrupt_id)
            else:  # a person looks at the world, and says what is true
                done = await self.done_of(run, question.digest)
                await run.resume({"value": done} if done else "retry", question.interrupt_id)

    async def done_of(self, run: Run, digest: str) -> str:
        loaded = await self.real.load(run.run_id)
        place = next(r for r in loaded.receipts.values() if r.digest == digest)
        assert place.state == "unknown"
        # Calls are made one after the other, so an unknown one that took effect is the last thing in the world.
        known = {e.data["key"] for e in await self.real.events(run.run_id) if _went_well(e)}
        return WORLD[-1].upper() if len(WORLD) > len(known) else ""


def _went_well(event: Any) -> bool:
    return event.kind == "tool_finished" and event.data["outcome"] == "ok"


EXPECTED = ["left", "round 0", "round 1", "round 2", "before the question", "after the question"]
SEEN = ["LEFT", "right", "ROUND 0", "ROUND 1", "ROUND 2", "BEFORE THE QUESTION", "AFTER THE QUESTION"]


async def played(url: str, actor_at: int = -1, sandbox_at: int = -1, side: str = "before") -> Play:
    WORLD.clear()
    real = await open_store(url)
    play = Play(real, Faulty(real, actor_at, side), Faulty(real, sandbox_at, side))
    run, record = await play.to_the_end()
    where = f"actor {actor_at} {play.actor.names[actor_at:][:1]}, sandbox {sandbox_at}, {side}"
    assert record.status == "succeeded", f"{where}: {record.error}"
    assert Counter(WORLD) == Counter(EXPECTED), where
    result = Story.model_validate_json(record.result)
    assert (result.seen, result.answer, result.rounds) == (SEEN, "yes", 3), where
    kinds = Counter(event.kind for event in await real.events(run.run_id))
    assert kinds["node_finished"] == 6, where
    assert kinds["finished"] == 1, where
    await real.close()
    return play


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite://{tmp_path}/crash.db"
        case _:
            return str(request.getfixturevalue("redis_url"))


def test_the_run_actor_dies_at_every_boundary(url: str) -> None:
    undisturbed = run_async(played(url))
    assert undisturbed.actor.count > 8
    for k in range(undisturbed.actor.count):
        for side in ("before", "after"):
            run_async(played(url, actor_at=k, side=side))


def test_the_sandbox_dies_at_every_boundary(url: str) -> None:
    undisturbed = run_async(played(url))
    assert undisturbed.sandbox.count == 2 * len(EXPECTED)
    for k in range(undisturbed.sandbox.count):
        for side in ("before", "after"):
            run_async(played(url, sandbox_at=k, side=side))
