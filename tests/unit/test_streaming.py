"""Streaming: chunks are seen at once, in order and once; what an abandoned attempt streamed is withdrawn."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, BlockingContext, Context, Graph, Retry
from understudy.actors.errors import CallerError, Fenced, StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Chunk
from understudy.actors.streaming import CHUNK_BYTES_MAX, PENDING_MAX, chunk_text, live
from understudy.cluster.client import Run


class Nothing(BaseModel):
    pass


def one(*nodes: Any, **how: Any) -> Graph:
    graph = Graph("streams", Nothing)
    for node in nodes:
        graph.node(node, **how)
        graph.edge(START, node.__name__).edge(node.__name__, END)
    return graph


def said(chunks: Sequence[Chunk]) -> list[Any]:
    return [json.loads(chunk.data) for chunk in chunks]


async def stored(stage: Stage, run: Run) -> list[Chunk]:
    return await stage.store.chunks(run.run_id, 0, 100_000)


def test_chunks_are_stored_in_order_without_a_commit_of_their_own():
    async def node(ctx: Context) -> None:
        for n in range(700):
            ctx.stream({"n": n})
            if n % 100 == 0:
                await asyncio.sleep(0.001)

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        chunks = await stored(stage, run)
        assert said(chunks) == [{"n": n} for n in range(700)]
        assert [chunk.n for chunk in chunks] == list(range(1, 701))
        assert {(chunk.node, chunk.attempt, chunk.withdrawn) for chunk in chunks} == {("node", "1.0", False)}
        assert (await run.record()).seq == 1

    run_async(played())


def test_a_chunk_is_there_while_the_node_goes_on():
    go = {}

    async def node(ctx: Context) -> None:
        ctx.stream("now")
        await go["on"].wait()

    async def played() -> None:
        go["on"] = asyncio.Event()
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        async with asyncio.timeout(5):
            while not await stored(stage, run):  # noqa: ASYNC110
                await asyncio.sleep(0)
        go["on"].set()
        assert await driving == "succeeded"

    run_async(played())


def test_a_thread_streams_too():
    def node(ctx: BlockingContext) -> None:
        for n in range(5):
            ctx.stream(n)

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        await stage.drive(run)
        assert said(await stored(stage, run)) == [0, 1, 2, 3, 4]

    run_async(played())


def test_what_an_owner_streamed_that_crashed_is_withdrawn():
    """By the next owner, also if its attempt streams nothing at all; a finished sibling's chunks stay."""
    calls = []
    streamed = {}

    async def quick(ctx: Context) -> None:
        ctx.stream("quick")

    async def slow(ctx: Context) -> None:
        calls.append(1)
        if len(calls) < 3:
            ctx.stream(f"slow {len(calls)}")
            streamed["event"].set()
            await asyncio.Event().wait()

    async def played() -> None:
        stage = Stage(MemoryStore(), one(quick, slow))
        run = await stage.start()
        for _ in range(2):
            streamed["event"] = asyncio.Event()
            before = len(await stored(stage, run))
            driving = asyncio.ensure_future(stage.drive(run))
            await streamed["event"].wait()
            async with asyncio.timeout(5):
                while len(await stored(stage, run)) < before + 2:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            driving.cancel()
            await asyncio.wait([driving])
            await stage.crash(run)
        assert await stage.drive(run) == "succeeded"
        chunks = await stored(stage, run)
        told = [(c.node, c.attempt, "withdrawn" if c.withdrawn else json.loads(c.data)) for c in chunks]
        assert sorted(told[:2]) == [("quick", "1.0", "quick"), ("slow", "1.0", "slow 1")]
        assert told[2:] == [
            ("slow", "1.0", "withdrawn"), ("slow", "3.0", "slow 2"), ("slow", "3.0", "withdrawn"),
        ]  # fmt: skip
        assert said(live(chunks)) == ["quick"]

    run_async(played())


def test_a_try_that_failed_is_withdrawn():
    tries = []

    async def node(ctx: Context) -> None:
        tries.append(1)
        ctx.stream(f"try {len(tries)}")
        if len(tries) == 1:
            raise ValueError("once")

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node, retry=Retry(2, base_s=0)))
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        chunks = await stored(stage, run)
        assert [(c.attempt, c.withdrawn) for c in chunks] == [("1.0", False), ("1.0", True), ("1.1", False)]
        assert said(live(chunks)) == ["try 2"]

    run_async(played())


def test_an_owner_that_lost_the_run_streams_nothing_and_stops():
    go = {}

    async def node(ctx: Context) -> None:
        await go["on"].wait()
        ctx.stream("from the dead")
        await asyncio.Event().wait()

    async def played() -> None:
        go["on"] = asyncio.Event()
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        driving = asyncio.ensure_future(stage.drive(run))
        async with asyncio.timeout(5):
            while (await run.record()).status != "running":  # noqa: ASYNC110
                await asyncio.sleep(0)
        await stage.crash(run)
        go["on"].set()
        with pytest.raises(Fenced):
            await driving
        assert await stored(stage, run) == []

    run_async(played())


def test_a_store_that_is_away_ends_the_residence():
    class Away(MemoryStore):
        async def stream(self, *args: Any) -> None:
            raise StoreUnavailable("away")

    async def node(ctx: Context) -> None:
        ctx.stream("lost")
        await asyncio.Event().wait()

    async def played() -> None:
        stage = Stage(Away(), one(node))
        with pytest.raises(StoreUnavailable):
            await stage.drive(await stage.start())

    run_async(played())


def test_a_node_that_streams_too_fast_is_told():
    async def node(ctx: Context) -> None:
        for n in range(PENDING_MAX + 1):
            ctx.stream(n)

    async def played() -> None:
        stage = Stage(MemoryStore(), one(node))
        run = await stage.start()
        assert await stage.drive(run) == "failed"
        assert f"{PENDING_MAX} chunks wait" in (await run.record()).error

    run_async(played())


@pytest.mark.parametrize("bad", [object(), float("inf"), "\ud800", "x" * CHUNK_BYTES_MAX])
def test_what_is_no_chunk_is_refused(bad: Any):
    with pytest.raises(CallerError, match=r"ctx\.stream in node 'n'"):
        chunk_text(bad, "n")


def test_many_chunks_go_in_few_batches():
    """Some thirty a second, however many there are."""
    batches = []

    class Counting(MemoryStore):
        async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
            batches.append(len(chunks))
            await super().stream(run_id, epoch, chunks)

    async def node(ctx: Context) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 0.2:
            ctx.stream("token")
            await asyncio.sleep(0.001)

    async def played() -> None:
        stage = Stage(Counting(), one(node))
        run = await stage.start()
        await stage.drive(run)
        assert sum(batches) == len(await stored(stage, run))
        assert len(batches) <= 10

    run_async(played())
