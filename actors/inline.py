"""Graphs without Ray: `graph.run_inline(input)` drives a run and its children to the end in this process.

The engine (`Driver`), the stores and the laws are the same; what is left out is isolation (tools are plain functions of
this process, see inline_ports.py) and the supervisor (a run that is found with a dead owner is taken over here). It is
meant for unit tests and notebooks, and for a store that nobody else serves.
"""

import asyncio
import contextlib
import functools
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from understudy.actors.answers import checked_answer
from understudy.actors.calls import PolicyPort, SandboxPort
from understudy.actors.children import children_of
from understudy.actors.code import Code, Library
from understudy.actors.driver import Driver
from understudy.actors.errors import AnswerNeeded, CallerError, Conflict, Fenced, NotFound, RunFailed
from understudy.actors.events import counters_of
from understudy.actors.graph import Graph
from understudy.actors.inline_graphs import Shelf
from understudy.actors.inline_ports import InlineSandboxes, RulesPolicy, YesPolicy
from understudy.actors.memory import MemoryStore
from understudy.actors.open import OpenStore
from understudy.actors.process import is_dead, name_of_this_process
from understudy.actors.records import Event, Interrupt, RunRecord, open_questions
from understudy.actors.results import with_result
from understudy.actors.ship import refer_to
from understudy.actors.start import create, new_run
from understudy.actors.step import final_state
from understudy.actors.store import Store
from understudy.policies.permission import Policy
from understudy.policies.policy_file import PolicyError, load_policy

LEASE_S = 60.0
SILENT_AFTER_S = 5.0
"""A supervisor that gave no sign for this long is taken for gone."""
POLL_S = 0.05
"""How often it looks for new work while nodes are at work. The store's hint usually comes first."""

Answers = Mapping[str, Any] | Callable[[Interrupt], Any]


class Clock(Protocol):
    """What time it is, and how it passes."""

    def __call__(self) -> float:
        """Seconds since the epoch."""

    async def wait_until(self, at: float) -> None: ...


class WallClock:
    """This machine's time."""

    def __call__(self) -> float:
        return time.time()

    async def wait_until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.time()))


class SteppedClock:
    """A time that passes only when a run waits for it: `ctx.sleep(timedelta(days=3))` takes no time at all."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now

    async def wait_until(self, at: float) -> None:
        self.now = max(self.now, at)


def run_inline(graph: Graph, given: Any, **how: Any) -> Any:
    """`run_inline_async`, from code that is not async; also where a loop is running already, as in a notebook."""
    running = True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    if not running:  # outside of the except, or each error of a run would seem to have come of "no running event loop"
        return asyncio.run(run_inline_async(graph, given, **how))
    from concurrent.futures import ThreadPoolExecutor  # a thread with a loop of its own: this one's is busy with us

    with ThreadPoolExecutor(1, thread_name_prefix="run-inline") as thread:
        return thread.submit(asyncio.run, run_inline_async(graph, given, **how)).result()


async def run_inline_async(
    graph: Graph,
    given: BaseModel | Mapping[str, Any] | None = None,
    *,
    store: Store | OpenStore | None = None,
    policy: Policy | str | PolicyPort | None = None,
    key: str = "",
    thread: str = "",
    answers: Answers | None = None,
    messages: Sequence[Any] = (),
    tools: Mapping[str, Callable[..., Any]] | None = None,
    clock: Clock | None = None,
    labels: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    files: Mapping[str, bytes | str] | None = None,
) -> Any:
    """See `Graph.run_inline`."""
    if isinstance(store, str):
        raise CallerError(f"store={store!r} is a text; give a store, e.g. store=lambda: open_store('sqlite:///path')")
    opened = await store() if callable(store) else store or MemoryStore()
    clock = clock or WallClock()
    inline = Inline(opened, policy_port(policy, opened, clock), clock, answers, tools, secrets)
    try:
        named = dict(labels or {})
        return await inline.run(graph, given, key=key, thread=thread, messages=messages, labels=named, files=files)
    finally:
        inline.close()
        if callable(store):
            await opened.close()


def policy_port(
    policy: Policy | str | PolicyPort | None, store: Store | None = None, clock: Callable[[], float] = time.time
) -> PolicyPort:
    match policy:
        case None:
            return YesPolicy()
        case Policy():
            return RulesPolicy([policy], store, clock)
        case str():
            try:
                return RulesPolicy([load_policy(policy, source="policy")], store, clock)
            except PolicyError as error:
                raise CallerError(f"the policy cannot be used: {error}") from None
    return policy


@dataclass
class Inline:
    """The supervisor's and the run actor's part, for one run and its children, on one event loop."""

    store: Store
    policy: PolicyPort
    clock: Clock
    answers: Answers | None = None
    tools: Mapping[str, Callable[..., Any]] | None = None
    secrets: Mapping[str, str] | None = None
    _graphs: Shelf = field(default_factory=Shelf)
    """Those that were given as objects."""
    _family: dict[str, bool] = field(default_factory=dict)
    """Whether a run is ours to drive, by id."""
    _residences: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _refused: set[tuple[str, ...]] = field(default_factory=set)
    """Answers, with the questions that have followed them as they were not taken."""

    def __post_init__(self) -> None:
        self.owner = f"{name_of_this_process()}/inline"
        self.sandboxes = InlineSandboxes(self.store, self.tools, clock=self.clock, in_thread=True, secrets=self.secrets)
        self._library = Library(uuid.uuid4().bytes, self.store.get_blob)

    def close(self) -> None:
        self.sandboxes.close()

    async def run(
        self,
        graph: Graph,
        given: BaseModel | Mapping[str, Any] | None,
        *,
        key: str,
        thread: str,
        messages: Sequence[Any],
        labels: Mapping[str, str],
        files: Mapping[str, bytes | str] | None = None,
    ) -> Any:
        """Start a run, or find the one of this key, and drive it to its end. Its final state, as the graph's model."""
        await self._refuse_served()
        plan = graph.plan()
        code, _ = await self._ship(graph)
        new = new_run(plan, code, given, key=key, thread=thread, labels=labels, files=files)
        record = await create(self.store, new, self.clock())
        self._graphs.name(record.code, graph)  # of a run that was started elsewhere, under the same key
        self._family[record.run_id] = True
        await self._no_earlier_than(await self.store.runs(thread_id=record.thread_id))
        await self._find_family(record.run_id)
        if not record.final:
            for n, message in enumerate(messages):
                await self.store.send(record.run_id, f"inline-{n}", json.dumps(message), self.clock())
        if isinstance(self.policy, RulesPolicy):
            await self.policy.mend()
        try:
            record = await self._to_the_end(record.run_id)
            if isinstance(self.policy, RulesPolicy):
                await self.policy.mend()
        finally:
            for residence in self._residences.values():
                residence.cancel()
            if self._residences:
                await asyncio.wait(self._residences.values())
        if record.status != "succeeded":
            raise RunFailed(record)
        return final_state(plan, (await with_result(self.store, record)).result)

    async def _ship(self, graph: Graph | str) -> tuple[Code, Graph]:
        """Nothing is shipped: the very graph is driven here."""
        if isinstance(graph, str):
            return await refer_to(graph)
        return self._graphs.put(graph), graph

    async def _refuse_served(self) -> None:
        """A supervisor would take the run away, and has no code for what is defined here."""
        now = time.time()
        beats = await self.store.beats()
        served = [member for member, (at, _) in beats.items() if now - at < SILENT_AFTER_S and not is_dead(member)]
        if served:
            raise CallerError(
                f"the store is served by {served[0]}, which would take this run; use connect() and cluster.start() "
                f"there, or run inline on another store"
            )

    async def _to_the_end(self, run_id: str) -> RunRecord:
        while True:
            await self._take_over()
            begun = await self._claim_due()
            if self._residences:
                await self._until_something_happens()
            elif not begun:
                waiting = await self._unfinished()
                if not waiting:
                    return await self.store.run(run_id)
                if not await self._answer(waiting):
                    await self._wait(waiting)

    async def _claim_due(self) -> bool:
        """Start a residence for each run of ours that is due; whether there was one."""
        begun = False
        for run_id in (await self.store.due(self.clock(), 1000)).ready:
            if run_id in self._residences or not await self._is_ours(run_id):
                continue
            try:
                record = await self.store.claim(run_id, self.owner, LEASE_S, self.clock())
            except (Conflict, NotFound):
                continue
            residence = self._residences[run_id] = asyncio.ensure_future(self._reside(record))
            residence.add_done_callback(functools.partial(self._left, run_id))
            begun = True
        return begun

    def _left(self, run_id: str, _residence: "asyncio.Task[None]") -> None:
        self._residences.pop(run_id, None)

    async def _reside(self, record: RunRecord) -> None:
        """A residence, from the claim to the run's end or its next wait."""
        await self._drive(record, self.store, self.sandboxes)

    async def _drive(self, record: RunRecord, store: Store, sandboxes: SandboxPort) -> None:
        loaded = await store.load(record.run_id)
        if loaded.run.epoch != record.epoch:
            return
        graph = self._graphs.find(record.code) or await self._library.graph(Code.read(record.code))
        driver = Driver(store, self.policy, sandboxes, graph.plan(), loaded, self.clock, ship=self._ship)
        renewing = asyncio.ensure_future(self._renew(record, driver))
        try:
            await driver.drive()
        except Fenced:
            return  # somebody else has it: what becomes of it is read from the store
        finally:
            renewing.cancel()

    async def _renew(self, record: RunRecord, driver: Driver) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 4)
            renewed = await self.store.renew([(record.run_id, record.epoch)], LEASE_S, self.clock())
            if renewed.lost:
                driver.fence()
            elif renewed.cancelled:
                driver.cancel()

    async def _until_something_happens(self) -> None:
        """A residence ends, or the store hints at new work: a child that was started, a message."""
        hint = asyncio.ensure_future(self.store.wait_work(POLL_S))
        try:
            residences = list(self._residences.values())
            done, _ = await asyncio.wait([hint, *residences], return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {hint}:
                ended.result()
        finally:
            hint.cancel()
            await asyncio.wait([hint])

    # --- whose runs, and how they stand ---

    async def _is_ours(self, run_id: str) -> bool:
        """The run, its children and theirs. Other runs in the store are nobody's business here."""
        if run_id not in self._family:
            parent = (await self.store.run(run_id)).parent
            self._family[run_id] = bool(parent) and await self._is_ours(parent)
        return self._family[run_id]

    async def _find_family(self, run_id: str) -> bool:
        """Find the children that a process before us has made, or one beside us makes; whether there is a new one.

        A child that waits, or that its owner died with, is never due by itself.
        """
        found = False
        for child in await children_of(self.store, run_id):
            if child not in self._family:
                with contextlib.suppress(NotFound):  # on record, but not made yet: its parent makes it
                    await self._no_earlier_than([await self.store.run(child)])
                    self._family[child] = found = True
            found |= child in self._family and await self._find_family(child)
        return found

    async def _no_earlier_than(self, records: Sequence[RunRecord]) -> None:
        """A stepped clock begins no earlier than the last thing that was done by another: what that left behind would
        not be due, for ever."""
        if isinstance(self.clock, SteppedClock):
            await self.clock.wait_until(max(record.updated_at for record in records))

    async def _unfinished(self) -> list[RunRecord]:
        records = [await self.store.run(run_id) for run_id, ours in self._family.items() if ours]
        return [record for record in records if not record.final]

    async def _take_over(self) -> None:
        """A run of ours whose owner died (a process before this one, with the same store and key) is taken from it."""
        here = set(self._residences)  # before the reading: a residence that ends meanwhile leaves no run behind
        for record in await self._unfinished():
            if record.status != "running" or record.run_id in here:
                continue
            now = self.clock()
            if is_dead(record.owner.partition("/")[0]) or record.owner == self.owner or record.lease_until <= now:
                data = {"cause": "owner_died", "epoch": record.epoch, "attempt": record.restarts + 1}
                events = [Event("crashed", now, data)]
                counters = counters_of(record.graph, events)
                with contextlib.suppress(Fenced):  # its last commit came through just now
                    await self.store.requeue(record.run_id, record.epoch, now, 0.0, events, counters)

    # --- waiting ---

    async def _answer(self, waiting: Sequence[RunRecord]) -> bool:
        """Answer what can be answered; whether there was anything. Raises AnswerNeeded for what nothing else ends."""
        answered = False
        unanswered: list[tuple[RunRecord, Interrupt]] = []
        for record in waiting:
            for question in open_questions(record):
                answer = self._answer_to(question)
                if answer is None:
                    unanswered.append((record, question))
                    continue
                text = checked_answer(question, answer, self.clock())
                self._refuse_the_same_again(record, question, text)
                await self.store.resume(record.run_id, question.interrupt_id, text, self.clock())
                answered = True
        if not answered and unanswered and not any(record.not_before for record in waiting):
            if await self._is_one_ready() or await self._find_family(next(iter(self._family))):
                return True
            raise AnswerNeeded(unanswered)
        return answered

    def _refuse_the_same_again(self, record: RunRecord, question: Interrupt, text: str) -> None:
        """An answer that its question does not take is asked for again, and here the same one would come for ever."""
        if not (isinstance(question.payload, dict) and "problem" in question.payload):
            return
        said = (record.run_id, question.task_id, question.kind, json.dumps(question.payload), text)
        if said in self._refused:
            raise CallerError(
                f"the answer {text[:80]} to node {question.node!r} of graph {record.graph!r} is not taken, and given "
                f"again: {question.payload['problem']}"
            )
        self._refused.add(said)

    async def _is_one_ready(self) -> bool:
        """One of ours may have become ready since `_claim_due` looked: by the end of a child, say."""
        return any([await self._is_ours(run_id) for run_id in (await self.store.due(self.clock(), 1000)).ready])

    def _answer_to(self, question: Interrupt) -> Any:
        """None: no answer. A bare yes or no to a call that wants approval is spelled out."""
        answer: Any = None
        if callable(self.answers):
            answer = self.answers(question)
        elif self.answers is not None:
            tool = question.payload.get("tool", "") if isinstance(question.payload, dict) else ""
            names = (question.interrupt_id, question.node, tool)
            answer = next((self.answers[name] for name in names if name in self.answers), None)
        return {"approve": answer} if question.kind == "approval" and isinstance(answer, bool) else answer

    async def _wait(self, waiting: Sequence[RunRecord]) -> None:
        """Until the first timer or deadline. Raises CallerError where nothing in this process can end the wait."""
        times = [record.not_before for record in waiting if record.not_before]
        if any(record.status == "running" for record in waiting):  # in another process, which lives
            await asyncio.sleep(POLL_S)
            return
        if times:
            await self.clock.wait_until(min(times))
            return
        if await self._is_one_ready() or await self._find_family(next(iter(self._family))):
            return
        held = waiting[0]
        kinds = ", ".join(sorted({i.kind for i in held.interrupts if not i.settled})) or "another run of its thread"
        raise CallerError(
            f"run {held.run_id} of graph {held.graph!r} is {held.status} for: {kinds}, and nothing in this process can "
            f"end that; give messages=[...], finish the thread's other run first, or use connect()"
        )
