"""Checks: reading, and what is around runs: blobs, beats, sweep, delete."""

import asyncio
import time
from dataclasses import replace

import pytest

from understudy.actors.errors import Conflict, NotFound
from understudy.actors.records import STATUSES, run_id_on
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    event,
    new_run,
    owned,
    question,
    receipt_of,
)

DAY = 86400.0


async def check_events_have_cursors(world: World) -> None:
    store = await world.open()
    run = await store.create(new_run(), [event("created", n=n) for n in range(3)], {}, T)
    await store.claim(run.run_id, "one", 30, T)
    events = await store.events(run.run_id)
    assert [e.n for e in events] == [1, 2, 3, 4]
    assert await store.events(run.run_id, after=2) == events[2:]
    assert await store.events(run.run_id, after=1, limit=2) == events[1:3]
    assert await store.events(run.run_id, after=4) == []
    assert await store.events(run.run_id, after=99) == []
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await store.events(missing)
        with pytest.raises(NotFound):
            await store.run(missing)


async def check_runs_are_listed_newest_first(world: World) -> None:
    store = await world.open()
    made = [await create(store, str(n), f"thread-{n % 3}", T + n) for n in range(9)]
    ids = [run.run_id for run in reversed(made)]
    assert [r.run_id for r in await store.runs()] == ids
    assert [r.run_id for r in await store.runs(limit=4)] == ids[:4]
    await store.cancel(made[4].run_id, T + 20)
    await store.cancel(made[7].run_id, T + 20)
    assert [r.run_id for r in await store.runs("cancelled")] == [made[7].run_id, made[4].run_id]
    assert [r.run_id for r in await store.runs("cancelled", limit=1)] == [made[7].run_id]
    assert [r.run_id for r in await store.runs(thread_id="thread-1")] == [made[n].run_id for n in (7, 4, 1)]
    assert [r.run_id for r in await store.runs("queued", thread_id="thread-1")] == [made[1].run_id]
    assert await store.runs("failed") == []
    assert await store.runs(thread_id="nowhere") == []
    assert (await store.runs(limit=1))[0] == await store.run(made[8].run_id)


async def check_counts_have_every_status(world: World) -> None:
    store = await world.open()
    assert await store.counts() == dict.fromkeys(STATUSES, 0)
    for n in range(3):
        await create(store, str(n), f"q{n}")
    running = [await owned(store, "1", f"r{n}") for n in range(4)]
    assert (await store.counts()) == {**dict.fromkeys(STATUSES, 0), "queued": 3, "running": 4}
    await store.commit(commit_of(running[0], status="waiting", interrupts=(question(),)))
    await ended(store, running[1])
    await store.requeue(running[2].run_id, 1, T, 0, [], {}, quarantine="too many crashes")
    await store.commit(commit_of(running[3], status="failed"))
    await store.cancel(run_id_on("q0", "0"), T)
    assert await store.counts() == {
        "queued": 2,
        "running": 0,
        "waiting": 1,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 1,
        "quarantined": 1,
    }
    await store.delete_thread("r1")
    assert (await store.counts())["succeeded"] == 0


async def check_counters_add_up(world: World) -> None:
    store, other = await world.open(), await world.open()
    assert await store.counters() == {}
    name = 'tool_calls_total{outcome="ok",tool="a \\"b\\" \\\\ ünï"}'
    for n, client in enumerate((store, other, store)):
        await client.create(new_run("1", f"thread-{n}"), [], {name: 1, "seconds": 0.125, "big": 2.0**52}, T)
    assert await other.counters() == {name: 3.0, "seconds": 0.375, "big": 3 * 2.0**52}


async def check_history_is_newest_first_without_bodies(world: World) -> None:
    store = await world.open()
    assert await store.history("nowhere") == []
    first = await owned(store, "1")
    await create(store, "2")
    parent = ""
    for n in (1, 2, 3):
        new = checkpoint(f"c{n}", parent, step=n, snapshot=n == 1, body="[1]")
        await store.commit(commit_of(first, seq=n, at=T + n, step=n, checkpoint=new))
        parent = new.checkpoint_id
    await ended(store, await store.run(first.run_id), at=T + 4)
    second = await store.claim(run_id_on("thread", "2"), "one", 30, T + 5)
    await store.commit(commit_of(second, at=T + 3, step=4, checkpoint=checkpoint("c0", "c3", 4, body="[2]")))
    rows = await store.history("thread")
    assert [(r.checkpoint_id, r.parent, r.step, r.snapshot, r.body, r.run_id, r.at) for r in rows] == [
        ("c0", "c3", 4, False, "", second.run_id, T + 3),
        ("c3", "c2", 3, False, "", first.run_id, T + 3),
        ("c2", "c1", 2, False, "", first.run_id, T + 2),
        ("c1", "", 1, True, "", first.run_id, T + 1),
    ]
    assert await store.history("thread", limit=2) == rows[:2]


async def check_chain_starts_at_a_snapshot(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    parent = ""
    for n in range(1, 8):
        new = checkpoint(f"c{n}", parent, step=n, snapshot=n in (1, 4), body=str(n))
        await store.commit(commit_of(run, seq=n, step=n, checkpoint=new))
        parent = new.checkpoint_id
    for name, expected in (("c1", "1"), ("c3", "123"), ("c4", "4"), ("c6", "456"), ("c7", "4567")):
        chain = await store.chain("thread", name)
        assert "".join(row.body for row in chain) == expected
    for thread, name in (("thread", "c9"), ("thread", ""), ("nowhere", "c1")):
        with pytest.raises(NotFound):
            await store.chain(thread, name)


async def check_a_chain_passes_by_what_its_rows_do_not_stand_on(world: World) -> None:
    """A row may be a difference to a checkpoint before its parent; one that nothing stands on may be gone."""
    store = await world.open()
    run = await owned(store)
    since = {4: "c1", 6: "c4"}
    for n in range(1, 8):
        new = checkpoint(f"c{n}", f"c{n - 1}" if n > 1 else "", n, n == 1, str(n), since.get(n, ""))
        await store.commit(commit_of(run, seq=n, step=n, checkpoint=new))
    for name, expected in (("c3", "123"), ("c4", "14"), ("c5", "145"), ("c6", "146"), ("c7", "1467")):
        assert "".join(row.body for row in await store.chain("thread", name)) == expected
    assert [row.body for row in (await store.load(run.run_id)).chain] == ["1", "4", "6", "7"]
    assert [(row.since, row.parent) for row in await store.history("thread", limit=3)] == [
        ("", "c6"), ("c4", "c5"), ("", "c4"),
    ]  # fmt: skip
    await store.prune("thread", ["c2", "c3", "c5"])
    assert [row.body for row in (await store.load(run.run_id)).chain] == ["1", "4", "6", "7"]
    dump = await store.dump("thread")
    assert dump is not None
    assert [row.since for row in dump.checkpoints] == ["", "c1", "c4", ""]


async def check_the_same_checkpoint_id_on_two_threads(world: World) -> None:
    store = await world.open()
    for thread in ("a", "b"):
        run = await owned(store, "1", thread)
        await store.commit(commit_of(run, step=1, checkpoint=checkpoint("c1", snapshot=True, body=thread)))
    for thread in ("a", "b"):
        assert [row.body for row in await store.chain(thread, "c1")] == [thread]
    await store.cancel(run_id_on("a", "1"), T)
    run = await store.run(run_id_on("a", "1"))
    await store.commit(commit_of(run, status="cancelled"))
    await store.delete_thread("a")
    assert [row.body for row in await store.chain("b", "c1")] == ["b"]


async def check_blobs(world: World) -> None:
    store, other = await world.open(), await world.open()
    data = bytes(range(256)) * 5000
    await store.put_blob("sha256:ab", data, T)
    await other.put_blob("sha256:ab", data, T)
    await store.put_blob("empty", b"", T)
    assert await other.get_blob("sha256:ab") == data
    assert await other.get_blob("empty") == b""
    with pytest.raises(NotFound, match="sha256:cd"):
        await store.get_blob("sha256:cd")


async def check_beats_and_their_end(world: World) -> None:
    store, other = await world.open(), await world.open()
    assert await store.beats() == {}
    await store.beat("one", '{"n": 1}', T)
    await other.beat("twö", "{}", T + 1)
    await store.beat("one", '{"n": 2}', T + 2)
    assert await other.beats() == {"one": (T + 2, '{"n": 2}'), "twö": (T + 1, "{}")}
    assert await store.sweep(T + 1 + DAY) == 0
    assert len(await store.beats()) == 2
    await store.sweep(T + 2 + DAY)
    assert await store.beats() == {"one": (T + 2, '{"n": 2}')}


async def check_sweep_deletes_what_is_past_its_time(world: World) -> None:
    store = await world.open()
    for thread, retain_s in (("hour", 3600.0), ("ever", -1.0), ("zero", 0.0)):
        await ended(store, await owned(store, "1", thread), at=T, retain_s=retain_s)
    await ended(store, await owned(store, "1", "week"), at=T)
    await owned(store, "1", "busy")
    assert await store.sweep(T - 1) == 0
    assert await store.sweep(T) == 1
    assert await store.sweep(T + 3599) == 0
    assert await store.sweep(T + 3600) == 1
    with pytest.raises(NotFound):
        await store.run(run_id_on("hour", "1"))
    assert await store.sweep(T + 7 * DAY) == 1
    assert await store.sweep(T + 10**9) == 0
    assert {r.thread_id for r in await store.runs()} == {"ever", "busy"}


async def check_the_last_run_decides_how_long_a_thread_is_kept(world: World) -> None:
    store = await world.open()
    await ended(store, await owned(store, "1"), at=T, retain_s=10.0)
    second = await create(store, "2", now=T + 5)
    assert await store.sweep(T + 20) == 0  # it is not final
    third = await create(store, "3", now=T + 5)
    await store.cancel(third.run_id, T + 6)
    assert await store.sweep(T + 8 * DAY) == 0
    second = await store.claim(second.run_id, "one", 30, T + 8 * DAY)
    await ended(store, second, at=T + 8 * DAY, retain_s=10.0)
    assert await store.sweep(T + 8 * DAY + 9) == 0
    assert await store.sweep(T + 8 * DAY + 10) == 1
    assert await store.runs() == []


async def check_delete_thread(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    behind = await create(store, "2")
    for _ in range(2):
        with pytest.raises(Conflict, match="thread"):
            await store.delete_thread("thread")
        if not (await store.run(run.run_id)).final:
            await ended(store, run)
    await store.cancel(behind.run_id, T + 2)
    await store.delete_thread("thread")
    await store.delete_thread("thread")
    await store.delete_thread("nowhere")
    assert await store.runs() == []
    assert await store.due(T + 9, 10) == await store.due(T - 9, 10)
    fresh = await create(store, "1", key="k", seed=checkpoint("c1", snapshot=True))  # a new thread again
    assert (fresh.epoch, fresh.head) == (0, "c1")
    assert await store.events(fresh.run_id) == []


async def check_nothing_is_left_of_a_deleted_thread(world: World) -> None:
    """Law 8: every key has something that deletes it."""
    store = await world.open()
    for thread, how in (("one", "sweep"), ("two", "delete"), ("three", "sweep")):
        seed = checkpoint("c0", snapshot=True, body='{"seed": 1}')
        run = await store.create(
            new_run("1", thread, key="k", labels={"a": "b"}, seed=seed), [event("created")], {"c": 1}, T
        )
        behind = [await create(store, name, thread) for name in ("2", "3", "4", "5")]
        run = await store.claim(run.run_id, "one", 30, T)
        await store.begin(receipt_of(run), run.epoch, [event("tool_started")], {}, T)
        await store.commit(commit_of(run, writes={"task1": "[1]"}, events=(event(),)))
        await store.commit(commit_of(run, seq=2, step=1, checkpoint=checkpoint("c1", "c0", 1)))
        run = await store.run(run.run_id)
        await store.begin(receipt_of(run), run.epoch, [], {}, T)
        await store.finish(run.run_id, "k1", "c1", "t1", "{}", [event("tool_finished")], {}, T)
        await store.begin(receipt_of(run, "k2"), run.epoch, [], {}, T)
        await store.forget(run.run_id, "k2", "c1", "t1", [event("tool_finished")], {})
        waits = commit_of(run, status="waiting", interrupts=(question(),), wake_at=T + 99, writes={"t2": "[2]"})
        await store.commit(waits)
        await store.resume(run.run_id, "i1", "1", T + 1)
        run = await store.claim(run.run_id, "one", 30, T + 1)
        await store.requeue(run.run_id, run.epoch, T + 2, T + 3, [event("crashed", cause="x")], {})
        run = await store.claim(run.run_id, "one", 30, T + 4)
        await store.commit(commit_of(run, status="failed", at=T + 5, writes={"t3": "[3]"}))
        await store.cancel(behind[0].run_id, T + 5)
        second = await store.claim(behind[1].run_id, "one", 30, T + 5)
        await store.requeue(second.run_id, second.epoch, T + 6, 0, [], {}, quarantine="no more")
        third = await store.claim(behind[2].run_id, "one", 30, T + 6)
        await store.commit(commit_of(third, status="waiting", interrupts=(question(),), wake_at=T + 99))
        await store.cancel(third.run_id, T + 7)
        last = await store.claim(behind[3].run_id, "one", 30, T + 8)
        await store.cancel(last.run_id, T + 9)
        await ended(store, last, at=T + 10, retain_s=60)
        if how == "delete":
            await store.delete_thread(thread)
    assert await store.sweep(T + 69) == 0
    assert await store.sweep(T + 70) == 2
    assert await store.counts() == dict.fromkeys(STATUSES, 0)
    assert await store.due(T + 999, 10) == replace(await store.due(T + 999, 10), ready=(), overdue=())
    if world.leftovers:
        left = {name: count for name, count in (await world.leftovers()).items() if count}
        assert left == {}


async def check_wait_work_returns_when_there_is_work(world: World) -> None:
    store, other = await world.open(), await world.open()
    await store.wait_work(0.0)
    for client, name in ((store, "1"), (other, "2")):
        await store.wait_work(0.05)  # whatever was rung before is used up
        waiting = asyncio.ensure_future(store.wait_work(30.0))
        await asyncio.sleep(0)
        began = time.monotonic()
        await create(client, name, f"thread-{name}")
        await asyncio.wait_for(waiting, 10)
        assert time.monotonic() - began < 5  # a hint: soon, not after 30 s
        await store.wait_work(0.05)


async def check_info(world: World) -> None:
    store = await world.open()
    info = await store.info()
    assert info.kind
    assert "://" in info.where
    assert all(isinstance(text, str) for text in info.detail.values())


async def check_close_may_be_called_twice(world: World) -> None:
    store, other = await world.open(), await world.open()
    run = await create(store)
    await store.close()
    await store.close()
    assert await other.run(run.run_id) == run
