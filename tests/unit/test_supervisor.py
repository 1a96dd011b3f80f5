"""What a supervisor does about leases that have passed, on a store that is away for a while. Without Ray: no actors."""

import asyncio
import json
import time
from decimal import Decimal
from typing import Any

import pytest

from support.waiting import run_async
from understudy.actors import set_back
from understudy.actors.accounts import SHELF, account_in
from understudy.actors.errors import StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.policy_source import PolicySource
from understudy.actors.records import Due, RunRecord
from understudy.actors.supervisor import Slot, Supervisor, SupervisorConfig
from understudy.cluster.testing.conformance.suite import create
from understudy.policies.budget import Account, Hold, Title, to_data
from understudy.policies.restart import RestartPolicy

LEASE_S = 2.0


class AwayStore(MemoryStore):
    """Answers late, or not at all, as long as it is told to."""

    away_s = 0.0
    gives_up = False

    async def due(self, now: float, limit: int) -> Due:
        await asyncio.sleep(self.away_s)
        if self.gives_up:
            raise StoreUnavailable("gone")
        return await super().due(now, limit)


class FullStore(MemoryStore):
    """Can be read, and says at once that it takes nothing, as long as it is full."""

    full = False

    async def beat(self, member: str, info: str, now: float) -> None:
        self._takes_nothing()
        await super().beat(member, info, now)

    async def requeue(self, *of: Any, **how: Any) -> RunRecord:
        self._takes_nothing()
        return await super().requeue(*of, **how)

    def _takes_nothing(self) -> None:
        if self.full:
            raise StoreUnavailable("no space left")


async def supervised(store: MemoryStore) -> tuple[Supervisor, RunRecord]:
    """A supervisor with no actors of its own, and a run whose owner is elsewhere and has not renewed in time."""

    async def opened() -> MemoryStore:
        return store

    config = SupervisorConfig(
        deployment="test",
        open_store=opened,
        secret=b"",
        policies=PolicySource(),
        run_actors=1,
        spare_actors=0,
        runs_per_actor=1,
        sandbox_actors=0,
        calls_per_sandbox=1,
        lease_s=LEASE_S,
        hang_after_s=10.0,
        cancel_within_s=10.0,
        restart=RestartPolicy(),
    )
    supervisor = Supervisor(config)
    supervisor._store = store
    run = await create(store)
    return supervisor, await store.claim(run.run_id, "elsewhere/1", -1.0, time.time())


def test_a_lease_that_has_passed_is_a_death() -> None:
    async def played() -> None:
        store = AwayStore()
        supervisor, run = await supervised(store)
        await supervisor._turn(time.time())
        assert (await store.run(run.run_id)).restarts == 1

    run_async(played())


@pytest.mark.parametrize("gives_up", [False, True])
def test_but_not_right_after_the_store_was_away(gives_up: bool) -> None:
    async def played() -> None:
        store = AwayStore()
        supervisor, run = await supervised(store)
        await store.renew([(run.run_id, 1)], 1.0, time.time())
        store.away_s, store.gives_up = LEASE_S * 0.6, gives_up
        await supervisor._turn(time.time())  # it asks, and is answered, when the lease has passed
        store.away_s, store.gives_up = 0.0, False
        assert (await store.due(time.time(), 1)).overdue == ((run.run_id, 1),)
        await supervisor._turn(time.time())
        assert (await store.run(run.run_id)).restarts == 0  # its owner has the time of a lease to come back
        until = time.monotonic() + 3 * LEASE_S
        while (await store.run(run.run_id)).restarts == 0:
            assert time.monotonic() < until, "it never comes back, and is never taken"
            await supervisor._turn(time.time())
            await asyncio.sleep(0.05)

    run_async(played())


def test_nor_while_and_after_it_took_nothing() -> None:
    async def played() -> None:
        store = FullStore()
        supervisor, run = await supervised(store)
        await store.renew([(run.run_id, 1)], 1.0, time.time())
        store.full = True  # the owner cannot renew either
        while not (await store.due(time.time(), 1)).overdue:
            await supervisor._turn(time.time())
        await supervisor._turn(time.time())
        store.full = False
        await supervisor._turn(time.time())
        assert (await store.run(run.run_id)).restarts == 0
        assert (await store.renew([(run.run_id, 1)], 10.0, time.time())).lost == ()

    run_async(played(), 20)


def test_it_gives_back_what_the_dead_have_held_of_a_budget() -> None:
    async def played() -> None:
        store = MemoryStore()
        supervisor, run = await supervised(store)
        title = Title("run", run.run_id, "run", "shop", "few")
        hold = Hold({"calls": Decimal(1)}, run.run_id, run.epoch, run.head, time.time() - 60)
        document = json.dumps(to_data(Account(title, {"calls": Decimal(2)}, held={"k": hold}))).encode()
        await store.write_document(SHELF, "a", document, 0)
        await supervisor._turn(time.time())  # takes the run from its owner, which may begin nothing from then on
        assert supervisor._sweeping is not None
        await supervisor._sweeping
        (document_then,) = await store.documents(SHELF)
        assert account_in(document_then) == Account(title, {"calls": Decimal(2)})

    run_async(played())


def test_nor_when_the_machine_has_slept_or_its_clock_was_set() -> None:
    async def played() -> None:
        store = MemoryStore()
        supervisor, run = await supervised(store)
        await store.renew([(run.run_id, 1)], 10.0, time.time())
        await supervisor._turn(time.time())
        await supervisor._turn(time.time() + 3600.0)
        assert (await store.run(run.run_id)).restarts == 0
        assert (await store.renew([(run.run_id, 1)], 10.0, time.time() + 3600.0)).lost == ()

    run_async(played(), 20)


def test_a_clock_that_is_set_back_hides_no_owner_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def played() -> None:
        monkeypatch.setattr(set_back, "UNKEPT_S", 1e-6)
        store = MemoryStore()
        supervisor, hangs = await supervised(store)
        wall = time.time()
        await store.renew([(hangs.run_id, 1)], LEASE_S, wall)
        lives = await create(store, "2", "other")
        await store.claim(lives.run_id, "elsewhere/2", LEASE_S, wall)
        await supervisor._turn(wall)
        wall -= 3600.0
        await supervisor._turn(wall)  # notes whose lease is of the old time
        await store.renew([(lives.run_id, 1)], LEASE_S, wall)
        await supervisor._turn(wall)
        assert (await store.run(hangs.run_id)).restarts == 1
        assert (await store.run(lives.run_id)).restarts == 0

    run_async(played())


def test_nor_does_it_hold_up_what_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a run that nobody has begun, nor one that crashed and is to start again in a moment."""

    async def played() -> None:
        store = MemoryStore()
        supervisor, crashed = await supervised(store)
        monkeypatch.setattr(supervisor, "_grow", lambda count: None)
        begun: list[str] = []

        class Handle:
            """Of an actor that is at work for ever."""

            @property
            def drive(self) -> "Handle":
                return self

            def remote(self, run_id: str, epoch: int) -> "asyncio.Future[None]":
                begun.append(run_id)
                return asyncio.get_running_loop().create_future()

        wall = time.time()
        await supervisor._turn(wall)  # the crash is noticed
        await store.claim(crashed.run_id, "elsewhere/1", -1.0, time.time())
        await supervisor._turn(wall)  # the second one waits for a moment
        fresh = await create(store, "2", "other", now=wall)
        assert (await store.run(crashed.run_id)).restarts == 2
        supervisor._slots += [Slot(Handle(), ready=True, idle_since=time.monotonic()) for _ in range(2)]
        await supervisor._turn(wall - 3600.0)
        await supervisor._turn(wall - 3599.0)
        await asyncio.sleep(0)
        assert begun == [fresh.run_id, crashed.run_id]

    run_async(played())
