"""One story: several runs of a graph, supervisors and sandboxes that come and go, people who answer, and the weather.

The engine, the policies of restarting and the store's model are the real ones. The supervisor here is the real one's
part in a few lines: what it may do is what the store lets it.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from simulation.family import LISTENER, World, graph_of
from simulation.unreliable import Gone, Process, Sandbox, Sandboxes, Weather, Wire
from simulation.virtual import now

from understudy.actors.children import cancel_children
from understudy.actors.code import Code
from understudy.actors.driver import Driver
from understudy.actors.effects import read_outcome
from understudy.actors.errors import Conflict, Fenced, NotFound, StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.graph import Graph
from understudy.actors.inline_ports import YesPolicy
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Begun, Event, Interrupt, NewCheckpoint, Receipt, RunRecord, open_questions
from understudy.actors.start import create, new_run
from understudy.actors.store import Store
from understudy.actors.streaming import live

LEASE_S = 8.0
RENEW_S = 2.0
STORM_S = 90.0
"""How long the weather is bad."""
END_S = 20_000.0
"""By when all has to be over, in virtual seconds."""


class WatchedStore(MemoryStore):
    """The model, with a look at law 3: what an effect stands on was durable before it began."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: list[str] = []
        self.killed: set[str] = set()
        """Keys of calls that were ended from outside: what they had done by then, they have done."""
        self._durable: set[str] = set()

    def _store_checkpoint(self, run: Any, new: NewCheckpoint, at: float) -> None:
        super()._store_checkpoint(run, new, at)
        self._durable.add(new.checkpoint_id)

    async def begin(self, receipt: Receipt, *args: Any) -> Begun:
        if receipt.checkpoint_id and receipt.checkpoint_id not in self._durable:
            self.broken.append(f"{receipt.tool} began before {receipt.checkpoint_id} was durable")
        return await super().begin(receipt, *args)

    async def finish(self, run_id: str, key: str, checkpoint_id: str, token: str, outcome: str, *args: Any) -> bool:
        if read_outcome(outcome).kind == "killed":
            self.killed.add(key)
        return await super().finish(run_id, key, checkpoint_id, token, outcome, *args)


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    status: str
    error: str
    state: Any
    cancelled: bool
    """Somebody asked for it."""


@dataclass
class Story:
    seed: int
    badness: float
    store: WatchedStore = field(default_factory=WatchedStore)
    world: World = field(default_factory=World)
    broken: list[str] = field(default_factory=list)
    """Laws that were broken, in words."""

    def __post_init__(self) -> None:
        self.dice = random.Random(f"{self.seed} {'bad' if self.badness else 'good'}")
        self.weather = Weather(self.dice, self.badness)
        self.policy = YesPolicy()
        self.clients = Process("client")
        self.supervisors: list[Supervisor] = []
        self.actors: list[Process] = []
        self.late: set[asyncio.Task[None]] = set()
        self.names = 0
        self.trace: list[str] = []
        """All that happened, in order; the same whenever this seed is told."""
        self.graphs: dict[str, Graph] = {}
        """By the text of their code."""
        self.cancels: set[str] = set()
        self.retries_said: Counter[str] = Counter()
        """How often a person said that an effect should be made again, by its key."""

    def wire(self, process: Process) -> Store:
        return cast(Store, Wire(self.store, process, self.weather, self._later))

    def _later(self, call: Any) -> None:
        task = asyncio.ensure_future(call)
        self.late.add(task)
        task.add_done_callback(self.late.discard)

    def name(self, what: str) -> str:
        self.names += 1
        return f"{what}{self.names}"

    # --- from the first word to the last ---

    async def tell(self) -> list[Ending]:
        plot = random.Random(f"{self.seed} plot")  # what is the same in good and in bad weather
        self.graph = graph_of(f"{self.seed} graph", self.world)
        code, _ = await self.ship(self.graph)
        self.sandboxes = Sandboxes(self._sandbox)
        self.supervisors = [Supervisor(self, self.name("supervisor")) for _ in range(2)]
        threads = [plot.choice(("a", "a", "b", "c")) for _ in range(plot.choice((1, 1, 2, 3)))]
        if self.world.breaks:  # a run that failed cannot be retried once the next of its thread has gone on
            threads = [f"{thread}{n}" for n, thread in enumerate(threads)]
        ids = [await self._start(n, thread, code) for n, thread in enumerate(threads)]
        people = asyncio.ensure_future(self._people())
        chaos = asyncio.ensure_future(self._chaos(ids, threads))
        async with asyncio.timeout(END_S):
            while not all(run.status in ("succeeded", "cancelled") for run in await self.store.runs(limit=1000)):
                await asyncio.sleep(1.0)
                if people.done():
                    people.result()
        for task in (people, chaos):
            task.cancel()
        await asyncio.wait([people, chaos])
        self.weather.calm()
        await asyncio.sleep(60.0)  # what is still on its way arrives
        endings = [self._ending(await self.store.run(run_id)) for run_id in ids]
        await self._check()
        for process in [*(s.process for s in self.supervisors), *self.actors, self.clients]:
            process.die()
        self.sandboxes.current.die()
        return endings

    def _sandbox(self) -> Sandbox:
        process = Process(self.name("sandbox"))
        return Sandbox(process, cast(Wire, self.wire(process)), self.weather)

    def _ending(self, record: RunRecord) -> Ending:
        state = json.loads(record.result) if record.result else None
        return Ending(record.status, record.error, state, record.run_id in self.cancels)

    # --- clients ---

    async def ship(self, graph: Graph | str) -> tuple[Code, Graph]:
        """All processes know all graphs."""
        assert isinstance(graph, Graph)
        code = Code(ref=f"story:{graph.name}")
        self.graphs[code.text()] = graph
        return code, graph

    async def _start(self, n: int, thread: str, code: Code) -> str:
        new = new_run(self.graph.plan(), code, {}, thread=thread, key=f"run {n}")
        return (await self._insist(lambda store: create(store, new, now()))).run_id

    async def _insist(self, verb: Any) -> Any:
        """What a client does while the store is away."""
        while True:
            try:
                return await verb(self.wire(self.clients))
            except StoreUnavailable:
                await asyncio.sleep(1.0)

    async def _people(self) -> None:
        while True:
            await asyncio.sleep(self.dice.uniform(0.2, 2.0))
            for record in await self.store.runs("failed", limit=1000):
                if "broken, until" in record.error:
                    with contextlib.suppress(Conflict):  # the first of two calls did it, and it has ended by now
                        await self._insist(lambda s, r=record: s.retry(r.run_id, now()))
            for record in await self.store.runs("waiting", limit=1000):
                run_id = record.run_id
                if record.graph != LISTENER and any(i.kind == "message" and not i.settled for i in record.interrupts):
                    await self._send(run_id)
                for question in open_questions(record):
                    if isinstance(question.payload, dict) and "nobody" in question.payload:
                        continue
                    answer = json.dumps(await self._answer(record, question))
                    try:
                        await self._insist(
                            lambda s, r=run_id, q=question, a=answer: s.resume(r, q.interrupt_id, a, now())
                        )
                    except (NotFound, Conflict):
                        continue  # the run has gone on meanwhile

    async def _send(self, run_id: str) -> None:
        """The next message to a run that waits for one: which it is follows from those that it has."""
        name = f"message {[event.kind for event in await self.store.events(run_id)].count('message') + 1}"
        with contextlib.suppress(Conflict):  # it has ended meanwhile
            await self._insist(lambda store: store.send(run_id, name, json.dumps(name), now()))

    async def _answer(self, record: RunRecord, question: Interrupt) -> Any:
        if question.kind != "unknown":
            return f"yes to {question.payload['label']}"
        receipts = await self.store.receipts(record.run_id)
        unknown = [r for r in receipts if r.digest == question.digest and r.state == "unknown"]
        for receipt in unknown:
            done = self.world.by_key(receipt.key)
            if done is not None:
                return {"value": done}
        for receipt in unknown:
            self.retries_said[receipt.key] += 1
        return "retry"

    # --- the weather ---

    async def _chaos(self, ids: Sequence[str], threads: Sequence[str]) -> None:
        while self.badness and asyncio.get_running_loop().time() < STORM_S:
            await asyncio.sleep(self.dice.uniform(0.1, 5.0))
            alive = [actor for actor in self.actors if not actor.dead]
            match self.dice.choice(
                ("actor", "actor", "sandbox", "pause", "pause", "supervisor", "outage", "cancel", "")
            ):
                case "actor" if alive:
                    self.dice.choice(alive).die()
                case "pause" if alive:
                    self.dice.choice(alive).paused_until = now() + self.dice.choice((1.0, 10.0, 30.0))
                case "sandbox":
                    self.sandboxes.current.die()
                case "supervisor":
                    self._replace(self.dice.randrange(2))
                case "outage":
                    self.weather.outage_until = now() + self.dice.choice((0.5, 3.0, 12.0))
                case "cancel" if self.dice.random() < 0.1:
                    n = self.dice.randrange(len(ids))
                    if threads[n] not in threads[n + 1 :]:  # what comes after it on its thread would be another story
                        self.cancels.add(ids[n])
                        record = await self._insist(lambda store, n=n: store.cancel(ids[n], now()))
                        if record.status == "cancelled":  # as `Run.cancel`: else its owner sees to its children
                            await self._insist(lambda store, n=n: cancel_children(store, ids[n], now()))
        self.weather.calm()

    def _replace(self, n: int) -> None:
        with_actors = self.dice.random() < 0.5
        self.supervisors[n].die(with_actors)
        self.supervisors[n] = Supervisor(self, self.name("supervisor"))

    # --- what has to be true at the end ---

    async def _check(self) -> None:
        told = self.broken
        told += self.store.broken
        moved: Counter[str] = Counter()
        records = await self.store.runs(limit=1000)
        for record in records:
            run_id, ending = record.run_id, self._ending(record)
            log = await self.store.events(run_id, limit=100_000)
            self.trace += [f"{run_id} {e.at:.6f} {e.kind} {_without_seconds(e)}" for e in log]
            if [event.n for event in log] != list(range(1, len(log) + 1)):
                told.append(f"{run_id}: its event log has a gap or a double")
            kinds = [event.kind for event in log]
            if kinds.count("finished") != 1 + kinds.count("retried"):
                told.append(f"{run_id}: it is told to have finished {kinds.count('finished')} times")
            epochs = [event.data["epoch"] for event in log if event.kind == "claimed"]
            if epochs != sorted(set(epochs)):
                told.append(f"{run_id}: epochs do not grow: {epochs}")
            for receipt in await self.store.receipts(run_id):
                if ending.status == "succeeded" and receipt.state != "done":
                    told.append(f"{run_id}: it succeeded, and its receipt {receipt.place} is {receipt.state}")
            await self._check_stream(told, run_id)
            moved.update(
                {k: v for k, v in counters_of(record.graph, log).items() if k.startswith(("node_", "runs_fin"))}
            )
        counted = await self.store.counters()
        for name, amount in moved.items():
            if counted.get(name) != amount:
                told.append(f"counter {name} is {counted.get(name)}, and the logs say {amount}")
        self._check_effects(told)
        due = await self.store.due(now() + 1e9, 100)
        if due.ready or due.overdue:
            told.append(f"something is due for ever: {due}")
        for thread in await self.store.threads():
            await self.store.delete_thread(thread)
        if self.store._runs or self.store._threads:
            told.append("a deleted thread has left something behind")

    async def _check_stream(self, told: list[str], run_id: str) -> None:
        """What was streamed and is not withdrawn is that of one attempt of each task, each chunk once."""
        left = live(await self.store.chunks(run_id, limit=100_000))
        twice = [data for data, n in Counter(chunk.data for chunk in left).items() if n > 1]
        if twice:
            told.append(f"{run_id}: it streamed {twice[0]} twice, and neither is withdrawn")

    def _check_effects(self, told: list[str]) -> None:
        """At most once. Once more only where a person has said so, of an effect whose process still lived somewhere; or
        where a call was ended with a run that failed, and a person had the run retried."""
        for what, keys in self.world.done.items():
            ended = {key for key in keys if key in self.store.killed}
            allowed = 1 + sum(self.retries_said[key] for key in set(keys)) + len(ended)
            if len(keys) > allowed or len(set(keys)) > 1 + len(ended):
                told.append(f"{what!r} was done {len(keys)} times (keys {keys}), where {allowed} are allowed")


class Supervisor:
    """Gives due runs to actors, notices their deaths, and takes over what others have left."""

    def __init__(self, story: Story, name: str) -> None:
        self.story = story
        self.process = Process(name)
        self.store = story.wire(self.process)
        self.held: dict[Process, str] = {}
        self.process.spawn(self._watch())

    def die(self, with_actors: bool) -> None:
        self.process.die()
        for actor in [*self.held] if with_actors else []:
            actor.die()

    async def _watch(self) -> None:
        while True:
            try:
                await self._tick()
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            except Gone:
                return
            await asyncio.sleep(self.story.dice.uniform(0.05, 1.0))

    async def _tick(self) -> None:
        due = await self.store.due(now(), 100)
        for run_id, epoch in due.overdue:
            await self._requeue(run_id, epoch, "lease_expired")
        for run_id in due.ready:
            try:
                record = await self.store.claim(run_id, self.process.name, LEASE_S, now())
            except (Conflict, NotFound):
                continue
            actor = Process(self.story.name("actor"))
            self.story.actors = [other for other in self.story.actors if not other.dead] + [actor]
            self.held[actor] = run_id
            self.process.spawn(self._hold(actor, record))

    async def _hold(self, actor: Process, record: RunRecord) -> None:
        residence = actor.spawn(self._reside(actor, record))
        await asyncio.wait([residence])
        self.held.pop(actor, None)
        error = None if residence.cancelled() else residence.exception()
        cause = "actor_died" if residence.cancelled() or isinstance(error, Gone) else type(error).__name__
        if error is not None and not isinstance(error, Fenced | StoreUnavailable | Gone):
            self.story.broken.append(f"{record.run_id}: its residence ended with {error!r}")
        if not isinstance(error, Fenced) and (error is not None or residence.cancelled()):
            await self._requeue(record.run_id, record.epoch, cause)
        actor.die()

    async def _reside(self, actor: Process, record: RunRecord) -> None:
        story = self.story
        store = story.wire(actor)
        loaded = await store.load(record.run_id)
        if loaded.run.epoch != record.epoch:
            return
        plan = story.graphs[record.code].plan()
        driver = Driver(store, story.policy, story.sandboxes.seen_by(actor), plan, loaded, now, ship=story.ship)
        renewing = actor.spawn(self._renew(store, record, driver))
        try:
            await driver.drive()
        finally:
            renewing.cancel()

    async def _renew(self, store: Store, record: RunRecord, driver: Driver) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                renewed = await store.renew([(record.run_id, record.epoch)], LEASE_S, now())
            except StoreUnavailable:
                continue
            if renewed.lost:
                driver.fence()
            elif renewed.cancelled:
                driver.cancel()

    async def _requeue(self, run_id: str, epoch: int, cause: str) -> None:
        while True:
            try:
                run = await self.store.run(run_id)
                if run.epoch != epoch or run.status != "running":
                    return
                at = now()
                events = [Event("crashed", at, {"cause": cause, "epoch": epoch, "attempt": run.restarts + 1})]
                counters = counters_of(run.graph, events)
                wait_s = self.story.dice.choice((0.0, 0.0, 0.5, 2.0))
                await self.store.requeue(run_id, epoch, at, at + wait_s if wait_s else 0.0, events, counters)
                return
            except (Fenced, NotFound):
                return
            except StoreUnavailable:
                await asyncio.sleep(0.5)


def _without_seconds(event: Event) -> str:
    """What it took is measured on a real clock."""
    return json.dumps({name: value for name, value in event.data.items() if name != "seconds"}, sort_keys=True)
