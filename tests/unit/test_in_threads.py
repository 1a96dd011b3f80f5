"""Whatever a function raises in a thread, its run goes on to an end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from unit.test_effects import Note

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph
from understudy.actors.memory import MemoryStore
from understudy.actors.threads import in_a_thread


def first_of_none() -> Any:
    return next(iter([]))


def in_a_node(state: Note) -> dict[str, Any]:
    return {"seen": [first_of_none()]}


async def in_an_effect(state: Note, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.effect("first", first_of_none)]}


@pytest.mark.parametrize("node", [in_a_node, in_an_effect])
def test_a_bare_next_fails_its_node_and_not_the_run_for_ever(node: Callable[..., Any]) -> None:
    async def played() -> None:
        graph = Graph("bare", Note)
        graph.node(node, name="work")
        stage = Stage(MemoryStore(), graph.edge(START, "work").edge("work", END))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert "the function raised StopIteration" in (await run.record()).error

    run_async(played(), 20)


def test_what_it_had_to_say_is_kept() -> None:
    def ended() -> None:
        raise StopIteration("all done")

    async def called() -> None:
        with pytest.raises(RuntimeError, match=r"the function raised StopIteration \(all done\)") as caught:
            await in_a_thread(None, ended)
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio.run(called())
