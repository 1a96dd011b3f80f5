"""Law 3: the next node starts while the commit before it is in flight; no effect of it happens before that landed."""

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage, YesPolicy
from support.waiting import run_async
from understudy import END, START, Context, Graph, ToolDenied, append, tool
from understudy.actors.calls import Granted, Refused, Verdict
from understudy.actors.errors import StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Commit, Committed
from understudy.policies.permission import Request


class Tale(BaseModel):
    told: Annotated[list[str], append] = []


@tool
def mail(to: str) -> str:
    return f"mailed {to}"


class Delayed(MemoryStore):
    """Commits wait for the test, and then land or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = asyncio.Event()
        self.go = asyncio.Event()
        self.fails = False

    async def commit(self, *commits: Commit) -> Committed:
        self.sent.set()
        await self.go.wait()
        if self.fails:
            raise StoreUnavailable("the store went away")
        return await super().commit(*commits)


def tale(started: list[str]) -> Graph:
    graph = Graph("tale", Tale)

    @graph.node
    async def think(state: Tale) -> dict[str, Any]:
        return {"told": ["thought"]}

    @graph.node
    async def act(state: Tale, ctx: Context) -> dict[str, Any]:
        started.append("act")
        return {"told": [await ctx.call(mail, to="Ada")]}

    return graph.edge(START, think).edge(think, act).edge(act, END)


@pytest.mark.parametrize("fails", [False, True])
def test_an_effect_waits_for_the_commit_that_it_stands_on(fails: bool):
    async def played() -> None:
        started: list[str] = []
        store = Delayed()
        store.fails = fails
        stage = Stage(store, tale(started)).tools(mail)
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        await store.sent.wait()
        for _ in range(100):  # all the turns that the next node could want
            await asyncio.sleep(0)
        assert started == ["act"], "it starts while the commit is in flight"
        assert not stage.sandboxes.calls
        assert not await store.receipts(run.run_id)
        store.go.set()
        if not fails:
            assert await driving == "succeeded"
            assert stage.sandboxes.calls == [("mail", {"to": "Ada"})]
            return
        with pytest.raises(StoreUnavailable):
            await driving
        assert not stage.sandboxes.calls, "nothing left the system"
        assert not await store.receipts(run.run_id)
        store.fails = False
        await stage.crash(run)
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1.0)).told == ["thought", "mailed Ada"]
        assert stage.sandboxes.calls == [("mail", {"to": "Ada"})]

    run_async(played())


class Held(MemoryStore):
    """Holds commits from when it is told to, and notes what is asked of it that others see."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.go = asyncio.Event()
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("begin", "create", "cancel", "send") and self.holds:
            self.asked.append(name)
        return super().__getattribute__(name)

    async def commit(self, *commits: Commit) -> Committed:
        if self.holds:
            await self.go.wait()
        return await super().commit(*commits)


def idle(name: str) -> Graph:
    graph = Graph(name, Tale)

    @graph.node
    async def listen(ctx: Context) -> None:
        await ctx.receive()

    return graph.edge(START, listen).edge(listen, END)


first_child, other_child = idle("first"), idle("other")


async def denied(ctx: Context) -> None:
    with pytest.raises(ToolDenied):
        await ctx.call(mail, to="Eve")


async def ended(ctx: Context) -> None:
    await (await ctx.start(first_child, key="it")).cancel()


ASKS: dict[str, tuple[Any, list[str]]] = {
    "a tool": (lambda ctx: ctx.call(mail, to="Ada"), ["begin"]),
    "what is denied": (denied, ["begin"]),
    "an effect": (lambda ctx: ctx.effect("think", lambda: 1), ["begin"]),
    "a message": (lambda ctx: ctx.receive(), ["begin"]),
    "a child": (lambda ctx: ctx.start(other_child), ["begin", "create"]),
    "the end of a child": (ended, ["cancel"]),
}


def only_for_ada(request: Request, approved: bool) -> Verdict:
    return Granted("", "yes", "test") if request.args == {"to": "Ada"} else Refused("no", "test", "not her")


@pytest.mark.parametrize("what", ASKS)
def test_nothing_that_a_node_asks_for_is_seen_before_what_it_stands_on_is_durable(what: str):
    ask, verbs = ASKS[what]

    async def played() -> None:
        store, graph = Held(), Graph("tale", Tale)
        asking = asyncio.Event()

        @graph.node
        async def begin(ctx: Context) -> dict[str, Any]:
            await ctx.start(first_child, key="it")
            store.holds = True
            return {"told": ["begun"]}

        @graph.node
        async def act(ctx: Context) -> None:
            asking.set()
            await ask(ctx)

        graph.edge(START, begin).edge(begin, act).edge(act, END)
        stage = Stage(store, graph, YesPolicy({"mail": only_for_ada})).tools(mail)
        run = await stage.start()
        await run.send("hello")
        driving = asyncio.ensure_future(stage.drive(run))
        await asking.wait()
        for _ in range(100):  # all the turns that it could want
            await asyncio.sleep(0)
        assert store.asked == []
        store.go.set()
        assert await driving == "succeeded"
        assert store.asked == verbs

    run_async(played())


def test_a_task_that_a_node_has_kept_does_not_take_the_commits_with_it():
    """What writes them may be the task of a node that has ended. Whoever has kept that cancels no commit with it."""

    async def played() -> None:
        kept: list[asyncio.Task[Any] | None] = []
        store, graph = Delayed(), Graph("kept", Tale)

        @graph.node
        async def first(state: Tale) -> dict[str, Any]:
            kept.append(asyncio.current_task())
            return {"told": ["first"]}

        @graph.node
        async def second(state: Tale) -> dict[str, Any]:
            await store.sent.wait()
            store.sent.clear()
            assert kept[0] is not None
            kept[0].cancel()
            await store.sent.wait()  # once more
            store.go.set()
            return {"told": ["second"]}

        graph.edge(START, first).edge(first, second).edge(second, END)
        stage = Stage(store, graph)
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1.0)).told == ["first", "second"]
        assert (await stage.kinds(run)).count("node_finished") == 2

    run_async(played())
