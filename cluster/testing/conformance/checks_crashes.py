"""Checks: clients that die in the middle of a call, and replies that are lost. Whoever comes next sends the call again.

A run is taken through its whole life, one call after another. For each call, a client of its own begins it and is
stopped after some turns of the event loop, or is done and nobody hears of it; then another client sends the same call
again. What the thread is at the end, and what was counted, is the same as if nothing had happened.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from understudy.actors.errors import Conflict, Fenced
from understudy.actors.records import NewRun, RunRecord, ThreadDump
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    event,
    new_run,
    question,
    receipt_of,
)

TURNS = (1, 3, 8, 40)
"""After so many turns of the event loop a client dies."""

Call = Callable[[Store], Coroutine[Any, Any, Any]]
Disturb = Callable[[Call], Awaitable[None]]


class Life:
    """A run from its creation to its end; `calls` are those that may be sent twice, see actors/store.py."""

    def __init__(self, new: NewRun) -> None:
        self.new = new
        self.run_id = new.run_id
        self.epoch = 0
        self.seq = 0

    def record(self, head: str = "") -> RunRecord:
        from understudy.actors.refusals import new_record

        record = new_record(self.new, T)
        return RunRecord(**{**record.__dict__, "epoch": self.epoch, "seq": self.seq, "head": head})

    async def claim(self, store: Store, at: float) -> None:
        self.epoch = (await store.claim(self.run_id, "one", 30.0, T + at)).epoch

    def commit(self, at: float, **changes: Any) -> Call:
        commit = commit_of(self.record(), at=T + at, **changes)
        self.seq += 1
        return lambda store: store.commit(commit)

    async def live(self, store: Store, send: Callable[[Call], Awaitable[None]]) -> None:
        """`send` sends each call that may be sent twice; the others are made by `store`, once."""
        run_id = self.run_id
        await send(lambda s: s.create(self.new, [event("created")], {"created": 1.0}, T))
        await self.claim(store, 1)
        receipt, epoch = receipt_of(self.record()), self.epoch
        await send(lambda s: s.begin(receipt, epoch, [event("tool_started")], {"begun": 1.0}, T + 2))
        done = (run_id, receipt.key, "", receipt.token, '{"kind": "ok"}')
        await send(lambda s: s.finish(*done, [event("tool_finished")], {"finished": 1.0}, T + 3))
        first = checkpoint("c1", snapshot=True)
        await send(self.commit(4, checkpoint=first, step=1, events=(event(),), counters={"commits": 1.0}))
        epoch = self.epoch
        await send(lambda s: s.requeue(run_id, epoch, T + 5, 0.0, [event("crashed")], {"crashed": 1.0}))
        await self.claim(store, 6)
        await send(lambda s: s.send(run_id, "m1", '"hello"', T + 7))
        await send(self.commit(8, status="waiting", interrupts=(question(),), counters={"commits": 1.0}))
        await send(lambda s: s.resume(run_id, "i1", '"yes"', T + 9))
        await self.claim(store, 10)
        receipt, epoch = receipt_of(self.record("c1"), "k2", "t2"), self.epoch
        await send(lambda s: s.begin(receipt, epoch, [], {"begun": 1.0}, T + 11))
        unknown = (run_id, "k2", "c1", "t2")
        await send(lambda s: s.forget(*unknown, [event("tool_finished")], {"forgotten": 1.0}))
        await send(self.commit(12, status="failed", error="why", taken=(1,), events=(event("finished"),)))
        await send(lambda s: s.retry(run_id, T + 13))
        await self.claim(store, 14)
        await send(lambda s: s.cancel(run_id, T + 15))
        last = checkpoint("c2", "c1", 2)
        await send(self.commit(16, status="cancelled", checkpoint=last, step=2, events=(event("finished"),)))


class Watch:
    """Plays lives on one thread, and tells how they end."""

    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self.store = store

    async def play(
        self, at: int, disturb: Callable[[Call], Awaitable[None]]
    ) -> tuple[ThreadDump, dict[str, float], int]:
        """The thread at the end, what was counted meanwhile, and how many calls there were. Call `at` is disturbed."""
        before = await self.store.counters()
        count = 0

        async def send(call: Call) -> None:
            nonlocal count
            here, count = count, count + 1
            if here == at:
                await disturb(call)
                # What it finds is what the first has left: a new owner's word is refused, an end that is there stands.
                with contextlib.suppress(Fenced, Conflict):
                    await call(self.store)
            else:
                await call(self.store)

        await Life(new_run()).live(self.store, send)
        dump = await self.store.dump("thread")
        after = await self.store.counters()
        await self.store.delete_thread("thread")
        told = {name: value - before.get(name, 0.0) for name, value in after.items() if not _of_repetition(name)}
        return dump, {name: value for name, value in told.items() if value}, count


def _of_repetition(name: str) -> bool:
    """Counters that tell how often something was sent twice, or by somebody who was late."""
    return name.startswith("fence_rejections_total") or 'result="duplicate"' in name


async def _nothing(call: Call) -> None: ...


async def check_a_client_that_dies_in_the_middle_of_a_call(world: World) -> None:
    watch = Watch(world, await world.open())
    expected, counted, calls = await watch.play(-1, _nothing)
    for turns in TURNS:

        async def dies(call: Call, turns: int = turns) -> None:
            client = await world.open_client()
            await _stopped(call(client), turns)
            await client.close()

        for at in range(calls):
            told = f"call {at}, after {turns} turns"
            dump, found, _ = await watch.play(at, dies)
            assert dump == expected, f"{told}: {dump} instead of {expected}"
            assert found == counted, f"{told}: {found} instead of {counted}"


async def check_a_reply_that_is_lost(world: World) -> None:
    watch = Watch(world, await world.open())
    other = await world.open()
    expected, counted, calls = await watch.play(-1, _nothing)

    async def unheard(call: Call) -> None:
        await call(other)

    for at in range(calls):
        dump, found, _ = await watch.play(at, unheard)
        assert dump == expected, f"call {at}: {dump} instead of {expected}"
        assert found == counted, f"call {at}: {found} instead of {counted}"


async def check_two_clients_that_send_the_same_call_at_once(world: World) -> None:
    watch = Watch(world, await world.open())
    others = [await world.open() for _ in range(3)]
    expected, counted, calls = await watch.play(-1, _nothing)

    async def crowd(call: Call) -> None:
        found = await asyncio.gather(*(call(other) for other in others), return_exceptions=True)
        errors = [error for error in found if isinstance(error, BaseException)]
        wrong = [error for error in errors if not isinstance(error, Fenced | Conflict)]
        assert not wrong, wrong

    for at in range(calls):
        dump, found, _ = await watch.play(at, crowd)
        assert dump == expected, f"call {at}: {dump} instead of {expected}"
        assert found == counted, f"call {at}: {found} instead of {counted}"


async def check_a_claim_whose_client_died_is_found_again(world: World) -> None:
    """Either it was not made, and the run is ready; or it was, and the run is overdue once its lease has passed."""
    store = await world.open()
    for turns in TURNS:
        thread = f"thread-{turns}"
        run = await store.create(new_run("1", thread), [], {}, T)
        client = await world.open_client()
        await _stopped(client.claim(run.run_id, "one", 10.0, T + 1), turns)
        await client.close()
        now = await store.run(run.run_id)
        due = await store.due(T + 20, 1000)
        if now.status == "queued" and run.run_id in due.ready:
            with contextlib.suppress(Conflict):  # it came through after all
                now = await store.claim(run.run_id, "two", 10.0, T + 21)
        due = await store.due(T + 40, 1000)
        now = await store.run(run.run_id)
        assert (run.run_id, now.epoch) in due.overdue, f"after {turns} turns: {now}"
        await store.requeue(run.run_id, now.epoch, T + 41, 0.0, [], {})
        assert (await store.claim(run.run_id, "two", 10.0, T + 42)).epoch == now.epoch + 2
        await store.cancel(run.run_id, T + 43)


async def _stopped(call: Coroutine[Any, Any, Any], turns: int) -> None:
    """Begin a call, and stop it after some turns of the loop, unless it is over by then."""
    asked = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    if not asked.cancelled() and (error := asked.exception()) is not None:
        assert isinstance(error, Fenced | Conflict), error
