"""What a run has left behind when it leaves: nothing that somebody has to look for."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph
from understudy.actors.memory import MemoryStore


class Word(BaseModel):
    said: str = ""


@pytest.fixture
def nobody_looks() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("nobody_looks")
def test_a_run_that_has_left_is_freed_at_once() -> None:
    """Its state may be large, and hundreds of runs come and go before somebody looks for garbage."""
    graph = Graph("word", Word)

    @graph.node
    async def plain(state: Word) -> dict[str, str]:
        return {"said": "once"}

    @graph.node
    async def streams(state: Word, ctx: Context) -> dict[str, str]:
        ctx.stream("twice")
        return {"said": state.said + " twice"}

    graph.edge(START, "plain")
    graph.edge("plain", "streams")
    graph.edge("streams", END)

    async def story() -> None:
        stage = Stage(MemoryStore(), graph)
        driver = await stage.driver(await stage.start())
        left = [weakref.ref(driver), weakref.ref(driver.loaded)]
        assert await driver.drive() == "succeeded"
        del driver
        await asyncio.sleep(0)  # what was stopped ends
        assert [ref() for ref in left] == [None, None]

    run_async(story(), 10)
