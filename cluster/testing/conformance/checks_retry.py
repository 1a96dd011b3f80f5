"""Checks: a failed or quarantined run is taken up again from where it stood."""

import asyncio

import pytest

from understudy.actors.errors import Conflict, Fenced, NotFound
from understudy.actors.records import RunRecord, run_id_on
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    kinds,
    owned,
    question,
    receipt_of,
)


async def failed(store: Store, name: str = "1", thread: str = "thread") -> RunRecord:
    """A run that failed behind a checkpoint, with a pending write, a receipt, and a question that was answered."""
    run = await owned(store, name, thread)
    await store.commit(commit_of(run, checkpoint=checkpoint("c1", snapshot=True), step=1))
    await store.begin(receipt_of(run, checkpoint_id="c1", state="done", outcome="{}"), 1, [], {}, T)
    waits = commit_of(run, seq=2, status="waiting", interrupts=(question("i1"),), writes={"t1": "[1]"})
    await store.commit(waits)
    await store.resume(run.run_id, "i1", "7", T + 2)
    run = await store.claim(run.run_id, "one", 30.0, T + 2)
    await store.commit(commit_of(run, at=T + 3, status="failed", error="why", step=1, retain_s=10.0))
    return await store.run(run.run_id)


async def check_a_failed_run_goes_on_where_it_stood(world: World) -> None:
    store = await world.open()
    run = await failed(store)
    before = await store.load(run.run_id)
    again = await (await world.open()).retry(run.run_id, T + 5)
    assert (again.status, again.epoch, again.error, again.updated_at) == ("queued", run.epoch + 1, "", T + 5)
    assert (again.head, again.seq, again.step, again.base) == (run.head, run.seq, run.step, run.base)
    after = await store.load(run.run_id)
    assert (after.writes, after.receipts, after.chain) == (before.writes, before.receipts, before.chain)
    assert (after.writes, again.interrupts, again.answers) == ({"t1": "[1]"}, (question("i1"),), {"i1": "7"})
    assert (await kinds(store, run))[-1] == "retried"
    assert (await store.due(T + 4.5, 10)).ready == ()
    assert (await store.due(T + 5, 10)).ready == (run.run_id,)
    assert await store.sweep(T + 10**6) == 0  # the thread is kept again
    with pytest.raises(Fenced):
        await store.commit(commit_of(run))
    taken = await store.claim(run.run_id, "two", 30.0, T + 6)
    assert (taken.head, taken.epoch) == ("c1", run.epoch + 2)
    done = await store.commit(commit_of(taken, status="succeeded", checkpoint=checkpoint("c2", "c1", 2), result="1"))
    assert not done.duplicate
    assert (await store.run(run.run_id)).result == "1"


async def check_a_quarantined_run_starts_with_a_clean_slate(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    for n in range(3):
        await store.requeue(run.run_id, run.epoch, T + n, 0.0, [], {}, quarantine="too often" if n == 2 else "")
        if n < 2:
            run = await store.claim(run.run_id, "one", 30.0, T + n)
    before = await store.run(run.run_id)
    assert (before.status, len(before.crashes), before.error) == ("quarantined", 3, "too often")
    again = await store.retry(run.run_id, T + 9)
    assert (again.status, again.crashes, again.error, again.detected_at) == ("queued", (), "", 0.0)
    assert again.restarts == 3  # history, not judgement
    assert (await store.claim(run.run_id, "one", 30.0, T + 9)).status == "running"


async def check_a_retry_sent_twice_is_one(world: World) -> None:
    store, other = await world.open(), await world.open()
    run = await failed(store)
    first = await store.retry(run.run_id, T + 5)
    assert await other.retry(run.run_id, T + 6) == first
    claimed = await store.claim(run.run_id, "one", 30.0, T + 7)
    assert await other.retry(run.run_id, T + 8) == claimed  # it is at work by now
    assert (await kinds(store, run)).count("retried") == 1


async def check_retries_that_race_make_one(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    run = await failed(clients[0])
    told = await asyncio.gather(*(client.retry(run.run_id, T + 5) for client in clients))
    assert {again.epoch for again in told} == {run.epoch + 1}
    assert (await kinds(clients[0], run)).count("retried") == 1


async def check_what_ended_well_or_was_cancelled_is_not_retried(world: World) -> None:
    store = await world.open()
    for status in ("succeeded", "cancelled"):
        run = await owned(store, status, f"thread-{status}")
        await store.commit(commit_of(run, status=status))
        before = await store.run(run.run_id)
        with pytest.raises(Conflict, match="fork it"):
            await store.retry(run.run_id, T + 5)
        assert await store.run(run.run_id) == before
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await store.retry(missing, T)


async def check_a_run_is_not_retried_on_a_busy_thread(world: World) -> None:
    store = await world.open()
    run = await failed(store)
    other = await create(store, "2")
    with pytest.raises(Conflict, match=other.run_id):
        await store.retry(run.run_id, T + 5)
    await store.cancel(other.run_id, T + 6)
    assert (await store.retry(run.run_id, T + 7)).status == "queued"  # that one changed nothing on the thread


async def check_a_run_is_not_retried_once_its_thread_went_on(world: World) -> None:
    store = await world.open()
    run = await failed(store)
    other = await store.claim((await create(store, "2")).run_id, "one", 30.0, T + 5)
    await store.commit(commit_of(other, checkpoint=checkpoint("c2", "c1", 2)))
    await ended(store, await store.run(other.run_id))
    with pytest.raises(Conflict, match="'c2'"):
        await store.retry(run.run_id, T + 6)
    assert (await store.run(run.run_id)).status == "failed"


async def check_the_thread_goes_on_from_the_retried_run(world: World) -> None:
    """It is not the newest of its thread; the head is that of the last one at work all the same."""
    store = await world.open()
    run = await failed(store)
    idle = await store.claim((await create(store, "2")).run_id, "one", 30.0, T + 5)
    await store.commit(commit_of(idle, status="failed"))  # without a checkpoint
    await store.retry(run.run_id, T + 6)
    run = await store.claim(run.run_id, "one", 30.0, T + 6)
    await store.commit(commit_of(run, checkpoint=checkpoint("c2", "c1", 2)))
    assert (await store.dump("thread")).head == "c2"
    next_run = await create(store, "3", now=T + 7)
    assert (await store.due(T + 7, 10)).ready == ()  # behind it
    await ended(store, await store.run(run.run_id), at=T + 8)
    assert (await store.claim(next_run.run_id, "one", 30.0, T + 8)).head == "c2"
