"""The run actor: a warm process to which runs are assigned; it owns them while they have something to do.

Laws kept here:
1. It renews its leases from a thread of its own, so that a node that blocks the event loop for a moment does not lose
   them; a run whose lease is lost is stopped.
9. Crash-only: a cancelled run ends in time whatever its node does; if it cannot be stopped, the process ends itself.
10. Progress is liveness: if the event loop has not moved for `hang_after_s`, the thread stops renewing, and somebody
   else takes the runs over. (Ray never reports a process that hangs.)
"""

import asyncio
import threading
import time
from dataclasses import dataclass, replace
from typing import Literal

from understudy.actors.code import Code, Library
from understudy.actors.driver import Driver
from understudy.actors.errors import CodeError, Fenced, StoreUnavailable
from understudy.actors.garbage import settle
from understudy.actors.open import OpenStore
from understudy.actors.ports import Heard, Policies, Sandboxes
from understudy.actors.process import Bearings, end, name_of_this_process
from understudy.actors.records import Status
from understudy.actors.ship import Shipper
from understudy.actors.store import Store


@dataclass(frozen=True)
class RunActorConfig:
    open_store: OpenStore
    secret: bytes
    policy: str
    """Name of the policy actor."""
    sandboxes: tuple[str, ...]
    """Names of the sandbox actors."""
    lease_s: float
    hang_after_s: float
    cancel_within_s: float


@dataclass(frozen=True)
class Left:
    """How a residence ended."""

    how: Literal["left", "fenced", "stale", "refused"]
    """`left`: final or waiting, all is stored. `fenced`: somebody else owns it. `stale`: this process has older code
    loaded than the run wants. `refused`: this version of the code cannot take the run up (`reason`)."""
    status: Status | None = None
    reason: str = ""
    dirty: bool = False
    """The process is not fit for another run: a node could not be stopped, or has lowered a limit for good."""


class RunActor:
    """Ray shell around `Driver`."""

    def __init__(self, config: RunActorConfig) -> None:
        self._config = config
        self._store: Store | None = None
        self._library: Library | None = None
        self._heard = Heard()
        self._drivers: dict[str, tuple[int, Driver | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticked = time.monotonic()

    async def ready(self) -> str:
        """Opens the store and starts renewing; the name of the process."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._store = await self._config.open_store()
            self._ship = Shipper(self._store, self._config.secret)
            self._library = Library(self._config.secret, self._store.get_blob)
            threading.Thread(target=self._renewing, name="leases", daemon=True).start()
            self._ticking = asyncio.ensure_future(self._tick())
            settle()
            self._bearings = Bearings.of_this_process()
        return name_of_this_process()

    async def drive(self, run_id: str, epoch: int) -> Left:
        """Take a claimed run from where it stands to its end or its next wait."""
        await self.ready()
        left = await self._drive(run_id, epoch)
        return left if self._bearings.restore() else replace(left, dirty=True)

    async def _drive(self, run_id: str, epoch: int) -> Left:
        assert self._store is not None
        assert self._library is not None
        self._drivers[run_id] = (epoch, None)
        try:
            loaded = await self._store.load(run_id)
            if loaded.run.epoch != epoch:
                return Left("fenced")
            code = Code.read(loaded.run.code)
            if self._library.is_stale(code):
                return Left("stale", dirty=True)
            graph = await self._library.graph(code)
            policy = Policies(self._config.policy, self._heard)
            sandboxes = Sandboxes(self._config.sandboxes, self._store, self._heard)
            driver = Driver(self._store, policy, sandboxes, graph.plan(), loaded, ship=self._ship)
            self._drivers[run_id] = (epoch, driver)
            status = await driver.drive()
            return Left("left", status, dirty=driver.dirty)
        except Fenced:
            return Left("fenced")
        except CodeError as error:
            return Left("refused", reason=str(error))
        finally:
            self._drivers.pop(run_id, None)

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(0.25)

    # --- in the thread ---

    def _renewing(self) -> None:
        asyncio.run(self._renew())

    async def _renew(self) -> None:
        pause_s = min(1.0, self._config.lease_s / 4)
        store = None
        while store is None:
            try:
                store = await self._config.open_store()
            except StoreUnavailable:  # this thread may not end: nobody would notice but by lost leases
                await asyncio.sleep(pause_s)
        asked: dict[str, float] = {}
        """Since when runs are to be cancelled."""
        waited_s = 0.0
        while True:
            # What waited for the store to come back has renewed up to a time that may have passed: again, at once.
            await asyncio.sleep(0.0 if waited_s > pause_s else pause_s)
            began, waited_s = time.monotonic(), 0.0
            hangs = time.monotonic() - self._ticked > self._config.hang_after_s
            leases = [(run_id, epoch) for run_id, (epoch, _) in list(self._drivers.items())]
            if hangs or not leases:
                continue
            try:
                renewed = await store.renew(leases, self._config.lease_s, time.time())
            except StoreUnavailable:
                continue
            finally:
                waited_s = time.monotonic() - began
            assert self._loop is not None
            for run_id in renewed.lost:
                self._loop.call_soon_threadsafe(self._tell, run_id, True)
            now = time.monotonic()
            asked = {run_id: asked.get(run_id, now) for run_id in renewed.cancelled}
            for run_id, since in asked.items():
                if now - since > self._config.cancel_within_s and run_id in self._drivers:
                    # A node holds the loop, so nobody here can stop it. The next owner reads that it is cancelled.
                    end(name_of_this_process())
                self._loop.call_soon_threadsafe(self._tell, run_id, False)

    def _tell(self, run_id: str, lost: bool) -> None:
        _, driver = self._drivers.get(run_id, (0, None))
        if driver is not None:
            driver.fence() if lost else driver.cancel()
