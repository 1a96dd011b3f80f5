"""Which code a run follows: pinned to the one it was started with, or that which is deployed; and the check before."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support import graphs
from support.stage import Stage
from understudy import Graph
from understudy.actors.code import Code
from understudy.actors.errors import CallerError
from understudy.actors.memory import MemoryStore
from understudy.actors.records import RunRecord
from understudy.actors.ship import ship_graph
from understudy.actors.start import create, new_run
from understudy.actors.store import BLOB_KEPT_S, Store
from understudy.cluster.cli import preflight as preflight_command  # noqa: F401 (registers the command)
from understudy.cluster.cli.command import app
from understudy.cluster.client import Cluster, Run
from understudy.cluster.preflight import preflight
from understudy.cluster.sealed import seal_policy
from understudy.cluster.settings import Settings, read_settings
from understudy.cluster.stores import open_store

SECRET = b"s" * 32

FLOW = """
from pydantic import BaseModel
from understudy import END, START, Context, Graph, tool
from flows_of_test.words import word

class State(BaseModel):
    {field}: str = ""
    asked: bool = False

@tool
def shout() -> str:
    return word()

graph = Graph("deployed", State, version="{version}")

@graph.node
def begin(state: State):
    return {{"{field}": word()}}

@graph.node
async def ask(state: State, ctx: Context):
    return {{"asked": bool(await ctx.interrupt("go on?"))}}

@graph.node
async def call(state: State, ctx: Context):
    await ctx.call(shout)

@graph.node
def say(state: State):
    return {{"{field}": word()}}

graph.edge(START, "begin").edge("begin", "ask").branch("ask", lambda state: "say", ["say", "call"])
graph.edge("call", "say").edge("say", END)
{more}
"""

MIGRATION = """
@graph.migrate(from_="1")
def renamed(old):
    return {"spoken": old["said"], "asked": old["asked"]}
"""


class Deployment:
    """A package as pip would install it, of which newer versions are deployed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lib" / "site-packages"
        (self.path / "flows_of_test").mkdir(parents=True)
        (self.path / "flows_of_test" / "__init__.py").touch()

    def deploy(self, version: str, field: str, more: str = "") -> Graph:
        """Write it, and import it anew."""
        package = self.path / "flows_of_test"
        (package / "words.py").write_text(f"def word():\n    return 'of version {version}'\n")
        (package / "flow.py").write_text(FLOW.format(version=version, field=field, more=more))
        self.forget()
        sys.dont_write_bytecode = True  # two versions within a second would share one
        graph = importlib.import_module("flows_of_test.flow").graph
        assert isinstance(graph, Graph)
        return graph

    def forget(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flows_of_test"]:
            del sys.modules[name]
        importlib.invalidate_caches()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployed, before = Deployment(tmp_path), sys.dont_write_bytecode
    sys.path.insert(0, str(deployed.path))
    yield deployed
    sys.path.remove(str(deployed.path))
    sys.dont_write_bytecode = before
    deployed.forget()


LOADS = """
import asyncio, sys
from understudy.actors.by_value import tool_code
from understudy.actors.code import Code, Library

async def get_blob(digest):
    return open(sys.argv[2], "rb").read()

graph = asyncio.run(Library(b"s" * 32, get_blob).graph(Code(blob=sys.argv[1])))
say = graph.nodes["say"].fn
print(graph.version, say(None), tool_code(graph.nodes["call"].fn.__globals__["shout"]).ref or "by value")
"""


def test_a_pinned_graph_is_the_very_code_even_of_an_installed_package(deployment: Deployment, tmp_path: Path) -> None:
    graph = deployment.deploy("1", "said")

    async def go() -> Code:
        store = MemoryStore()
        assert (await ship_graph(graph, store=store, secret=SECRET))[0].ref == "flows_of_test.flow:graph"
        code, _ = await ship_graph("flows_of_test.flow:graph", store=store, secret=SECRET, mode="pin")
        assert (code.ref, code.mode) == ("", "pin")
        (tmp_path / "blob").write_bytes(await store.get_blob(code.blob))
        return code

    code = asyncio.run(go())
    deployment.deploy("2", "spoken")
    words = [sys.executable, "-c", LOADS, code.blob, str(tmp_path / "blob")]
    for path in ("/nowhere", str(deployment.path)):  # with nothing deployed, and with the newer version
        found = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": path}, timeout=60)
        assert found.stderr == ""
        assert found.stdout.strip() == "1 {'said': 'of version 1'} by value"


async def started(store: Store, graph: Graph, mode: Any = "migrate") -> Run:
    """A run, as `Cluster.start` makes it."""
    code, loaded = await ship_graph(graph, store=store, secret=SECRET, mode=mode)
    return Run(store, (await create(store, new_run(loaded.plan(), code, {}))).run_id, graph)


async def waiting(store: Store, graph: Graph, mode: Any = "migrate") -> Run:
    run = await started(store, graph, mode)
    assert await Stage(store, graph).drive(run) == "waiting"
    return run


def test_preflight_lists_what_a_version_could_not_take_up(deployment: Deployment) -> None:
    async def go() -> None:
        store = MemoryStore()
        old = deployment.deploy("1", "said")
        stands, queued, pinned = await waiting(store, old), await started(store, old), await waiting(store, old, "pin")
        latest, done = await waiting(store, old, "latest"), await started(store, old)
        await store.cancel(done.run_id, 1.0)
        assert {f.problem for f in await preflight(store, old)} == {""}
        before = {run.run_id: await store.dump((await run.record()).thread_id) for run in (stands, latest, queued)}

        found = {f.record.run_id: f for f in await preflight(store, deployment.deploy("2", "spoken"))}
        assert list(found) == [run.run_id for run in (stands, queued, pinned, latest)]
        assert "channel 'said' is no field of State any more" in found[stands.run_id].problem
        assert 'declare @graph.migrate(from_="1")' in found[stands.run_id].problem
        assert found[pinned.run_id].by_value
        assert not found[pinned.run_id].problem

        found = {f.record.run_id: f for f in await preflight(store, deployment.deploy("2", "spoken", MIGRATION))}
        assert [run_id for run_id, f in found.items() if f.problem] == [latest.run_id]
        assert "code='latest' is never migrated" in found[latest.run_id].problem
        assert before == {i: await store.dump(dump.thread_id) for i, dump in before.items()}, "it changes nothing"

    asyncio.run(go())


def test_preflight_knows_where_a_run_behind_others_will_begin(deployment: Deployment) -> None:
    async def go() -> None:
        store = MemoryStore()
        old = deployment.deploy("1", "said")
        first = await waiting(store, old)
        thread = (await first.record()).thread_id
        await store.resume(first.run_id, (await first.questions())[0].interrupt_id, "true", 0.0)
        assert await Stage(store, old).drive(first) == "succeeded"
        code, _ = await ship_graph(old, store=store, secret=SECRET)
        behind = await create(store, new_run(old.plan(), code, {}, thread=thread))
        (found,) = await preflight(store, deployment.deploy("2", "spoken"))
        assert found.record.run_id == behind.run_id
        assert "channel 'said'" in found.problem

    asyncio.run(go())


def test_the_command_says_so_and_fails(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite://{tmp_path}/test.db"
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", url)
    monkeypatch.chdir(tmp_path)

    async def left() -> RunRecord:
        store = await open_store(url)
        run = await waiting(store, deployment.deploy("1", "said"))
        record = await run.record()
        await store.close()
        return record

    record = asyncio.run(left())
    called = CliRunner().invoke(app, ["preflight", "flows_of_test.flow:graph"])
    assert called.exit_code == 0, called.stderr
    assert "unfinished runs of graph 'deployed': 1; version 1 can take up all of them" in called.stderr
    deployment.deploy("2", "spoken")
    called = CliRunner().invoke(app, ["preflight", "flows_of_test.flow:graph", "--json"])
    assert called.exit_code == 1
    document = json.loads(called.stdout)
    assert (document["graph"], document["version"], document["unfinished"]) == ("deployed", "2", 1)
    (blocked,) = document["blocked"]
    assert (blocked["run_id"], blocked["version"], blocked["code"]) == (record.run_id, "1", "migrate")
    called = CliRunner().invoke(app, ["preflight", "flows_of_test.flow:graph"])
    assert called.exit_code == 1
    assert "channel 'said' is no field of State any more" in called.stdout
    assert "version 2 cannot take up 1 of them" in called.stderr

    async def set_aside() -> None:
        store = await open_store(url)
        run = await started(store, deployment.deploy("1", "said"))
        at = (await run.record()).created_at
        epoch = (await store.claim(run.run_id, "somebody", 10.0, at)).epoch
        await store.requeue(run.run_id, epoch, at, at, [], {}, crashed=False, quarantine="it crashes")
        await store.close()

    asyncio.run(set_aside())
    called = CliRunner().invoke(app, ["preflight", "flows_of_test.flow:graph"])
    assert called.exit_code == 0, "what is set aside stands already"
    assert "quarantined runs of graph 'deployed': 1; version 1 could take up that, after" in called.stderr
    assert "unfinished runs of graph 'deployed': 1; version 1 can take up all" in called.stderr


def test_blobs_live_as_long_as_their_run(tmp_path: Path) -> None:
    async def go() -> None:
        store = MemoryStore()
        settings = read_settings({"state_dir": tmp_path})
        cluster = Cluster(store, settings, None)
        policy = graphs.POLICY.replace("${folder}", "/")
        run = await cluster.start(graphs.short, {"folder": "/"}, policy=policy, code="pin")
        record = await run.record()
        assert record.blobs == (Code.read(record.code).blob, record.policy)
        await store.sweep(record.created_at + 10 * BLOB_KEPT_S)
        assert sorted(record.blobs) == await store.blobs()
        await store.cancel(run.run_id, 0.0)
        await store.delete_thread(record.thread_id)
        await store.sweep(record.created_at + 10 * BLOB_KEPT_S)
        assert await store.blobs() == []

    asyncio.run(go())


def test_a_policy_is_put_again_before_it_is_dropped(tmp_path: Path) -> None:
    async def go() -> None:
        store = MemoryStore()
        sealed = await seal_policy("policy: p\nversion: 1\nrules: []\n", SECRET)
        await sealed.keep(store)
        await store.sweep(sealed.put_at + 2 * BLOB_KEPT_S)
        assert await store.blobs() == []
        sealed.put_at -= BLOB_KEPT_S / 2
        assert await sealed.keep(store) == sealed.digest
        assert await store.blobs() == [sealed.digest]

    asyncio.run(go())


def test_what_the_store_has_under_another_secret_is_told_before_a_run_is_made() -> None:
    """It is kept as it is: runs of before may still be driven with the secret of before."""

    async def go() -> None:
        store, other = MemoryStore(), b"o" * 32
        text = "policy: p\nversion: 1\nrules: []\n"
        digest = await (await seal_policy(text, SECRET)).keep(store)
        before = await store.get_blob(digest)
        with pytest.raises(CallerError, match=r"policy 'p' is in this store already.*UNDERSTUDY_SECRET_FILE, or give"):
            await (await seal_policy(text, other)).keep(store)
        assert await store.get_blob(digest) == before
        await (await seal_policy(text.replace("1", "2"), other)).keep(store)
        await ship_graph(graphs.short, store=store, secret=SECRET, mode="pin")
        with pytest.raises(CallerError, match="the code of graph 'short' is in this store already"):
            await ship_graph(graphs.short, store=store, secret=other, mode="pin")

    asyncio.run(go())


def test_a_mode_that_there_is_not(tmp_path: Path) -> None:
    async def go() -> None:
        cluster = Cluster(MemoryStore(), Settings(state_dir=tmp_path), None)
        with pytest.raises(CallerError, match="code='newest' is none of migrate, latest, pin"):
            await cluster.start(graphs.short, {"folder": "/"}, code="newest")  # type: ignore[arg-type]

    asyncio.run(go())
