"""A run that failed is retried: what was at work beside the node that failed, and ended with it, is done again."""

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, append, tool
from understudy.actors.inline_ports import InlineSandboxes
from understudy.actors.memory import MemoryStore


class Notes(BaseModel):
    notes: Annotated[list[str], append] = []


def test_a_call_that_was_ended_with_its_run_is_made_again_when_the_run_is_retried():
    """Found by a seeded story (115): the retried run took our own `killed` for the end of the call, and failed."""

    async def played() -> None:
        began, goes_on, calls = asyncio.Event(), asyncio.Event(), list[str]()

        @tool
        async def mail(to: str) -> str:
            calls.append(to)
            began.set()
            await goes_on.wait()
            return f"mailed {to}"

        graph = Graph("beside", Notes)

        @graph.node
        async def slow(state: Notes, ctx: Context) -> dict[str, Any]:
            return {"notes": [await ctx.call(mail, to="Ada")]}

        @graph.node
        async def broken(state: Notes) -> dict[str, Any]:
            await began.wait()
            if not goes_on.is_set():
                raise ValueError("not yet")
            return {"notes": ["mended"]}

        graph.edge(START, slow).edge(START, broken).edge(slow, END).edge(broken, END)
        stage = Stage(MemoryStore(), graph)
        stage.sandboxes = InlineSandboxes(stage.store)  # type: ignore[assignment]
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        goes_on.set()
        await run.retry()
        assert await stage.drive(run) == "succeeded"
        assert (await run.result(1.0)).notes == ["mailed Ada", "mended"]
        assert calls == ["Ada", "Ada"], "the first was ended with the run, and its receipt says so"
        receipts = await stage.store.receipts(run.run_id)
        assert sorted(r.standing for r in receipts) == ["done", "failed"]

    run_async(played())
