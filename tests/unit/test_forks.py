"""Forks: what the origin did to the world beyond the fork point is shown, and not repeated without being asked."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from support.stage import Stage, YesPolicy
from support.waiting import run_async
from understudy import (
    END,
    START,
    Context,
    EffectFailed,
    Graph,
    ToolError,
    append,
    open_store,
    tool,
)
from understudy.actors.calls import Asked, Granted, Refused
from understudy.actors.errors import CallerError, Fenced, NotFound
from understudy.actors.forks import MODES, Mode
from understudy.actors.records import Interrupt
from understudy.actors.store import Store
from understudy.cluster.client import Run, open_questions


class Trip(BaseModel):
    to: str = "Rome"
    seen: Annotated[list[Any], append] = []
    limit: Annotated[int, Field(ge=0)] = 5


WORLD: list[str] = []


@tool
def book(to: str) -> str:
    """A ticket is bought."""
    WORLD.append(f"book {to}")
    return f"ticket {len(WORLD)}"


@tool
def mail(text: str) -> str:
    """A mail is sent."""
    WORLD.append(f"mail {text}")
    return "sent"


async def begin(state: Trip) -> dict[str, Any]:
    return {"seen": ["begin"]}


async def travel(state: Trip, ctx: Context) -> dict[str, Any]:
    ticket = await ctx.call(book, to=state.to)
    price = await ctx.effect("price", lambda: WORLD.append("price") or 7, about=state.to)
    return {"seen": [ticket, price]}


async def tell(state: Trip, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.call(mail, text=f"to {state.to}")]}


def graph_of(*nodes: Callable[..., Any]) -> Graph:
    graph = Graph("trip", Trip)
    before = START
    for node in nodes or (begin, travel, tell):
        graph.node(node)
        graph.edge(before, node.__name__)
        before = node.__name__
    return graph.edge(before, END)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    WORLD.clear()
    return "memory://" if request.param == "memory" else f"sqlite://{tmp_path}/forks.db"


def on(store: Store, *nodes: Callable[..., Any], policy: YesPolicy | None = None) -> Stage:
    return Stage(store, graph_of(*nodes), policy=policy or YesPolicy()).tools(book, mail)


async def origin(stage: Stage, **given: Any) -> tuple[Run, str]:
    """A finished run, and its first checkpoint."""
    run = await stage.start(given)
    assert await stage.drive(run) == "succeeded", (await run.record()).error
    return run, await checkpoint(run, 1)


async def checkpoint(run: Run, step: int) -> str:
    return next(row.checkpoint_id for row in await run.history() if row.step == step)


async def question(fork: Run) -> Interrupt:
    (found,) = open_questions(await fork.record())
    assert found.kind == "repeat"
    return found


def played(url: str, play: Callable[[Store], Any]) -> None:
    async def bounded() -> None:
        store = await open_store(url)
        await play(store)
        await store.close()

    run_async(bounded())


# --- shown ---------------------------------------------------------------------------------------------------------


def test_what_lies_beyond_is_shown(url: str) -> None:
    async def play(store: Store) -> None:
        run, first = await origin(on(store))
        beyond = await run.beyond(first)
        assert [(b.place, b.name, b.standing, b.call) for b in beyond] == [
            ("2/0/travel/book/0", "book", "done", 'book(to="Rome")'),
            ("2/0/travel/effect:price/0", "effect:price", "done", 'price(about="Rome")'),
            ("3/0/tell/mail/0", "mail", "done", 'mail(text="to Rome")'),
        ]
        assert [b.place for b in await run.beyond(await checkpoint(run, 2))] == ["3/0/tell/mail/0"]
        assert await run.beyond(await checkpoint(run, 3)) == []
        words = {mode: beyond[0].would(mode) for mode in MODES}
        assert len(set(words.values())) == 4
        assert "asked about first" in words["ask"]
        with pytest.raises(NotFound):
            await run.beyond("nowhere")

    played(url, play)


# --- asked ---------------------------------------------------------------------------------------------------------


def test_nothing_is_repeated_without_being_asked(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store)
        run, first = await origin(stage)
        before = list(WORLD)
        fork = await run.fork(first)
        for name, answer in (("book", "reuse"), ("effect:price", "reuse"), ("mail", "repeat")):
            assert await stage.drive(fork) == "waiting"
            asked = await question(fork)
            assert (asked.payload["tool"], asked.payload["same"]) == (name, True)
            assert asked.payload["answers"] == ["repeat", "reuse", "refuse"]
            assert asked.payload["origin"]["run_id"] == run.run_id
            assert before == WORLD
            with pytest.raises(CallerError, match="is not one of"):
                await fork.resume("yes")
            await fork.resume(answer)
        assert await stage.drive(fork) == "succeeded"
        assert [*before, "mail to Rome"] == WORLD
        assert (await fork.result()).seen == (await run.result()).seen
        receipts = {r.tool: json.loads(r.outcome) for r in await store.receipts(fork.run_id)}
        assert receipts["book"]["note"] == f"reused from run {run.run_id}"
        told = [(e.data["tool"], e.data["decision"], e.data["by"]) for e in await store.events(fork.run_id)
                if e.kind == "decided"]  # fmt: skip
        assert told == [
            ("book", "reuse", "a person"), ("effect:price", "reuse", "a person"), ("mail", "allow", "policy"),
        ]  # fmt: skip

    played(url, play)


@pytest.mark.parametrize(
    ("effects", "world", "seen"),
    [
        ("repeat", ["book Rome", "price", "mail to Rome"], ["begin", "ticket 4", 7, "sent"]),
        ("reuse", [], ["begin", "ticket 1", 7, "sent"]),
        ("refuse", [], ["begin", "no ticket", "no price", "no mail"]),
    ],
)
def test_a_mode_answers_for_all(url: str, effects: Mode, world: list[str], seen: list[Any]) -> None:
    async def play(store: Store) -> None:
        async def travel(state: Trip, ctx: Context) -> dict[str, Any]:
            ticket = await ctx.outcome(book, to=state.to)
            refused = ""
            try:
                price = await ctx.effect("price", lambda: WORLD.append("price") or 7, about=state.to)
            except EffectFailed as error:
                price, refused = "no price", error.outcome.kind
            assert [ticket.kind, refused] in (["ok", ""], ["denied", "denied"])
            assert ticket.kind == "ok" or "is not repeated (effects='refuse')" in ticket.error
            return {"seen": [ticket.value if ticket.kind == "ok" else "no ticket", price]}

        async def tell(state: Trip, ctx: Context) -> dict[str, Any]:
            outcome = await ctx.outcome(mail, text=f"to {state.to}")
            return {"seen": [outcome.value if outcome.kind == "ok" else "no mail"]}

        stage = on(store, begin, travel, tell)
        run, first = await origin(stage)
        before = list(WORLD)
        fork = await run.fork(first, effects=effects)
        assert await stage.drive(fork) == "succeeded", (await fork.record()).error
        assert before + world == WORLD
        assert (await fork.result()).seen == seen

    played(url, play)


@pytest.mark.parametrize("effects", ["ask", "reuse", "refuse"])
@pytest.mark.parametrize("answer", ["repeat", "reuse", "refuse"])
def test_another_call_in_the_place_is_asked_about_and_both_are_shown(url: str, effects: Mode, answer: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store, begin, travel)
        run, first = await origin(stage)
        before = list(WORLD)
        fork = await run.fork(first, {"to": "Oslo"}, effects=effects)
        assert await stage.drive(fork) == "waiting"
        asked = await question(fork)
        assert not asked.payload["same"]
        assert asked.payload["call"] == 'book(to="Oslo")'
        assert asked.payload["origin"]["call"] == 'book(to="Rome")'
        assert 'has asked for book(to="Rome") in this place (done)' in asked.payload["question"]
        await fork.resume(answer)
        await stage.drive(fork)
        assert before + (["book Oslo"] if answer == "repeat" else []) == WORLD

    played(url, play)


def test_another_call_is_made_if_repeating_was_asked_for(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store)
        run, first = await origin(stage)
        fork = await run.fork(first, {"to": "Oslo"}, effects="repeat")
        assert await stage.drive(fork) == "succeeded"
        assert WORLD[3:] == ["book Oslo", "price", "mail to Oslo"]

    played(url, play)


@pytest.mark.parametrize("effects", ["ask", "reuse", "refuse"])
def test_a_call_that_comes_in_another_place_is_asked_about_too(url: str, effects: Mode) -> None:
    """The fork takes another way, and comes to what the origin did where nobody expects it: it would be done twice."""

    async def play(store: Store) -> None:
        async def travel(state: Trip, ctx: Context) -> dict[str, Any]:
            tickets = [await ctx.call(book, to=to) for to in state.to.split()]
            model = await ctx.effect(
                "model", lambda: WORLD.append("model") or 1
            )  # nothing is known of what it is about
            return {"seen": [*tickets, model]}

        async def more(state: Trip, ctx: Context) -> dict[str, Any]:
            return {"seen": [await ctx.effect("model", lambda: WORLD.append("more") or 2) for _ in range(state.limit)]}

        stage = on(store, begin, travel, more)
        run, first = await origin(stage, to="Rome Bern", limit=1)
        before = list(WORLD)
        fork = await run.fork(first, {"to": "Bern", "limit": 2}, effects=effects)
        assert await stage.drive(fork) == "waiting"
        asked = await question(fork)
        assert (asked.payload["same"], asked.payload["origin"]["place"]) == (True, "2/0/travel/book/1")
        assert "in another place (2/0/travel/book/1)" in asked.payload["question"]
        assert before == WORLD
        await fork.resume("reuse")
        while await stage.drive(fork) == "waiting":
            asked = await question(fork)
            assert asked.payload["origin"]["place"] == asked.payload["place"], "of these, only what stands in its place"
            await fork.resume("reuse")
        assert (await fork.record()).status == ("failed" if effects == "refuse" else "succeeded")
        assert WORLD[len(before) :] == ([] if effects == "refuse" else ["more"]), "the second model call is a new one"

    played(url, play)


# --- how the origin's effects stand ---------------------------------------------------------------------------------


def test_a_failure_is_reused_as_a_failure_and_a_refusal_is_judged_anew(url: str) -> None:
    async def play(store: Store) -> None:
        @tool
        def fail(to: str) -> str:
            WORLD.append(f"fail {to}")
            raise ConnectionError("no answer")

        async def travel(state: Trip, ctx: Context) -> dict[str, Any]:
            said = []
            for wanted in (fail, book):
                try:
                    said.append(await ctx.call(wanted, to=state.to))
                except ToolError as error:
                    said.append(error.outcome.kind)
            return {"seen": said}

        closed = [True]

        def judge(request: Any, approved: bool) -> Any:
            return Refused("closed", "test", "closed") if closed[0] else Granted("t", "open", "test")

        stage = on(store, begin, travel, policy=YesPolicy({"book": judge})).tools(fail)
        run, first = await origin(stage)
        assert (await run.result()).seen == ["begin", "error", "denied"]
        assert [(b.name, b.standing) for b in await run.beyond(first)] == [("fail", "failed")]
        closed[0] = False
        fork = await run.fork(first, effects="reuse")
        assert await stage.drive(fork) == "succeeded"
        assert (await fork.result()).seen == ["begin", "error", "ticket 2"]
        assert WORLD == ["fail Rome", "book Rome"]

    played(url, play)


def test_what_is_not_known_cannot_be_reused(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store, begin, travel)
        run = await stage.start()
        stage.sandboxes.hold = asyncio.Event()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await stage.sandboxes.called.wait()
        driver.fence()
        with pytest.raises(Fenced):
            await driving
        stage.sandboxes.hold = None
        first = await checkpoint(run, 1)
        assert [(b.name, b.standing) for b in await run.beyond(first)] == [("book", "started")]
        fork = await run.fork(first, effects="reuse")
        assert await stage.drive(fork) == "waiting"
        asked = await question(fork)
        assert asked.payload["answers"] == ["repeat", "refuse"]
        assert WORLD == []
        await fork.resume("repeat")
        assert await stage.drive(fork) == "succeeded"
        assert WORLD == ["book Rome", "price"]

    played(url, play)


def test_a_receipt_that_is_gone_cannot_be_reused(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store, begin, travel)
        run, first = await origin(stage)
        fork = await run.fork(first, effects="reuse")
        await store.delete_thread((await run.record()).thread_id)
        assert await stage.drive(fork) == "waiting"
        asked = await question(fork)
        assert asked.payload["answers"] == ["repeat", "refuse"]
        assert asked.payload["origin"]["call"] == 'book(to="Rome")', "the fork carries what it needs to ask"

    played(url, play)


# --- forks of forks, threads, approvals ----------------------------------------------------------------------------


def test_a_fork_of_a_fork_carries_on(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store)
        run, first = await origin(stage)
        fork = await run.fork(first)
        assert await stage.drive(fork) == "waiting"
        await fork.resume(
            "repeat"
        )  # the ticket is bought again; the price is asked about, and the mail not reached yet
        assert await stage.drive(fork) == "waiting"
        grandchild = await fork.fork((await fork.history())[-1].checkpoint_id)
        beyond = await fork.beyond((await fork.history())[-1].checkpoint_id)
        assert {b.name: b.run_id for b in beyond} == {
            "book": fork.run_id,
            "effect:price": run.run_id,
            "mail": run.run_id,
        }
        before = list(WORLD)
        for name, origin_id in (("book", fork.run_id), ("effect:price", run.run_id), ("mail", run.run_id)):
            assert await stage.drive(grandchild) == "waiting"
            asked = await question(grandchild)
            assert (asked.payload["tool"], asked.payload["origin"]["run_id"]) == (name, origin_id)
            await grandchild.resume("reuse")
        assert await stage.drive(grandchild) == "succeeded"
        assert before == WORLD
        assert (await grandchild.result()).seen == ["begin", "ticket 4", 7, "sent"]

    played(url, play)


def test_a_second_run_on_the_forks_thread_is_no_fork(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store)
        run, first = await origin(stage)
        fork = await run.fork(first, effects="reuse")
        await stage.drive(fork)
        before = list(WORLD)
        second = await stage.start({"to": "Oslo"}, thread=(await fork.record()).thread_id)
        assert await stage.drive(second) == "succeeded"
        assert WORLD[len(before) :] == ["book Oslo", "price", "mail to Oslo"]

    played(url, play)


def test_an_approval_is_not_valid_in_a_fork(url: str) -> None:
    """What a person allowed the origin, nobody has allowed the fork: also if it is to be repeated."""

    async def play(store: Store) -> None:
        def judge(request: Any, approved: bool) -> Any:
            return Granted("t", "ask", "test") if approved else Asked("ask", "test", "money")

        stage = on(store, begin, travel, policy=YesPolicy({"book": judge}))
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        (call,) = open_questions(await run.record())
        await run.approve(call.interrupt_id)
        assert await stage.drive(run) == "succeeded"
        for effects, answers in (("repeat", []), ("ask", ["repeat"])):
            before = list(WORLD)
            fork = await run.fork(await checkpoint(run, 1), effects=effects)
            assert await stage.drive(fork) == "waiting"
            for answer in answers:
                await fork.resume(answer)
                assert await stage.drive(fork) == "waiting"
            (again,) = open_questions(await fork.record())
            assert (again.kind, again.digest) == ("approval", call.digest)
            assert again.interrupt_id != call.interrupt_id
            assert before == WORLD
            with pytest.raises(NotFound):
                await fork.approve(call.interrupt_id)
            await fork.approve(again.interrupt_id)
            await stage.drive(fork)
            assert WORLD[len(before)] == "book Rome"

    played(url, play)


def test_an_update_goes_through_reducers_and_validation(url: str) -> None:
    async def play(store: Store) -> None:
        stage = on(store)
        run, first = await origin(stage)
        with pytest.raises(CallerError, match="'limit'"):
            await run.fork(first, {"limit": -1})
        with pytest.raises(CallerError, match="did you mean 'seen'"):
            await run.fork(first, {"seem": ["x"]})
        with pytest.raises(CallerError, match="is none of ask, reuse, repeat, refuse"):
            await run.fork(first, effects="maybe")  # type: ignore[arg-type]
        fork = await run.fork(first, {"seen": ["added"], "limit": 1}, effects="reuse")
        assert await stage.drive(fork) == "succeeded"
        result = await fork.result()
        assert (result.seen[:2], result.limit) == (["begin", "added"], 1)
        assert (await fork.record()).labels["forked_from"] == f"{run.run_id}@{first}"

    played(url, play)
