"""A result is the state at the end; a large one is stored once, and everybody who asks for it gets it."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from support.stage import Stage
from understudy import END, START, Context, Graph, Last, append
from understudy.actors.inline import run_inline_async
from understudy.actors.memory import MemoryStore
from understudy.actors.results import RESULT_BYTES_MAX, with_result
from understudy.cluster.cli import reading  # noqa: F401 (registers the commands)
from understudy.cluster.cli.command import app
from understudy.cluster.client import Run
from understudy.cluster.stores import open_store

SAID = "x" * RESULT_BYTES_MAX


class Chat(BaseModel):
    log: Annotated[list[str], append] = []


def chat(said: str = SAID, **settings: Any) -> Graph:
    graph = Graph("chat", Chat, **settings)
    graph.node(lambda state: {"log": [said]}, name="say")
    return graph.edge(START, "say").edge("say", END)


async def ended(store: Any, graph: Graph) -> Run:
    stage = Stage(store, graph)
    run = await stage.start()
    assert await stage.drive(run) == "succeeded"
    return run


def test_a_large_result_is_in_the_checkpoint_alone() -> None:
    async def go() -> None:
        store = MemoryStore()
        run = await ended(store, chat())
        record = await run.record()
        assert record.result == ""
        assert json.loads((await with_result(store, record)).result) == {"log": [SAID]}
        assert await run.result() == Chat(log=[SAID])
        assert await Run(store, run.run_id).result() == {"log": [SAID]}

    asyncio.run(go())


@pytest.mark.parametrize("graph", [chat("x"), chat(keep=Last(1))], ids=["small", "of a graph that forgets"])
def test_others_are_stored_with_their_run(graph: Graph) -> None:
    async def go() -> None:
        run = await ended(MemoryStore(), graph)
        assert json.loads((await run.record()).result) == await run.state()

    asyncio.run(go())


def test_the_files_of_a_run_are_no_part_of_it() -> None:
    async def go() -> None:
        store = MemoryStore()
        await run_inline_async(chat(), {}, store=store, files={"notes.txt": "hidden"})
        (record,) = await store.runs()
        assert record.result == ""
        assert json.loads((await with_result(store, record)).result) == {"log": [SAID]}
        assert await Run(store, record.run_id).files() == {"notes.txt": b"hidden"}

    asyncio.run(go())


def test_a_child_tells_its_parent() -> None:
    child, parent = chat(), Graph("parent", Chat)

    @parent.node
    async def ask(state: Chat, ctx: Context) -> dict[str, Any]:
        return {"log": (await ctx.run(child, {})).log}

    assert parent.edge(START, "ask").edge("ask", END).run_inline({}) == Chat(log=[SAID])


def test_runs_of_a_thread_do_not_store_its_history_each() -> None:
    """Law 8 over runs: forty of them on one thread store their forty answers, not the conversation forty times."""

    async def go() -> int:
        store, graph = MemoryStore(), chat()
        for n in range(40):
            result = await run_inline_async(graph, {}, store=store, thread="talk")
            assert len(result.log) == n + 1
        dump = await store.dump("talk")
        assert dump is not None
        return sum(len(row.body) for row in dump.checkpoints) + sum(len(run.record.result) for run in dump.runs)

    assert asyncio.run(go()) < 3.2 * 40 * (RESULT_BYTES_MAX + 200)


def test_the_commands_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite://{tmp_path}/store.db"
    monkeypatch.setenv("UNDERSTUDY_STORE", url)

    async def made() -> str:
        store = await open_store(url)
        run = await ended(store, chat())
        await store.close()
        return run.run_id

    run_id = asyncio.run(made())
    (listed,) = json.loads(CliRunner().invoke(app, ["ps", "--json"]).stdout)
    shown = json.loads(CliRunner().invoke(app, ["show", run_id, "--json"]).stdout)
    assert listed["result"] == shown["result"] == shown["state"] == {"log": [SAID]}
