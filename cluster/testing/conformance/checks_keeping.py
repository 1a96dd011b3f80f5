"""Checks: what is kept and what goes: pruned checkpoints with their receipts, and blobs that nobody names."""

import asyncio

import pytest

from understudy.actors.errors import NotFound
from understudy.actors.store import BLOB_KEPT_S, Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    owned,
    question,
    receipt_of,
)


async def line_of(store: Store, count: int = 6, name: str = "1", thread: str = "thread") -> list[str]:
    """A run at work with so many checkpoints, all snapshots, each with a receipt; their ids."""
    run = await owned(store, name, thread)
    ids = [f"{name}-c{n}" for n in range(1, count + 1)]
    for seq, (parent, checkpoint_id) in enumerate(zip(["", *ids], ids, strict=False), start=1):
        new = checkpoint(checkpoint_id, parent, seq, snapshot=True, body=f'"{checkpoint_id}"')
        await store.commit(commit_of(run, seq=seq, at=T + seq, checkpoint=new))
        receipt = receipt_of(run, checkpoint_id=checkpoint_id, at=T + seq, state="done", outcome="{}")
        await store.begin(receipt, run.epoch, [], {}, T + seq)
    return ids


async def listed(store: Store, thread: str = "thread") -> list[str]:
    return [row.checkpoint_id for row in reversed(await store.history(thread))]


async def check_pruned_checkpoints_go_with_their_receipts(world: World) -> None:
    store = await world.open()
    ids = await line_of(store)
    (run,) = await store.runs()
    assert [receipt.checkpoint_id for receipt in await store.receipts(run.run_id)] == ids
    assert await (await world.open()).prune("thread", [ids[0], ids[2], ids[2], "never"]) == 2
    assert await listed(store) == [ids[1], *ids[3:]]
    assert [receipt.checkpoint_id for receipt in await store.receipts(run.run_id)] == [ids[1], *ids[3:]]
    assert await store.receipt(run.run_id, "k1", ids[0]) is None
    for gone in (ids[0], ids[2]):
        with pytest.raises(NotFound):
            await store.chain("thread", gone)
    assert await store.prune("thread", [ids[0]]) == 0
    loaded = await store.load(run.run_id)
    assert ([row.checkpoint_id for row in loaded.chain], list(loaded.receipts)) == ([ids[-1]], ["k1"])
    assert not (await store.commit(commit_of(loaded.run, checkpoint=checkpoint("next", ids[-1], 7)))).duplicate


async def check_heads_and_bases_are_not_pruned(world: World) -> None:
    """Whatever the caller says: the thread's head, and the head and base of every run that is not final."""
    store = await world.open()
    ids = await line_of(store, 3)
    (first,) = await store.runs()
    assert await store.prune("thread", ids) == 2
    assert await listed(store) == [ids[2]]
    await ended(store, first)
    assert await store.prune("thread", ids) == 0  # the thread's head

    second = await store.claim((await create(store, "2")).run_id, "one", 30.0, T + 9)
    await store.commit(
        commit_of(second, checkpoint=checkpoint("s1", ids[2], 4, snapshot=True)),
        commit_of(second, seq=2, checkpoint=checkpoint("s2", "s1", 5, snapshot=True)),
        commit_of(second, seq=3, status="waiting", interrupts=(question(),)),
    )
    assert await store.prune("thread", [*ids, "s1", "s2"]) == 1
    assert await listed(store) == [ids[2], "s2"]  # its base, for a rollback, and its head
    await store.resume(second.run_id, "i1", "1", T + 10)
    second = await store.claim(second.run_id, "one", 30.0, T + 10)
    await ended(store, second)
    assert await store.prune("thread", [*ids, "s1", "s2"]) == 1
    assert await listed(store) == ["s2"]


async def check_pruning_touches_its_thread_only(world: World) -> None:
    store = await world.open()
    mine, theirs = await line_of(store, 3, "m", "mine"), await line_of(store, 3, "t", "theirs")
    assert await store.prune("mine", [*mine, *theirs]) == 2
    assert await listed(store, "theirs") == theirs
    assert await store.prune("nowhere", mine) == 0
    assert await store.prune("mine", []) == 0
    assert await store.threads() == ["mine", "theirs"]


async def check_pruning_while_the_run_goes_on(world: World) -> None:
    """Retention runs beside the run: what the owner stands on is there at every moment."""
    store, other = await world.open(), await world.open()
    run = await owned(store)

    async def work() -> None:
        for seq in range(1, 25):
            parent = f"c{seq - 1}" if seq > 1 else ""
            await store.commit(commit_of(run, seq=seq, checkpoint=checkpoint(f"c{seq}", parent, seq, snapshot=True)))
            assert [row.checkpoint_id for row in (await store.load(run.run_id)).chain] == [f"c{seq}"]

    async def prune() -> int:
        return sum([await other.prune("thread", [f"c{n}" for n in range(1, 25)]) for _ in range(25)])

    _, pruned = await asyncio.gather(work(), prune())
    assert len(await listed(store)) == 24 - pruned
    assert (await listed(store))[-1] == "c24"


async def check_receipts_are_told_in_their_order(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, checkpoint=checkpoint("c1", snapshot=True)))
    given = [
        receipt_of(run, "k2", "t2", checkpoint_id="", at=T + 2, place="1/a/pay/1"),
        receipt_of(run, "k1", "t1", checkpoint_id="", at=T + 2, place="1/a/pay/0"),
        receipt_of(run, "k3", "t3", checkpoint_id="c1", at=T + 1, place="2/ä/pay/0"),
        receipt_of(run, "k1", "t4", checkpoint_id="c1", at=T + 2, place="2/b/pay/0"),
    ]
    for receipt in given:
        assert (await store.begin(receipt, 1, [], {}, T)).receipt == receipt
    assert await (await world.open()).receipts(run.run_id) == [given[n] for n in (2, 1, 3, 0)]
    await ended(store, await store.run(run.run_id))
    assert len(await store.receipts(run.run_id)) == 4  # they stay as long as their checkpoint
    assert await store.receipts("r00-nobody") == []
    await store.delete_thread("thread")
    assert await store.receipts(run.run_id) == []


async def check_a_blob_ends_a_day_after_it_was_put(world: World) -> None:
    store = await world.open()
    await store.put_blob("b", b"data", T)
    assert await store.blobs() == ["b"]
    await store.sweep(T + BLOB_KEPT_S - 1)
    assert await store.get_blob("b") == b"data"
    await store.sweep(T + BLOB_KEPT_S)
    with pytest.raises(NotFound, match="'b'"):
        await store.get_blob("b")
    assert await store.blobs() == []
    await store.put_blob("b", b"data", T + 2 * BLOB_KEPT_S)
    assert await store.get_blob("b") == b"data"


async def check_a_blob_that_is_put_again_has_its_time_again(world: World) -> None:
    """Whoever puts it has a day to name it: also if it was about to go."""
    store, other = await world.open(), await world.open()
    await store.put_blob("b", b"data", T)
    await other.put_blob("b", b"data", T + BLOB_KEPT_S)
    await store.sweep(T + BLOB_KEPT_S)
    run = await create(store, now=T + BLOB_KEPT_S, blobs=("b",))
    await store.sweep(T + 10 * BLOB_KEPT_S)
    assert await other.get_blob("b") == b"data"
    assert (await store.run(run.run_id)).blobs == ("b",)


async def check_a_blob_stays_as_long_as_a_run_names_it(world: World) -> None:
    store = await world.open()
    for digest in ("b1", "b2", "b ünï"):
        await store.put_blob(digest, digest.encode(), T)
    first = await owned(store, "1", "thread-1", blobs=("b1", "b ünï", "b1"))
    await create(store, "2", "thread-2", blobs=("b1", "never put"))
    far = T + 10 * BLOB_KEPT_S
    await ended(store, first, at=far, retain_s=5.0)
    await store.sweep(far)
    assert sorted(await store.blobs()) == ["b ünï", "b1"]
    assert await store.sweep(far + 5) == 1  # the first thread
    assert await store.blobs() == ["b1"]
    await store.cancel((await store.runs())[0].run_id, far)
    await store.delete_thread("thread-2")
    await store.sweep(far + 6)
    assert await store.blobs() == []
    if world.leftovers:
        assert not {k: v for k, v in (await world.leftovers()).items() if v}


async def check_blobs_put_again_race_with_the_sweep(world: World) -> None:
    """Put, named, and there: whatever a sweep of another client took in between."""
    store, other = await world.open(), await world.open()
    for n in range(10):
        old, now = T + n * 10 * BLOB_KEPT_S, T + (n * 10 + 5) * BLOB_KEPT_S
        await store.put_blob("b", b"data", old)
        await asyncio.gather(other.sweep(now), store.put_blob("b", b"data", now), other.sweep(now))
        run = await create(store, f"{n}", f"thread-{n}", now=now, blobs=("b",))
        await other.sweep(now + 3 * BLOB_KEPT_S)
        assert await store.get_blob("b") == b"data"
        await store.cancel(run.run_id, now)
        await store.delete_thread(f"thread-{n}")
