"""Moving a deployment: from each store to each, killed on the way, refused where something would be lost or doubled."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.servers import PostgresServer
from support.stage import Stage
from understudy import END, START, Context, Graph
from understudy.actors.errors import Conflict
from understudy.actors.memory import MemoryStore
from understudy.actors.paging import each_thread
from understudy.actors.records import run_id_on
from understudy.actors.store import Store
from understudy.cluster.client import Run
from understudy.cluster.move import digest_of, move, shelved
from understudy.cluster.stores import open_store
from understudy.cluster.testing.conformance.deployment import BLOB, settle
from understudy.cluster.testing.conformance.suite import T, commit_of, create, owned, thread_beside

KINDS = ("sqlite", "postgres", "redis")


class Answered(BaseModel):
    said: str = ""


graph = Graph("moved", Answered)


@graph.node
async def ask(state: Answered, ctx: Context) -> dict[str, Any]:
    return {"said": await ctx.interrupt("what?")}


graph.edge(START, "ask")
graph.edge("ask", END)


@contextmanager
def place(kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty store of this kind."""
    match kind:
        case "sqlite":
            yield f"sqlite://{tmp_path / name}.db"
        case "redis":
            yield request.getfixturevalue("redis_url").replace("/0", "/1" if name == "new" else "/0")
        case _:
            server: PostgresServer = request.getfixturevalue("postgres_server").start()
            url = server.create_database()
            yield url
            server.drop_database(url)


@asynccontextmanager
async def both(old: str, new: str) -> AsyncIterator[tuple[Store, Store]]:
    source, target = await open_store(old), await open_store(new)
    try:
        yield source, target
    finally:
        await source.close()
        await target.close()


async def contents(store: Store) -> dict[str, Any]:
    """All that a move has to bring over."""
    return {
        "threads": {thread: digest_of(await store.dump(thread)) async for thread in each_thread(store)},
        "blobs": {digest: await store.get_blob(digest) for digest in await store.blobs()},
        "documents": [found async for found in shelved(store)],
        "counters": await store.counters(),
        "counts": await store.counts(),
        "due": await store.due(T + 1000, 100),
    }


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_a_deployment_moves_and_goes_on(old: str, new: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async def go(source: Store, target: Store) -> None:
        await settle(source)
        stage = Stage(source, graph)
        run = await stage.start({})
        assert await stage.drive(run) == "waiting"
        before = await contents(source)
        moved = await move(source, target)
        assert (moved.threads, moved.found, moved.blobs, moved.documents) == (10, 0, 2, 2)
        assert await contents(source) == before  # the source is only read
        assert await contents(target) == before
        assert (await move(source, target)).found == 10
        await goes_on(target, run.run_id)

    with place(old, "old", tmp_path, request) as old_url, place(new, "new", tmp_path, request) as new_url:

        async def main() -> None:
            async with both(old_url, new_url) as (source, target):
                await go(source, target)

        asyncio.run(main())


async def goes_on(store: Store, asked: str) -> None:
    """What waited in the old store is taken up in the new one, under the same laws."""
    run = Run(store, asked, graph)
    await run.resume("here")
    assert await Stage(store, graph).drive(run) == "succeeded"
    assert (await run.result()).said == "here"

    asks, behind = run_id_on("asks ünï", "asks"), run_id_on("asks ünï", "behind")
    await store.resume(asks, "i1", '"yes"', T + 10)
    taken = await store.claim(asks, "three", 30.0, T + 10)
    loaded = await store.load(asks)
    assert ([row.checkpoint_id for row in loaded.chain], loaded.writes) == (["c1", "c2"], {"t9": "[9]"})
    assert {key: receipt.state for key, receipt in loaded.receipts.items()} == {"k1": "done", "k2": "unknown"}
    await store.commit(commit_of(taken, status="succeeded"))
    assert (await store.claim(behind, "three", 30.0, T + 11)).head == "c2"

    hears = run_id_on("hears", "hears")
    assert [m.n for m in (await store.load(hears)).messages] == [2]
    assert await store.send(hears, "m1", '"again"', T + 12) == 1
    assert await store.send(hears, "m4", "4", T + 12) == 4
    assert (await store.run(hears)).status == "queued"

    child = await store.claim(run_id_on(thread_beside("parent"), "child"), "three", 30.0, T + 12)
    await store.commit(commit_of(child, at=T + 13, status="succeeded", result="7"))
    assert json.loads((await store.run(run_id_on("parent", "parent"))).answers["child"])["result"] == 7
    assert (await store.retry(run_id_on("failed", "failed"), T + 14)).status == "queued"
    assert (await store.claim(run_id_on("fork", "fork"), "three", 30.0, T + 14)).head == "seed"
    assert await store.sweep(T + 52) == 1  # `ended` was to be kept until then
    assert BLOB in await store.blobs()


class Killed(BaseException):
    pass


class Mortal:
    """A store that dies at its k-th call, before or after it."""

    def __init__(self, store: Store, k: int, after: bool) -> None:
        self._store, self._left, self._after = store, k, after

    def __getattr__(self, name: str) -> Any:
        verb: Callable[..., Any] = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            answer = await verb(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return answer

        return call


def test_killed_at_any_call_it_is_finished_by_the_next(tmp_path: Path) -> None:
    async def go() -> None:
        source = MemoryStore()
        await settle(source)
        before = await contents(source)
        k, killed = 0, 0
        while killed == k:
            k += 1
            target = MemoryStore()
            for after in (False, True):
                try:
                    await move(source, Mortal(target, k, after))  # type: ignore[arg-type]
                except Killed:
                    killed += not after
            await move(source, target)
            assert await contents(target) == before, f"killed at call {k}"
        assert k > 25  # calls to the target

    asyncio.run(go())


def test_the_command_killed_again_and_again_moves_all(tmp_path: Path) -> None:
    old, new = f"sqlite://{tmp_path / 'old.db'}", f"sqlite://{tmp_path / 'new.db'}"
    command = [sys.executable, "-m", "understudy.cluster.cli", "store", "migrate", "--from", old, "--to", new, "--json"]

    async def fill() -> dict[str, Any]:
        store = await open_store(old)
        await settle(store)
        for n in range(60):
            run = await owned(store, f"many-{n}", f"many-{n}")
            await store.commit(commit_of(run, counters={"many": 0.1}))
        before = await contents(store)
        await store.close()
        return before

    async def there() -> int:
        store = await open_store(new)
        try:
            return len([None async for _ in each_thread(store)])
        finally:
            await store.close()

    before = asyncio.run(fill())
    dice = random.Random(1)
    for _ in range(3):
        victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wanted, until = min(69, asyncio.run(there()) + dice.randrange(1, 20)), time.monotonic() + 60
        while asyncio.run(there()) < wanted and victim.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        victim.kill()
        victim.wait(10)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["threads"] == 69

    async def compare() -> None:
        async with both(old, new) as (source, target):
            assert await contents(source) == before == await contents(target)

    asyncio.run(compare())


def test_it_is_refused_where_something_would_be_lost() -> None:
    async def go() -> None:
        source = MemoryStore()
        await settle(source)
        await source.beat("host:1:x", "{}", time.time())
        with pytest.raises(Conflict, match=r"source.*is served by a supervisor"):
            await move(source, MemoryStore())
        await source.beat("host:1:x", "{}", T)

        other = MemoryStore()
        await create(other, "strange", "strange")
        with pytest.raises(Conflict, match=r"'strange'.*empty store"):
            await move(source, other)
        counted = MemoryStore()
        await counted.count({"theirs": 1})
        with pytest.raises(Conflict, match=r"counter theirs.*empty store"):
            await move(source, counted)
        assert await other.threads() == ["strange"]

        target = MemoryStore()
        await move(source, target)
        await target.resume(run_id_on("asks ünï", "asks"), "i1", '"there"', T + 10)  # the target went on
        with pytest.raises(Conflict, match="'asks ünï' is not the same on both sides"):
            await move(source, target)

    asyncio.run(go())


def test_what_comes_in_between_is_noticed() -> None:
    async def go(change: Callable[[Store], Any], told: str) -> None:
        source, target = MemoryStore(), MemoryStore()
        await settle(source)
        stages: list[str] = []

        class Late(Mortal):
            def __getattr__(self, name: str) -> Any:
                verb = getattr(source, name)

                async def call(*args: Any, **kwargs: Any) -> Any:
                    if name == "counters" and "changed" not in stages:  # all threads are over by then
                        stages.append("changed" if "blobs" in stages else "asked")
                        if stages[-1] == "changed":
                            await change(source)
                    stages.append(name)
                    return await verb(*args, **kwargs)

                return call

        with pytest.raises(Conflict, match=told):
            await move(Late(source, 0, False), target)  # type: ignore[arg-type]

    asyncio.run(go(lambda s: s.resume(run_id_on("asks ünï", "asks"), "i1", "1", T + 10), "'asks ünï' is not the same"))
    asyncio.run(go(lambda s: create(s, "new", "new one"), "other threads"))
    asyncio.run(go(lambda s: s.delete_thread("ended"), "'ended' was deleted"))


def test_info_and_migrate_for_people(tmp_path: Path) -> None:
    old, new = f"sqlite://{tmp_path / 'old.db'}", f"sqlite://{tmp_path / 'new.db'}"

    async def fill() -> None:
        store = await open_store(old)
        await settle(store)
        await store.close()

    def understudy(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "understudy.cluster.cli", "store", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    asyncio.run(fill())
    done = understudy("migrate", "--from", old, "--to", new)
    assert (done.returncode, done.stderr) == (0, "")
    assert "moved 9 threads: 10 runs, 3 checkpoints, 2 blobs, 2 documents" in done.stdout
    assert "under the same secret only" in done.stdout
    about = json.loads(understudy("info", "--store", new, "--json").stdout)
    assert (about["kind"], about["threads"], about["runs"]["waiting"], about["served"]) == ("sqlite", 9, 3, False)
    assert "9" in understudy("info", "--store", new).stdout
    assert understudy("migrate", "--from", old, "--to", old).returncode == 2
    refused = understudy("migrate", "--from", f"sqlite://{tmp_path / 'typo.db'}", "--to", new)
    assert (refused.returncode, (tmp_path / "typo.db").exists()) == (1, False)
    assert "there is no store at" in refused.stderr
    asyncio.run(make_empty(f"sqlite://{tmp_path / 'empty.db'}"))
    refused = understudy("migrate", "--from", f"sqlite://{tmp_path / 'empty.db'}", "--to", new)
    assert refused.returncode == 1
    assert "empty store" in refused.stderr


async def make_empty(url: str) -> None:
    await (await open_store(url)).close()
