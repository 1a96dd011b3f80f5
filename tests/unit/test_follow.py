"""Following a run: from any cursor, over any reconnect, everything once and in order; and how soon."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Cursor, Graph, live
from understudy.actors.errors import CallerError, NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Chunk, Event, NewRun
from understudy.actors.store import Store
from understudy.cluster.client import Run
from understudy.cluster.follow import Seen
from understudy.cluster.stores import open_store


class Nothing(BaseModel):
    pass


def one(node: Any) -> Graph:
    graph = Graph("followed", Nothing)
    graph.node(node, name="work")
    return graph.edge(START, "work").edge("work", END)


def short(item: Event | Chunk) -> str:
    if isinstance(item, Event):
        return item.kind
    return f"-{item.attempt}" if item.withdrawn else str(json.loads(item.data))


async def crashed_once(stage: Stage) -> Run:
    """A run that streamed, lost its owner, and streamed again."""
    run = await stage.start()
    driving = asyncio.ensure_future(stage.drive(run))
    async with asyncio.timeout(5):
        while len(await stage.store.chunks(run.run_id)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    driving.cancel()
    await asyncio.wait([driving])
    await stage.crash(run)
    assert await stage.drive(run) == "succeeded"
    return run


def stumbling() -> Graph:
    tries = []

    async def node(ctx: Context) -> None:
        tries.append(1)
        for n in range(2):
            ctx.stream(f"{len(tries)}{'ab'[n]}")
        if len(tries) == 1:
            await asyncio.Event().wait()
        ctx.stream("end")

    return one(node)


def test_a_reader_that_reconnects_at_every_point_misses_and_doubles_nothing():
    async def played() -> None:
        stage = Stage(MemoryStore(), stumbling())
        run = await crashed_once(stage)
        whole = [seen async for seen in run.follow()]
        chunks = [s.item for s in whole if isinstance(s.item, Chunk)]
        assert [short(chunk) for chunk in chunks] == ["1a", "1b", "-1.0", "2a", "2b", "end"]
        assert [short(chunk) for chunk in live(chunks)] == ["2a", "2b", "end"]
        assert [s.item for s in whole if isinstance(s.item, Event)] == [e async for e in run.events()]
        for at, seen in enumerate(whole):
            rest = [s async for s in run.follow(str(seen.cursor))]
            assert rest == whole[at + 1 :]
        for chunk in chunks:
            assert [c async for c in run.stream(chunk.n)] == chunks[chunk.n :]

    run_async(played())


def test_a_reader_sees_all_while_it_happens_and_ends_with_the_run():
    """Reconnecting after every single item, with the owner crashing in the middle."""

    async def played() -> None:
        stage = Stage(MemoryStore(), stumbling())
        run = await stage.start()

        async def read() -> list[Seen]:
            told: list[Seen] = []
            while True:
                cursor = told[-1].cursor if told else Cursor()
                async for seen in run.follow(cursor):
                    told.append(seen)
                    break
                else:
                    return told

        reading = asyncio.ensure_future(read())
        driving = asyncio.ensure_future(stage.drive(run))
        async with asyncio.timeout(5):
            while len(await stage.store.chunks(run.run_id)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        driving.cancel()
        await asyncio.wait([driving])
        await stage.crash(run)
        await stage.drive(run)
        told = await reading
        chunks = [s.item for s in told if isinstance(s.item, Chunk)]
        assert [short(chunk) for chunk in chunks] == ["1a", "1b", "-1.0", "2a", "2b", "end"]
        assert [s.item.n for s in told if isinstance(s.item, Event)] == list(
            range(1, len(await stage.store.events(run.run_id)) + 1)
        )
        assert told[-1].item.n == len(await stage.store.events(run.run_id)), "the event finished comes last"

    run_async(played())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_ten_thousand_events_over_a_restart_of_the_store(kind: str, tmp_path: Path):
    memory = MemoryStore()

    async def opened() -> Store:
        return memory if kind == "memory" else await open_store(f"sqlite://{tmp_path}/test.db")

    async def played() -> None:
        store = await opened()
        new = NewRun("r00-1", "t", "g", "1", "{}", "{}", "d")
        await store.create(new, [Event("created", 1.0)], {}, 1.0)
        await store.claim("r00-1", "x", 1e6, 1.0)
        for batch in range(10):
            events = [Event("node_finished", 2.0, {"i": batch * 1000 + i}) for i in range(1000)]
            await store.requeue("r00-1", 1 + 2 * batch, 2.0, 0.0, events, {}, crashed=False)
            await store.claim("r00-1", "x", 1e6, 2.0)
        told: list[Event] = []
        while True:
            # A reader that comes back after 3,777 events each time, to a store that was opened anew.
            cursor = told[-1].n if told else 0
            part: list[Event] = []
            async for event in Run(store, "r00-1").events(cursor, follow=False):
                part.append(event)
                if len(part) == 3777:
                    break
            told += part
            await store.close()
            store = await opened()
            if not part:
                break
        await store.close()
        assert [event.n for event in told] == list(range(1, len(told) + 1))
        assert [event.data["i"] for event in told if event.kind == "node_finished"] == list(range(10_000))

    run_async(played(), 120)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_chunk_reaches_a_follower_well_within_a_tenth_of_a_second(kind: str, tmp_path: Path):
    delays: list[float] = []
    go = {}

    async def node(ctx: Context) -> None:
        for _ in range(20):
            await asyncio.sleep(0.05)
            ctx.stream(time.monotonic())
        await go["seen"].wait()

    async def played() -> None:
        go["seen"] = asyncio.Event()
        store: Store = MemoryStore() if kind == "memory" else await open_store(f"sqlite://{tmp_path}/test.db")
        stage = Stage(store, one(node))
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        async for chunk in run.stream():
            delays.append(time.monotonic() - json.loads(chunk.data))
            if len(delays) == 20:
                go["seen"].set()
        await driving
        await store.close()

    run_async(played())
    assert len(delays) == 20
    assert sorted(delays)[10] < 0.1, f"the median of {delays}"


def test_what_is_no_cursor_and_no_run_is_said():
    async def played() -> None:
        with pytest.raises(CallerError, match=r"EVENT\.CHUNK"):
            [seen async for seen in Run(MemoryStore(), "r00-1").follow("newest")]
        with pytest.raises(NotFound):
            [seen async for seen in Run(MemoryStore(), "r00-1").follow()]

    run_async(played())


def test_a_batch_that_the_store_has_twice_is_seen_once():
    """As it is after an answer was lost and the batch was sent again; wherever the reader comes back."""

    class Twice(MemoryStore):
        async def stream(self, run_id: str, epoch: int, chunks: Any) -> None:
            await super().stream(run_id, epoch, chunks)
            await super().stream(run_id, epoch, chunks)

    async def node(ctx: Context) -> None:
        for n in range(30):
            ctx.stream(n)
            if n % 7 == 0:
                await asyncio.sleep(0.04)

    async def played() -> None:
        stage = Stage(Twice(), one(node))
        run = await stage.start()
        await stage.drive(run)
        assert len(await stage.store.chunks(run.run_id)) == 60
        whole = [seen async for seen in run.follow()]
        chunks = [s.item for s in whole if isinstance(s.item, Chunk)]
        assert [json.loads(chunk.data) for chunk in chunks] == list(range(30))
        for at, chunk in enumerate(chunks):
            assert [c async for c in run.stream(chunk.n)] == chunks[at + 1 :]
        for at, seen in enumerate(whole):
            assert [s.item async for s in run.follow(seen.cursor)] == [s.item for s in whole[at + 1 :]]

    run_async(played())
