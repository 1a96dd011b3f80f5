"""A node's ctx is the node's, in its own thread and while it runs: used otherwise it says so, and begins nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from unit.test_effects import Note

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, tool
from understudy.actors.errors import CallerError
from understudy.actors.memory import MemoryStore

Use = Callable[[Context], Any]


@tool
def touch() -> int:
    return 1


USES: dict[str, Use] = {
    "call": lambda ctx: ctx.call(touch),
    "outcome": lambda ctx: ctx.outcome(touch),
    "effect": lambda ctx: ctx.effect("e", lambda: 1),
    "interrupt": lambda ctx: ctx.interrupt("?"),
    "receive": lambda ctx: ctx.receive(),
    "run": lambda ctx: ctx.run(little, {}),
    "stream": lambda ctx: ctx.stream("token"),
}
little = Graph("little", Note)
little.node(lambda state: {"seen": ["little"]}, name="one")
little.edge(START, "one").edge("one", END)


def staged(first: Callable[..., Any], second: Callable[..., Any]) -> Stage:
    graph = Graph("after", Note)
    graph.node(first, name="first")
    graph.node(second, name="second")
    return Stage(MemoryStore(), graph.edge(START, "first").edge("first", "second").edge("second", END)).tools(touch)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_after_the_node_has_returned_nothing_begins(use: Use) -> None:
    kept: list[Context] = []

    async def first(state: Note, ctx: Context) -> None:
        kept.append(ctx)

    async def second(state: Note, ctx: Context) -> dict[str, Any]:
        with pytest.raises(CallerError, match="ctx of node 'first' is used after the node has returned"):
            await use(kept[0])
        return {"seen": ["refused"]}

    check(staged(first, second))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.filterwarnings("error")  # also of a coroutine that was never awaited
def test_in_another_thread_it_says_what_to_write_instead(use: Use) -> None:
    async def first(state: Note, ctx: Context) -> None:
        for work in (lambda: use(ctx), lambda: asyncio.run(on_a_loop_of_its_own(use, ctx))):
            with pytest.raises(
                CallerError, match="ctx of node 'first' is used in another thread; write the node as `def`"
            ):
                await asyncio.to_thread(work)

    check(staged(first, lambda state: {"seen": ["refused"]}))


async def on_a_loop_of_its_own(use: Use, ctx: Context) -> None:
    await use(ctx)


def check(stage: Stage) -> None:
    async def played() -> None:
        run = await stage.start()
        assert await stage.drive(run) == "succeeded", (await run.record()).error
        assert (await run.result()).seen == ["refused"]
        assert await stage.store.receipts(run.run_id) == []
        assert await stage.store.chunks(run.run_id, 0, 10) == []
        assert await run.children() == []

    run_async(played(), 20)


def test_beside_a_branch_that_waits_no_other_begins_what_would_not_be_on_record() -> None:
    """What was begun by then is asked all the same; what comes later is asked when the node runs again."""

    async def first(state: Note, ctx: Context) -> dict[str, Any]:
        async def slower() -> Any:
            await ctx.call(touch)
            return await ctx.interrupt("slower")

        quick, child, late = await asyncio.gather(ctx.interrupt("quick"), ctx.run(little, {}), slower())
        return {"seen": [quick, child.seen, late]}

    async def played() -> None:
        stage = staged(first, lambda state: None)
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        assert sorted(q.kind for q in (await run.record()).interrupts) == ["child", "question"]
        await run.resume("yes")
        for _ in range(5):
            for child in await run.children():
                if not (await child.record()).final:
                    await stage.drive(child)
            if await stage.drive(run) == "succeeded":
                break
            for question in await run.questions():
                await run.resume("yes too", question.interrupt_id)
        assert (await run.result()).seen == ["yes", ["little"], "yes too"]
        assert [name for name, _ in stage.sandboxes.calls] == ["touch"]

    run_async(played(), 20)
