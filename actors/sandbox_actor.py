"""The sandbox actor: checks the grant, puts the call on record, executes it behind walls, and writes the receipt.

Laws kept here:
4. The receipt is durable before the tool starts; its outcome is durable before anyone is told.
5. A call outlives the run actor that ordered it: it is finished here, and whoever owns the run then attends it.
7. No grant, or one that does not fit this very call: nothing is executed.
"""

import asyncio
import dataclasses
import time

from understudy.actors.calls import Order, finished_event
from understudy.actors.effects import write_outcome
from understudy.actors.errors import Fenced, StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.open import OpenStore
from understudy.actors.outcome import Outcome
from understudy.actors.process import name_of_this_process
from understudy.actors.records import Event, Receipt
from understudy.actors.sandbox.backend import Backend, IsolationUnavailable, Preflight
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.store import Store
from understudy.policies.grant import GrantRefused, check
from understudy.policies.profile import Profile


class SandboxActor:
    """Ray shell around an isolation backend. `at_once`: calls that execute at the same time; others wait."""

    def __init__(self, name: str, open_store: OpenStore, secret: bytes, at_once: int) -> None:
        self._name = name
        self._open_store = open_store
        self._secret = secret
        self._room = asyncio.Semaphore(at_once)
        self._backend: Backend = BubblewrapBackend()
        self._store: Store | None = None
        self._work: dict[tuple[str, str], asyncio.Task[Outcome]] = {}

    async def execute(self, order: Order) -> Outcome | Receipt:
        """The outcome; or the receipt that is on record under this key already. Raises Fenced."""
        place = (order.receipt.key, order.receipt.token)
        if place in self._work:  # the same order again: its reply was lost
            return await asyncio.shield(self._work[place])
        store = await self._ready()
        now = time.time()
        try:
            grant = check(
                order.token,
                self._secret,
                run_id=order.receipt.run_id,
                key=order.receipt.key,
                tool=order.call.tool,
                digest=order.receipt.digest,
                now=now,
            )
        except GrantRefused as error:
            return await self._refuse(store, order, f"the sandbox refused the grant: {error}", now)
        # Known here before it is on record there: whoever reads `started` and asks must find it at work.
        begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        work = asyncio.ensure_future(self._perform(store, order, grant.profile, begun))
        self._work[place] = work
        work.add_done_callback(lambda _: self._work.pop(place, None))
        events = [order.decided, Event("tool_started", now, _started(order))]
        receipt = dataclasses.replace(order.receipt, at=now)
        try:
            answer = await store.begin(receipt, order.epoch, events, counters_of(order.graph, events), now)
        except BaseException:
            work.cancel()
            raise
        if not answer.fresh:
            work.cancel()
            return answer.receipt
        begun.set_result(True)
        return await asyncio.shield(work)

    async def _refuse(self, store: Store, order: Order, reason: str, now: float) -> Outcome | Receipt:
        outcome = Outcome("denied", error=reason)
        receipt = dataclasses.replace(order.receipt, state="done", outcome=write_outcome(outcome), at=now)
        denied = Event("decided", now, {**order.decided.data, "decision": "deny", "reason": reason})
        events = [denied, finished_event(receipt, outcome, now)]
        answer = await store.begin(receipt, order.epoch, events, counters_of(order.graph, events), now)
        return outcome if answer.fresh else answer.receipt

    async def _perform(self, store: Store, order: Order, profile: Profile, begun: "asyncio.Future[bool]") -> Outcome:
        await begun
        began = time.perf_counter()
        try:
            outcome = await self._isolated(order, profile)
        except asyncio.CancelledError:
            outcome = Outcome(
                "killed",
                error="ended from outside: the run was cancelled, or its node gave up on the call",
                duration_s=time.perf_counter() - began,
            )
        await self._record(store, order, outcome)
        return outcome

    async def _isolated(self, order: Order, profile: Profile) -> Outcome:
        async with self._room:
            for last in (False, False, True):
                try:
                    return await self._backend.execute(order.call, profile)
                except IsolationUnavailable as error:
                    # The walls did not stand, so nothing was executed: it is safe to try again.
                    if last:
                        reason = f"this node cannot isolate, so it runs no untrusted tool: {error}"
                        return Outcome("denied", error=reason)
                    await asyncio.sleep(0.2)
                except OSError as error:
                    reason = f"the sandbox could not start: {error}"
                    return Outcome("error", error=reason, error_type=type(error).__name__)
            raise AssertionError("the last try returns")

    async def _record(self, store: Store, order: Order, outcome: Outcome) -> None:
        """Write the receipt, however long the store is away: the outcome exists only here until then."""
        pause_s = 0.1
        while True:
            now = time.time()
            events = [finished_event(order.receipt, outcome, now)]
            try:
                await store.finish(
                    order.receipt.run_id,
                    order.receipt.key,
                    order.receipt.checkpoint_id,
                    order.receipt.token,
                    write_outcome(outcome),
                    events,
                    counters_of(order.graph, events),
                    now,
                )
                return
            except StoreUnavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)

    async def attend(self, key: str, token: str) -> Outcome | None:
        """The outcome of a call that is at work here; None if it is not."""
        work = self._work.get((key, token))
        if work is None:
            return None
        try:
            return await asyncio.shield(work)
        except (asyncio.CancelledError, Fenced):
            return None

    async def abort(self, key: str, token: str) -> None:
        """End a call that nobody wants any more; its receipt says `killed`."""
        work = self._work.get((key, token))
        if work is not None:
            work.cancel()

    async def ready(self) -> str:
        """The name of the process."""
        return name_of_this_process()

    async def preflight(self) -> Preflight:
        """Whether this node really isolates: a call is made to find out."""
        return await self._backend.preflight()

    async def _ready(self) -> Store:
        if self._store is None:
            self._store = await self._open_store()
        return self._store


def _started(order: Order) -> dict[str, str]:
    return {"tool": order.call.tool, "key": order.call.key, "sandbox": order.receipt.sandbox}
