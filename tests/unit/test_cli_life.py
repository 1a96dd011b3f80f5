"""The command line of messages, children, streams, retries and busy threads, without Ray."""

import asyncio
import io
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from support.stage import Stage
from understudy import END, START, Context, Graph, append
from understudy.actors.records import Chunk, Event, RunRecord
from understudy.actors.store import Store
from understudy.cluster.cli import reading, running, sending  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.cli.live import Live
from understudy.cluster.cli.screen import Screen
from understudy.cluster.client import Run
from understudy.cluster.stores import open_store

T = TypeVar("T")
Cli = Callable[..., Result]


class Log(BaseModel):
    seen: Annotated[list[str], append] = []


def one(node: Any, name: str) -> Graph:
    graph = Graph(name, Log)
    graph.node(node, name="work")
    return graph.edge(START, "work").edge("work", END)


async def listens(ctx: Context) -> dict[str, Any]:
    ctx.stream("I listen ... ")
    return {"seen": [str(await ctx.receive())]}


listening = one(listens, "listening")


async def starts(ctx: Context) -> dict[str, Any]:
    return {"seen": (await ctx.run(listening, key="ear")).seen}


starting = one(starts, "starting")
broken: list[bool] = []


async def breaks() -> dict[str, Any]:
    if broken:
        raise ValueError("out of order")
    return {"seen": ["mended"]}


breaking = one(breaks, "breaking")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/test.db"


@pytest.fixture
def cli(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", url)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="understudy")

    return call


def on(url: str, body: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    async def opened() -> T:
        store = await open_store(url)
        try:
            return await body(store)
        finally:
            await store.close()

    return asyncio.run(opened())


def settled(url: str, graph: Graph, start: bool = True) -> str:
    """Start a run of this graph, and drive it and its children as far as they go; its id, or the newest one's."""

    async def play(store: Store) -> str:
        stage = Stage(store, graph)
        await stage._ship(listening)
        run_id = (await stage.start()).run_id if start else (await store.runs(limit=1))[0].run_id
        await stage.settle()
        return run_id

    return on(url, play)


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_message_is_sent_once_under_its_id(cli: Cli, url: str) -> None:
    run_id = settled(url, listening)
    shown = cli("show", run_id).stdout
    assert "waits for a message" in shown
    assert f"send {run_id} JSON" in shown, "what to type"
    for _ in range(2):
        sent = cli("send", run_id, '{"say": "hello"}', "--id", "m1")
        assert "sent as message 1" in sent.stderr
    settled(url, listening, start=False)
    assert document(cli("show", run_id, "--json"))["result"] == {"seen": ["{'say': 'hello'}"]}
    late = cli("send", run_id, "1")
    assert late.exit_code == 1
    assert "takes no messages any more" in late.stderr
    assert cli("send", run_id, "hello").exit_code == 2


def test_show_lists_the_children_and_the_parent(cli: Cli, url: str) -> None:
    parent = settled(url, starting)
    told = document(cli("show", parent, "--json"))
    [child] = told["children"]
    assert (child["graph"], child["status"]) == ("listening", "waiting")
    assert document(cli("show", child["run_id"], "--json"))["parent"] == parent
    shown = cli("show", parent).stdout
    assert child["run_id"] in shown
    assert f"waits for child {child['run_id']}" in shown
    assert parent in cli("show", child["run_id"]).stdout
    assert document(cli("cancel", parent, "--json"))["status"] == "cancelled"
    assert document(cli("show", child["run_id"], "--json"))["status"] == "cancelled"


def test_a_failed_run_names_the_command_that_takes_it_up_again(cli: Cli, url: str) -> None:
    broken.append(True)
    run_id = settled(url, breaking)
    assert f"understudy retry {run_id}" in cli("show", run_id).stdout
    broken.clear()
    assert "taken up again" in cli("retry", run_id).stderr
    assert "it has not ended" in cli("retry", run_id).stderr
    settled(url, breaking, start=False)
    assert document(cli("show", run_id, "--json"))["result"] == {"seen": ["mended"]}
    again = cli("retry", run_id)
    assert again.exit_code == 1
    assert "only a failed or quarantined run" in again.stderr


def test_events_with_what_was_streamed_from_a_cursor_on(cli: Cli, url: str) -> None:
    run_id = settled(url, listening)
    on(url, lambda store: Run(store, run_id).send("hi"))
    settled(url, listening, start=False)
    told = [json.loads(line) for line in cli("events", run_id, "--follow", "--stream", "--json").stdout.splitlines()]
    streamed = [item for item in told if item["kind"] in ("chunk", "withdrawn")]
    assert [(item["kind"], item["data"]) for item in streamed] == [
        ("chunk", "I listen ... "), ("withdrawn", None), ("chunk", "I listen ... "),
    ]  # fmt: skip
    for at, item in enumerate(told):
        assert document(cli("events", run_id, "--stream", "--json", "--after", item["cursor"])) == told[at + 1 :]
    shown = cli("events", run_id, "--stream").stdout
    assert shown.count("work: I listen ... \n") == 2
    assert shown.count("is withdrawn") == 1
    assert cli("events", run_id, "--after", "soon").exit_code == 2


def test_a_busy_thread_is_asked_about(cli: Cli, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flows.py").write_text(
        "from pydantic import BaseModel\n"
        "from understudy import Graph, START, END\n"
        "class Nothing(BaseModel): pass\n"
        "graph = Graph('flow', Nothing)\n"
        "@graph.node\n"
        "async def work(): pass\n"
        "graph.edge(START, work).edge(work, END)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = document(cli("run", "flows:graph", "--thread", "t", "--detach", "--json"))
    rejected = cli("run", "flows:graph", "--thread", "t", "--detach", "--busy", "reject")
    assert rejected.exit_code == 1
    assert f"busy with run {first['run_id']}" in rejected.stderr
    assert cli("run", "flows:graph", "--thread", "t", "--detach", "--busy", "rollback").exit_code == 0
    assert document(cli("show", first["run_id"], "--json"))["status"] == "cancelled"
    assert cli("run", "flows:graph", "--busy", "maybe", "--detach").exit_code == 2


def test_streamed_text_runs_on_until_something_else_is_said() -> None:
    screen = io.StringIO()
    live = Live(Screen(screen))
    for item in [
        Chunk("t1", "think", "1.0", '"Hel"', 1.0),
        Chunk("t1", "think", "1.0", '"lo [x]\\u001b[2J"', 1.0),
        Event("checkpoint", 1.0, {"checkpoint_id": "c1", "step": 1}, 7),
        Chunk("t1", "think", "1.0", '"world\\n"', 1.0),
        Chunk("t2", "act", "1.0", '{"done": 0.5}', 1.0),
        Chunk("t1", "think", "1.0", "null", 1.0, withdrawn=True),
    ]:
        live.show(item)
    live.end()
    lines = screen.getvalue().splitlines()
    assert lines[0] == "think: Hello [x]\ufffd[2J"
    assert "checkpoint" in lines[1]
    assert lines[2:4] == ["think: world", 'act: {"done": 0.5}']
    assert "withdrawn" in lines[4]


def test_what_a_run_waits_for_is_in_the_list(cli: Cli, url: str) -> None:
    parent = settled(url, starting)

    async def both(store: Store) -> list[RunRecord]:
        return await store.runs()

    [child] = [record for record in on(url, both) if record.run_id != parent]
    listed = cli("ps").stdout
    assert f"waits for child {child.run_id}" in listed
    assert "waits for a message" in listed
