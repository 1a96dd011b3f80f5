"""Child runs: found again by a node that runs again, waited for without an actor, cancelled with their parent."""

import asyncio
import contextlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, BlockingContext, ChildFailed, Context, Graph, Retry, RunFailed, ToolDenied, append
from understudy.actors import memory
from understudy.actors.children import Births, Born, children_of
from understudy.actors.errors import NotFound, StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Begun, Commit, Committed, Event, NewRun, RunRecord, partition_of_thread
from understudy.cluster.client import Cluster, Run
from understudy.cluster.settings import Settings
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points


class Log(BaseModel):
    seen: Annotated[list[str], append] = []
    n: int = 0


def one(node: Any, name: str = "parent", **how: Any) -> Graph:
    graph = Graph(name, Log)
    graph.node(node, name="work", **how)
    return graph.edge(START, "work").edge("work", END)


ran: list[int] = []


async def doubled(state: Log) -> dict[str, Any]:
    ran.append(state.n)
    return {"n": state.n * 2}


child = one(doubled, "child")


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def records(stage: Stage, run: Run) -> list[RunRecord]:
    return [await stage.store.run(run_id) for run_id in await children_of(stage.store, run.run_id)]


def test_a_child_is_started_and_its_result_is_the_graphs_model():
    async def node(ctx: Context) -> dict[str, Any]:
        first = await ctx.start(child, Log(n=1), labels={"which": "first"})
        second = await ctx.start(child, {"n": 2})
        assert repr(second) == f"Child({second.run_id!r})", "as somebody prints it"
        results = [await first.result(), await second.result(), await ctx.run(child, {"n": 3})]
        assert all(type(result) is Log for result in results)
        return {"seen": [str(result.n) for result in results]}

    assert one(node).run_inline({}).seen == ["2", "4", "6"]
    assert sorted(ran) == [1, 2, 3]


def test_the_parent_holds_no_actor_meanwhile():
    async def node(ctx: Context) -> dict[str, Any]:
        return {"n": (await ctx.run(child, {"n": 4}, labels={"mine": "1"})).n}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        [born] = await records(stage, run)
        parent = await run.record()
        assert partition_of_thread(born.thread_id) == partition_of_thread(parent.thread_id)
        assert (born.parent, born.policy, born.labels) == (run.run_id, parent.policy, {"mine": "1"})
        assert (await stage.store.due(stage.clock(), 10)).ready == (born.run_id,)
        await stage.settle()
        assert (await run.result(1)).n == 8

    run_async(played())


def test_a_child_that_ended_before_anyone_waits_is_found():
    """Also when a superstep lies between, whose checkpoint has cleared the answer."""
    graph = Graph("parent", Log)

    @graph.node
    async def begin(ctx: Context) -> None:
        await ctx.start(child, {"n": 1}, key="it")

    @graph.node
    async def pause(ctx: Context) -> None:
        await ctx.receive()

    @graph.node
    async def end(ctx: Context) -> dict[str, Any]:
        return {"n": (await ctx.run(child, {"n": 1}, key="it")).n}

    graph.edge(START, begin).edge(begin, pause).edge(pause, end).edge(end, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        await stage.settle()
        assert (await run.record()).status == "waiting"
        assert [r.status for r in await records(stage, run)] == ["succeeded"]
        await stage.store.send(run.run_id, "m", "1", stage.clock())
        await stage.settle()
        assert (await run.result(1)).n == 2
        assert ran == [1], "the key is the same, and so is the child"

    run_async(played())


def test_a_child_that_failed_raises_in_the_node():
    async def bad() -> None:
        raise ValueError("no luck")

    async def node(ctx: Context) -> dict[str, Any]:
        try:
            await ctx.run(one(bad, "bad"))
        except ChildFailed as failed:
            return {"seen": [failed.status, failed.graph, failed.error[:28]]}
        return {}

    assert one(node).run_inline({}).seen == ["failed", "bad", "node 'work': ValueError: no l"[:28]]


class Cut(MemoryStore):
    """Fails the n-th write of the owner, before or after it is done."""

    left = 10**9
    after = False

    async def commit(self, *commits: Any) -> Any:
        return await self._cut(super().commit(*commits))

    async def begin(self, *args: Any) -> Any:
        return await self._cut(super().begin(*args))

    async def create(self, *args: Any) -> Any:
        return await self._cut(super().create(*args))

    async def _cut(self, work: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            work.close()
            raise StoreUnavailable("cut")
        done = await work
        if self.left == 0:
            raise StoreUnavailable("cut")
        return done


@pytest.mark.parametrize("after", [False, True])
def test_every_crash_around_a_child_gives_one_child(after: bool):
    async def node(ctx: Context) -> dict[str, Any]:
        first = await ctx.start(child, {"n": 1})
        second = await ctx.start(child, {"n": 2})
        return {"seen": [str((await second.result()).n), str((await first.result()).n)]}

    async def played(cut: int) -> bool:
        ran.clear()
        store = Cut()
        stage = Stage(store, one(node))
        run = await stage.start()
        store.left, store.after = cut, after
        was_cut = False
        for _ in range(20):
            ready = (await store.due(stage.clock(), 1)).ready
            if not ready:
                break
            try:
                await stage.drive(Run(store, ready[0]))
            except StoreUnavailable:
                was_cut = True
                if not (await store.run(ready[0])).final:
                    with_it = Run(store, ready[0])
                    if (await with_it.record()).status == "running":
                        await stage.crash(with_it)
        assert (await run.result(1)).seen == ["4", "2"]
        assert len(await records(stage, run)) == 2
        assert len(await store.runs()) == 3
        assert len(ran) <= 3, "a node whose commit was lost runs again, and only that"
        return was_cut

    cuts = [run_async(played(cut)) for cut in range(1, 12)]
    assert all(cuts[:8])
    assert not cuts[-1]


def test_another_child_in_the_same_place_is_noticed():
    wanted = [1]

    async def node(ctx: Context) -> None:
        await ctx.run(child, {"n": wanted[0]})

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.drive(run)
        wanted[0] = 2
        await stage.settle()
        record = await run.record()
        assert record.status == "failed"
        assert "child(n=1)" in record.error, record.error
        assert "child(n=2)" in record.error, record.error
        assert ran == [1]

    run_async(played())


def test_a_later_attempt_takes_the_child_it_has_and_replaces_one_that_failed():
    fails = [True]
    tries = []

    async def sometimes(state: Log) -> dict[str, Any]:
        if fails.pop():
            raise ValueError("not yet")
        return {"n": 7}

    async def node(ctx: Context) -> dict[str, Any]:
        kept = await ctx.start(child, {"n": 1})
        tries.append(kept.run_id)
        fails.append(False)
        other = await ctx.run(one(sometimes, "sometimes"))
        return {"n": (await kept.result()).n + other.n}

    graph = one(node, retry=Retry(2, base_s=0))
    assert graph.run_inline({}).n == 9
    assert len(set(tries)) == 1
    assert ran == [1]


def test_cancelling_a_waiting_run_cancels_its_children_and_theirs():
    async def waits(ctx: Context) -> None:
        await ctx.receive()

    async def middle(ctx: Context) -> None:
        await ctx.run(one(waits, "leaf"))

    async def node(ctx: Context) -> None:
        await ctx.start(child, {"n": 1})
        await ctx.run(one(middle, "middle"))

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.settle()
        await run.cancel()
        assert (await run.record()).status == "cancelled"
        statuses = {record.graph: record.status for record in await stage.store.runs()}
        assert statuses == {"parent": "cancelled", "child": "succeeded", "middle": "cancelled", "leaf": "cancelled"}
        await run.cancel()  # once more changes nothing

    run_async(played())


@pytest.mark.parametrize("ends", ["failed", "succeeded"])
def test_children_go_on_without_their_parent_until_it_is_cancelled(ends: str):
    """Also when it is over: nobody else knows them."""

    async def waits(ctx: Context) -> None:
        await ctx.receive()

    async def middle(ctx: Context) -> None:
        await ctx.run(one(waits, "leaf"))

    async def node(ctx: Context) -> None:
        await ctx.start(one(middle, "middle"))
        if ends == "failed":
            raise ValueError("no")

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.settle()
        statuses = {record.graph: record.status for record in await stage.store.runs()}
        assert statuses == {"parent": ends, "middle": "waiting", "leaf": "waiting"}
        for _ in range(2):  # once more changes nothing
            await run.cancel()
            statuses = {record.graph: record.status for record in await stage.store.runs()}
            assert statuses == {"parent": ends, "middle": "cancelled", "leaf": "cancelled"}

    run_async(played())


def test_cancelling_a_running_run_cancels_its_children():
    gate = {}

    async def node(ctx: Context) -> None:
        await ctx.start(child, {"n": 1})
        gate["started"].set()
        await asyncio.Event().wait()

    async def played() -> None:
        gate["started"] = asyncio.Event()
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await gate["started"].wait()
        await stage.store.cancel(run.run_id, stage.clock())
        driver.cancel()
        assert await driving == "cancelled"
        assert [record.status for record in await records(stage, run)] == ["cancelled"]

    run_async(played())


def test_a_child_whose_parent_was_cancelled_by_somebody_who_died_ends_too():
    async def node(ctx: Context) -> None:
        await ctx.run(child, {"n": 1})

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.drive(run)
        await stage.store.cancel(run.run_id, stage.clock())  # and no more
        await stage.settle()
        assert [record.status for record in await records(stage, run)] == ["cancelled"]
        assert ran == []

    run_async(played())


def test_a_node_can_cancel_its_child():
    async def waits(ctx: Context) -> None:
        await ctx.receive()

    async def node(ctx: Context) -> dict[str, Any]:
        started = await ctx.start(one(waits, "waits"))
        await started.cancel()
        try:
            await started.result()
        except ChildFailed as failed:
            return {"seen": [failed.status]}
        return {}

    assert one(node).run_inline({}).seen == ["cancelled"]


def test_children_in_a_thread():
    def node(state: Log, ctx: BlockingContext) -> dict[str, Any]:
        started = ctx.start(child, {"n": 5})
        return {"n": started.result().n + ctx.run(child, {"n": 1}).n}

    assert one(node).run_inline({}).n == 12


def test_a_child_retried_after_it_failed_gives_its_parent_another_try():
    """`retry` of the child, then of the parent: the child's work is not done twice."""
    fails = [True]

    async def sometimes(state: Log) -> dict[str, Any]:
        ran.append(1)
        if fails:
            fails.pop()
            raise ValueError("not yet")
        return {"n": 7}

    graph = one(sometimes, "sometimes")

    async def node(ctx: Context) -> dict[str, Any]:
        return {"n": (await ctx.run(graph)).n}

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.settle()
        assert (await run.record()).status == "failed"
        [born] = await records(stage, run)
        await stage.store.retry(born.run_id, stage.clock())
        await stage.settle()
        await stage.store.retry(run.run_id, stage.clock())
        await stage.settle()
        assert (await run.result(1)).n == 7
        assert len(ran) == 2
        assert json.loads((await run.record()).answers.get("none", "null")) is None

    run_async(played())


def test_a_child_that_ended_while_its_parent_had_failed_is_waited_for_no_more():
    """Nobody tells its end to a run that is over (found by a seeded story)."""
    graph, fails = Graph("parent", Log), [True]

    @graph.node
    async def waits(ctx: Context) -> dict[str, Any]:
        return {"seen": (await ctx.run(one(listens, "listens"))).seen}

    @graph.node
    async def breaks(ctx: Context) -> None:
        await ctx.receive()
        if fails:
            fails.pop()
            raise ValueError("not yet")

    graph.edge(START, waits).edge(START, breaks).edge([waits, breaks], END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        await stage.settle()
        await run.send("go")
        await stage.settle()
        assert (await run.record()).status == "failed"
        [born] = await records(stage, run)
        await stage.store.send(born.run_id, "m", '"hello"', stage.clock())
        await stage.settle()
        await run.retry()
        await stage.settle()
        assert (await run.result(1)).seen == ['"hello"']

    run_async(played())


@pytest.mark.parametrize(("mode", "expected"), [("reuse", 2), ("repeat", 2), ("refuse", -1), ("ask", 2)])
def test_a_fork_does_not_start_its_origins_child_again_without_being_asked(mode: Any, expected: int):
    graph = Graph("forked", Log)

    @graph.node
    async def first() -> dict[str, Any]:
        return {"seen": ["first"]}

    @graph.node
    async def second(ctx: Context) -> dict[str, Any]:
        try:
            return {"n": (await ctx.run(child, {"n": 1})).n}
        except ToolDenied:
            return {"n": -1}

    graph.edge(START, first).edge(first, second).edge(second, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        await stage.settle()
        after_first = (await run.history())[-1].checkpoint_id
        [told] = await run.beyond(after_first)
        assert (told.name, told.call) == ("ctx.start", "child(n=1)")
        fork = await run.fork(after_first, effects=mode)
        await stage.settle()
        if mode == "ask":
            [asked] = await fork.questions()
            assert asked.kind == "repeat"
            await fork.resume("repeat")
            await stage.settle()
        assert (await fork.result(1)).n == expected
        assert len(ran) == (2 if mode in ("repeat", "ask") else 1)
        assert len(await fork.children()) == (1 if mode in ("repeat", "ask") else 0)

    run_async(played())


def test_a_start_that_takes_a_thread_over_cancels_the_children_of_the_run_before(tmp_path: Path):
    async def waits(ctx: Context) -> None:
        await ctx.receive()

    async def node(ctx: Context) -> None:
        await ctx.run(one(waits, "leaf"))

    async def played() -> None:
        graph = one(node)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start(thread="t")
        await stage.settle()
        cluster = Cluster(stage.store, Settings(state_dir=tmp_path), None)
        await cluster.start(graph, {}, thread="t", busy="interrupt")
        assert (await run.record()).status == "cancelled"
        assert [record.status for record in await records(stage, run)] == ["cancelled"]

    run_async(played())


# --- when the parent ends ------------------------------------------------------------------------------------------


async def listens(ctx: Context) -> dict[str, Any]:
    return {"seen": [json.dumps(await ctx.receive())]}


def bound(ends: str) -> Graph:
    """A parent with a child of each kind, which ends in this way once somebody says so."""
    graph = Graph("parent", Log)

    @graph.node
    async def begin(ctx: Context) -> None:
        for close in ("cancel", "abandon", "request", None):
            await ctx.start(one(listens, str(close)), parent_close=close)

    @graph.node
    async def end(ctx: Context) -> None:
        await ctx.receive()
        if ends == "failed":
            raise ValueError("no")

    return graph.edge(START, begin).edge(begin, end).edge(end, END)


@pytest.mark.parametrize("ends", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "away"])
def test_a_child_is_told_of_its_parents_end_as_was_said(ends: str, resident: bool):
    """`resident`: all of it in one residence, which knows what it has started; else another one has to find out."""

    async def played() -> None:
        stage = Stage(MemoryStore(), bound(ends))
        run = await stage.start()
        if resident and ends != "cancelled":
            await stage.store.send(run.run_id, "m", "1", stage.clock())
        await stage.settle()
        if ends == "cancelled":
            await run.cancel()
        elif not resident:
            assert (await run.record()).status == "waiting"
            await stage.store.send(run.run_id, "m", "1", stage.clock())
        await stage.settle()
        assert (await run.record()).status == ends
        statuses = {record.graph: record.status for record in await records(stage, run)}
        assert statuses == {
            "cancel": "cancelled",
            "abandon": "waiting",
            "request": "succeeded",
            "None": "cancelled" if ends == "cancelled" else "waiting",
        }
        told = next(record for record in await records(stage, run) if record.graph == "request")
        said = [json.dumps({"parent_ended": {"run_id": run.run_id, "status": ends}})]
        assert json.loads(told.result)["seen"] == said
        if ends != "cancelled":
            await run.cancel()  # of a run that is over: what was said about children stands
            statuses = {record.graph: record.status for record in await records(stage, run)}
            assert (statuses["abandon"], statuses["None"]) == ("waiting", "cancelled")

    run_async(played())


@pytest.mark.parametrize("close", ["abandon", "request"])
def test_a_child_learns_by_itself_that_its_parent_was_cancelled_by_somebody_who_died(close: Any):
    async def node(ctx: Context) -> None:
        await ctx.run(one(listens, "listens"), parent_close=close)

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.drive(run)
        await stage.store.cancel(run.run_id, stage.clock())  # and no more
        await stage.settle()
        [born] = await records(stage, run)
        assert born.status == ("waiting" if close == "abandon" else "succeeded")

    run_async(played())


def test_one_whose_mailbox_is_full_is_cancelled(monkeypatch: pytest.MonkeyPatch):
    async def sleeps(ctx: Context) -> None:
        await ctx.sleep(timedelta(days=1))

    async def node(ctx: Context) -> None:
        await ctx.start(one(sleeps, "sleeps"), parent_close="request")
        await ctx.receive()

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.settle()
        [born] = await records(stage, run)
        monkeypatch.setattr(memory, "MAILBOX_MAX", 1)
        await stage.store.send(born.run_id, "m", "1", stage.clock())
        await stage.store.send(run.run_id, "m", "1", stage.clock())
        await stage.settle()
        assert [record.status for record in await records(stage, run)] == ["cancelled"]

    run_async(played())


def test_nobody_is_told_of_an_end_that_is_not_durable():
    """Law 3: the store does not take the end of the run, so it goes on, and so do its children."""

    class Refusing(MemoryStore):
        refuses = False

        async def commit(self, *commits: Commit) -> Committed:
            if self.refuses:
                raise StoreUnavailable("gone")
            return await super().commit(*commits)

    async def played() -> None:
        for ends in ("succeeded", "failed"):
            store = Refusing()
            stage = Stage(store, bound(ends))
            run = await stage.start()
            await stage.settle()
            await store.send(run.run_id, "m", "1", stage.clock())
            store.refuses = True
            with pytest.raises(StoreUnavailable):
                await stage.drive(run)
            assert {record.status for record in await records(stage, run)} == {"waiting"}
            assert not [
                e for r in await records(stage, run) for e in await store.events(r.run_id) if e.kind == "message"
            ]

    run_async(played())


def test_a_run_that_had_failed_when_its_owner_died_ends_so():
    """Its children may have been told already."""
    told: list[str] = []

    class Dying(MemoryStore):
        async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
            if message_id.startswith("parent-ended") and not told:
                told.append(message_id)
                raise StoreUnavailable("its owner dies here")
            return await super().send(run_id, message_id, body, now, parent_epoch)

    async def played() -> None:
        tries: list[int] = []

        async def node(ctx: Context) -> None:
            await ctx.start(one(listens, "listens"), parent_close="request")
            tries.append(1)
            if len(tries) == 1:
                raise ValueError("only the first time")

        stage = Stage(Dying(), one(node))
        run = await stage.start()
        with pytest.raises(StoreUnavailable):
            await stage.drive(run)
        await stage.crash(run)
        await stage.settle()
        record = await run.record()
        assert (record.status, tries) == ("failed", [1])
        assert "only the first time" in record.error
        [born] = await records(stage, run)
        assert born.status == "succeeded"
        await run.retry()
        await stage.settle()
        assert ((await run.record()).status, tries) == ("succeeded", [1, 1])

    run_async(played())


def test_nor_does_it_end_so_again_once_somebody_has_it_retried():
    """There was no child to be told, but a task at work might have started one (found by seeded story 2000378)."""
    graph, tries = Graph("parent", Log), list[int]()

    @graph.node
    async def works() -> None:
        if not tries:
            await asyncio.Event().wait()

    @graph.node
    async def breaks() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")

    graph.edge(START, works).edge(START, breaks).edge([works, breaks], END)

    class Dying(MemoryStore):
        dies = True

        async def commit(self, *commits: Commit) -> Committed:
            if self.dies and commits[-1].status == "failed":
                raise StoreUnavailable("its owner dies here")
            return await super().commit(*commits)

    async def played() -> None:
        store = Dying()
        stage = Stage(store, graph)
        run = await stage.start()
        with pytest.raises(StoreUnavailable):
            await stage.drive(run)
        store.dies = False
        await stage.crash(run)
        await stage.settle()
        assert ((await run.record()).status, tries) == ("failed", [1])
        await run.retry()
        await stage.settle()
        assert ((await run.record()).status, tries) == ("succeeded", [1, 1])

    run_async(played())


class Slow(MemoryStore):
    """A request that was sent is performed, whoever still waits for it: the child of a run is made just after the run's
    owner has looked for children, or else a little later."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.looked = asyncio.Event(), asyncio.Event()
        self.lost = False

    async def create(self, run: NewRun, *args: Any) -> RunRecord:
        if not run.parent:
            return await super().create(run, *args)
        self.asked.set()
        asyncio.get_running_loop().call_later(0.05, self.looked.set)
        made = asyncio.ensure_future(self._create(run, *args))
        return await asyncio.shield(made)

    async def _create(self, run: NewRun, *args: Any) -> RunRecord:
        await self.looked.wait()
        if self.lost:
            raise StoreUnavailable("whether it is made, nobody knows")
        return await super().create(run, *args)

    async def run(self, run_id: str) -> RunRecord:
        try:
            return await super().run(run_id)
        except NotFound:
            self.looked.set()
            await asyncio.sleep(0.01)
            raise


def giving_up() -> Graph:
    async def node(ctx: Context) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await ctx.start(one(listens, "listens"), parent_close="cancel")
        raise ValueError("no")

    return one(node)


def test_a_child_that_its_node_has_given_up_is_made_and_closed():
    async def played() -> None:
        stage = Stage(Slow(), giving_up())
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert [record.status for record in await records(stage, run)] == ["cancelled"]

    run_async(played())


def test_the_next_try_takes_the_child_whose_start_was_given_up():
    async def node(ctx: Context) -> None:
        if not tried:
            tried.append(True)
            async with asyncio.timeout(0.001):
                await ctx.start(one(listens, "listens"))
        await ctx.start(one(listens, "listens"))

    async def played() -> None:
        stage = Stage(Slow(), one(node, retry=Retry(attempts=2, base_s=0)))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert len(await records(stage, run)) == 1
        assert len(await stage.store.runs()) == 2

    tried: list[bool] = []
    run_async(played())


def test_a_child_that_its_node_has_given_up_is_looked_for_when_it_is_on_record():
    class Late(MemoryStore):
        """A start is on record just after the run's owner has looked for children, or else a little later."""

        async def begin(self, *args: Any) -> Begun:
            asyncio.get_running_loop().call_later(0.05, looked.set)
            return await asyncio.shield(asyncio.ensure_future(self._begin(*args)))

        async def _begin(self, *args: Any) -> Begun:
            await looked.wait()
            return await super().begin(*args)

        async def events(self, *args: Any) -> list[Event]:
            found = await super().events(*args)
            if not found:  # the last page
                looked.set()
                await asyncio.sleep(0.01)
            return found

    async def played() -> None:
        stage = Stage(Late(), giving_up())
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert [record.status for record in await records(stage, run)] == ["cancelled"]

    looked = asyncio.Event()
    run_async(played())


def test_a_thread_that_asks_for_a_child_too_late_is_let_go():
    """Whatever ends the residence while its children are closed."""

    async def played() -> None:
        births = Births()
        await births.close()

        async def never() -> Born:
            raise AssertionError

        waiting = asyncio.ensure_future(births.bring(never()))
        await asyncio.sleep(0)
        births.stop()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run_async(played())


def test_a_child_of_which_nobody_knows_whether_it_is_made_is_left_to_another_owner():
    async def played() -> None:
        store = Slow()
        store.lost = True
        stage = Stage(store, giving_up())
        run = await stage.start()
        with pytest.raises(StoreUnavailable):
            await stage.drive(run)
        store.lost = False
        await stage.crash(run)
        await stage.settle()
        assert {record.status for record in await store.runs(limit=9)} <= {"failed", "cancelled"}

    run_async(played())


def test_a_run_that_closes_its_children_starts_no_other():
    """Found by seeded story 1003444."""

    async def played() -> None:
        class Looking(MemoryStore):
            async def events(self, run_id: str, *args: Any) -> list[Event]:
                found = await super().events(run_id, *args)
                looked.set()
                await asyncio.sleep(0.01)
                return found

        async def node(ctx: Context) -> None:
            at_work.set()
            await looked.wait()
            await ctx.start(one(listens, "listens"))

        looked, at_work = asyncio.Event(), asyncio.Event()
        stage = Stage(Looking(), one(node))
        run = await stage.start()
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await at_work.wait()
        await run.cancel()
        driver.cancel()
        assert await driving == "cancelled"
        assert "child_started" not in await stage.kinds(run)

    run_async(played())


def test_what_is_no_way_to_close_a_child_is_told():
    async def node(ctx: Context) -> None:
        await ctx.start(child, parent_close="terminate")  # type: ignore[arg-type]

    with pytest.raises(RunFailed, match="parent_close='terminate' is none of cancel, abandon, request"):
        one(node).run_inline({})


family = Graph("family", Log)


@family.node
async def begin(ctx: Context) -> None:
    await ctx.start(one(listens, "ends"), parent_close="cancel")
    await ctx.start(one(listens, "hears"), parent_close="request")


@family.node
async def fail(ctx: Context) -> None:
    await ctx.sleep(timedelta(days=1))
    raise ValueError("no")


family.edge(START, begin).edge(begin, fail).edge(fail, END)


@pytest.mark.parametrize("victim", VICTIMS)
def test_whoever_dies_wherever_all_children_are_told(victim: Victim):
    report = crash_points(family, victims=[victim])
    assert report.ok, report
    assert "send" in report.operations, report.operations
