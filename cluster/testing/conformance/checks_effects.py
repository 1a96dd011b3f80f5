"""Checks: begin, finish, forget, receipt (law 4: every effect has a name and a receipt)."""

import asyncio
from dataclasses import replace

import pytest

from understudy.actors.errors import Fenced
from understudy.actors.records import Begun, Receipt, run_id_on
from understudy.actors.store import Store
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
    receipt_of,
)

DONE = '{"kind": "ok", "value": "é"}'


async def finish(store: Store, receipt: Receipt, outcome: str = DONE, **changes: str) -> bool:
    """With the receipt's own token unless said otherwise; one event and one counter go with it."""
    token = changes.get("token", receipt.token)
    place = (receipt.run_id, receipt.key, receipt.checkpoint_id)
    return await store.finish(*place, token, outcome, [event("tool_finished")], {"f": 1}, T + 2)


async def forget(store: Store, receipt: Receipt, token: str = "") -> bool:
    place = (receipt.run_id, receipt.key, receipt.checkpoint_id)
    return await store.forget(*place, token or receipt.token, [event("tool_finished")], {"u": 1})


async def stored(store: Store, receipt: Receipt) -> Receipt | None:
    return await store.receipt(receipt.run_id, receipt.key, receipt.checkpoint_id)


async def check_begin_puts_an_effect_on_record(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run, tool="pay ünï", sandbox="", digest="", at=T + 0.125)
    assert await store.begin(receipt, 1, [event("tool_started")], {"b": 1}, T + 1) == Begun(True, receipt)
    assert await stored(store, receipt) == receipt
    assert (await store.load(run.run_id)).receipts == {"k1": receipt}
    assert await kinds(store, run) == ["claimed", "tool_started"]
    assert await store.counters() == {"b": 1.0}
    assert (await store.run(run.run_id)) == run


async def check_begin_of_what_is_on_record(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    await store.begin(receipt, 1, [], {}, T)
    other = receipt_of(run, token="t2", digest="d2", sandbox="sandbox-2")
    assert await store.begin(other, 1, [event("tool_started")], {"b": 1}, T) == Begun(False, receipt)
    assert await finish(store, receipt)
    done = replace(receipt, state="done", outcome=DONE)
    assert await store.begin(other, 1, [event("tool_started")], {"b": 1}, T) == Begun(False, done)
    assert await kinds(store, run) == ["claimed", "tool_finished"]
    assert await store.counters() == {"f": 1.0}


async def check_begin_sent_twice_applies_once(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    denied = receipt_of(run, "k2", "t2", state="done", outcome='{"kind": "denied"}')
    for receipt in (receipt_of(run), denied):
        for _ in range(2):
            assert await store.begin(receipt, 1, [event("tool_started")], {"b": 1}, T) == Begun(True, receipt)
    assert await store.counters() == {"b": 2.0}
    assert (await kinds(store, run)).count("tool_started") == 2
    assert not await finish(store, denied)
    receipt = receipt_of(run)
    assert await finish(store, receipt)
    assert not (await store.begin(receipt, 1, [], {}, T)).fresh  # sent again so late that its outcome is there


async def check_begin_is_fenced(world: World) -> None:
    store = await world.open()
    old = await owned(store)
    receipt = receipt_of(old)
    await store.requeue(old.run_id, 1, T + 1, 0, [], {})
    for epoch in (0, 1, 2):
        with pytest.raises(Fenced, match=old.run_id):
            await store.begin(receipt, epoch, [event("tool_started")], {"b": 1}, T)
    new = await store.claim(old.run_id, "two", 30, T + 2)
    with pytest.raises(Fenced):
        await store.begin(receipt, 1, [], {}, T)
    await store.begin(receipt, new.epoch, [], {}, T)
    with pytest.raises(Fenced):  # also for what is on record
        await store.begin(receipt, 1, [], {}, T)
    await store.commit(commit_of(new, status="waiting", interrupts=(question(),)))
    with pytest.raises(Fenced):
        await store.begin(receipt_of(new, "k2"), new.epoch, [], {}, T)
    with pytest.raises(Fenced):
        await store.begin(receipt_of(new, run_id=run_id_on("thread", "gone")), 1, [], {}, T)
    assert (await store.counters())['fence_rejections_total{op="begin"}'] == 7.0
    assert await store.receipt(old.run_id, "k2", "") is None


async def check_finish_needs_the_token(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    assert not await finish(store, receipt)  # not begun
    await store.begin(receipt, 1, [], {}, T)
    assert not await finish(store, receipt, token="t2")
    assert not await finish(store, replace(receipt, checkpoint_id="c9"))
    assert not await finish(store, replace(receipt, key="k9"))
    assert not await finish(store, replace(receipt, run_id=run_id_on("thread", "gone")))
    assert await stored(store, receipt) == receipt
    assert await finish(store, receipt)
    done = replace(receipt, state="done", outcome=DONE)
    assert await stored(store, receipt) == done
    assert not await finish(store, receipt, '{"kind": "other"}')
    assert not await forget(store, receipt)
    assert await stored(store, receipt) == done
    assert await kinds(store, run) == ["claimed", "tool_finished"]
    assert await store.counters() == {"f": 1.0}


async def check_a_large_outcome_comes_back(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    outcome = '{"value": "' + "é🎭" * 300_000 + '"}'
    for key, text in (("k1", outcome), ("k2", "")):
        receipt = receipt_of(run, key)
        await store.begin(receipt, 1, [], {}, T)
        assert await finish(store, receipt, text)
        found = (await (await world.open()).load(run.run_id)).receipts[key]
        assert (found.state, found.outcome) == ("done", text)


async def check_a_call_outlives_its_owner(world: World) -> None:
    """Law 5: the sandbox writes the receipt, whoever owns the run by then."""
    store = await world.open()
    run = await owned(store)
    one, two, three = receipt_of(run, "k1"), receipt_of(run, "k2"), receipt_of(run, "k3")
    for receipt in (one, two, three):
        await store.begin(receipt, 1, [], {}, T)
    await store.requeue(run.run_id, 1, T + 1, 0, [], {})
    assert await finish(store, one)
    run = await store.claim(run.run_id, "two", 30, T + 2)
    found = (await store.load(run.run_id)).receipts
    assert {key: r.state for key, r in found.items()} == {"k1": "done", "k2": "started", "k3": "started"}
    assert await finish(store, two)
    assert not (await store.begin(replace(two, token="t9"), run.epoch, [], {}, T)).fresh
    run = await ended(store, run)
    assert await finish(store, three)
    assert (await stored(store, three) or three).state == "done"
    await store.delete_thread("thread")
    assert not await finish(store, three)
    assert not await forget(store, three)
    assert await stored(store, three) is None


async def check_finish_after_a_new_checkpoint(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    await store.begin(receipt, 1, [], {}, T)
    await store.commit(commit_of(run, checkpoint=checkpoint("c1", snapshot=True)))
    assert (await store.load(run.run_id)).receipts == {}
    assert await finish(store, receipt)
    assert (await stored(store, receipt) or receipt).state == "done"
    later = replace(receipt, checkpoint_id="c1")  # the same key in another place is another effect
    assert (await store.begin(later, 1, [], {}, T)).fresh
    assert (await store.load(run.run_id)).receipts == {"k1": later}


async def check_receipts_are_of_their_run(world: World) -> None:
    store = await world.open()
    first = await owned(store, "1")
    await create(store, "2")
    await store.commit(commit_of(first, checkpoint=checkpoint("c1", snapshot=True)))
    first = await store.run(first.run_id)
    await store.begin(receipt_of(first), 1, [], {}, T)
    await ended(store, first)
    second = await store.claim(run_id_on("thread", "2"), "one", 30, T + 2)
    loaded = await store.load(second.run_id)
    assert (loaded.run.head, loaded.receipts) == ("c1", {})
    assert await store.receipt(second.run_id, "k1", "c1") is None
    assert (await store.begin(receipt_of(second, token="t2"), second.epoch, [], {}, T)).fresh
    assert (await store.receipt(first.run_id, "k1", "c1") or receipt_of(first)).token == "t1"


async def check_a_forgotten_effect_is_unknown_and_may_start_anew(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    assert not await forget(store, receipt)
    await store.begin(receipt, 1, [], {}, T)
    assert not await forget(store, receipt, "t2")
    assert await forget(store, receipt)
    assert not await forget(store, receipt)
    assert await stored(store, receipt) == replace(receipt, state="unknown")
    assert (await store.load(run.run_id)).receipts["k1"].state == "unknown"
    anew = replace(receipt, token="t2", sandbox="sandbox-2", at=T + 9)
    assert await store.begin(anew, 1, [event("tool_started")], {"b": 1}, T + 9) == Begun(True, anew)
    assert not await finish(store, receipt)  # the old start
    assert not await forget(store, receipt)
    assert await finish(store, anew)
    assert await stored(store, anew) == replace(anew, state="done", outcome=DONE)
    assert await kinds(store, run) == ["claimed", "tool_finished", "tool_started", "tool_finished"]
    assert await store.counters() == {"u": 1.0, "b": 1.0, "f": 1.0}


async def check_a_begin_that_comes_again_starts_nothing_anew(world: World) -> None:
    """Its answer was lost, and it is sent again late: the start was given up meanwhile, and nobody would end it."""
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    assert await store.begin(receipt, 1, [], {}, T) == Begun(True, receipt)
    assert await store.begin(receipt, 1, [event("tool_started")], {"b": 1}, T) == Begun(True, receipt)
    assert await forget(store, receipt)
    given_up = replace(receipt, state="unknown")
    assert await store.begin(receipt, 1, [event("tool_started")], {"b": 1}, T) == Begun(False, given_up)
    assert await stored(store, receipt) == given_up
    assert await finish(store, receipt)
    ended = replace(receipt, state="done", outcome=DONE)
    assert await store.begin(receipt, 1, [event("tool_started")], {"b": 1}, T) == Begun(False, ended)
    assert await kinds(store, run) == ["claimed", "tool_finished", "tool_finished"]


async def check_an_unknown_effect_is_settled_by_who_knows(world: World) -> None:
    """A person, or the other side, tells how it ended: begun as done, over the start that nobody knows of."""
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run, place="2/0/node/pay/0")
    await store.begin(receipt, 1, [], {}, T)
    told = replace(receipt, token="t2", state="done", sandbox="", outcome=DONE)
    assert await store.begin(told, 1, [event("reconciled")], {"r": 1}, T) == Begun(False, receipt)
    assert await forget(store, receipt)
    for _ in range(2):
        assert await store.begin(told, 1, [event("reconciled")], {"r": 1}, T) == Begun(True, told)
    assert not await finish(store, receipt)  # too late
    assert await stored(store, receipt) == told
    assert (await store.load(run.run_id)).receipts == {"k1": told}
    assert await store.counters() == {"u": 1.0, "r": 1.0}


async def check_late_knowledge_is_knowledge(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    receipt = receipt_of(run)
    await store.begin(receipt, 1, [], {}, T)
    assert await forget(store, receipt)
    assert await finish(store, receipt)
    assert (await store.begin(replace(receipt, token="t2"), 1, [], {}, T)) == Begun(
        False, replace(receipt, state="done", outcome=DONE)
    )


async def check_a_raced_begin_has_one_winner(world: World) -> None:
    clients = [await world.open() for _ in range(4)]
    run = await owned(clients[0])
    for index in range(5):
        tries = [
            client.begin(receipt_of(run, f"k{index}", f"t{n}"), 1, [event("tool_started")], {"b": 1}, T)
            for n, client in enumerate(clients)
        ]
        begun = await asyncio.gather(*tries)
        assert sum(answer.fresh for answer in begun) == 1
        assert len({answer.receipt.token for answer in begun}) == 1
    assert await clients[0].counters() == {"b": 5.0}
