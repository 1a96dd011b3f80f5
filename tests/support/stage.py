"""A run without Ray: the real engine over any store, with a policy that says yes and tools that run in this process."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.actors.calls import Granted, Order, Verdict, finished_event
from understudy.actors.code import Code
from understudy.actors.driver import Driver
from understudy.actors.effects import write_outcome
from understudy.actors.events import counters_of
from understudy.actors.graph import Graph
from understudy.actors.outcome import Outcome
from understudy.actors.records import Event, NewRun, Receipt, RunRecord, Status, run_id_on
from understudy.actors.store import Store
from understudy.actors.tool import Tool
from understudy.cluster.client import Run, create, input_text
from understudy.policies.permission import Request


class YesPolicy:
    """Grants everything; `verdicts` by tool name override."""

    def __init__(self, verdicts: Mapping[str, Callable[[Request, bool], Verdict]] | None = None) -> None:
        self.verdicts = dict(verdicts or {})
        self.asked: list[Request] = []

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        self.asked.append(request)
        say = self.verdicts.get(request.tool)
        return say(request, approved) if say else Granted("token", "yes", "test")


@dataclass
class InlineSandboxes:
    """Keeps receipts as the sandbox actor does, and calls the plain functions. `calls` lists what was executed."""

    store: Store
    tools: dict[str, Tool[..., Any]] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a tool was executed."""
    hold: asyncio.Event | None = None
    """If set, a call that is on record is at work until this event."""
    aborted: list[str] = field(default_factory=list)
    names: Any = field(default_factory=lambda: itertools.cycle(["sandbox-0"]))

    def pick(self) -> str:
        return str(next(self.names))

    async def execute(self, order: Order) -> Outcome | Receipt:
        now = time.time()
        started = Event("tool_started", now, {"tool": order.call.tool, "key": order.call.key, "sandbox": "inline"})
        events = [order.decided, started]
        begun = await self.store.begin(order.receipt, order.epoch, events, counters_of(order.graph, events), now)
        if not begun.fresh:
            return begun.receipt
        self.calls.append((order.call.tool, order.call.args))
        if self.hold is not None:
            self.called.set()
            await self.hold.wait()
        try:
            outcome = Outcome("ok", value=self.tools[order.call.tool].fn(**order.call.args))
        except Exception as error:
            outcome = Outcome("error", error=str(error), error_type=type(error).__name__)
        events = [finished_event(order.receipt, outcome, now)]
        self.called.set()
        r = order.receipt
        await self.store.finish(
            r.run_id,
            r.key,
            r.checkpoint_id,
            r.token,
            write_outcome(outcome),
            events,
            counters_of(order.graph, events),
            now,
        )
        return outcome

    async def attend(self, receipt: Receipt) -> Outcome | None:
        return None

    def abort_nowait(self, receipt: Receipt) -> None:
        self.aborted.append(receipt.tool)


@dataclass
class Stage:
    """Start, drive and answer runs by hand, one residence at a time."""

    store: Store
    graph: Graph
    policy: YesPolicy = field(default_factory=YesPolicy)
    clock: Callable[[], float] = time.time
    sandboxes: InlineSandboxes = field(init=False)

    def __post_init__(self) -> None:
        self.sandboxes = InlineSandboxes(self.store)

    def tools(self, *tools: Tool[..., Any]) -> "Stage":
        self.sandboxes.tools |= {tool.name: tool for tool in tools}
        return self

    async def start(self, given: Any = None, *, thread: str = "", key: str = "") -> Run:
        plan = self.graph.plan()
        thread_id = thread or f"t-{uuid.uuid4().hex}"
        text = input_text(plan, given)
        new = NewRun(
            run_id=run_id_on(thread_id, uuid.uuid4().hex[:16]),
            thread_id=thread_id,
            graph=plan.name,
            version=plan.version,
            code=Code(ref="inline:graph").text(),
            input=text,
            digest=text,
            key=key,
        )
        record = await create(self.store, new)
        return Run(self.store, record.run_id, self.graph)

    async def driver(self, run: Run, owner: str = "stage") -> Driver:
        """Claim the run, and load it."""
        await self.store.claim(run.run_id, owner, 10.0, self.clock())
        loaded = await self.store.load(run.run_id)
        return Driver(self.store, self.policy, self.sandboxes, self.graph.plan(), loaded, self.clock)

    async def drive(self, run: Run) -> Status:
        """One residence: to the end, or to the next wait."""
        return await (await self.driver(run)).drive()

    async def crash(self, run: Run) -> RunRecord:
        """What the supervisor does when the run's actor died."""
        record = await run.record()
        now = self.clock()
        events = [Event("crashed", now, {"cause": "actor_died", "epoch": record.epoch, "attempt": 1})]
        return await self.store.requeue(run.run_id, record.epoch, now, now, events, counters_of(record.graph, events))

    async def kinds(self, run: Run) -> list[str]:
        """The kinds of a run's events, in order."""
        return [event.kind for event in await self.store.events(run.run_id)]
