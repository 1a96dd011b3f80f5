"""Law 3: the next node starts while the commit before it is in flight; no effect of it happens before that landed."""

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, append, tool
from understudy.actors.errors import StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Commit, Committed


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
