"""Checks: a start on a thread with unfinished runs stands behind them, is refused, ends them, or undoes them."""

import asyncio

import pytest

from understudy.actors.errors import Conflict, Fenced
from understudy.actors.records import RunRecord
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    kinds,
    new_run,
    owned,
    question,
)

CANCELLED = 'runs_finished_total{graph="refund",status="cancelled"}'


async def at_head(store: Store, run: RunRecord, name: str = "c1", seq: int = 1) -> None:
    """A checkpoint, made by the run that is at the thread."""
    base = run.head if seq == 1 else f"c{seq - 1}"
    new = checkpoint(name, base, seq, snapshot=not base)
    await store.commit(commit_of(run, seq=seq, step=seq, checkpoint=new))


async def next_head(store: Store, run: RunRecord, now: float = T + 20) -> str:
    """Where a run that is claimed now starts from."""
    claimed = await store.claim(run.run_id, "next", 30.0, now)
    assert claimed.head == claimed.base
    return claimed.head


async def check_a_busy_thread_rejects(world: World) -> None:
    store, other = await world.open(), await world.open()
    first = await create(store, "1")
    for told in ("queued", "running", "waiting"):
        before = await store.run(first.run_id)
        assert before.status == told
        with pytest.raises(Conflict, match=first.run_id):
            await other.create(new_run("2", busy="reject"), [], {"a": 1}, T + 1)
        assert await store.run(first.run_id) == before
        if told == "queued":
            first = await store.claim(first.run_id, "one", 30.0, T)
        elif told == "running":
            await store.commit(commit_of(first, status="waiting", interrupts=(question(),)))
    assert [run.run_id for run in await store.runs()] == [first.run_id]
    assert "a" not in await store.counters()
    await store.cancel(first.run_id, T + 2)
    second = await create(store, "2", busy="reject")
    assert (await store.due(T + 2, 10)).ready == (second.run_id,)


async def check_the_same_start_again_is_no_other_start(world: World) -> None:
    """A client that lost the answer sends again: it must not be refused, and must not end what it started itself."""
    store, other = await world.open(), await world.open()
    for n, busy in enumerate(("reject", "interrupt", "rollback")):
        thread = f"thread-{n}"
        run = await create(store, f"a{n}", thread, busy=busy, key="k")
        assert await create(other, f"a{n}", thread, busy=busy, key="k") == run
        assert await create(other, f"b{n}", thread, busy=busy, key="k") == run  # another attempt, the same key
        assert (await store.run(run.run_id)).status == "queued"


async def check_interrupt_ends_what_waits_and_asks_what_runs(world: World) -> None:
    store = await world.open()
    running = await owned(store, "1")
    queued, also = await create(store, "2"), await create(store, "3")
    new = await create(await world.open(), "4", now=T + 5, busy="interrupt")
    after = await store.run(running.run_id)
    assert (after.status, after.cancel_asked, after.rollback, after.epoch) == ("running", True, False, 1)
    assert await kinds(store, running) == ["claimed", "cancel_asked"]
    for run in (queued, also):
        told = await store.run(run.run_id)
        assert (told.status, told.cancel_asked, told.epoch, told.updated_at) == ("cancelled", True, 1, T + 5)
        assert await kinds(store, run) == ["finished"]
    assert (await store.counters())[CANCELLED] == 2.0
    assert (await store.due(T + 9, 10)).ready == ()  # it stands behind the one that runs
    await store.commit(commit_of(running, at=T + 9, status="cancelled", checkpoint=checkpoint("c1", snapshot=True)))
    assert (await store.due(T + 9, 10)).ready == (new.run_id,)
    assert await next_head(store, new) == "c1"  # what was committed stays
    assert await store.sweep(T + 10**9) == 0  # the thread is kept for the new run


async def check_interrupt_of_a_waiting_run_lets_the_new_one_start_at_once(world: World) -> None:
    store = await world.open()
    waiting = await owned(store, "1")
    await at_head(store, waiting)
    await store.commit(commit_of(waiting, seq=2, status="waiting", interrupts=(question(),), writes={"t": "[]"}))
    new = await create(store, "2", now=T + 5, busy="interrupt")
    after = await store.load(waiting.run_id)
    assert (after.run.status, after.run.interrupts, after.writes) == ("cancelled", (), {})
    assert (await store.due(T + 5, 10)).ready == (new.run_id,)
    assert await next_head(store, new) == "c1"


async def check_rollback_takes_the_thread_back(world: World) -> None:
    """To what it was before the runs that are undone: the base of the first of them."""
    store = await world.open()
    first = await owned(store, "1")
    await at_head(store, first)
    await ended(store, await store.run(first.run_id))
    second = await store.claim((await create(store, "2")).run_id, "one", 30.0, T + 2)
    assert (second.head, second.base) == ("c1", "c1")
    await at_head(store, second, "c2")
    await store.commit(commit_of(second, seq=2, status="waiting", interrupts=(question(),)))
    assert (await store.dump("thread")).head == "c2"
    third = await create(store, "3", now=T + 9, busy="rollback")
    undone = await store.run(second.run_id)
    assert (undone.status, undone.rollback, undone.head, undone.base) == ("cancelled", True, "c2", "c1")
    assert (await store.dump("thread")).head == "c1"
    assert await next_head(store, third) == "c1"
    assert [row.checkpoint_id for row in await store.history("thread")] == ["c2", "c1"]  # it stays to be looked at
    assert [row.checkpoint_id for row in (await store.load(third.run_id)).chain] == ["c1"]


async def check_rollback_of_a_running_run_comes_with_its_end(world: World) -> None:
    store = await world.open()
    run = await owned(store, "1")
    await at_head(store, run)
    new = await create(store, "2", busy="rollback")
    told = await store.run(run.run_id)
    assert (told.status, told.cancel_asked, told.rollback) == ("running", True, True)
    assert (await store.renew([(run.run_id, 1)], 30.0, T + 2)).cancelled == (run.run_id,)
    await at_head(store, run, "c2", 2)
    await store.commit(commit_of(run, seq=3, status="cancelled"))
    assert (await store.dump("thread")).head == ""  # there was nothing before it
    assert await next_head(store, new) == ""


async def check_a_run_that_ends_all_the_same_is_not_undone(world: World) -> None:
    """It was asked too late: what succeeded or failed is what the next run goes on from."""
    store = await world.open()
    for status in ("succeeded", "failed"):
        run = await owned(store, f"{status}-1", status)
        await at_head(store, run, f"c1-{status}")
        new = await create(store, f"{status}-2", status, busy="rollback")
        await store.commit(commit_of(run, seq=2, status=status))
        assert await next_head(store, new) == f"c1-{status}"


async def check_interrupt_after_rollback_keeps_again(world: World) -> None:
    """The last one who asked decides."""
    store = await world.open()
    run = await owned(store, "1")
    await at_head(store, run)
    undoing = await create(store, "2", busy="rollback")
    new = await create(store, "3", busy="interrupt")
    assert (await store.run(undoing.run_id)).status == "cancelled"
    assert not (await store.run(run.run_id)).rollback
    await store.commit(commit_of(run, seq=2, status="cancelled"))
    assert await next_head(store, new) == "c1"


async def check_a_fork_is_rolled_back_to_its_seed(world: World) -> None:
    store = await world.open()
    run = await owned(store, "1", seed=checkpoint("s", snapshot=True))
    assert (run.head, run.base) == ("s", "s")
    await at_head(store, run)
    new = await create(store, "2", busy="rollback")
    await store.commit(commit_of(run, seq=2, status="cancelled"))
    assert await next_head(store, new) == "s"


async def check_a_run_that_never_started_undoes_nothing(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    await at_head(store, first)
    await ended(store, await store.run(first.run_id))
    queued = await create(store, "2")
    new = await create(store, "3", busy="rollback")
    assert (await store.run(queued.run_id)).status == "cancelled"
    assert await next_head(store, new) == "c1"


async def check_starts_that_race_on_a_busy_thread(world: World) -> None:
    """Of those that interrupt, one is left; of those that are refused while it is busy, none is made."""
    clients = [await world.open() for _ in range(4)]
    starts = [
        asyncio.ensure_future(create(client, f"i{n}-{m}", busy="interrupt", now=T + n))
        for n, client in enumerate(clients)
        for m in range(3)
    ]
    made = await asyncio.gather(*starts)
    records = [await clients[0].run(run.run_id) for run in made]
    left = [run for run in records if not run.final]
    assert (len(left), left[0].status) == (1, "queued")
    assert (await clients[0].due(T + 9, 100)).ready == (left[0].run_id,)
    tried = await asyncio.gather(
        *(create(client, f"r{n}", busy="reject") for n, client in enumerate(clients)), return_exceptions=True
    )
    assert [type(told) for told in tried] == [Conflict] * 4
    assert len(await clients[0].runs()) == 12


async def check_rejecting_starts_that_race_on_a_free_thread(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    tried = await asyncio.gather(
        *(create(client, f"{n}", busy="reject") for n, client in enumerate(clients)), return_exceptions=True
    )
    assert sorted(isinstance(told, Conflict) for told in tried) == [False, True, True, True]
    assert len(await clients[0].runs()) == 1


async def check_an_interrupting_start_races_with_the_run(world: World) -> None:
    """Its owner commits all the while: it ends by itself or is cancelled, and the new run comes after it either way."""
    store, other = await world.open(), await world.open()
    for n in range(5):
        thread = f"thread-{n}"
        run = await owned(store, f"{n}-1", thread)

        async def work(run: RunRecord = run) -> None:
            for seq in range(1, 8):
                done = await store.commit(commit_of(run, seq=seq, checkpoint=checkpoint(f"{run.run_id}-{seq}")))
                if done.cancel_asked:
                    await store.commit(commit_of(run, seq=seq + 1, status="cancelled"))
                    return
            await store.commit(commit_of(run, seq=8, status="succeeded"))

        _, new = await asyncio.gather(work(), create(other, f"{n}-2", thread, busy="interrupt"))
        old = await store.run(run.run_id)
        assert old.final
        assert (await store.due(T + 99, 10)).ready == (new.run_id,)
        assert (await store.claim(new.run_id, "two", 30.0, T + 99)).head == old.head
        with pytest.raises(Fenced):
            await store.commit(commit_of(old))
