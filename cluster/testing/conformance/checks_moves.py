"""Checks: a thread goes from one store to another as it is, and goes on there."""

import asyncio
from dataclasses import replace

import pytest

from understudy.actors.errors import NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.records import run_id_on
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.deployment import settle
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    commit_of,
    create,
    ended,
    new_run,
    owned,
    question,
    thread_beside,
)


async def all_threads(store: Store) -> list[str]:
    return await store.threads("", 10_000)


async def check_threads_are_listed_in_the_order_of_their_bytes(world: World) -> None:
    store = await world.open()
    names = ["b", "a", "ab", "Z", "ü", "z", "🎭", "\ufb01", " ", "a b", "0"]
    for n, name in enumerate(names):
        await create(store, f"{n}", name)
    wanted = sorted(names, key=str.encode)
    other = await world.open()
    assert await other.threads() == wanted
    assert await other.threads(limit=3) == wanted[:3]
    assert await other.threads(after="a", limit=2) == ["a b", "ab"]
    assert await other.threads(after="aa") == wanted[wanted.index("ab") :]
    paged: list[str] = []
    while page := await other.threads(paged[-1] if paged else "", 4):
        paged += page
    assert paged == wanted


async def check_a_start_that_was_refused_makes_no_thread(world: World) -> None:
    store = await world.open()
    run = await create(store)
    beside = thread_beside("thread")
    again = replace(new_run(), run_id=run.run_id, thread_id=beside)
    assert await store.create(again, [], {}, T) == run  # the run is known already
    assert await all_threads(store) == ["thread"]
    with pytest.raises(NotFound):
        await store.dump(beside)


async def check_dumps_are_what_the_model_says(world: World) -> None:
    store, model = await world.open(), MemoryStore()
    await settle(store)
    await settle(model)
    assert await all_threads(store) == await model.threads()
    for thread in await model.threads():
        assert await store.dump(thread) == await model.dump(thread)
    with pytest.raises(NotFound, match="nowhere"):
        await store.dump("nowhere")


async def check_an_adopted_deployment_is_the_same(world: World) -> None:
    """In and out again: nothing is lost, and nothing that reads can tell the difference."""
    store, other, model = await world.open(), await world.open(), MemoryStore()
    await settle(model)
    for thread in await model.threads():
        assert await store.adopt(await model.dump(thread))
    await store.count(await model.counters())
    for thread in await model.threads():
        assert await other.dump(thread) == await model.dump(thread)
        assert await other.history(thread) == await model.history(thread)
    assert await other.runs() == await model.runs()
    assert await other.counts() == await model.counts()
    assert await other.counters() == await model.counters()
    for now in (T, T + 1, T + 9, T + 30, T + 90):
        assert await other.due(now, 100) == await model.due(now, 100)
    for run in await model.runs():
        assert await other.load(run.run_id) == await model.load(run.run_id)
        assert await other.events(run.run_id) == await model.events(run.run_id)
        assert await other.chunks(run.run_id) == []  # those may be lost


async def check_adopting_twice_changes_nothing(world: World) -> None:
    store, other = await world.open(), await world.open()
    run = await owned(store)
    await store.commit(commit_of(run, status="waiting", interrupts=(question(),)))
    dump = await store.dump("thread")
    changed = replace(dump, head="never", runs=())
    assert [await client.adopt(changed) for client in (store, other)] == [False, False]
    assert await other.dump("thread") == dump
    counted = await store.counters()
    await store.cancel(run.run_id, T + 2)
    await store.delete_thread("thread")
    adopted = await asyncio.gather(*(client.adopt(dump) for client in (store, other, store, other)))
    assert sorted(adopted) == [False, False, False, True]
    assert await store.dump("thread") == dump
    assert {name: value for name, value in (await store.counters()).items() if name in counted} == counted


async def check_an_adopted_run_keeps_its_owner_and_its_order(world: World) -> None:
    """Ids, epochs and leases come along: so the old owner may finish, and duplicates are known."""
    store, model = await world.open(), MemoryStore()
    run = await owned(model)
    first = commit_of(run, counters={"a": 1})
    await model.commit(first)
    behind = [await create(model, name) for name in ("2", "3")]
    assert await store.adopt(await model.dump("thread"))
    assert (await store.due(T + 30, 10)).overdue == ((run.run_id, 1),)
    assert (await store.commit(first)).duplicate
    assert not (await store.commit(commit_of(run, seq=2))).duplicate
    assert (await store.renew([(run.run_id, 1)], 60.0, T + 20)).lost == ()
    await ended(store, await store.run(run.run_id), at=T + 21)
    assert (await store.due(T + 21, 10)).ready == (behind[0].run_id,)
    await store.cancel(behind[0].run_id, T + 22)
    assert (await store.due(T + 22, 10)).ready == (behind[1].run_id,)


async def check_an_adopted_thread_leaves_nothing_behind(world: World) -> None:
    store, model = await world.open(), MemoryStore()
    await settle(model)
    for thread in await model.threads():
        await store.adopt(await model.dump(thread))
    for run in await store.runs():
        await store.cancel(run.run_id, T + 100)
        if run.status == "running":
            await store.commit(commit_of(await store.run(run.run_id), status="cancelled"))
    for thread in await model.threads():
        await store.delete_thread(thread)
    assert await all_threads(store) == []
    with pytest.raises(NotFound):
        await store.run(run_id_on("fork", "fork"))
    if world.leftovers:
        assert not {k: v for k, v in (await world.leftovers()).items() if v}


async def check_counters_are_added_to(world: World) -> None:
    store, other = await world.open(), await world.open()
    odd = 'x{tool="ünï \\"q\\"",n="1"}'
    await store.count({"a": 1.0, odd: 0.25})
    await other.count({"a": 2.0, "b": 0.0})
    await store.count({})
    await store.create(new_run(), [], {"a": 0.5}, T)
    await other.count({"a": -1.5})
    found = await store.counters()
    assert (found["a"], found[odd], found.get("b", 0.0)) == (2.0, 0.25, 0.0)
