"""What a node's retry, timeout and fallback do, and what a cancelled run leaves behind; on the memory store."""

import asyncio
import threading
import time
from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async, wait_until_async
from understudy import END, START, Context, Failure, Graph, Retry, append, tool
from understudy.actors.attempts import Attempt
from understudy.actors.errors import GraphError
from understudy.actors.memory import MemoryStore

AT_ONCE = Retry(attempts=3, base_s=0.0)
LATER = Retry(attempts=3, base_s=60.0, max_s=600.0, jitter=0.0)


class Log(BaseModel):
    seen: Annotated[list[str], append] = []


class Clock:
    """Stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = time.time() + 1.0  # runs are made by a real one

    def __call__(self) -> float:
        return self.now


@tool
def act(what: str) -> str:
    return what.upper()


def one_node(fn: Any, **policies: Any) -> Graph:
    graph = Graph("one", Log)
    graph.node(fn, name="try", **policies)
    return graph.edge(START, "try").edge("try", END)


def flaky(failures: int, error: type[Exception] = ConnectionError) -> tuple[Any, list[int]]:
    """A node that fails so often, and the numbers of its tries."""
    tries: list[int] = []

    async def node(state: Log) -> dict[str, Any]:
        tries.append(len(tries))
        if len(tries) <= failures:
            raise error("no answer")
        return {"seen": ["done"]}

    return node, tries


def test_a_node_is_tried_again_until_it_goes_well() -> None:
    async def go() -> None:
        node, tries = flaky(2)
        stage = Stage(MemoryStore(), one_node(node, retry=AT_ONCE))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert len(tries) == 3
        failed = [e.data for e in await stage.store.events(run.run_id) if e.kind == "node_failed"]
        assert [data["attempt"] for data in failed] == [0, 1]
        assert all("ConnectionError: no answer" in data["error"] for data in failed)
        assert (await run.state()) == {"seen": ["done"]}

    run_async(go())


def test_the_last_try_fails_the_run_and_says_how_often_it_was_tried() -> None:
    async def go() -> None:
        node, tries = flaky(99)
        stage = Stage(MemoryStore(), one_node(node, retry=AT_ONCE))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert len(tries) == 3
        record = await run.record()
        assert record.error.startswith("node 'try': ConnectionError: no answer")
        assert record.error.endswith("(tried 3 times)")

    run_async(go())


@pytest.mark.parametrize(("on", "tries"), [((ConnectionError,), 3), (("OSError",), 3), ((ValueError,), 1)])
def test_only_the_named_errors_are_tried_again(on: tuple[Any, ...], tries: int) -> None:
    async def go() -> None:
        node, seen = flaky(99)
        stage = Stage(MemoryStore(), one_node(node, retry=Retry(attempts=3, base_s=0.0, on=on)))
        assert await stage.drive(await stage.start()) == "failed"
        assert len(seen) == tries

    run_async(go())


def test_a_long_wait_holds_no_actor_and_its_count_survives_a_crash() -> None:
    async def go() -> None:
        clock = Clock()
        node, tries = flaky(2)
        stage = Stage(MemoryStore(), one_node(node, retry=LATER), clock=clock)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        assert (await run.record()).not_before == clock.now + 60.0
        assert (await stage.store.due(clock.now + 59.0, 10)).ready == ()
        clock.now += 60.0
        assert (await stage.store.due(clock.now, 10)).ready == (run.run_id,)
        await stage.driver(run)  # claimed, and its process dies before anything happens
        await stage.crash(run)
        assert await stage.drive(run) == "waiting"
        assert (len(tries), (await run.record()).not_before) == (2, clock.now + 120.0)
        clock.now += 120.0
        assert await stage.drive(run) == "succeeded"
        assert len(tries) == 3

    run_async(go())


def test_a_sibling_goes_on_while_a_task_waits_for_its_next_try() -> None:
    async def go() -> None:
        clock = Clock()
        node, tries = flaky(1)
        graph = Graph("two", Log)
        graph.node(node, name="try", retry=LATER)

        @graph.node
        async def other(state: Log) -> dict[str, Any]:
            return {"seen": ["other"]}

        graph.edge(START, "try").edge(START, "other").edge(["try", "other"], END)
        stage = Stage(MemoryStore(), graph, clock=clock)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        clock.now += 60.0
        assert await stage.drive(run) == "succeeded"
        kinds = await stage.kinds(run)
        assert (kinds.count("node_finished"), len(tries)) == (2, 2)
        assert (await run.state())["seen"] == ["done", "other"]

    run_async(go())


def test_a_try_that_takes_too_long_fails_with_a_timeout() -> None:
    async def go() -> None:
        tries: list[int] = []

        async def node(state: Log) -> dict[str, Any]:
            tries.append(1)
            if len(tries) == 1:
                await asyncio.Event().wait()
            return {"seen": ["done"]}

        policies = {"timeout": timedelta(seconds=0.05), "retry": Retry(attempts=2, base_s=0.0, on=(TimeoutError,))}
        stage = Stage(MemoryStore(), one_node(node, **policies))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        [failed] = [e.data for e in await stage.store.events(run.run_id) if e.kind == "node_failed"]
        assert "TimeoutError: the node took longer than its 0.05 s" in failed["error"]

    run_async(go())


def test_a_thread_past_its_timeout_is_left_behind_and_its_calls_are_refused() -> None:
    async def go() -> None:
        late = threading.Event()
        over = threading.Event()
        refused: list[BaseException] = []

        def node(state: Log, ctx: Context) -> dict[str, Any]:
            late.wait(30)
            try:
                ctx.call(act, what="too late")
            except BaseException as error:
                refused.append(error)
                raise
            finally:
                over.set()
            return {}

        stage = Stage(MemoryStore(), one_node(node, timeout=timedelta(seconds=0.05))).tools(act)
        run = await stage.start()
        driver = await stage.driver(run)
        assert await driver.drive() == "failed"
        assert driver.dirty
        late.set()
        assert await asyncio.to_thread(over.wait, 10)
        assert (len(refused), stage.sandboxes.calls) == (1, [])

    run_async(go())


def test_a_node_that_is_given_up_leads_to_its_fallback_with_the_reason() -> None:
    async def go() -> None:
        node, _ = flaky(99)
        graph = Graph("fall", Log)
        graph.node(node, name="try", retry=AT_ONCE, fallback="mend")

        @graph.node
        async def next_one(state: Log) -> dict[str, Any]:
            return {"seen": ["never"]}

        @graph.node
        async def mend(failure: Failure) -> dict[str, Any]:
            return {"seen": [f"{failure.node} {failure.error_type} {failure.attempts}"]}

        graph.edge(START, "try").edge("try", "next_one").edge("next_one", END).edge("mend", END)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        assert (await run.state())["seen"] == ["try ConnectionError 3"]

    run_async(go())


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ({"retry": 3}, "retry is 3"),
        ({"timeout": 3}, "timeout is 3"),
        ({"timeout": timedelta(0)}, "timeout is"),
        ({"fallback": "nobody"}, "no node 'nobody'"),
    ],
)
def test_a_policy_that_is_none_is_refused(policies: dict[str, Any], said: str) -> None:
    node, _ = flaky(0)
    with pytest.raises(GraphError, match=said):
        one_node(node, **policies).plan()


def test_a_failed_run_that_is_retried_has_all_its_tries_again() -> None:
    async def go() -> None:
        node, tries = flaky(4)
        graph = Graph("two", Log)
        graph.node(node, name="try", retry=AT_ONCE)
        ran: list[str] = []

        @graph.node
        async def other(state: Log) -> dict[str, Any]:
            ran.append("other")
            return {"seen": ["other"]}

        graph.edge(START, "try").edge(START, "other").edge(["try", "other"], END)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert len(tries) == 3
        kept = (await stage.store.load(run.run_id)).writes
        assert Attempt(3, since=3) in [Attempt.read(body) for body in kept.values()]
        await stage.store.retry(run.run_id, stage.clock())
        assert await stage.drive(run) == "succeeded"
        assert (len(tries), ran) == (5, ["other"])

    run_async(go())


def test_what_had_finished_when_a_run_is_cancelled_is_kept() -> None:
    async def go() -> None:
        started = asyncio.Event()
        graph = Graph("two", Log)

        @graph.node
        async def quick(state: Log) -> dict[str, Any]:
            return {"seen": ["quick"]}

        @graph.node
        async def slow(state: Log) -> dict[str, Any]:
            started.set()
            await asyncio.Event().wait()
            return {"seen": ["slow"]}

        graph.edge(START, quick).edge(START, slow).edge([quick, slow], END)
        stage = Stage(MemoryStore(), graph)
        run = await stage.start(thread="t")
        driver = await stage.driver(run)
        driving = asyncio.ensure_future(driver.drive())
        await started.wait()

        async def has_finished() -> bool:
            return "node_finished" in await stage.kinds(run)

        await wait_until_async(has_finished, 10, "the quick node's commit")
        driver.cancel()
        assert await driving == "cancelled"
        assert (await run.state())["seen"] == ["quick"]
        # The thread can be used: the next run starts from what the cancelled one left.
        following = await stage.start({"seen": ["next"]}, thread="t")
        record = await stage.store.claim(following.run_id, "stage", 10.0, stage.clock())
        assert record.head == (await run.record()).head

    run_async(go())


def test_a_call_that_an_owner_has_left_is_ended_when_the_run_is_cancelled() -> None:
    async def go() -> None:
        async def node(state: Log, ctx: Context) -> dict[str, Any]:
            return {"seen": [await ctx.call(act, what="slow")]}

        stage = Stage(MemoryStore(), one_node(node)).tools(act)
        stage.sandboxes.hold = asyncio.Event()
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        await stage.sandboxes.called.wait()
        driving.cancel()  # its process dies; the sandbox goes on
        await asyncio.wait([driving])
        assert stage.sandboxes.aborted == []
        await stage.crash(run)
        await stage.driver(run)
        await run.cancel()
        assert (await run.record()).status == "running"
        await stage.crash(run)
        assert await stage.drive(run) == "cancelled"
        assert stage.sandboxes.aborted == ["act"]

    run_async(go())
