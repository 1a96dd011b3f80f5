"""The supervisor: gives due runs to warm actors, notices an actor's death by its pending call, and restarts its runs.

Laws kept here:
1. It takes a run away (epoch + 1) before anyone else gets it; whatever the old owner still does is refused.
9. Crash-only: starting is recovering. It holds nothing that the store does not; when it dies, the next one goes on.
10. A lease that has passed counts as a death, whatever Ray thinks of the actor; but not right after an outage of the
   store, in which nobody could renew (see policies/grace). Nor does a clock that is set back hide one (see set_back).
11. A crash is restarted under restart intensity with backoff, then quarantined with the reason (see policies/restart).

The manner is Erlang's (`supervisor.erl`), with the difference that children are virtual: a run is resident in an actor
only while it has something to do.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from understudy.actors.accounts import Accounts
from understudy.actors.budget_sweep import PAGES, sweep
from understudy.actors.errors import Conflict, Fenced, NotFound, StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.open import OpenStore
from understudy.actors.policy_actor import PolicyActor
from understudy.actors.policy_source import PolicySource
from understudy.actors.ports import NAMESPACE, cause_of, in_time, session_tag
from understudy.actors.process import end, is_dead, name_of_this_process, pid_of
from understudy.actors.records import Event, RunRecord
from understudy.actors.run_actor import Left, RunActor, RunActorConfig
from understudy.actors.sandbox_actor import SandboxActor
from understudy.actors.set_back import SetBack
from understudy.actors.store import Store
from understudy.actors.turns import LOOK_MAX, Turns
from understudy.policies.grace import Grace
from understudy.policies.restart import Quarantine, RestartPolicy, decide_restart

MEMBER = "supervisor"
START_S = 120.0
"""How long an actor may take to answer for the first time: a busy machine starts two a second."""
IDLE_S = 60.0
"""A run actor beyond the spares that had no run for this long is let go."""


@dataclass(frozen=True)
class SupervisorConfig:
    deployment: str
    """Begins the names of its actors: two deployments on one Ray cluster do not share any."""
    open_store: OpenStore
    secret: bytes
    policies: PolicySource
    """What bounds every run."""
    run_actors: int
    """Most run actors at once."""
    spare_actors: int
    """Idle run actors kept warm."""
    runs_per_actor: int
    sandbox_actors: int
    calls_per_sandbox: int
    lease_s: float
    hang_after_s: float
    cancel_within_s: float
    restart: RestartPolicy
    secrets_path: str | None = None
    """Where the sandbox actors read the deployment's secrets. The values themselves are in no message."""
    environments_path: str = "/nonexistent"
    """Where the environments of tools are, on each machine."""
    preload: tuple[str, ...] = ()
    """Modules that tools import, loaded before there is a call."""


@dataclass(eq=False)
class Slot:
    """A run actor and what it has."""

    handle: Any
    process: str = ""
    pid: int = 0
    ready: bool = False
    runs: dict[str, int] = field(default_factory=dict)
    """Epoch by run id."""
    idle_since: float = 0.0


class Supervisor:
    """Ray shell. `watch` is called once and never returns; whoever holds that call learns of this actor's death."""

    def __init__(self, config: SupervisorConfig) -> None:
        self._config = config
        self._slots: list[Slot] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._turns = Turns()
        self._grace = Grace(config.lease_s)
        self._set_back = SetBack(config.lease_s, config.restart.backoff_max_s)
        self._last_beat = self._last_sweep = float("-inf")
        self._accounts = Accounts(self._opened)
        self._sweeping: asyncio.Task[None] | None = None
        self._swept = ""
        """The account of a budget that was looked at last."""
        self._host = socket.gethostname()
        self.name = name_of_this_process()
        self._isolation: dict[str, Any] = {}
        self._policies: dict[str, Any] = {}
        self._policy_source = config.policies
        self._services: dict[str, int] = {}
        """Process ids of the policy and sandbox actors, by name."""
        self._store: Store | None = None
        self._sandbox_names: tuple[str, ...] = ()

    # --- what the host and the command line ask ---

    async def watch(self) -> None:
        """Supervise, for ever."""
        began = time.monotonic()
        self._store = await self._config.open_store()
        self._grace.asked(began, time.monotonic())
        await self._start_services()
        await self._take_over()
        while True:
            await self._turn(time.time())
            await self._wait()

    def report(self) -> dict[str, Any]:
        """What `status` and the demo read: actors with their process ids and runs."""
        return {
            "role": MEMBER,
            "host": self._host,
            "pid": os.getpid(),
            "process": self.name,
            "actors": [{"pid": s.pid, "ready": s.ready, "runs": list(s.runs)} for s in self._slots],
            "services": self._services,
            "sandboxes": list(self._sandbox_names),
            "isolation": self._isolation,
            "policies": self._policies,
        }

    async def status(self) -> dict[str, Any]:
        """`report`, asked directly."""
        return self.report()

    async def _opened(self) -> Store:
        assert self._store is not None
        return self._store

    # --- starting ---

    async def _start_services(self) -> None:
        """Policy and sandbox actors are detached: they outlive a supervisor, and calls in them go on (law 5)."""
        config = self._config
        self._policy_name = f"{config.deployment}-policy"
        # Receipts name the sandbox at work, in a store that other Ray clusters may use too: it must not be taken for
        # one of theirs.
        here = f"{config.deployment}-{session_tag()}"
        self._sandbox_names = tuple(f"{here}-sandbox-{i}" for i in range(config.sandbox_actors))
        # Those that a supervisor before this one has left are not given the time of a start: they may hang.
        names = (self._policy_name, *self._sandbox_names)
        first_s = {name: config.hang_after_s if _is_there(name) else START_S for name in names}
        self._policy = self._start_policy()
        self._sandboxes = {name: self._start_sandbox(name) for name in self._sandbox_names}
        self._grow(max(1, config.spare_actors))
        self._spawn(self._guard_policy(first_s[self._policy_name]))
        for name in self._sandbox_names:
            self._spawn(self._guard_sandbox(name, first_s[name]))

    def _start_policy(self) -> Any:
        config = self._config
        actor = ray.remote(PolicyActor).options(**_detached(self._policy_name))
        return actor.remote(config.open_store, config.secret, self._policy_source)

    def _start_sandbox(self, name: str) -> Any:
        config = self._config
        actor = ray.remote(SandboxActor).options(**_detached(name))
        paths = config.secrets_path, config.environments_path
        return actor.remote(name, config.open_store, config.secret, config.calls_per_sandbox, *paths, config.preload)

    async def _guard_policy(self, first_s: float) -> None:
        """Replace the policy actor whenever it is gone. Nothing runs meanwhile without its word."""
        self._spawn(self._follow_policies())
        while True:
            await self._until_dead(self._policy_name, self._policy, first_s)
            self._policy, first_s = self._start_policy(), START_S

    async def _follow_policies(self) -> None:
        """Know what is in force: for `status`, and for the next policy actor, should it start while the file that is
        there cannot be used."""
        while True:
            with contextlib.suppress(RayError, TimeoutError):
                asked = self._policy.report.remote(self._policy_source)
                self._policies, newer = await in_time(asked, self._config.hang_after_s)
                self._policy_source = newer or self._policy_source
            await asyncio.sleep(1.0)

    async def _guard_sandbox(self, name: str, first_s: float) -> None:
        while True:
            self._spawn(self._look_at_isolation(self._sandboxes[name]))
            await self._until_dead(name, self._sandboxes[name], first_s)
            self._sandboxes[name], first_s = self._start_sandbox(name), START_S

    async def _look_at_isolation(self, sandbox: Any) -> None:
        with contextlib.suppress(RayError):
            preflight = await sandbox.preflight.remote()
            found = {"available": preflight.available, "reason": preflight.reason, "remedy": preflight.remedy}
            before = self._isolation.get("tiers", {})
            kept = {"left over": before["left over"]} if "left over" in before else {}  # others may have found nothing
            self._isolation = {**found, "tiers": {**kept, **preflight.details}}

    async def _until_dead(self, name: str, handle: Any, within_s: float) -> None:
        """Returns when the actor is dead. It is asked again and again, as its methods all return; if it does not answer
        in time it is killed, for every run would wait for it."""
        process = ""
        while True:
            try:
                process = await in_time(handle.ready.remote(), within_s)
                self._services[name], within_s = pid_of(process), self._config.hang_after_s
            except RayError:
                return
            except TimeoutError:
                _kill(handle, process)
            await asyncio.sleep(0.2)

    async def _take_over(self) -> None:
        """Runs whose supervisor was a process of this machine that is dead are taken at once; for others, the lease
        decides. A mistake would cost a restart, not correctness: the epoch fences."""
        assert self._store is not None
        for run in await self._store.runs(status="waiting", limit=LOOK_MAX):
            self._turns.waits(run.run_id)
        for run in await self._store.runs(status="running", limit=100_000):
            if is_dead(run.owner.partition("/")[0]):
                await self._requeue(run.run_id, run.epoch, "supervisor_lost")

    # --- one turn ---

    async def _turn(self, now: float) -> None:
        """All there is to do now, and a note of how long the store took over it.

        The sign of life is also how a store is noticed that can be read and takes nothing, as its disk is full.
        """
        assert self._store is not None
        began, answered = time.monotonic(), False
        self._grace.looks(now, began)
        try:
            await self._tick(now)
            if began - self._last_beat >= min(1.0, self._config.lease_s / 4):
                await self._store.beat(self.name, json.dumps(self.report()), now)
                self._last_beat = began
            if began - self._last_sweep >= 60.0:
                await self._store.sweep(now)
                if self._sweeping is None or self._sweeping.done():
                    self._sweeping = self._spawn(self._sweep_budgets(now))
                self._last_sweep = began
            answered = True
        except StoreUnavailable:
            await asyncio.sleep(0.5)
        self._grace.asked(began, time.monotonic(), answered=answered)
        self._grace.looked(time.time())

    async def _sweep_budgets(self, now: float) -> None:
        """A bounded part of them, beside all else: where it stopped, it goes on next time."""
        assert self._store is not None
        with contextlib.suppress(StoreUnavailable):
            for _ in range(PAGES):
                self._swept = await sweep(self._store, self._accounts, now, self._swept)
                if not self._swept:
                    return

    async def _tick(self, now: float) -> None:
        assert self._store is not None
        limit = max(1, self._config.run_actors * self._config.runs_per_actor)
        began = time.monotonic()
        if back_s := self._set_back.looks(now, began):
            self._turns.earlier(back_s)
        await self._set_back.gather(self._store, now, began)
        due = await self._store.due(now, limit)
        overdue: list[tuple[str, int]] = []
        if not self._grace.holds(time.monotonic()):
            overdue = [*due.overdue, *(await self._set_back.unkept(self._store, began))]
        for run_id, epoch in overdue:
            slot = next((s for s in self._slots if s.runs.get(run_id) == epoch), None)
            await self._requeue(run_id, epoch, "lease_expired")
            if slot is not None:
                self._retire(slot)
        late = self._set_back.late
        line = [*late, *(run_id for run_id in due.ready if run_id not in late)]
        ready = await self._turns.ready(self._store, line, limit, now)
        for run_id in ready:
            # Looked for anew each time: an actor may have gone since, with the places that it had left.
            slot = min((s for s in self._slots if self._fits(s)), key=lambda s: len(s.runs), default=None)
            if slot is None:
                break
            self._turns.takes(run_id)
            at = late.pop(run_id, now)
            try:
                run = await self._store.claim(run_id, f"{self.name}/{slot.pid}", self._config.lease_s, at)
            except (Conflict, NotFound):
                continue
            self._set_back.keep(run, now, began)
            self._assign(slot, run)
        self._resize(len(ready))

    def _fits(self, slot: Slot) -> bool:
        return slot.ready and len(slot.runs) < self._config.runs_per_actor

    def _resize(self, wanted: int) -> None:
        """As many actors as there is work for, and the spares, up to the limit."""
        here = list(self._slots)
        idle = sum(1 for slot in here if not slot.runs)
        missing = self._config.spare_actors + -(-wanted // self._config.runs_per_actor) - idle
        room = self._config.run_actors + self._config.spare_actors - len(here)
        self._grow(min(missing, room, 2))
        self._shrink(here, idle)

    def _shrink(self, here: list[Slot], idle: int) -> None:
        """Let actors go that are more than spare and had nothing to do for a while."""
        now = time.monotonic()
        for slot in here:
            if slot.runs or not slot.ready:
                slot.idle_since = now
            elif idle > self._config.spare_actors and now - slot.idle_since > IDLE_S:
                self._retire(slot)
                idle -= 1

    def _grow(self, count: int) -> None:
        for _ in range(max(0, count)):
            config = RunActorConfig(
                open_store=self._config.open_store,
                secret=self._config.secret,
                policy=self._policy_name,
                sandboxes=self._sandbox_names,
                lease_s=self._config.lease_s,
                hang_after_s=self._config.hang_after_s,
                cancel_within_s=self._config.cancel_within_s,
            )
            actor = ray.remote(RunActor).options(num_cpus=0, max_restarts=0, max_concurrency=1000)
            slot = Slot(actor.remote(config))
            self._slots.append(slot)
            self._spawn(self._warm(slot))

    async def _warm(self, slot: Slot) -> None:
        try:
            slot.process = await in_time(slot.handle.ready.remote(), START_S)
            slot.pid, slot.ready = pid_of(slot.process), True
        except (RayActorError, RayTaskError, TimeoutError):
            self._retire(slot)
            await asyncio.sleep(0.5)
        self._freed.set()

    def _assign(self, slot: Slot, run: RunRecord) -> None:
        slot.runs[run.run_id] = run.epoch
        self._spawn(self._hold(slot, run.run_id, run.epoch))

    async def _hold(self, slot: Slot, run_id: str, epoch: int) -> None:
        """The pending call of a residence: its end, or the death of its actor, is known here first."""
        try:
            left: Left = await slot.handle.drive.remote(run_id, epoch)
        except RayActorError:
            self._drop(slot)
            self._freed.set()
            await self._requeue(run_id, epoch, "actor_died")
        except RayTaskError as error:
            cause = cause_of(error)
            away = isinstance(cause, StoreUnavailable)  # nobody's fault here, so no crash; other runs may be fine
            if not away or len(slot.runs) == 1:
                self._retire(slot)
            await self._requeue(run_id, epoch, type(cause).__name__, crashed=not away)
        else:
            if left.dirty:
                self._retire(slot)
            if left.status == "waiting":
                self._turns.waits(run_id)
            if left.how == "stale":
                await self._requeue(run_id, epoch, "", crashed=False)
            elif left.how == "refused":
                await self._requeue(
                    run_id, epoch, "", crashed=False, quarantine=f"{left.reason}; {_once_mended(run_id)}"
                )
        finally:
            slot.runs.pop(run_id, None)
            self._freed.set()

    async def _requeue(
        self, run_id: str, epoch: int, cause: str, *, crashed: bool = True, quarantine: str = ""
    ) -> None:
        """Take a run from its owner; it is restarted when its restart policy says. Tries until the store answers."""
        assert self._store is not None
        detected_at = time.time()
        while True:
            try:
                run = await self._store.run(run_id)
                if run.epoch != epoch or run.status != "running":
                    return
                after_s = 0.0
                events: list[Event] = []
                if crashed:
                    events.append(
                        Event("crashed", detected_at, {"cause": cause, "epoch": epoch, "attempt": run.restarts + 1})
                    )
                    decision = decide_restart(self._config.restart, [*run.crashes, detected_at], detected_at)
                    if isinstance(decision, Quarantine):
                        quarantine = f"{decision.reason} (the last: {cause}); {_once_mended(run_id)}"
                    else:
                        after_s = decision.after_s
                if quarantine:
                    events.append(Event("finished", detected_at, {"status": "quarantined", "error": quarantine}))
                returned = await self._store.requeue(
                    run_id,
                    epoch,
                    detected_at,
                    detected_at + after_s if after_s else 0.0,
                    events,
                    counters_of(run.graph, events),
                    crashed=crashed,
                    quarantine=quarantine,
                )
                if not returned.final:
                    self._turns.returns(run_id, detected_at + after_s)
                self._freed.set()
                return
            except (Fenced, NotFound):
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)

    # --- actors going away ---

    def _drop(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)

    def _retire(self, slot: Slot) -> None:
        """End an actor that is not fit any more. Its runs are requeued by their own pending calls."""
        self._drop(slot)
        _kill(slot.handle, slot.process)

    # --- waiting ---

    async def _wait(self) -> None:
        """Until there may be something to do: new work, a freed actor, or half a second."""
        assert self._store is not None
        hint = asyncio.ensure_future(self._store.wait_work(0.5))
        freed = asyncio.ensure_future(self._freed.wait())
        try:
            await asyncio.wait({hint, freed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._freed.clear()
            for task in (hint, freed):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreUnavailable):
                    await task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _once_mended(run_id: str) -> str:
    return f"once that is mended, `understudy retry {run_id}` takes it up again"


def _is_there(name: str) -> bool:
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _kill(actor: Any, process: str) -> None:
    """End an actor. Ray asks its process to end, which one that is stopped does not hear."""
    with contextlib.suppress(Exception):
        ray.kill(actor)
    end(process)


def _detached(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": 0,
        "max_concurrency": 1000,
    }
