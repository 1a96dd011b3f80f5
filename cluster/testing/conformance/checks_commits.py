"""Checks: commit and load."""

import pytest

from understudy.actors.errors import Fenced, NotFound
from understudy.actors.records import Commit, Committed, Due, Event, Interrupt, RunRecord, run_id_on
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    ended,
    event,
    kinds,
    owned,
    question,
)


async def check_commit_moves_everything_at_once(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    new = checkpoint("c1", step=1, snapshot=True, body='{"n": 1}')
    events = (Event("node_finished", T + 1, {"node": "a"}), Event("checkpoint", T + 1, {"checkpoint_id": "c1"}))
    done = await store.commit(commit_of(run, step=1, checkpoint=new, events=events, counters={"a": 1, "b": 0.5}))
    assert done == Committed(duplicate=False, cancel_asked=False)
    after = await store.run(run.run_id)
    assert (after.status, after.seq, after.step, after.head, after.updated_at) == ("running", 1, 1, "c1", T + 1)
    assert (after.epoch, after.owner, after.lease_until) == (1, "one", T + 30)
    assert [(e.n, e.kind, e.at, e.data) for e in await store.events(run.run_id, after=1)] == [
        (2, "node_finished", T + 1, {"node": "a"}),
        (3, "checkpoint", T + 1, {"checkpoint_id": "c1"}),
    ]
    assert await store.counters() == {"a": 1.0, "b": 0.5, 'checkpoint_commits_total{result="ok"}': 1.0}
    (row,) = (await store.load(run.run_id)).chain
    assert (row.checkpoint_id, row.run_id, row.at, row.body, row.snapshot) == (
        "c1",
        run.run_id,
        T + 1,
        '{"n": 1}',
        True,
    )


async def check_the_commit_that_nearly_all_are_does_what_any_does(world: World) -> None:
    """The end of a superstep after which the run goes on, with two events and one counter: stores have short ways for
    it. Before it there are pending writes, an answered question and a crash; others try it, too soon and too late."""
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, writes={"t1": "[1]"}))
    await store.commit(commit_of(run, seq=2, status="waiting", interrupts=(question(),)))
    await store.resume(run.run_id, "i1", '"yes"', T + 2)
    old = await store.claim(run.run_id, "one", 30.0, T + 3)
    await store.requeue(run.run_id, old.epoch, T + 4, 0, [], {})
    run = await store.claim(run.run_id, "two", 30.0, T + 5)
    before = await store.load(run.run_id)
    assert (before.writes, run.answers, len(run.interrupts)) == ({"t1": "[1]"}, {"i1": '"yes"'}, 1)
    assert run.detected_at == T + 4

    def step(owner: RunRecord, seq: int) -> Commit:
        new = checkpoint(f"c{seq}", f"c{seq - 1}" if seq > 3 else "", seq, seq == 3)
        events = (event("node_finished", node="a", seq=seq), event(seq=seq))
        return commit_of(owner, at=T + seq, seq=seq, step=seq, checkpoint=new, events=events, counters={"nodes": 1})

    with pytest.raises(Fenced):
        await store.commit(step(old, 3))
    with pytest.raises(AssertionError):
        await store.commit(step(run, 4))
    assert await store.load(run.run_id) == before
    assert await store.commit(step(run, 3)) == Committed(duplicate=False, cancel_asked=False)
    loaded = await store.load(run.run_id)
    after = loaded.run
    assert (after.status, after.seq, after.step, after.head, after.updated_at) == ("running", 3, 3, "c3", T + 3)
    assert (after.detected_at, after.interrupts, after.answers, loaded.writes) == (0.0, (), {}, {})
    await store.cancel(run.run_id, T + 4)
    assert await store.commit(step(run, 4)) == Committed(duplicate=False, cancel_asked=True)
    assert (await store.commit(step(run, 4))).duplicate
    assert await store.commit(step(run, 5), step(run, 6)) == Committed(duplicate=False, cancel_asked=True)
    noted = [(e.kind, e.data.get("seq")) for e in await store.events(run.run_id) if e.kind != "claimed"]
    assert noted == [
        ("answered", None),
        *(("node_finished", 3), ("checkpoint", 3), ("cancel_asked", None)),
        *((kind, seq) for seq in (4, 5, 6) for kind in ("node_finished", "checkpoint")),
    ]
    assert [row.checkpoint_id for row in (await store.load(run.run_id)).chain] == ["c3", "c4", "c5", "c6"]
    counted = await store.counters()
    assert (counted["nodes"], counted['checkpoint_commits_total{result="ok"}']) == (4.0, 6.0)
    await store.commit(commit_of(run, seq=7, status="waiting"))
    given_back = await store.load(run.run_id)
    with pytest.raises(Fenced):  # it has given the run back
        await store.commit(step(run, 8))
    assert await store.load(run.run_id) == given_back


async def check_a_commit_sent_twice_applies_once(world: World) -> None:
    store, other = await world.open(), await world.open()
    run = await owned(store)
    commit = commit_of(
        run, step=1, checkpoint=checkpoint("c1", snapshot=True), events=(event(), event()), counters={"a": 1}
    )
    assert not (await store.commit(commit)).duplicate
    before = await store.load(run.run_id)
    for client in (other, store):
        assert (await client.commit(commit)).duplicate
    assert await store.load(run.run_id) == before
    assert await kinds(store, run) == ["claimed", "checkpoint", "checkpoint"]
    assert await store.counters() == {
        "a": 1.0,
        'checkpoint_commits_total{result="ok"}': 1.0,
        'checkpoint_commits_total{result="duplicate"}': 2.0,
    }


async def check_a_duplicate_is_told_after_the_run_was_given_back(world: World) -> None:
    store = await world.open()
    for index, status in enumerate(("waiting", "succeeded", "failed")):
        run = await owned(store, str(index), f"thread-{index}")
        commit = commit_of(run, status=status, interrupts=(question(),) if status == "waiting" else ())
        await store.commit(commit)
        before = await store.run(run.run_id)
        assert before.status == status
        assert (await store.commit(commit)).duplicate
        assert await store.run(run.run_id) == before
        with pytest.raises(Fenced):
            await store.commit(commit_of(before))


async def check_a_stale_epoch_changes_nothing(world: World) -> None:
    store = await world.open()
    old = await owned(store)
    await store.requeue(old.run_id, old.epoch, T + 1, 0, [], {})
    between = await store.run(old.run_id)
    with pytest.raises(Fenced, match=old.run_id):
        await store.commit(commit_of(old, counters={"a": 1}, events=(event(),)))
    new = await store.claim(old.run_id, "two", 30, T + 2)
    before = await store.load(new.run_id)
    for epoch in (0, old.epoch, between.epoch, new.epoch + 1):
        with pytest.raises(Fenced):
            await store.commit(
                commit_of(new, epoch=epoch, checkpoint=checkpoint("c1"), events=(event(),), counters={"a": 1})
            )
    assert await store.load(new.run_id) == before
    assert await kinds(store, new) == ["claimed", "claimed"]
    assert await store.counters() == {'fence_rejections_total{op="commit"}': 5.0}
    assert await store.history("thread") == []


async def check_nobody_owns_a_queued_or_deleted_run(world: World) -> None:
    store = await world.open()
    run = await create(store)
    for epoch in (0, 1):
        with pytest.raises(Fenced):
            await store.commit(commit_of(run, epoch=epoch))
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(Fenced):
            await store.commit(commit_of(run, run_id=missing))
    assert (await store.counters())['fence_rejections_total{op="commit"}'] == 4.0


async def check_a_gap_in_seq_is_a_bug(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    for seq in (0, 2, 3, -1):
        with pytest.raises(AssertionError, match=run.run_id):
            await store.commit(commit_of(run, seq=seq, counters={"a": 1}, events=(event(),)))
    await store.commit(commit_of(run))
    await store.commit(commit_of(run, seq=2))
    for seq in (1, 4):
        with pytest.raises(AssertionError):
            await store.commit(commit_of(run, seq=seq))
    assert (await store.run(run.run_id)).seq == 2
    assert await store.counters() == {'checkpoint_commits_total{result="ok"}': 2.0}
    assert await kinds(store, run) == ["claimed"]


async def check_a_seq_of_an_earlier_owner_is_no_duplicate(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run))
    await store.requeue(run.run_id, run.epoch, T + 1, 0, [], {})
    again = await store.claim(run.run_id, "two", 30, T + 2)
    with pytest.raises(AssertionError):
        await store.commit(commit_of(again, seq=1))
    assert not (await store.commit(commit_of(again))).duplicate
    assert (await store.commit(commit_of(again))).duplicate


async def check_pending_writes_stay_until_the_checkpoint(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    big = '["' + "x" * 1_000_000 + '"]'
    await store.commit(commit_of(run, writes={"task1": big}))
    await store.commit(commit_of(run, seq=2, writes={"task2": "", "täsk 3": '["🎭"]'}))
    assert (await store.load(run.run_id)).writes == {"task1": big, "task2": "", "täsk 3": '["🎭"]'}
    await store.commit(commit_of(run, seq=3, writes={"task9": "[9]"}, checkpoint=checkpoint("c1", snapshot=True)))
    assert (await store.load(run.run_id)).writes == {}
    await store.commit(commit_of(run, seq=4, writes={"task4": "[4]"}))
    assert (await store.load(run.run_id)).writes == {"task4": "[4]"}


async def check_pending_writes_are_of_their_run(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    second = await create(store, "2")
    await store.commit(commit_of(first, checkpoint=checkpoint("c1", snapshot=True)))
    await store.commit(commit_of(first, seq=2, writes={"task1": "[1]"}))
    await store.commit(commit_of(first, seq=3, status="cancelled"))
    assert (await store.load(first.run_id)).writes == {}
    second = await store.claim(second.run_id, "one", 30, T + 2)
    loaded = await store.load(second.run_id)
    assert (loaded.writes, [row.checkpoint_id for row in loaded.chain]) == ({}, ["c1"])


async def check_large_and_empty_bodies_come_back(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    bodies = ["", '{"big": "' + "ü" * 1_000_000 + '"}', '"\\u0000\U0001f3ad\u2028\r\n\t"', "x" * 65_537]
    parent = ""
    for index, body in enumerate(bodies):
        new = checkpoint(f"c{index}", parent, step=index + 1, snapshot=index == 0, body=body)
        await store.commit(commit_of(run, seq=index + 1, step=index + 1, checkpoint=new))
        parent = new.checkpoint_id
    loaded = await (await world.open()).load(run.run_id)
    assert [row.body for row in loaded.chain] == bodies
    assert [row.step for row in loaded.chain] == [1, 2, 3, 4]
    assert [row.snapshot for row in loaded.chain] == [True, False, False, False]
    assert [row.parent for row in loaded.chain] == ["", "c0", "c1", "c2"]
    result = '{"r": "' + "🎭" * 300_000 + '"}'
    run = await ended(store, await store.run(run.run_id), result=result, error="é")
    assert (run.result, run.error) == (result, "é")


async def check_waiting_keeps_the_questions(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    questions = (
        question("i1", payload={"ünï": [1, 2.5, None, True, {"a": []}], "empty": {}}, deadline=T + 50.125),
        Interrupt("i2", "", "", "approval", None, "digest", T + 0.5, None, True),
        Interrupt("i3", "t", "n", "timer", "text", "", T, T),
        Interrupt("i4", "t", "n", "unknown", [], "", 0.0, None),
    )
    await store.commit(commit_of(run, status="waiting", interrupts=questions, wake_at=T + 50, writes={"t": "[]"}))
    after = await store.run(run.run_id)
    assert after.interrupts == questions
    assert (after.status, after.owner, after.lease_until, after.not_before) == ("waiting", "", 0.0, T + 50)
    assert (after.epoch, after.seq, after.answers) == (1, 1, {})
    loaded = await store.load(run.run_id)
    assert (loaded.run, loaded.writes) == (after, {"t": "[]"})
    assert (await store.due(T + 49, 10)).ready == ()
    with pytest.raises(Fenced):
        await store.commit(commit_of(run, seq=2))


async def check_a_waiting_run_wakes_at_its_time_only(world: World) -> None:
    store = await world.open()
    timer = await owned(store, "1", "a")
    await store.commit(commit_of(timer, status="waiting", interrupts=(question(kind="timer"),), wake_at=T + 50))
    never = await owned(store, "1", "b")
    await store.commit(commit_of(never, status="waiting", interrupts=(question(),), wake_at=0.0))
    assert (await store.due(T + 49.5, 10)).ready == ()
    with pytest.raises(Exception, match="not ready"):
        await store.claim(timer.run_id, "two", 30, T + 49.5)
    assert (await store.due(T + 50, 10)).ready == (timer.run_id,)
    assert (await store.due(T + 10**9, 10)).ready == (timer.run_id,)
    woken = await store.claim(timer.run_id, "two", 30, T + 50)
    assert (woken.status, woken.epoch, woken.not_before, len(woken.interrupts)) == ("running", 2, 0.0, 1)


async def check_an_early_answer_wakes_the_run_at_once(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"), question("i2"))))
    await store.resume(run.run_id, "i1", "1", T + 2)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    await store.resume(run.run_id, "i2", "2", T + 4)  # while it runs
    await store.commit(commit_of(run, at=T + 5, status="waiting", interrupts=(question("i2"),), wake_at=T + 99))
    run = await store.run(run.run_id)
    assert (run.status, run.not_before, run.answers) == ("queued", 0.0, {"i1": "1", "i2": "2"})
    assert run.interrupts == (question("i2"),)
    assert (await store.due(T + 5, 10)).ready == (run.run_id,)
    assert (await store.claim(run.run_id, "one", 30, T + 5)).status == "running"


async def check_an_answer_to_another_question_wakes_nobody(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"),)))
    await store.resume(run.run_id, "i1", "1", T + 2)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    # i1 was answered and the node asked i3 next; i1 is only remembered, and a settled one is not open
    await store.commit(
        commit_of(run, at=T + 5, status="waiting", interrupts=(question("i3"), question("i1", settled=True)))
    )
    run = await store.run(run.run_id)
    assert (run.status, run.answers) == ("waiting", {"i1": "1"})
    assert await store.resume(run.run_id, "i1", "1", T + 6) == run
    run = await store.resume(run.run_id, "i3", "3", T + 6)
    assert (run.status, run.answers) == ("queued", {"i1": "1", "i3": "3"})


async def check_a_checkpoint_clears_questions_and_answers(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"), question("i2"))))
    await store.resume(run.run_id, "i1", "1", T + 2)
    run = await store.claim(run.run_id, "one", 30, T + 3)
    await store.commit(commit_of(run, writes={"task1": "[]"}))
    same = await store.run(run.run_id)
    assert (same.interrupts, same.answers) == ((question("i1"), question("i2")), {"i1": "1"})
    await store.commit(commit_of(same, checkpoint=checkpoint("c1", snapshot=True), step=1))
    after = await store.run(run.run_id)
    assert (after.interrupts, after.answers, after.head) == ((), {}, "c1")
    for name in ("i1", "i2"):
        with pytest.raises(NotFound):
            await store.resume(run.run_id, name, "1", T + 4)
    await store.commit(
        commit_of(after, status="waiting", checkpoint=checkpoint("c2", "c1", 2), interrupts=(question("i1"),))
    )
    after = await store.run(run.run_id)
    assert (after.status, after.interrupts, after.answers, after.head) == ("waiting", (question("i1"),), {}, "c2")


async def check_a_final_status_ends_the_run(world: World) -> None:
    store = await world.open()
    for index, status in enumerate(("succeeded", "failed", "cancelled")):
        run = await owned(store, str(index), f"thread-{index}")
        await store.commit(commit_of(run, status="waiting", interrupts=(question("i1"),), writes={"t": "[]"}))
        await store.resume(run.run_id, "i1", "1", T + 2)
        run = await store.claim(run.run_id, "one", 30, T + 2)
        await store.commit(commit_of(run, at=T + 3, status=status, step=7, result='{"r": 1}', error="why"))
        after = await store.run(run.run_id)
        assert (after.status, after.final, after.result, after.error, after.step) == (
            status,
            True,
            '{"r": 1}',
            "why",
            7,
        )
        assert (after.owner, after.lease_until, after.not_before, after.epoch) == ("", 0.0, 0.0, 2)
        left = (after.interrupts, after.answers, (await store.load(run.run_id)).writes)
        # A failed run keeps what `retry` goes on with.
        assert left == (((question("i1"),), {"i1": "1"}, {"t": "[]"}) if status == "failed" else ((), {}, {}))
        assert await store.due(T + 999, 10) == Due((), ())
        with pytest.raises(Fenced):
            await store.commit(commit_of(after))
        with pytest.raises(NotFound):
            await store.resume(run.run_id, "i1", "1", T + 4)


async def check_an_expired_lease_is_still_the_owners(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    assert (await store.due(T + 60, 10)).overdue == ((run.run_id, 1),)
    assert not (await store.commit(commit_of(run, at=T + 60))).duplicate
    assert (await store.due(T + 60, 10)).overdue == ((run.run_id, 1),)  # a commit is no renewal


async def check_load_of_a_new_run(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    loaded = await store.load(run.run_id)
    assert (loaded.run, loaded.chain, loaded.writes, loaded.receipts) == (run, (), {}, {})
    for missing in (run_id_on("thread", "gone"), "nonsense"):
        with pytest.raises(NotFound):
            await store.load(missing)


async def check_load_stops_at_the_newest_snapshot(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    parent = ""
    for n in range(1, 8):
        new = checkpoint(f"c{n}", parent, step=n, snapshot=n in (1, 4), body=f'{{"n": {n}}}')
        await store.commit(commit_of(run, seq=n, at=T + n, step=n, checkpoint=new))
        parent = new.checkpoint_id
    chain = (await store.load(run.run_id)).chain
    assert [(row.checkpoint_id, row.body, row.at) for row in chain] == [
        (f"c{n}", f'{{"n": {n}}}', T + n) for n in (4, 5, 6, 7)
    ]
