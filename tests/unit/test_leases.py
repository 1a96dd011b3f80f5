"""How a run actor keeps its leases while the store comes and goes. Without Ray: the actor's own class."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from support.waiting import run_async, wait_until_async
from understudy.actors.errors import StoreUnavailable
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Renewed
from understudy.actors.run_actor import RunActor, RunActorConfig
from understudy.cluster.testing.conformance.suite import create

LEASE_S = 4.0
AWAY_S = 1.5
"""Longer than the second between two renewals."""


class AwayStore(MemoryStore):
    """Cannot be opened at first; then it is away while the first renewal waits."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.renewals: list[tuple[float, float]] = []
        """When each was answered, and the time that it named."""

    async def open(self) -> MemoryStore:
        self.opened += 1
        if self.opened == 1:
            raise StoreUnavailable("gone")
        return self

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        if not self.renewals:
            await asyncio.sleep(AWAY_S)
        self.renewals.append((time.time(), now))
        return await super().renew(leases, lease_s, now)


def test_leases_are_renewed_again_at_once_when_the_store_is_back() -> None:
    async def played() -> None:
        store = AwayStore()
        config = RunActorConfig(
            open_store=store.open,
            secret=b"",
            policy="",
            sandboxes=(),
            lease_s=LEASE_S,
            hang_after_s=60.0,
            cancel_within_s=60.0,
        )
        run = await create(store)
        await store.claim(run.run_id, "one", LEASE_S, time.time())
        actor = RunActor(config)
        actor._loop = asyncio.get_running_loop()
        actor._drivers[run.run_id] = (1, None)
        renewing = asyncio.ensure_future(actor._renew())
        try:

            async def twice() -> bool:
                return len(store.renewals) >= 2

            await wait_until_async(twice, 20, "two renewals")
        finally:
            renewing.cancel()
        (first_at, named), (second_at, fresh) = store.renewals[:2]
        assert first_at - named >= AWAY_S  # it named the time at which it was asked
        assert second_at - first_at < 0.9  # not after another pause of a second
        assert second_at - fresh < 0.9
        assert (await store.run(run.run_id)).lease_until == fresh + LEASE_S

    run_async(played())


def test_who_hangs_renews_nothing_until_it_goes_on() -> None:
    """Law 10: a sign of life without progress is none, so somebody else takes its runs."""

    class Looked(dict[str, tuple[int, Any]]):
        times = 0

        def items(self) -> Any:
            self.times += 1
            return super().items()

    async def played() -> None:
        store = AwayStore()
        store.renewals.append((0.0, 0.0))  # it is not away here
        run = await create(store)
        await store.claim(run.run_id, "one", LEASE_S, time.time())
        actor = RunActor(RunActorConfig(store.open, b"", "", (), 0.04, 10.0, 60.0))
        looked = Looked({run.run_id: (1, None)})
        actor._loop, actor._drivers, actor._ticked = asyncio.get_running_loop(), looked, time.monotonic() - 11.0
        renewing = asyncio.ensure_future(actor._renew())
        try:

            async def has_looked() -> bool:
                return looked.times >= 3

            await wait_until_async(has_looked, 20, "three looks at the leases")
            assert len(store.renewals) == 1
            actor._ticked = time.monotonic() + 60.0

            async def renewed() -> bool:
                return len(store.renewals) > 1

            await wait_until_async(renewed, 20, "a renewal")
        finally:
            renewing.cancel()

    run_async(played())
