"""Checks: the end of a child run is an answer to its parent, in the same move."""

import json
from typing import Any

import pytest

from understudy.actors.errors import Conflict, Fenced, NotFound
from understudy.actors.records import Interrupt, RunRecord
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    kinds,
    owned,
    question,
    thread_beside,
)

CHILD = question("child-1", kind="child")
BESIDE = thread_beside("thread")


async def child_of(store: Store, parent: RunRecord, name: str = "c1", thread: str = BESIDE) -> RunRecord:
    """A child, claimed, whose end answers the interrupt `child-1`."""
    return await owned(store, name, thread, parent=parent.run_id, parent_interrupt="child-1")


async def waits(store: Store, run: RunRecord, *interrupts: Interrupt, at: float = T + 1) -> None:
    await store.commit(commit_of(run, at=at, status="waiting", interrupts=interrupts))


async def answer_of(store: Store, parent: RunRecord) -> object:
    return json.loads((await store.run(parent.run_id)).answers["child-1"])


async def check_a_child_knows_its_parent(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    for told in (child, await (await world.open()).run(child.run_id)):
        assert (told.parent, told.parent_interrupt) == (parent.run_id, "child-1")
    assert (parent.parent, parent.parent_interrupt) == ("", "")


async def check_the_end_of_a_child_wakes_its_parent(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await waits(store, parent, CHILD)
    assert (await store.due(T + 5, 10)).ready == ()
    await (await world.open()).commit(commit_of(child, at=T + 5, status="succeeded", result='{"ok": [1, "ünï"]}'))
    woken = await store.run(parent.run_id)
    assert (woken.status, woken.not_before, woken.updated_at) == ("queued", 0.0, T + 1)
    assert await answer_of(store, parent) == {"status": "succeeded", "error": "", "result": {"ok": [1, "ünï"]}}
    assert (await store.due(T + 4.5, 10)).ready == ()
    assert (await store.due(T + 5, 10)).ready == (parent.run_id,)
    told = (await store.events(parent.run_id))[-1]
    assert (told.kind, told.at, dict(told.data)) == ("answered", T + 5, {"interrupt_id": "child-1"})
    again = await store.claim(parent.run_id, "two", 30, T + 6)
    assert (again.interrupts, list(again.answers)) == ((CHILD,), ["child-1"])


async def check_a_child_that_ends_before_its_parent_waits(world: World) -> None:
    """The answer is there before the question; the parent is awake as soon as it asks."""
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await store.commit(commit_of(child, at=T + 1, status="succeeded", result="7"))
    running = await store.run(parent.run_id)
    assert (running.status, running.updated_at) == ("running", T)
    assert await answer_of(store, parent) == {"status": "succeeded", "error": "", "result": 7}
    assert await kinds(store, parent) == ["claimed", "answered"]
    await waits(store, parent, CHILD, at=T + 2)
    assert (await store.run(parent.run_id)).status == "queued"
    assert (await store.due(T + 2, 10)).ready == (parent.run_id,)


async def check_the_answer_of_a_child_goes_with_the_checkpoint_that_used_it(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await store.commit(commit_of(child, status="succeeded"))
    assert await answer_of(store, parent) == {"status": "succeeded", "error": "", "result": None}
    await store.commit(commit_of(parent, checkpoint=checkpoint("c1", snapshot=True)))
    assert (await store.run(parent.run_id)).answers == {}


async def check_every_end_of_a_child_is_told(world: World) -> None:
    store = await world.open()
    error = 'it said "no"\n\t\\ ünï \U0001f3ad /\x7f\x01'
    expected: dict[str, object]
    for n, end in enumerate(("failed", "cancelled", "asked", "quarantined", "never began")):
        parent = await owned(store, "p", f"parent-{n}")
        child = await create(store, "c", thread_beside(f"parent-{n}"), parent=parent.run_id, parent_interrupt="child-1")
        await waits(store, parent, CHILD)
        if end != "never began":
            child = await store.claim(child.run_id, "one", 30, T)
        match end:
            case "failed":
                await store.commit(commit_of(child, status="failed", error=error))
                expected = {"status": "failed", "error": error, "result": None}
            case "cancelled":
                await store.commit(commit_of(child, writes={"t": "[]"}, error=error, result="[1]"))
                await store.commit(commit_of(child, seq=2, status="waiting", error=error, result="[1]"))
                await store.cancel(child.run_id, T + 2)
                expected = {"status": "cancelled", "error": error, "result": [1]}
            case "asked":
                await store.cancel(child.run_id, T + 2)
                assert (await store.run(parent.run_id)).status == "waiting"  # asked is not ended
                await store.commit(commit_of(child, status="cancelled"))
                expected = {"status": "cancelled", "error": "", "result": None}
            case "quarantined":
                await store.requeue(child.run_id, 1, T + 2, 0.0, [], {}, quarantine=error)
                expected = {"status": "quarantined", "error": error, "result": None}
            case _:
                await store.cancel(child.run_id, T + 2)
                expected = {"status": "cancelled", "error": "", "result": None}
        assert await answer_of(store, parent) == expected, end
        assert (await store.run(parent.run_id)).status == "queued", end


async def check_a_child_that_is_taken_away_has_not_ended(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await waits(store, parent, CHILD)
    await store.requeue(child.run_id, 1, T + 2, 0.0, [], {})
    child = await store.claim(child.run_id, "two", 30, T + 2)
    await store.commit(commit_of(child, status="waiting", interrupts=(question("i1"),)))
    told = await store.run(parent.run_id)
    assert (told.status, told.answers) == ("waiting", {})


async def check_the_first_answer_of_a_child_stands(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await waits(store, parent, CHILD)
    await store.resume(parent.run_id, "child-1", '"a person was faster"', T + 2)
    before = await store.run(parent.run_id)
    await store.commit(commit_of(child, at=T + 3, status="succeeded", result="1"))
    assert await store.run(parent.run_id) == before
    assert await kinds(store, parent) == ["claimed", "answered"]
    # two children of one interrupt: the first that ends is the answer
    other = await owned(store, "q", "thread-2")
    beside = thread_beside("thread-2")
    first = await owned(store, "q1", beside, parent=other.run_id, parent_interrupt="child-1")
    second = await create(store, "q2", beside, parent=other.run_id, parent_interrupt="child-1")
    await waits(store, other, CHILD)
    await store.commit(commit_of(first, status="succeeded", result="1"))
    await store.cancel(second.run_id, T + 3)
    assert await answer_of(store, other) == {"status": "succeeded", "error": "", "result": 1}
    with pytest.raises(Conflict):
        await store.resume(other.run_id, "child-1", '"late"', T + 4)


async def check_the_answer_to_another_question_wakes_no_parent(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await waits(store, parent, question("i1"), question("child-1", kind="child", settled=True))
    await store.commit(commit_of(child, status="succeeded"))
    told = await store.run(parent.run_id)
    assert (told.status, list(told.answers)) == ("waiting", ["child-1"])
    assert (await store.due(T + 99, 10)).ready == ()


async def check_a_parent_that_is_final_is_told_nothing(world: World) -> None:
    store = await world.open()
    for n, status in enumerate(("succeeded", "failed", "cancelled")):
        parent = await owned(store, "p", f"parent-{n}")
        child = await owned(store, "c", thread_beside(f"parent-{n}"), parent=parent.run_id, parent_interrupt="child-1")
        await store.commit(commit_of(parent, status=status))
        before, log = await store.run(parent.run_id), await kinds(store, parent)
        await store.commit(commit_of(child, status="succeeded", result="1"))
        assert (await store.run(parent.run_id), await kinds(store, parent)) == (before, log)
        assert (await store.run(child.run_id)).status == "succeeded"


async def check_a_child_outlives_a_deleted_parent(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await store.commit(commit_of(parent, status="succeeded"))
    await store.delete_thread("thread")
    await store.commit(commit_of(child, status="succeeded", result="1"))
    assert (await store.run(child.run_id)).result == "1"
    with pytest.raises(NotFound):
        await store.run(parent.run_id)
    await store.delete_thread(BESIDE)
    if world.leftovers:
        assert not {k: v for k, v in (await world.leftovers()).items() if v}


async def check_a_commit_that_is_sent_again_answers_once(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    await waits(store, parent, CHILD)
    end = commit_of(child, at=T + 3, status="succeeded", result="1")
    assert not (await store.commit(end)).duplicate
    parent = await store.claim(parent.run_id, "one", 30, T + 4)
    await store.commit(commit_of(parent, checkpoint=checkpoint("c1", snapshot=True)))  # it has used the answer
    assert (await store.commit(end)).duplicate
    assert (await store.run(parent.run_id)).answers == {}
    assert await kinds(store, parent) == ["claimed", "answered", "claimed"]


async def check_a_grandchild_wakes_the_child_only(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await child_of(store, parent)
    grandchild = await create(store, "g", thread_beside(BESIDE), parent=child.run_id, parent_interrupt="child-1")
    await waits(store, parent, CHILD)
    await waits(store, child, CHILD)
    await store.cancel(grandchild.run_id, T + 3)
    assert [(await store.run(run.run_id)).status for run in (parent, child)] == ["waiting", "queued"]
    await store.cancel(child.run_id, T + 4)
    assert (await store.run(parent.run_id)).status == "queued"
    assert await answer_of(store, parent) == {"status": "cancelled", "error": "", "result": None}


async def check_a_busy_start_that_cancels_a_child_tells_its_parent(world: World) -> None:
    store = await world.open()
    parent = await owned(store)
    child = await create(store, "c1", BESIDE, parent=parent.run_id, parent_interrupt="child-1")
    await waits(store, parent, CHILD)
    await create(await world.open(), "c2", BESIDE, now=T + 5, busy="interrupt")
    assert (await store.run(child.run_id)).status == "cancelled"
    assert await answer_of(store, parent) == {"status": "cancelled", "error": "", "result": None}
    assert (await store.due(T + 5, 10)).ready == tuple(sorted((parent.run_id, (await store.runs())[0].run_id)))


async def check_a_run_may_be_its_own_threads_parent(world: World) -> None:
    """A child on the thread of its parent stands behind it, and answers it when it is cancelled there."""
    store = await world.open()
    parent = await owned(store)
    child = await create(store, "c1", parent=parent.run_id, parent_interrupt="child-1")
    await waits(store, parent, CHILD)
    assert (await store.due(T + 5, 10)).ready == ()
    await store.cancel(child.run_id, T + 5)
    assert (await store.run(parent.run_id)).status == "queued"
    assert (await store.due(T + 5, 10)).ready == (parent.run_id,)


async def check_only_the_owner_of_a_run_starts_its_children(world: World) -> None:
    """Law 1: one that has lost the run, or given it back, makes nothing, not even a thread."""
    store = await world.open()
    parent = await owned(store)
    told: dict[str, Any] = {"parent": parent.run_id, "parent_interrupt": "child-1"}
    child = await create(store, "c1", BESIDE, **told, parent_epoch=parent.epoch)
    assert child.parent == parent.run_id
    before = await store.counters()
    other = thread_beside(BESIDE)
    for epoch in (parent.epoch + 1, parent.epoch + 7):
        with pytest.raises(Fenced, match=f"create of run {parent.run_id}"):
            await create(store, "c2", other, **told, parent_epoch=epoch)
    await store.requeue(parent.run_id, parent.epoch, T + 1, 0.0, [], {})
    with pytest.raises(Fenced):
        await create(store, "c2", other, **told, parent_epoch=parent.epoch)
    with pytest.raises(Fenced):  # nobody owns it
        await create(store, "c2", other, **told, parent_epoch=parent.epoch + 1)
    again = await create(store, "c1", BESIDE, **told, parent_epoch=parent.epoch)
    assert again.run_id == child.run_id, "sent again, it is answered before anything else is looked at"
    assert len(await store.runs()) == 2
    assert len(await store.threads()) == 2
    fenced = 'fence_rejections_total{op="create"}'
    assert (await store.counters())[fenced] - before.get(fenced, 0.0) == 4.0


async def check_only_the_owner_of_a_run_ends_its_children(world: World) -> None:
    """Law 1: one that has lost the run, or given it back, cancels none and sends them nothing."""
    store = await world.open()
    parent = await owned(store)
    child = await create(store, "c1", BESIDE, parent=parent.run_id, parent_interrupt="child-1")
    alone = await create(store, "c2", thread_beside(BESIDE))
    before = await store.counters()
    assert await store.send(child.run_id, "m1", "1", T + 1, parent.epoch) == 1

    async def refused(run: RunRecord, epoch: int) -> None:
        told = await store.run(run.run_id), await kinds(store, run)
        with pytest.raises(Fenced, match=f"cancel of run {run.run_id} with epoch {epoch}"):
            await store.cancel(run.run_id, T + 2, epoch)
        with pytest.raises(Fenced, match=f"send of run {run.run_id} with epoch {epoch}"):
            await store.send(run.run_id, "m2", "2", T + 2, epoch)
        assert (await store.run(run.run_id), await kinds(store, run)) == told

    await refused(child, parent.epoch + 1)
    await refused(alone, parent.epoch)  # which is nobody's child
    await store.requeue(parent.run_id, parent.epoch, T + 3, 0.0, [], {})
    await refused(child, parent.epoch)
    await refused(child, parent.epoch + 1)  # nobody owns it
    again = await store.claim(parent.run_id, "two", 30.0, T + 4)
    await refused(child, parent.epoch)
    assert (await store.cancel(child.run_id, T + 5, again.epoch)).status == "cancelled"
    assert await answer_of(store, parent) == {"status": "cancelled", "error": "", "result": None}
    after = await store.counters()
    for op in ("cancel", "send"):
        fenced = f'fence_rejections_total{{op="{op}"}}'
        assert after[fenced] - before.get(fenced, 0.0) == 5.0
    with pytest.raises(NotFound):
        await store.cancel("r00-none", T, 1)
    with pytest.raises(NotFound):
        await store.send("r00-none", "m", "1", T, 1)
