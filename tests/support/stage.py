"""A run driven by hand: the real engine over any store, one residence at a time, without Ray."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.actors.calls import Order, Verdict
from understudy.actors.code import Code
from understudy.actors.driver import Driver
from understudy.actors.events import counters_of
from understudy.actors.graph import Graph
from understudy.actors.inline_ports import InlineSandboxes
from understudy.actors.inline_ports import YesPolicy as YesToAll
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.records import Busy, Event, Receipt, RunRecord, Status
from understudy.actors.start import create, new_run
from understudy.actors.store import Store
from understudy.actors.tool import Tool
from understudy.cluster.client import Run
from understudy.policies.permission import Request


class YesPolicy(YesToAll):
    """Grants everything; `verdicts` by tool name override. `asked` lists what it was asked."""

    def __init__(self, verdicts: Mapping[str, Callable[[Request, bool], Verdict]] | None = None) -> None:
        self.verdicts = dict(verdicts or {})
        self.asked: list[Request] = []

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        self.asked.append(request)
        say = self.verdicts.get(request.tool)
        return say(request, approved) if say else await super().decide(request, key, epoch, policy, approved)


class HeldSandboxes(InlineSandboxes):
    """Sandboxes that can be made to hold a call, and that forget what is at work, as dead ones do."""

    def __init__(self, store: Store, **how: Any) -> None:
        super().__init__(store, **how)
        self.called = asyncio.Event()
        """Set once a tool was executed, or is held."""
        self.hold: asyncio.Event | None = None
        """If set, a call that is on record is at work until this event."""
        self.aborted: list[str] = []
        self.known: set[str] = set()

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        assert not self.known or tool.name in self.known, f"stage.tools(...) names no {tool.name!r}"
        return super().code_of(tool)

    async def _called(self, order: Order) -> Outcome:
        self.called.set()
        if self.hold is not None:
            self.calls.append((order.call.tool, order.call.args))
            await self.hold.wait()
            self.calls.pop()
        return await super()._called(order)

    def abort_nowait(self, receipt: Receipt) -> None:
        self.aborted.append(receipt.tool)

    async def attend(self, receipt: Receipt) -> Outcome | None:
        return None


@dataclass
class Stage:
    """Start, drive and answer runs by hand, one residence at a time."""

    store: Store
    graph: Graph
    policy: YesPolicy = field(default_factory=YesPolicy)
    clock: Callable[[], float] = time.time
    children: dict[str, Graph] = field(default_factory=dict)
    """Graphs that were started as children, by the text of their code."""
    sandboxes: HeldSandboxes = field(init=False)

    def __post_init__(self) -> None:
        self.sandboxes = HeldSandboxes(self.store)

    def tools(self, *tools: Tool[..., Any]) -> "Stage":
        """What the graph calls; any other tool is none of this stage's."""
        self.sandboxes.known |= {tool.name for tool in tools}
        return self

    async def start(self, given: Any = None, *, thread: str = "", key: str = "", busy: Busy = "enqueue") -> Run:
        thread = thread or f"t-{uuid.uuid4().hex}"
        new = new_run(self.graph.plan(), Code(ref="inline:graph"), given, thread=thread, key=key, busy=busy)
        record = await create(self.store, new)
        return Run(self.store, record.run_id, self.graph)

    async def driver(self, run: Run, owner: str = "stage") -> Driver:
        """Claim the run, and load it."""
        await self.store.claim(run.run_id, owner, 10.0, self.clock())
        loaded = await self.store.load(run.run_id)
        plan = self.children.get(loaded.run.code, self.graph).plan()
        return Driver(self.store, self.policy, self.sandboxes, plan, loaded, self.clock, ship=self._ship)

    async def _ship(self, graph: Graph | str) -> tuple[Code, Graph]:
        """The very graph is driven here."""
        assert isinstance(graph, Graph)
        code = Code(ref=f"inline:{graph.name}")
        self.children[code.text()] = graph
        return code, graph

    async def settle(self) -> None:
        """Drive whatever is due, one after the other, until nothing is."""
        while ready := (await self.store.due(self.clock(), 1)).ready:
            await self.drive(Run(self.store, ready[0]))

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
