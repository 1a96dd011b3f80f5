"""Checks: send, taken and listening; stream and chunks."""

import asyncio

import pytest

from understudy.actors.errors import Conflict, Fenced, NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Message, RunRecord, run_id_on
from understudy.actors.store import CHUNKS_MAX, MAILBOX_MAX, Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    chunk,
    commit_of,
    create,
    kinds,
    owned,
    question,
)


async def mailbox(store: Store, run: RunRecord) -> list[int]:
    """Numbers of what is in it."""
    return [message.n for message in (await store.load(run.run_id)).messages]


# --- the mailbox -----------------------------------------------------------------------------------------------------


async def check_messages_come_in_the_order_of_sending(world: World) -> None:
    store = await world.open()
    run = await create(store)
    bodies = ['"ünï \U0001f3ad"', '{"a": [1, 2.5, null]}\n', '""', '"' + "x" * 100_000 + '"']
    sent = [await store.send(run.run_id, f"m {n} ünï\n", body, T + n) for n, body in enumerate(bodies)]
    assert sent == [1, 2, 3, 4]
    expected = tuple(Message(n + 1, f"m {n} ünï\n", body, T + n) for n, body in enumerate(bodies))
    assert (await (await world.open()).load(run.run_id)).messages == expected
    assert await kinds(store, run) == ["message"] * 4
    assert dict((await store.events(run.run_id))[1].data) == {"n": 2, "message_id": "m 1 ünï\n"}
    assert (await store.events(run.run_id))[1].at == T + 1
    assert await store.run(run.run_id) == run  # a message changes nothing of a run that does not wait for one


async def check_a_message_sent_again_is_the_same(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    assert await store.send(run.run_id, "m1", "1", T) == 1
    assert await store.send(run.run_id, "m2", "2", T) == 2
    assert await store.send(run.run_id, "m1", '"another body"', T + 1) == 1
    assert (await store.load(run.run_id)).messages == (Message(1, "m1", "1", T), Message(2, "m2", "2", T))
    await store.commit(commit_of(run, taken=(1, 2)))
    assert await store.send(run.run_id, "m2", "2", T + 2) == 2  # taken, and still known
    assert await mailbox(store, run) == []
    assert await store.send(run.run_id, "m3", "3", T + 2) == 3
    assert await kinds(store, run) == ["claimed", "message", "message", "message"]


async def check_messages_to_nobody(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    with pytest.raises(NotFound):
        await store.send(run_id_on("thread", "gone"), "m1", "1", T)
    with pytest.raises(NotFound):
        await store.send("nonsense", "m1", "1", T)
    await store.send(run.run_id, "m1", "1", T)
    await store.commit(commit_of(run, status="succeeded"))
    for message_id in ("m1", "m2"):
        with pytest.raises(Conflict, match="succeeded"):
            await store.send(run.run_id, message_id, "1", T + 2)
    assert await mailbox(store, run) == []  # gone with the run's end


async def check_an_end_for_good_empties_the_mailbox_and_one_that_may_be_retried_keeps_it(world: World) -> None:
    store = await world.open()
    failed, cancelled, aside = [await owned(store, "1", f"thread-{n}") for n in range(3)]
    for run in (failed, cancelled, aside):
        await store.send(run.run_id, "m1", "1", T)
    await store.commit(commit_of(failed, status="failed", error="why"))
    await store.requeue(aside.run_id, 1, T + 1, 0.0, [], {}, quarantine="too often")
    await store.requeue(cancelled.run_id, 1, T + 1, 0.0, [], {}, crashed=False)
    assert await mailbox(store, cancelled) == [1]  # to lose an owner is no end
    await store.cancel(cancelled.run_id, T + 2)
    for run in (failed, cancelled, aside):
        assert await mailbox(store, run) == ([] if run is cancelled else [1])
        with pytest.raises(Conflict):
            await store.send(run.run_id, "m2", "1", T + 3)
    for run in (failed, aside):
        await store.retry(run.run_id, T + 4)
        assert await store.send(run.run_id, "m2", "2", T + 5) == 2
        assert await mailbox(store, run) == [1, 2]


async def check_a_full_mailbox_refuses(world: World) -> None:
    """All but the last messages are adopted, for ten thousand would be most of the time that this suite takes."""
    store, model = await world.open(), MemoryStore()
    run = await owned(model)
    there = MAILBOX_MAX - 100
    numbers = [await model.send(run.run_id, f"m{n}", f"{n}", T) for n in range(there)]
    assert await store.adopt(await model.dump(run.thread_id))
    sends = [store.send(run.run_id, f"m{n}", f"{n}", T) for n in range(there, MAILBOX_MAX)]
    numbers += await asyncio.gather(*sends)  # at once, so that any of them may be the first
    assert sorted(numbers) == list(range(1, MAILBOX_MAX + 1))
    with pytest.raises(Conflict, match=f"{MAILBOX_MAX}"):
        await store.send(run.run_id, "one more", "1", T)
    assert await store.send(run.run_id, "m7", "7", T) == numbers[7]  # it is there: nothing to refuse
    await store.commit(commit_of(run, taken=(1,)))
    assert await store.send(run.run_id, "one more", "1", T) == MAILBOX_MAX + 1
    numbers = await mailbox(store, run)
    assert numbers == list(range(2, MAILBOX_MAX + 2))
    await store.commit(commit_of(run, seq=2, taken=tuple(numbers[:-1])))
    assert await mailbox(store, run) == [MAILBOX_MAX + 1]


async def check_taken_messages_leave_with_the_commit(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    for n in range(1, 6):
        await store.send(run.run_id, f"m{n}", "1", T)
    with pytest.raises(Fenced):
        await store.commit(commit_of(run, epoch=7, taken=(1,)))
    assert await mailbox(store, run) == [1, 2, 3, 4, 5]
    await store.commit(commit_of(run, taken=(2, 4, 99)))
    assert await mailbox(store, run) == [1, 3, 5]
    await store.commit(commit_of(run, seq=2, taken=(1,), checkpoint=checkpoint("c1", snapshot=True)))
    assert await mailbox(store, run) == [3, 5]
    await store.commit(commit_of(run, seq=3, taken=(5,), status="waiting"))
    assert await mailbox(store, run) == [3]
    assert (await store.commit(commit_of(run, seq=3, taken=(3,), status="waiting"))).duplicate
    assert await mailbox(store, run) == [3]


# --- listening -------------------------------------------------------------------------------------------------------


async def check_a_message_wakes_a_run_that_listens(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(
        commit_of(run, status="waiting", interrupts=(question("i1", kind="message"),), wake_at=T + 99, listens_after=0)
    )
    assert (await store.run(run.run_id)).status == "waiting"
    assert (await store.due(T + 50, 10)).ready == ()
    assert await store.send(run.run_id, "m1", "1", T + 5) == 1
    woken = await store.run(run.run_id)
    assert (woken.status, woken.not_before, woken.updated_at) == ("queued", 0.0, T + 1)
    assert woken.interrupts == (question("i1", kind="message"),)
    assert (await store.due(T + 4.5, 10)).ready == ()
    assert (await store.due(T + 5, 10)).ready == (run.run_id,)
    assert (await store.claim(run.run_id, "two", 30, T + 5)).epoch == 2
    assert await mailbox(store, run) == [1]


async def check_only_later_messages_wake(world: World) -> None:
    """`listens_after` is what the run has seen: what it left in the mailbox does not wake it again."""
    store = await world.open()
    run = await owned(store)
    for n in (1, 2):
        await store.send(run.run_id, f"m{n}", "1", T)
    await store.commit(commit_of(run, status="waiting", listens_after=2))
    assert (await store.run(run.run_id)).status == "waiting"
    assert await store.send(run.run_id, "m2", "1", T + 2) == 2  # again: no news
    assert (await store.run(run.run_id)).status == "waiting"
    assert await store.send(run.run_id, "m3", "1", T + 3) == 3
    assert (await store.run(run.run_id)).status == "queued"


async def check_a_message_between_load_and_the_wait_is_not_missed(world: World) -> None:
    """The race that a mailbox must not lose: the node saw nothing, and the message came before it slept."""
    store, sender = await world.open(), await world.open()
    run = await owned(store)
    assert await mailbox(store, run) == []
    await sender.send(run.run_id, "m1", "1", T + 1)
    await store.commit(commit_of(run, at=T + 2, status="waiting", listens_after=0, wake_at=T + 99))
    queued = await store.run(run.run_id)
    assert (queued.status, queued.not_before) == ("queued", 0.0)
    assert (await store.due(T + 2, 10)).ready == (run.run_id,)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    # the same while it is taken in that very commit: nothing is left to wake for
    await store.commit(commit_of(run, at=T + 4, status="waiting", listens_after=0, taken=(1,)))
    assert (await store.run(run.run_id)).status == "waiting"


async def check_nobody_listens_unless_told(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.send(run.run_id, "m1", "1", T)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"),)))
    await store.send(run.run_id, "m2", "1", T + 2)
    assert (await store.run(run.run_id)).status == "waiting"
    await store.resume(run.run_id, "i1", "1", T + 3)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    await store.commit(commit_of(run, status="waiting", listens_after=2))
    await store.cancel(run.run_id, T + 4)
    assert (await store.run(run.run_id)).status == "cancelled"
    other = await owned(store, "1", "other")
    await store.commit(commit_of(other, status="waiting", listens_after=0, wake_at=T + 5))
    other = await store.claim(other.run_id, "one", 30, T + 5)
    await store.commit(commit_of(other, status="waiting"))  # it does not listen any more
    await store.send(other.run_id, "m1", "1", T + 6)
    assert (await store.run(other.run_id)).status == "waiting"


async def check_sending_while_the_run_goes_to_sleep(world: World) -> None:
    """Both at once, many times: in either order the run is awake afterwards, once."""
    store, sender = await world.open(), await world.open()
    for n in range(20):
        run = await owned(store, "1", f"thread-{n}")
        await asyncio.gather(
            store.commit(commit_of(run, status="waiting", listens_after=0)), sender.send(run.run_id, "m1", "1", T + 1)
        )
        assert (await store.run(run.run_id)).status == "queued"
    assert len((await store.due(T + 2, 100)).ready) == 20


async def check_many_senders(world: World) -> None:
    clients = [await world.open() for _ in range(3)]
    run = await create(clients[0])
    sends = [clients[n % 3].send(run.run_id, f"m{n // 2}", f"{n // 2}", T) for n in range(60)]  # each of them twice
    numbers = await asyncio.gather(*sends)
    assert sorted(set(numbers)) == list(range(1, 31))
    assert all(numbers[n] == numbers[n + 1] for n in range(0, 60, 2))
    assert await mailbox(clients[1], run) == list(range(1, 31))
    assert await kinds(clients[2], run) == ["message"] * 30


# --- streams ---------------------------------------------------------------------------------------------------------


async def check_chunks_come_in_order_with_cursors(world: World) -> None:
    store, reader = await world.open(), await world.open()
    run = await owned(store)
    assert await reader.chunks(run.run_id) == []
    await store.stream(run.run_id, 1, [chunk('"ünï \U0001f3ad"'), chunk('"two\\n"', task_id="t\n2", node="é")])
    await store.stream(run.run_id, 1, [])
    await store.stream(run.run_id, 1, [chunk("null", "a1", withdrawn=True, at=T + 0.125), chunk("[4]", "a2")])
    found = await reader.chunks(run.run_id)
    assert [c.n for c in found] == [1, 2, 3, 4]
    assert found[0] == chunk('"ünï \U0001f3ad"', n=1)
    assert found[1] == chunk('"two\\n"', task_id="t\n2", node="é", n=2)
    assert found[2] == chunk("null", "a1", withdrawn=True, at=T + 0.125, n=3)
    assert found[3] == chunk("[4]", "a2", n=4)
    assert await reader.chunks(run.run_id, 2) == found[2:]
    assert await reader.chunks(run.run_id, 1, 2) == found[1:3]
    assert await reader.chunks(run.run_id, 4) == await reader.chunks(run.run_id, 99) == []
    assert await kinds(store, run) == ["claimed"]  # it is part of no log, and counts nothing
    assert await store.counters() == {}
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await reader.chunks(missing)


async def check_only_the_owner_streams(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    for epoch in (0, 2):
        with pytest.raises(Fenced):
            await store.stream(run.run_id, epoch, [chunk()])
    with pytest.raises(Fenced):
        await store.stream(run_id_on("thread", "gone"), 1, [chunk()])
    await store.stream(run.run_id, 1, [chunk("1")])
    await store.requeue(run.run_id, 1, T + 1, 0.0, [], {})
    with pytest.raises(Fenced):
        await store.stream(run.run_id, 1, [chunk("2")])
    with pytest.raises(Fenced):
        await store.stream(run.run_id, 2, [chunk("3")])  # queued: nobody's
    run = await store.claim(run.run_id, "two", 30, T + 1)
    await store.stream(run.run_id, 3, [chunk("4")])
    await store.commit(commit_of(run, status="succeeded"))
    with pytest.raises(Fenced):
        await store.stream(run.run_id, 3, [chunk("5")])
    assert [(c.n, c.data) for c in await store.chunks(run.run_id)] == [(1, "1"), (2, "4")]
    assert await store.counters() == {'checkpoint_commits_total{result="ok"}': 1.0}


async def check_only_the_last_chunks_are_kept(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    size = CHUNKS_MAX // 5 + 1
    for start in range(0, 5 * size, size):
        await store.stream(run.run_id, 1, [chunk(f"{n}") for n in range(start + 1, start + size + 1)])
    found = await store.chunks(run.run_id, limit=2 * CHUNKS_MAX)
    assert [(c.n, c.data) for c in found] == [(n, f"{n}") for n in range(6, 5 * size + 1)]
    assert len(found) == CHUNKS_MAX
    assert [c.n for c in await store.chunks(run.run_id, 2, 3)] == [6, 7, 8]  # from the oldest that is kept
    assert [c.n for c in await store.chunks(run.run_id, 5 * size - 1)] == [5 * size]
    await store.stream(run.run_id, 1, [chunk(f"{n}") for n in range(CHUNKS_MAX + 3)])  # more than is kept, at once
    found = await store.chunks(run.run_id, limit=2 * CHUNKS_MAX)
    assert [c.data for c in found] == [f"{n}" for n in range(3, CHUNKS_MAX + 3)]
    assert found[-1].n == 5 * size + CHUNKS_MAX + 3


async def check_messages_and_chunks_go_with_their_thread(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.send(run.run_id, "m1", "1", T)
    await store.stream(run.run_id, 1, [chunk()])
    await store.commit(commit_of(run, status="waiting", listens_after=1))
    await store.cancel(run.run_id, T + 1)
    await store.delete_thread("thread")
    with pytest.raises(NotFound):
        await store.chunks(run.run_id)
    if world.leftovers:
        assert not {k: v for k, v in (await world.leftovers()).items() if v}
    again = await owned(store, "2")
    assert await store.send(again.run_id, "m1", "1", T) == 1
    assert await store.chunks(again.run_id) == []
