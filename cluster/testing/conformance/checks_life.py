"""Checks: create, due, claim, renew, requeue, resume, cancel."""

import asyncio

import pytest

from understudy.actors.errors import Conflict, Fenced, NotFound
from understudy.actors.events import sample
from understudy.actors.records import Due, NewRun, Renewed, run_id_on
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    event,
    kinds,
    new_run,
    owned,
    question,
)

# --- create --------------------------------------------------------------------------------------------------------


async def check_create_answers_the_run_as_queued(world: World) -> None:
    store = await world.open()
    run = await store.create(new_run(policy="p1", labels={"team": "a"}), [event("created", graph="g")], {"c": 2}, T)
    assert (run.status, run.epoch, run.seq, run.step, run.head) == ("queued", 0, 0, 0, "")
    assert (run.owner, run.lease_until, run.not_before, run.detected_at) == ("", 0.0, 0.0, 0.0)
    assert (run.restarts, run.crashes, run.cancel_asked, run.error, run.result) == (0, (), False, "", "")
    assert (run.created_at, run.updated_at, run.labels, run.policy) == (T, T, {"team": "a"}, "p1")
    assert await store.run(run.run_id) == run
    assert [(e.kind, e.at, e.data, e.n) for e in await store.events(run.run_id)] == [("created", T, {"graph": "g"}, 1)]
    assert await store.counters() == {"c": 2.0}


async def check_create_keeps_every_field(world: World) -> None:
    store = await world.open()
    thread = "thread: ünï {x} \"quoted\" 'single' \\ / %s :name ? 🎭\nline"
    given = NewRun(
        run_id=run_id_on(thread, "e-1"),
        thread_id=thread,
        graph="gräph",
        version="",
        code='{"code": "' + "c" * 1_000_000 + '"}',
        input='{"big": "' + "é" * 500_000 + '", "deep": [[], {}, null, 1e300, "\\u0000"]}',
        digest="",
        key="key {with} : * [odd] characters",
        policy="",
        labels={"": "", "ünï": "🎭", 'a"b': "c\\d\ne"},
    )
    created = await store.create(given, [event("created", text="🎭 \u2028", empty="", none=None, deep=[[], {}])], {}, T)
    run = await (await world.open()).run(given.run_id)
    assert run == created
    for name in ("run_id", "thread_id", "graph", "version", "code", "input", "digest", "key", "policy", "labels"):
        assert getattr(run, name) == getattr(given, name), name
    assert (await store.events(run.run_id))[0].data == {
        "text": "🎭 \u2028",
        "empty": "",
        "none": None,
        "deep": [[], {}],
    }


async def check_times_keep_their_microseconds(world: World) -> None:
    store = await world.open()
    now = 1764000000.123456
    run = await owned(store, now=now)
    assert (run.created_at, run.lease_until, (await store.run(run.run_id)).updated_at) == (now, now + 30.0, now)
    await store.requeue(run.run_id, run.epoch, now + 0.000001, now + 0.1, [event("crashed", cause="x")], {})
    run = await store.run(run.run_id)
    assert (run.crashes, run.detected_at, run.not_before) == ((now + 0.000001,), now + 0.000001, now + 0.1)


async def check_create_twice_with_the_same_run_id(world: World) -> None:
    store = await world.open()
    first = await store.create(new_run(), [event("created")], {"c": 1}, T)
    again = await store.create(new_run(), [event("created")], {"c": 1}, T + 5)
    assert again == first
    assert await kinds(store, first) == ["created"]
    assert await store.counters() == {"c": 1.0}
    assert (await store.due(T + 9, 10)).ready == (first.run_id,)
    run = await store.claim(first.run_id, "one", 30, T)
    assert await store.create(new_run(digest="other"), [], {}, T) == run


async def check_create_twice_with_the_same_key(world: World) -> None:
    store = await world.open()
    first = await create(store, "1", key="order-1")
    again = await store.create(new_run("2", key="order-1"), [event("created")], {"c": 1}, T + 5)
    assert again == first
    with pytest.raises(NotFound):
        await store.run(run_id_on("thread", "2"))
    assert await store.counters() == {}
    assert await kinds(store, first) == []
    assert len(await store.runs()) == 1


async def check_create_with_a_key_that_means_something_else(world: World) -> None:
    store = await world.open()
    first = await create(store, "1", key="order-1")
    with pytest.raises(Conflict, match="order-1"):
        await store.create(new_run("2", key="order-1", digest="d2"), [event("created")], {"c": 1}, T)
    assert [r.run_id for r in await store.runs()] == [first.run_id]
    assert await store.counters() == {}


async def check_a_key_is_good_for_its_thread_only_and_after_the_end(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1", "a", key="k")
    other = await create(store, "1", "b", key="k", digest="d2")
    assert other.thread_id == "b"
    await ended(store, first)
    assert (await create(store, "2", "a", key="k")).run_id == first.run_id
    assert (await create(store, "2", "b")).run_id != (await create(store, "3", "b")).run_id  # no key: no two are one


async def check_runs_on_one_thread_are_serial_in_order(world: World) -> None:
    store = await world.open()
    ids = [(await create(store, name, now=T)).run_id for name in ("c", "a", "b")]
    for index, run_id in enumerate(ids):
        at = T + index
        assert (await store.due(at, 10)).ready == (run_id,)
        for behind in ids[index + 1 :]:
            with pytest.raises(Conflict):
                await store.claim(behind, "two", 30, at)
        run = await store.claim(run_id, "one", 30, at)
        assert (await store.due(at, 10)).ready == ()
        await store.commit(commit_of(run, at=at + 0.5, status=("succeeded", "failed", "cancelled")[index]))
    assert (await store.due(T + 9, 10)).ready == ()


async def check_a_thread_stays_serial_while_its_run_waits_or_is_requeued(world: World) -> None:
    store = await world.open()
    run = await owned(store, "1")
    second = await create(store, "2")
    await store.commit(commit_of(run, status="waiting", interrupts=(question(),)))
    assert (await store.due(T + 2, 10)).ready == ()
    await store.resume(run.run_id, "i1", '"yes"', T + 2)
    assert (await store.due(T + 2, 10)).ready == (run.run_id,)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    await store.requeue(run.run_id, run.epoch, T + 4, T + 50, [], {})
    assert (await store.due(T + 5, 10)).ready == ()
    with pytest.raises(Conflict):
        await store.claim(second.run_id, "two", 30, T + 60)


async def check_a_run_starts_from_the_head_of_its_thread_when_claimed(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    second = await create(store, "2")
    assert (first.head, second.head) == ("", "")
    await store.commit(commit_of(first, checkpoint=checkpoint("c1", snapshot=True)))
    first = await ended(store, await store.run(first.run_id), checkpoint=checkpoint("c2", "c1", 2))
    assert first.head == "c2"
    assert (await store.run(second.run_id)).head == ""
    second = await store.claim(second.run_id, "one", 30, T + 2)
    assert second.head == "c2"
    loaded = await store.load(second.run_id)
    assert [row.checkpoint_id for row in loaded.chain] == ["c1", "c2"]
    await store.commit(commit_of(second, checkpoint=checkpoint("c3", "c2", 3)))
    await store.requeue(second.run_id, second.epoch, T + 3, 0, [], {})
    assert (await store.claim(second.run_id, "one", 30, T + 4)).head == "c3"
    assert (await store.run(first.run_id)).head == "c2"


async def check_a_seed_is_the_head_of_a_new_thread(world: World) -> None:
    store = await world.open()
    seed = checkpoint("c9", step=9, snapshot=True, body='{"x": 1}')
    run = await create(store, "1", "fork", seed=seed)
    assert (run.head, run.step) == ("c9", 0)
    assert await create(store, "1", "fork", seed=seed) == run
    run = await store.claim(run.run_id, "one", 30, T)
    assert run.head == "c9"
    (row,) = (await store.load(run.run_id)).chain
    assert (row.checkpoint_id, row.parent, row.step, row.snapshot, row.body) == ("c9", "", 9, True, '{"x": 1}')
    assert (row.run_id, row.at) == (run.run_id, T)
    await store.commit(commit_of(run, checkpoint=checkpoint("c10", "c9", 10)))
    assert [r.checkpoint_id for r in await store.history("fork")] == ["c10", "c9"]


async def check_a_seed_on_a_thread_that_is_not_new(world: World) -> None:
    store = await world.open()
    await create(store, "1", key="k")
    with pytest.raises(Conflict, match="thread"):
        await create(store, "2", seed=checkpoint("c9", snapshot=True))
    assert (await create(store, "2", key="k", seed=checkpoint("c9", snapshot=True))).run_id == run_id_on("thread", "1")
    assert len(await store.runs()) == 1
    assert await store.history("thread") == []


# --- due and claim -------------------------------------------------------------------------------------------------


async def check_due_is_oldest_first_and_limited(world: World) -> None:
    store = await world.open()
    names = [("z", T + 3), ("y", T + 1), ("x", T + 2), ("w", T + 9), ("b", T), ("a", T)]
    ids = {name: (await create(store, name, f"thread-{name}", at)).run_id for name, at in names}
    first = sorted([ids["a"], ids["b"]])
    assert (await store.due(T + 3, 10)).ready == (*first, ids["y"], ids["x"], ids["z"])
    assert (await store.due(T + 3, 3)).ready == (*first, ids["y"])
    assert (await store.due(T - 1, 3)) == Due((), ())
    assert (await store.due(T + 3, 0)) == Due((), ())


async def check_due_tells_overdue_leases_oldest_first(world: World) -> None:
    store = await world.open()
    runs = []
    for index, lease_s in enumerate((20, 10, 30, 15)):
        run = await create(store, str(index), f"thread-{index}")
        runs.append(await store.claim(run.run_id, "one", lease_s, T))
    assert (await store.due(T + 9.9, 10)).overdue == ()
    order = [runs[1], runs[3], runs[0]]
    assert await store.due(T + 20, 10) == Due((), tuple((r.run_id, 1) for r in order))
    assert (await store.due(T + 99, 2)).overdue == tuple((r.run_id, 1) for r in order[:2])
    await store.renew([(runs[1].run_id, 1)], 100, T + 20)
    assert (await store.due(T + 20, 10)).overdue == tuple((r.run_id, 1) for r in order[1:])
    await ended(store, runs[3])
    assert (await store.due(T + 20, 10)).overdue == ((runs[0].run_id, 1),)


async def check_order_is_the_order_of_becoming_ready(world: World) -> None:
    store = await world.open()
    old = await owned(store, "1", "a", T)
    behind = await create(store, "2", "a", T)
    sleeper = await owned(store, "1", "b", T)
    await store.commit(commit_of(sleeper, status="waiting", wake_at=T + 4))
    asked = await owned(store, "1", "c", T)
    await store.commit(commit_of(asked, status="waiting", interrupts=(question(),)))
    crashed = await owned(store, "1", "d", T)
    await store.requeue(crashed.run_id, crashed.epoch, T + 1, T + 3, [], {})
    fresh = await create(store, "1", "e", T + 2)
    await store.resume(asked.run_id, "i1", "1", T + 5)
    await ended(store, old, at=T + 6)
    late = await owned(store, "1", "f", T)
    await store.requeue(late.run_id, late.epoch, T + 7, T + 1, [], {})  # may go at once: ready from now, not from then
    expected = [fresh, crashed, sleeper, asked, behind, late]
    assert (await store.due(T + 7, 10)).ready == tuple(r.run_id for r in expected)
    assert (await store.due(T + 4, 10)).ready == tuple(r.run_id for r in expected[:3])


async def check_claim_takes_the_run(world: World) -> None:
    store = await world.open()
    run = await create(store)
    claimed = await store.claim(run.run_id, "one", 30, T + 1)
    assert (claimed.status, claimed.epoch, claimed.owner, claimed.lease_until) == ("running", 1, "one", T + 31)
    assert (claimed.not_before, claimed.updated_at, claimed.created_at) == (0.0, T + 1, T)
    assert await store.run(run.run_id) == claimed
    (entry,) = await store.events(run.run_id)
    assert (entry.kind, entry.at, entry.data, entry.n) == ("claimed", T + 1, {"owner": "one", "epoch": 1}, 1)
    with pytest.raises(Conflict, match=run.run_id):
        await store.claim(run.run_id, "two", 30, T + 2)
    assert await store.run(run.run_id) == claimed
    assert await store.due(T + 5, 10) == Due((), ())


async def check_claim_of_what_is_not_there_or_final(world: World) -> None:
    store = await world.open()
    for missing in (run_id_on("thread", "none"), "nonsense", ""):
        with pytest.raises(NotFound):
            await store.claim(missing, "one", 30, T)
    run = await ended(store, await owned(store))
    with pytest.raises(Conflict):
        await store.claim(run.run_id, "one", 30, T + 9)


async def check_not_before_holds_a_queued_run(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.requeue(run.run_id, run.epoch, T + 1, T + 5, [], {})
    assert (await store.due(T + 4.9, 10)).ready == ()
    with pytest.raises(Conflict):
        await store.claim(run.run_id, "two", 30, T + 4.9)
    assert (await store.due(T + 5, 10)).ready == (run.run_id,)
    again = await store.claim(run.run_id, "two", 30, T + 5)
    assert (again.epoch, again.not_before, again.owner) == (3, 0.0, "two")


async def check_a_raced_claim_has_one_winner(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    for index in range(10):
        run = await create(clients[0], str(index), f"thread-{index}")
        tries = [client.claim(run.run_id, f"owner-{n}", 30, T) for n, client in enumerate(clients)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        won = [r for r in results if not isinstance(r, BaseException)]
        assert len(won) == 1, results
        assert all(isinstance(r, Conflict) for r in results if isinstance(r, BaseException)), results
        assert await clients[1].run(run.run_id) == won[0]
        assert await kinds(clients[2], run) == ["claimed"]


async def check_raced_creates_with_one_key_make_one_run(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    for index in range(5):
        key = f"key-{index}"
        tries = [create(client, f"{index}-{n}", key=key) for n, client in enumerate(clients)]
        assert len({run.run_id for run in await asyncio.gather(*tries)}) == 1
    assert len(await clients[0].runs()) == 5
    assert len((await clients[0].due(T, 100)).ready) == 1


# --- renew ---------------------------------------------------------------------------------------------------------


async def check_renew_keeps_leases_and_tells_what_is_lost(world: World) -> None:
    store = await world.open()
    kept = await owned(store, "1", "a")
    lost = await owned(store, "1", "b")
    asked = await owned(store, "1", "c")
    over = await ended(store, await owned(store, "1", "d"))
    away = await owned(store, "1", "e")
    await store.commit(commit_of(away, status="waiting", interrupts=(question(),)))
    await store.requeue(lost.run_id, lost.epoch, T + 1, 0, [], {})
    await store.cancel(asked.run_id, T + 1)
    gone = run_id_on("x", "gone")
    runs = [gone, asked.run_id, lost.run_id, kept.run_id, over.run_id, away.run_id]
    assert await store.renew([(run_id, 1) for run_id in runs], 60, T + 5) == Renewed(
        (gone, lost.run_id), (asked.run_id,)
    )
    assert (await store.run(kept.run_id)).lease_until == T + 65
    assert (await store.run(asked.run_id)).lease_until == T + 65
    assert (await store.run(kept.run_id)).updated_at == T
    for other in (lost, over, away):
        assert (await store.run(other.run_id)).lease_until == 0.0
    counted = await store.counters()
    assert counted['fence_rejections_total{op="renew"}'] == 2.0
    assert await store.renew([], 60, T) == Renewed((), ())
    theirs = await store.claim(lost.run_id, "two", 30, T + 6)
    assert await store.renew([(lost.run_id, 1)], 600, T + 7) == Renewed((lost.run_id,), ())
    assert await store.run(lost.run_id) == theirs, "the lease of the next owner is not kept by the one before"


# --- requeue -------------------------------------------------------------------------------------------------------


async def check_requeue_after_a_crash(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, checkpoint=checkpoint("c1", snapshot=True), step=1))
    await store.commit(commit_of(run, seq=2, step=1, writes={"task1": "[1]"}))
    await store.cancel(run.run_id, T + 1)
    back = await store.requeue(run.run_id, 1, T + 2, T + 3, [event("crashed", cause="died")], {"r": 1})
    assert (back.status, back.epoch, back.owner, back.lease_until) == ("queued", 2, "", 0.0)
    assert (back.restarts, back.crashes, back.detected_at, back.not_before) == (1, (T + 2,), T + 2, T + 3)
    assert (back.seq, back.head, back.step, back.cancel_asked, back.updated_at) == (2, "c1", 1, True, T + 2)
    assert await store.run(run.run_id) == back
    assert (await store.load(run.run_id)).writes == {"task1": "[1]"}
    assert (await kinds(store, run))[-1] == "crashed"
    assert (await store.counters())["r"] == 1.0
    again = await store.claim(run.run_id, "two", 30, T + 3)
    assert (again.epoch, again.detected_at, again.seq) == (3, T + 2, 2)
    await store.commit(commit_of(again, at=T + 4))
    run = await store.run(run.run_id)
    assert (run.detected_at, run.restarts, run.crashes) == (0.0, 1, (T + 2,))


async def check_requeue_fences_the_old_owner(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.requeue(run.run_id, 1, T + 1, 0, [], {})
    for epoch in (0, 1, 2, 3):  # 2 is the run's own, but it is not running
        with pytest.raises(Fenced, match=run.run_id):
            await store.requeue(run.run_id, epoch, T + 2, 0, [event("crashed", cause="x")], {"r": 1})
    with pytest.raises(Fenced):
        await store.commit(commit_of(run))
    with pytest.raises(Fenced):
        await store.requeue(run_id_on("thread", "gone"), 1, T, 0, [], {})
    assert await store.counters() == {
        'fence_rejections_total{op="requeue"}': 5.0,
        'fence_rejections_total{op="commit"}': 1.0,
    }
    assert await kinds(store, run) == ["claimed"]
    assert (await store.run(run.run_id)).restarts == 1
    there = await store.claim(run.run_id, "two", 30.0, T + 3)
    for epoch in (1, 2, 4):  # a supervisor that is late takes nothing from the next owner
        with pytest.raises(Fenced):
            await store.requeue(run.run_id, epoch, T + 4, 0, [], {})
    assert await store.run(run.run_id) == there


async def check_requeue_without_a_crash(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    back = await store.requeue(run.run_id, 1, T + 1, 0, [], {}, crashed=False)
    assert (back.status, back.epoch, back.restarts, back.crashes, back.detected_at) == ("queued", 2, 0, (), 0.0)
    assert (await store.due(T + 1, 10)).ready == (run.run_id,)


async def check_only_the_newest_twenty_crashes_are_kept(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    for n in range(23):
        await store.requeue(run.run_id, run.epoch, T + n, 0, [], {})
        run = await store.claim(run.run_id, "one", 30, T + n)
    assert run.crashes == tuple(T + n for n in range(3, 23))
    assert run.restarts == 23
    assert (await store.run(run.run_id)).crashes == run.crashes


async def check_quarantine_sets_a_run_aside(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    behind = await create(store, "2")
    events = [event("crashed", cause="died"), event("finished", status="quarantined")]
    aside = await store.requeue(run.run_id, 1, T + 1, T + 5, events, {"q": 1}, quarantine="crashed 5 times in 60 s")
    assert (aside.status, aside.epoch, aside.error) == ("quarantined", 2, "crashed 5 times in 60 s")
    assert (aside.restarts, aside.crashes, aside.not_before, aside.lease_until) == (1, (T + 1,), 0.0, 0.0)
    assert await store.run(run.run_id) == aside
    assert (await store.due(T + 9, 10)).ready == (behind.run_id,)
    assert await kinds(store, run) == ["claimed", "crashed", "finished"]
    await store.cancel(behind.run_id, T + 2)
    assert await store.sweep(T + 7 * 86400 + 1) == 0
    assert await store.sweep(T + 7 * 86400 + 2) == 1


# --- resume --------------------------------------------------------------------------------------------------------


async def check_resume_queues_a_waiting_run(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"), question("i2")), wake_at=T + 99))
    back = await store.resume(run.run_id, "i1", '{"ok": "jå"}', T + 2)
    assert (back.status, back.answers, back.not_before, back.updated_at) == (
        "queued",
        {"i1": '{"ok": "jå"}'},
        0.0,
        T + 2,
    )
    assert (back.interrupts, back.epoch, back.owner) == ((question("i1"), question("i2")), 1, "")
    assert await store.run(run.run_id) == back
    last = (await store.events(run.run_id))[-1]
    assert (last.kind, last.at, last.data) == ("answered", T + 2, {"interrupt_id": "i1"})
    assert (await store.due(T + 2, 10)).ready == (run.run_id,)
    assert await store.counters() == {'checkpoint_commits_total{result="ok"}': 1.0}


async def check_the_first_answer_stands(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"),)))
    back = await store.resume(run.run_id, "i1", "1", T + 2)
    assert await store.resume(run.run_id, "i1", "1", T + 3) == back
    with pytest.raises(Conflict, match="i1"):
        await store.resume(run.run_id, "i1", "2", T + 3)
    assert await store.run(run.run_id) == back
    assert (await kinds(store, run)).count("answered") == 1
    again = await store.claim(run.run_id, "one", 30, T + 4)
    assert await store.resume(run.run_id, "i1", "1", T + 5) == again


async def check_resume_of_an_unknown_interrupt(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    with pytest.raises(NotFound, match="i1"):
        await store.resume(run.run_id, "i1", "1", T)
    waiting = commit_of(run, status="waiting", interrupts=(question("i1"), question("i0", settled=True)))
    await store.commit(waiting)
    for name in ("i2", "", "i0"):
        with pytest.raises(NotFound):
            await store.resume(run.run_id, name, "1", T)
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await store.resume(missing, "i1", "1", T)
    assert (await store.run(run.run_id)).status == "waiting"
    assert await kinds(store, run) == ["claimed"]


async def check_resume_while_the_run_is_at_work(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"), question("i2"))))
    await store.resume(run.run_id, "i1", "1", T + 2)
    back = await store.resume(run.run_id, "i2", "2", T + 3)
    assert (back.status, back.answers) == ("queued", {"i1": "1", "i2": "2"})
    run = await store.claim(run.run_id, "one", 30, T + 4)
    assert run.answers == {"i1": "1", "i2": "2"}
    await store.requeue(run.run_id, run.epoch, T + 5, T + 50, [], {})
    assert (await store.run(run.run_id)).answers == {"i1": "1", "i2": "2"}
    assert (await store.due(T + 6, 10)).ready == ()


# --- cancel --------------------------------------------------------------------------------------------------------


async def check_cancel_of_a_queued_run(world: World) -> None:
    store = await world.open()
    run = await create(store)
    behind = await create(store, "2")
    over = await store.cancel(run.run_id, T + 1)
    assert (over.status, over.epoch, over.cancel_asked, over.updated_at) == ("cancelled", 1, True, T + 1)
    assert await store.run(run.run_id) == over
    (entry,) = await store.events(run.run_id)
    assert (entry.kind, entry.at, entry.data) == ("finished", T + 1, {"status": "cancelled"})
    counted = {'runs_finished_total{graph="refund",status="cancelled"}': 1.0}
    assert await store.counters() == counted
    assert (await store.due(T + 1, 10)).ready == (behind.run_id,)
    assert await store.cancel(run.run_id, T + 2) == over
    assert await kinds(store, run) == ["finished"]
    assert await store.counters() == counted


async def check_a_cancelled_runs_counter_names_its_graph(world: World) -> None:
    store = await world.open()
    graph = 'a "b" \\ c\nünï %s'
    run = await create(store, graph=graph)
    await store.cancel(run.run_id, T + 1)
    assert await store.counters() == {sample("runs_finished_total", graph=graph, status="cancelled"): 1.0}


async def check_cancel_of_a_waiting_run(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    behind = await create(store, "2")
    await store.commit(
        commit_of(run, status="waiting", interrupts=(question(),), wake_at=T + 5, writes={"task1": "[1]"})
    )
    over = await store.cancel(run.run_id, T + 2)
    assert (over.status, over.epoch, over.interrupts, over.answers, over.not_before) == ("cancelled", 2, (), {}, 0.0)
    assert (await store.load(run.run_id)).writes == {}
    assert (await store.due(T + 9, 10)).ready == (behind.run_id,)
    with pytest.raises(NotFound):
        await store.resume(run.run_id, "i1", "1", T + 3)
    with pytest.raises(Fenced):
        await store.commit(commit_of(run, seq=2))


async def check_cancel_of_a_running_run(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    asked = await store.cancel(run.run_id, T + 1)
    assert (asked.status, asked.epoch, asked.cancel_asked, asked.owner) == ("running", 1, True, "one")
    assert await store.cancel(run.run_id, T + 2) == asked
    assert await kinds(store, run) == ["claimed", "cancel_asked"]
    assert (await store.renew([(run.run_id, 1)], 30, T + 2)).cancelled == (run.run_id,)
    assert (await store.commit(commit_of(run))).cancel_asked
    assert (await store.commit(commit_of(run))).cancel_asked  # a duplicate tells it as well
    assert await store.counters() == {
        'checkpoint_commits_total{result="ok"}': 1.0,
        'checkpoint_commits_total{result="duplicate"}': 1.0,
    }
    await store.commit(commit_of(run, seq=2, status="cancelled"))
    assert (await store.run(run.run_id)).status == "cancelled"


async def check_cancel_of_a_final_run(world: World) -> None:
    store = await world.open()
    over = await ended(store, await owned(store))
    assert await store.cancel(over.run_id, T + 9) == over
    assert await kinds(store, over) == ["claimed"]


async def check_cancel_in_the_middle_of_a_queue(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    second = await create(store, "2")
    third = await create(store, "3")
    await store.cancel(second.run_id, T + 1)
    assert (await store.due(T + 2, 10)).ready == ()
    with pytest.raises(Conflict):
        await store.claim(third.run_id, "two", 30, T + 2)
    await ended(store, first)
    assert (await store.due(T + 2, 10)).ready == (third.run_id,)


async def check_cancel_behind_a_run_does_not_hurry_it(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    behind = [await create(store, name) for name in ("2", "3")]
    await store.requeue(first.run_id, first.epoch, T + 1, T + 50, [], {})
    await store.cancel(behind[0].run_id, T + 2)
    assert (await store.due(T + 49, 10)).ready == ()
    with pytest.raises(Conflict):
        await store.claim(first.run_id, "two", 30, T + 49)
    other = await create(store, "1", "other", T + 55)
    await store.cancel(behind[1].run_id, T + 60)
    assert (await store.due(T + 60, 10)).ready == (first.run_id, other.run_id)  # ready since T + 50, not T + 60


async def check_cancel_of_what_is_not_there(world: World) -> None:
    store = await world.open()
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await store.cancel(missing, T)


async def check_cancel_asked_does_not_sleep(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.cancel(run.run_id, T + 1)
    assert (await store.commit(commit_of(run, status="waiting", interrupts=(question(),), wake_at=T + 99))).cancel_asked
    run = await store.run(run.run_id)
    assert (run.status, run.cancel_asked, run.not_before) == ("queued", True, 0.0)
    assert (await store.due(T + 1, 10)).ready == (run.run_id,)
    over = await store.cancel(run.run_id, T + 2)  # it is queued now: cancelled at once
    assert over.status == "cancelled"
