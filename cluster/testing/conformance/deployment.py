"""A small deployment with one of everything that a store keeps, made through the verbs of any store."""

from understudy.actors.records import Chunk
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    checkpoint,
    commit_of,
    create,
    event,
    owned,
    question,
    receipt_of,
    thread_beside,
)

BLOB = "ab" * 32


async def settle(store: Store) -> None:
    """Waiting, forked, behind another, failed half way, with receipts, messages taken and not, parent and child."""
    await store.put_blob(BLOB, b"\x00code\xff" * 1000, T)
    await store.put_blob("unnamed", b"", T)

    await store.write_document("pins", "a tool", b"\x00pinned", 0)
    await store.write_document("pins", "a tool", b"\x00pinned again", 1)
    await store.write_document("audit ünï", "1", b"", 0)

    asks = await owned(store, "asks", "asks ünï", labels={"team": "ä"}, blobs=(BLOB,), key="k", policy="p")
    await store.commit(
        commit_of(asks, checkpoint=checkpoint("c1", snapshot=True, body='{"x": "🎭"}'), step=1, counters={"a": 0.1}),
        commit_of(asks, seq=2, checkpoint=checkpoint("c2", "c1", 2), step=2, counters={"a": 0.2}),
    )
    receipt = receipt_of(asks, checkpoint_id="c2", place="2/charge/pay/0")
    await store.begin(receipt, asks.epoch, [event("tool_call", tool="pay")], {}, T + 2)
    await store.finish(asks.run_id, "k1", "c2", "t1", '{"kind": "ok"}', [], {"paid": 1}, T + 3)
    await store.begin(receipt_of(asks, "k2", "t2", checkpoint_id="c2"), asks.epoch, [], {}, T + 3)
    await store.forget(asks.run_id, "k2", "c2", "t2", [], {})
    questions = (question("i1", schema={"type": "string"}, on_timeout="no", deadline=T + 90), question("i2"))
    waits = commit_of(asks, seq=3, status="waiting", interrupts=questions, writes={"t9": "[9]"}, wake_at=T + 90)
    await store.commit(waits)
    await create(store, "behind", "asks ünï")  # stands behind it

    failed = await owned(store, "failed", "failed")
    await store.commit(commit_of(failed, writes={"t1": "[1]"}))
    await store.commit(commit_of(failed, seq=2, status="failed", error="why: é", retain_s=-1.0))

    seed = checkpoint("seed", snapshot=True, body='{"s": 1}')
    await create(store, "fork", "fork", seed=seed, labels={"forked_from": "x@c1"})

    hears = await owned(store, "hears", "hears")
    for n in (1, 2, 3):
        await store.send(hears.run_id, f"m{n}", f'"{n}"', T + n)
    await store.stream(hears.run_id, hears.epoch, [Chunk("t", "n", "a", '"token"', T)])
    await store.commit(commit_of(hears, taken=(1, 3), status="waiting", listens_after=3, interrupts=(question("m"),)))

    parent = await owned(store, "parent", "parent")
    await store.commit(commit_of(parent, status="waiting", interrupts=(question("child", kind="child"),)))
    await create(store, "child", thread_beside("parent"), parent=parent.run_id, parent_interrupt="child")

    await store.requeue(
        (await owned(store, "crashed", "crashed")).run_id, 1, T + 5, T + 9, [event("crashed")], {"c": 1}
    )
    await owned(store, "running", "running")
    ended = await owned(store, "ended", "ended")
    await store.commit(commit_of(ended, status="succeeded", result='{"r": 1}', retain_s=50.0))
