"""One play of a graph, from its start to its end, disturbed at most once: what the crash kit compares."""

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel

from understudy.actors.calls import PolicyPort
from understudy.actors.checkpoint import restore
from understudy.actors.children import children_of
from understudy.actors.errors import Fenced, RunFailed
from understudy.actors.events import counters_of
from understudy.actors.files import text_of
from understudy.actors.graph import Graph
from understudy.actors.inline import LEASE_S, Answers, Inline, SteppedClock
from understudy.actors.inline_ports import YesPolicy
from understudy.actors.records import Event, Interrupt, RunRecord, ThreadDump
from understudy.actors.results import with_result
from understudy.actors.step import files_of
from understudy.actors.store import Store
from understudy.cluster.testing.mortal import Crash, Fault, Ledger, MortalSandboxes, MortalStore, Process, Stagehand

NOW = 1_764_000_000.0
"""When every play starts, in seconds since the epoch."""
PLAY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Script:
    """What is played."""

    graph: Graph
    given: BaseModel | Mapping[str, Any] | None = None
    answers: Answers | None = None
    messages: Sequence[Any] = ()
    tools: Mapping[str, Callable[..., Any]] | None = None
    policy: PolicyPort = field(default_factory=YesPolicy)
    world: Callable[[], Iterable[Any]] | None = None
    """Everything that was done to the world since it was asked last, as hashable values."""
    code: str = ""
    """MODULE:GRAPH, where the graph has to be found by another process."""


@dataclass(frozen=True)
class Played:
    """How a play ended: two plays with equal endings cannot be told apart by anybody who looks at them later."""

    endings: Mapping[str, tuple[str, str, str]]
    """Status, error and result, by run: the root, then its children by graph and number."""
    effects: Counter[tuple[str, str]]
    """How often each effect took place, by its name and the digest of its arguments."""
    world: Counter[Any]
    nodes: Mapping[str, Counter[str]]
    """How often each node finished, by run."""
    steps: Mapping[str, tuple[int, ...]]
    """The supersteps that have a checkpoint, by run."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The workspace at the end, by run: text of it, in the order of its paths. Not of a run that has lost files as a
    call's sandbox died: a person who gives the call's value does not have them."""
    lost: tuple[str, ...] = ()
    """Checkpoints that were acknowledged, and are not there."""
    broken: tuple[str, ...] = ()
    """Laws that this play broke by itself, in words."""
    operations: tuple[str, ...] = ()

    def tell(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        told = dict(self.__dict__)
        told["effects"] = [[list(effect), n] for effect, n in self.effects.items()]
        told["world"] = [[thing, n] for thing, n in self.world.items()]
        return told

    @staticmethod
    def read(told: Mapping[str, Any]) -> "Played":
        """What `tell` told."""
        return Played(
            endings={run: (ending[0], ending[1], ending[2]) for run, ending in told["endings"].items()},
            effects=Counter({(name, digest): n for (name, digest), n in told["effects"]}),
            world=Counter(dict(told["world"])),
            nodes={run: Counter(nodes) for run, nodes in told["nodes"].items()},
            steps={run: tuple(steps) for run, steps in told["steps"].items()},
            files=dict(told["files"]),
            lost=tuple(told["lost"]),
            broken=tuple(told["broken"]),
            operations=tuple(told["operations"]),
        )

    def difference(self, other: "Played") -> str:
        """The first thing in which another play differs from this one, in words; empty if there is none."""
        for text in (*other.broken, *(f"checkpoint {name} was acknowledged, and is lost" for name in other.lost)):
            return text
        for name, what in (
            ("endings", "run {} ended as"),
            ("nodes", "run {}: finished nodes are"),
            ("files", "run {}: the files of its workspace are"),
        ):
            for run, expected in getattr(self, name).items():
                found = getattr(other, name).get(run, expected if name == "files" else "nowhere")
                if found != expected:
                    return f"{what.format(run)} {_shown(found)}, not {_shown(expected)}"
        for effects, found_effects in ((self.effects, other.effects), (self.world, other.world)):
            for effect in {**effects, **found_effects}:
                if effects[effect] != found_effects[effect]:
                    return f"effect {_shown(effect)} took place {found_effects[effect]} times, not {effects[effect]}"
        for run, steps in self.steps.items():
            if other.steps.get(run) != steps:
                return f"run {run} has checkpoints of supersteps {_shown(other.steps.get(run))}, not {_shown(steps)}"
        return ""


def _shown(value: Any) -> str:
    text = str(dict(value) if isinstance(value, Counter) else value)
    return text if len(text) <= 300 else text[:297] + "..."


async def play(
    script: Script, store: Store, fault: Fault | None = None, *, slow: bool = False, ledger: Ledger | None = None
) -> Played:
    """Play a script on a store, from a new thread, which is deleted at the end. Raises TimeoutError if it hangs."""
    if script.world is not None:
        list(script.world())
    theatre = Theatre(script, store, fault, slow, ledger or Ledger())
    with _deaths_expected():
        async with asyncio.timeout(PLAY_TIMEOUT_S):
            return await theatre.play()


@contextlib.contextmanager
def _deaths_expected() -> Iterator[None]:
    """What a dead process leaves behind on the loop is no error that anybody should read about."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Crash):
            loop.default_exception_handler(context) if before is None else before(loop, context)

    loop.set_exception_handler(handler)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


class Theatre(Inline):
    """`Inline` as the supervisor, with run actors and sandboxes that can die."""

    def __init__(self, script: Script, store: Store, fault: Fault | None, slow: bool, ledger: Ledger) -> None:
        self.script = script
        self.hand = Stagehand(fault, ledger, slow=slow)
        super().__init__(store, script.policy, SteppedClock(NOW), script.answers, script.tools)
        self.mortals = MortalSandboxes(self.store_of, self.hand, stand_ins=script.tools, clock=self.clock)
        self._actors: set[Process] = set()
        self.robbed: dict[Process, RunRecord] = {}
        """The claims of second owners, by the process that was robbed of its run."""
        self.turn = asyncio.Lock()
        self.broken: list[str] = []
        self._runs: dict[Process, str] = {}
        self._without_files: set[str] = set()
        """Runs for which a person gave the value of a call that has left files."""
        match fault:
            case Fault(victim="machine"):
                self.hand.strike = self._everything_dies
            case Fault(victim="sandbox"):
                self.hand.strike = self._sandbox_dies
            case Fault(victim="owner"):
                self.hand.strike = self._second_owner

    async def play(self, thread: str = "") -> Played:
        """From the start, or from wherever a play on this thread stands, to the end."""
        graph, plan = self.script.graph, self.script.graph.plan()
        try:
            await self.run(
                graph,
                self.script.given,
                key="play",
                thread=thread or f"play-{uuid.uuid4().hex}",
                messages=self.script.messages,
                labels={},
            )
        except RunFailed:
            assert plan  # how it ended is compared, whatever it is
        played = await self._look()
        for record in await self._family_records():
            await self.store.delete_thread(record.thread_id)
        return played

    def store_of(self, process: Process) -> Store:
        watched = self.hand.fault is not None and self.hand.fault.victim == "owner"
        store = WatchedStore(self.store, process, self) if watched else MortalStore(self.store, process, self.hand)
        return cast(Store, store)

    # --- residences ---

    async def _reside(self, record: RunRecord) -> None:
        process = Process("run")
        self._actors.add(process)
        self._runs[process] = record.run_id
        sandboxes = self.mortals.seen_by(process)
        residence = asyncio.ensure_future(self._drive(record, self.store_of(process), sandboxes))
        death = asyncio.ensure_future(process.death.wait())
        try:
            await asyncio.wait([residence, death], return_when=asyncio.FIRST_COMPLETED)
        finally:
            death.cancel()
            residence.cancel()
            await asyncio.wait([residence])
            self._actors.discard(process)
        if not process.dead and not residence.cancelled():
            with contextlib.suppress(Fenced):  # somebody else owns it: what becomes of it is read from the store
                residence.result()
        elif not residence.cancelled():
            residence.exception()
        second = self.robbed.get(process)
        if second is not None:
            await self._drive(second, self.store_of(Process("run")), self.mortals)

    async def _everything_dies(self, process: Process) -> None:
        self.mortals.die()
        for actor in self._actors:
            actor.die()

    async def _sandbox_dies(self, process: Process) -> None:
        self.mortals.die()

    async def _second_owner(self, process: Process) -> None:
        """Somebody who takes the first owner for dead claims the run; the first goes on, and is watched."""
        async with self.turn:
            with contextlib.suppress(Fenced):  # the operation was its last
                await self._rob(process)

    async def _rob(self, process: Process) -> None:
        record = await self.store.run(self._runs[process])
        now = self.clock()
        events = [Event("crashed", now, {"cause": "lease_expired", "epoch": record.epoch, "attempt": 1})]
        counters = counters_of(record.graph, events)
        await self.store.requeue(record.run_id, record.epoch, now, 0.0, events, counters)
        self.robbed[process] = await self.store.claim(record.run_id, "second", LEASE_S, now)

    async def _family_records(self) -> list[RunRecord]:
        """The root first. Found through the event logs: a process before this one may have driven them."""
        ids = [run_id for run_id, ours in self._family.items() if ours][:1]
        for run_id in ids:  # grows as it goes
            ids += [child for child in await children_of(self.store, run_id) if child not in ids]
        return [await self.store.run(run_id) for run_id in ids]

    # --- answers ---

    async def _answer(self, waiting: Sequence[RunRecord]) -> bool:
        """Unknown calls first: the kit knows what really happened."""
        answered = False
        for record in waiting:
            for question in [i for i in record.interrupts if i.kind == "unknown" and not i.settled]:
                if record.status == "waiting" and question.interrupt_id not in record.answers:
                    answer = json.dumps(await self._truth(record, question))
                    await self.store.resume(record.run_id, question.interrupt_id, answer, self.clock())
                    answered = True
        return answered or await super()._answer(waiting)

    async def _truth(self, record: RunRecord, question: Interrupt) -> Any:
        for receipt in await self.store.receipts(record.run_id):
            if receipt.digest == question.digest and receipt.state == "unknown":
                outcome = self.hand.ledger.outcome_of(receipt.key)
                if outcome is not None and outcome.files:
                    self._without_files.add(record.run_id)  # they died with the sandbox, and no person has them
                if outcome is not None:
                    return {"value": outcome.value} if outcome.kind == "ok" else "fail"
        return "retry"

    # --- what became of it ---

    async def _look(self) -> Played:
        records = [await with_result(self.store, record) for record in await self._family_records()]
        names = _names(records)
        logs = {r.run_id: await self.store.events(r.run_id, limit=100_000) for r in records}
        history = {r.run_id: await self.store.history(r.thread_id, 100_000) for r in records}
        kept = {row.checkpoint_id for rows in history.values() for row in rows}
        for record in records:
            self.broken += _lawful(names[record.run_id], record, logs[record.run_id])
            for receipt in await self.store.receipts(record.run_id):
                if receipt.state == "started":
                    self.broken.append(f"the receipt of {receipt.tool!r} says started, and nobody is at work on it")
        return Played(
            endings={names[r.run_id]: (r.status, r.error, _without_ids(r.result, names)) for r in records},
            effects=self.hand.ledger.effects(),
            world=Counter(self.script.world()) if self.script.world is not None else Counter(),
            nodes={
                names[run_id]: Counter(e.data["node"] for e in log if e.kind == "node_finished")
                for run_id, log in logs.items()
            },
            steps={
                names[run_id]: tuple(sorted(row.step for row in rows if row.run_id == run_id))
                for run_id, rows in history.items()
            },
            files={
                names[r.run_id]: await _files(self.store, r) for r in records if r.run_id not in self._without_files
            },
            lost=tuple(sorted(self.hand.ledger.durable() - kept)),
            broken=(*self.hand.broken, *self.broken),
            operations=tuple(self.hand.names),
        )


class WatchedStore(MortalStore):
    """Compares the run's thread before and after each operation of an owner that was robbed of its run.

    `finish` and `forget` belong to a start of the effect and not to an owner (law 5), so they may change a receipt. A
    child that is on record already may still be made by either owner: it is the same one.
    """

    def __init__(self, store: Store, process: Process, theatre: Theatre) -> None:
        super().__init__(store, process, theatre.hand)
        self._theatre = theatre

    async def _perform(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        async with self._theatre.turn:  # nobody else's changes come between the two looks
            robbed = self._theatre.robbed.get(self._process)
            if verb.__name__ == "begin":  # by the sandbox, for an owner that may have been robbed
                receipt, epoch, *_ = args
                late = [r for r in self._theatre.robbed.values() if r.run_id == receipt.run_id and r.epoch > epoch]
                robbed = late[0] if late else None
            if robbed is None or verb.__name__ in ("finish", "forget"):
                return await verb(*args, **kwargs)
            counted = verb.__name__ != "create"
            before = await self._state(robbed.thread_id, counted)
            try:
                return await verb(*args, **kwargs)
            finally:
                if await self._state(robbed.thread_id, counted) != before:
                    self._theatre.broken.append(f"the first owner changed the thread by {verb.__name__!r} after that")

    async def _state(self, thread_id: str, counted: bool) -> tuple[ThreadDump, dict[str, float]]:
        counters = await self._store.counters() if counted else {}
        return await self._store.dump(thread_id), {
            sample: round(value, 9)  # seconds, of which a store adds up parts in whatever order it finds them
            for sample, value in counters.items()
            if not sample.startswith("fence_rejections_total")
        }


def _names(records: Sequence[RunRecord]) -> dict[str, str]:
    """Runs by what they are in every play: their ids differ."""
    names: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for record in records:
        seen[record.graph] += 1
        names[record.run_id] = record.graph if not record.parent else f"{record.graph} (child {seen[record.graph]})"
    return names


async def _files(store: Store, record: RunRecord) -> str:
    """What anybody finds who looks at the run's workspace later."""
    chain = await store.chain(record.thread_id, record.head) if record.head else []
    found = files_of(restore(chain).values) if chain else {}
    return text_of(dict(sorted(found.items())))


def _without_ids(text: str, names: Mapping[str, str]) -> str:
    for run_id, name in names.items():
        text = text.replace(run_id, name)
    return text


def _lawful(name: str, record: RunRecord, log: Sequence[Event]) -> Iterable[str]:
    """What holds for every run that is over."""
    if not record.final:
        yield f"run {name} is {record.status}, and nothing moves it any more"
    if [event.n for event in log] != list(range(1, len(log) + 1)):
        yield f"run {name}: its event log has a gap or a double"
    ends = [event for event in log if event.kind == "finished"]
    if len(ends) != 1:
        yield f"run {name}: it is told {len(ends)} times that it finished"
    epochs = [event.data["epoch"] for event in log if event.kind == "claimed"]
    if epochs != sorted(set(epochs)):
        yield f"run {name}: its epochs did not grow: {epochs}"
