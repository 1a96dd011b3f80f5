"""A hostile MCP server in a sandbox: whatever it does, the call ends in words, and nothing of it is left."""

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from escape.places import processes_with
from pydantic import BaseModel

from support import hostile_mcp
from support.stage import Stage
from support.waiting import run_async
from support.walled import walled
from understudy import END, START, Context, Graph
from understudy.actors.errors import CallerError
from understudy.actors.mcp import pins
from understudy.actors.mcp.server import McpServer, mcp_server
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.policies.profile import Limits, Profile

pytestmark = [pytest.mark.timeout(120)]
LIMITS = Limits(wall_s=30.0, output_bytes=256 * 1024)
SHORT = replace(LIMITS, wall_s=3.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(hostile_mcp.__file__, tmp_path / "server.py")
    return tmp_path


def server(folder: Path, *how: str) -> McpServer:
    return mcp_server("s", command=["python", "-I", str(folder / "server.py"), *how])


class Nothing(BaseModel):
    """No state."""


async def play(store: MemoryStore, graph: Graph, work: Any, folder: Path, limits: Limits = LIMITS) -> Stage:
    """A run of one node, to its end."""
    graph.node(work, name="work")
    graph.edge(START, "work").edge("work", END)
    stage = walled(Stage(store, graph), Profile(read=(str(folder),), limits=limits, tier="cold"))
    assert await stage.drive(await stage.start({})) == "succeeded"
    return stage


async def called(store: MemoryStore, folder: Path, *how: str, limits: Limits = LIMITS) -> Outcome:
    """The outcome of one call of the server's tool, by a run of its own."""
    ended: list[Outcome] = []

    async def work(state: Nothing, ctx: Context) -> None:
        ended.append(await ctx.outcome(server(folder, *how).tool("add"), a=1))

    await play(store, Graph("mcp", Nothing), work, folder, limits)
    return ended[0]


def outcome_of(folder: Path, *how: str) -> Outcome:
    return run_async(called(MemoryStore(), folder, *how))


async def called_pinned(folder: Path, how: str, limits: Limits = LIMITS) -> Outcome:
    """Only the call itself: what tools there are was seen before."""
    store = MemoryStore()
    listing = [{**hostile_mcp.TOOL, "outputSchema": None, "annotations": None}]
    await store.write_document(pins.SHELF, "s", pins.first_sight("s", listing).text(), 0)
    return await called(store, folder, how, limits=limits)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("fine", "ok"),
        ("wrong ids", "ok"),
        ("garbage", "ok"),
        ("floods", "output_too_large"),
        ("shouts", "output_too_large"),
        ("gigantic", "timeout"),
        ("nested", "timeout"),
        ("deep", "timeout"),
        ("silent", "timeout"),
    ],
)
def test_whatever_it_answers_the_call_ends_in_words_and_nothing_is_left(folder: Path, how: str, kind: str) -> None:
    outcome = run_async(called_pinned(folder, how, SHORT if kind == "timeout" else LIMITS))
    assert outcome.kind == kind, outcome
    assert outcome.kind == "ok" or outcome.said
    assert processes_with(str(folder), within=True) == []


def test_a_server_that_dies_in_the_middle_of_a_call_is_told_as_that(folder: Path) -> None:
    outcome = run_async(called_pinned(folder, "dies"))
    assert (outcome.kind, outcome.error_type) == ("error", "ServerDied")
    assert "MCP server 's' ended in the middle of the call of 'add', and gave no answer" in outcome.error


def test_a_server_that_does_not_start_is_told_as_that(folder: Path) -> None:
    (folder / "server.py").write_text("raise SystemExit('no such option')")
    outcome = run_async(called_pinned(folder, "fine"))
    assert (outcome.kind, outcome.error_type) == ("error", "ServerDied")
    assert "ended before it had told what tools it has; nothing was called" in outcome.error
    assert "no such option" in outcome.printed


def test_it_finds_no_file_no_network_and_no_variable(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("other") / "secret"
    secret.write_text("canary")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        found = outcome_of(folder, "looks", str(secret), str(port)).value
    assert found["network"] == "PermissionError"
    assert found[str(secret)] == found["/etc/shadow"] == found["/etc/ssh"] == "FileNotFoundError"
    assert "UNDERSTUDY" not in found["names"]
    assert "UNDERSTUDY" not in found["/proc/1/environ"]


def test_what_it_leaves_behind_ends_with_the_call(folder: Path) -> None:
    seconds = str(3_000_000 + int(folder.stat().st_ino) % 1_000_000)
    assert outcome_of(folder, "stays", seconds).value == "there is somebody behind"
    assert processes_with("sleep", seconds) == []


@pytest.mark.parametrize("how", ["changed", "renamed", "hidden"])
def test_a_tool_that_changes_is_set_aside_until_it_is_accepted(folder: Path, how: str) -> None:
    async def played() -> None:
        store = MemoryStore()
        assert (await called(store, folder, "fine")).value == "3"
        noticed = await called(store, folder, how)
        assert (noticed.kind, noticed.error_type) == ("error", "ToolChanged")
        assert "understudy mcp diff s" in noticed.error
        refused = await called(store, folder, "fine")  # it shows its old face again; nobody has looked at that yet
        assert refused.kind == "denied"
        assert refused.error.count("set aside") + refused.error.count("is not used") == 1
        document = await store.read_document(pins.SHELF, "s")
        assert document is not None
        known = pins.accept(pins.Pins.read(document.data))
        await store.write_document(pins.SHELF, "s", known.text(), document.version)
        after = await called(store, folder, how)
        assert after.kind == {"changed": "ok", "renamed": "denied", "hidden": "denied"}[how]

    run_async(played())


def test_a_model_is_told_of_accepted_tools_only(folder: Path) -> None:
    async def played() -> None:
        told: list[Any] = []
        store = MemoryStore()
        for how in ("fine", "changed", "hidden", "fine"):
            graph = Graph("mcp", Nothing)

            async def work(state: Nothing, ctx: Context, how: str = how) -> None:
                told.append([tool["name"] for tool in await ctx.tools(server(folder, how))])

            await play(store, graph, work, folder)
        assert told == [["add"], [], [], ["add"]]

    run_async(played())


def test_a_call_that_is_on_record_is_answered_without_the_server(folder: Path) -> None:
    """The node runs again after a person has answered: the server is started for the first time only."""

    async def played() -> None:
        graph = Graph("mcp", Nothing)

        async def work(state: Nothing, ctx: Context) -> None:
            assert await ctx.call(server(folder, "fine").tool("add"), a=1) == "3"
            await ctx.interrupt("go on?")

        graph.node(work, name="work")
        graph.edge(START, "work").edge("work", END)
        stage = walled(Stage(MemoryStore(), graph), Profile(read=(str(folder),), limits=LIMITS, tier="cold"))
        run = await stage.start({})
        assert await stage.drive(run) == "waiting"
        await run.resume("yes")
        assert await stage.drive(run) == "succeeded"
        assert [name for name, _ in stage.sandboxes.calls] == ["mcp:s", "mcp:s/add"]

    run_async(played())


def test_arguments_that_do_not_fit_are_refused_before_anything_is_judged(folder: Path) -> None:
    async def played() -> None:
        graph = Graph("mcp", Nothing)

        async def work(state: Nothing, ctx: Context) -> None:
            with pytest.raises(CallerError, match="'a' is a required property"):
                await ctx.call(server(folder, "fine").tool("add"), b=1)

        stage = await play(MemoryStore(), graph, work, folder)
        assert [request.tool for request in stage.policy.asked] == ["mcp:s"]

    run_async(played())
