"""What every store has to pass: the text of `understudy.actors.store`, as checks. For a store of your own:

    import pytest
    from understudy.cluster.testing.conformance.suite import World, checks, run_check

    @pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
    def test_my_store(check, tmp_path):
        run_check(check, World(lambda: MyStore.open(tmp_path / "runs.db")))

A check is a coroutine that gets a `World`: one empty store, and clients to it. Concurrency is tested with several
clients of one store, as River's driver suite does: writers that race (checks_races), clients that die in the middle of
a call, replies that are lost, the same call from many at once (checks_crashes). No check sleeps or looks at a clock:
times are arguments. Give `leftovers`, and it is checked as well that a deleted thread leaves not one key behind.

Two more things are worth doing with a store that passes: `understudy.cluster.testing.crash.crash_points` plays a graph
on it with a death at every durable operation, and `killed.kill_points` does so with real SIGKILLs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from understudy.actors.records import (
    Chunk,
    Commit,
    Event,
    Interrupt,
    NewCheckpoint,
    NewRun,
    Receipt,
    RunRecord,
    partition_of_thread,
    run_id_on,
)
from understudy.actors.store import Store

T = 1_764_000_000.25
"""When everything starts, in seconds since the epoch."""


@dataclass
class World:
    """One empty store. `open` makes a client of it; a check opens as many as it wants."""

    open_client: Callable[[], Awaitable[Store]]
    leftovers: Callable[[], Awaitable[dict[str, int]]] | None = None
    """Keys or rows that are left, by name of their kind; without blobs, beats, counters and documents."""
    _clients: list[Store] = field(default_factory=list)

    async def open(self) -> Store:
        client = await self.open_client()
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def run_check(check: "Check", world: World, timeout_s: float = 120.0) -> None:
    """Run one check on an event loop of its own, and close its clients. Raises AssertionError, TimeoutError."""

    async def checked() -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await check(world)
        finally:
            await world.close()

    asyncio.run(checked())


Check = Callable[[World], Awaitable[None]]

MODULES = (
    *("life", "busy", "retry", "commits", "batches", "effects", "messages", "children", "reading", "keeping"),
    *("documents", "moves", "races", "crashes"),
)


def checks() -> list[Check]:
    """All checks, in the order of their files."""
    found: list[Check] = []
    for name in MODULES:
        module = import_module(f"{__package__}.checks_{name}")
        found += [value for key, value in vars(module).items() if key.startswith("check_")]
    return found


# --- what checks are made of ---------------------------------------------------------------------------------------


def new_run(name: str = "1", thread: str = "thread", **changes: Any) -> NewRun:
    run = NewRun(
        run_id=run_id_on(thread, name),
        thread_id=thread,
        graph="refund",
        version="1",
        code='{"module": "shop"}',
        input='{"order": "A1"}',
        digest="d1",
    )
    return replace(run, **changes)


async def create(store: Store, name: str = "1", thread: str = "thread", now: float = T, **changes: Any) -> RunRecord:
    return await store.create(new_run(name, thread, **changes), [], {}, now)


async def owned(store: Store, name: str = "1", thread: str = "thread", now: float = T, **changes: Any) -> RunRecord:
    """A new run, claimed for 30 s by `one`."""
    run = await create(store, name, thread, now, **changes)
    return await store.claim(run.run_id, "one", 30.0, now)


def checkpoint(
    name: str, parent: str = "", step: int = 1, snapshot: bool = False, body: str = "{}", since: str = ""
) -> NewCheckpoint:
    return NewCheckpoint(name, parent, step, snapshot, body, since=since)


def commit_of(run: RunRecord, **changes: Any) -> Commit:
    """The next commit of a run as it is in the record; running, unless said otherwise."""
    commit = Commit(run_id=run.run_id, epoch=run.epoch, seq=run.seq + 1, at=T + 1, status="running", step=run.step)
    return replace(commit, **changes)


async def ended(store: Store, run: RunRecord, at: float = T + 1, **changes: Any) -> RunRecord:
    """A run that was owned, now succeeded."""
    await store.commit(commit_of(run, at=at, status="succeeded", **changes))
    return await store.run(run.run_id)


def question(name: str = "i1", **changes: Any) -> Interrupt:
    return replace(Interrupt(name, "task1", "charge", "question", {"approve": "A1"}, asked_at=T), **changes)


def receipt_of(run: RunRecord, key: str = "k1", token: str = "t1", **changes: Any) -> Receipt:
    receipt = Receipt(
        key=key,
        run_id=run.run_id,
        checkpoint_id=run.head,
        task_id="task1",
        tool="pay",
        digest="d1",
        state="started",
        sandbox="sandbox-1",
        token=token,
        at=T,
    )
    return replace(receipt, **changes)


def chunk(data: str = "1", attempt: str = "a1", **changes: Any) -> Chunk:
    return replace(Chunk("task1", "charge", attempt, data, T), **changes)


def thread_beside(thread: str) -> str:
    """Another thread of the same partition, as that of a child has to be."""
    names = (f"{thread}-beside-{n}" for n in range(100_000))
    return next(name for name in names if partition_of_thread(name) == partition_of_thread(thread))


def event(kind: str = "checkpoint", **data: Any) -> Event:
    return Event(kind, T, data)


async def kinds(store: Store, run: RunRecord) -> list[str]:
    """The event log of a run, as kinds; its numbers are checked on the way."""
    events = await store.events(run.run_id)
    assert [e.n for e in events] == list(range(1, len(events) + 1))
    return [e.kind for e in events]
