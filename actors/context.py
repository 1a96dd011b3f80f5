"""What a node may ask of the runtime: tool calls, questions, durable sleep. Given to it as its second argument.

Each of these has a place in its task, counted when it is asked for, so that a node that runs again finds the receipts
and answers of its earlier attempt. They are plain functions that return an awaitable for this very reason: in
`asyncio.gather(ctx.call(a), ctx.call(b))` the places are given in the order of the text.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from understudy.actors import children, mailbox
from understudy.actors.calls import Caller, Place, check_value
from understudy.actors.children import ParentClose, Ship
from understudy.actors.errors import (
    CallerError,
    Fenced,
    StoreUnavailable,
    Suspended,
    ToolDenied,
    ToolError,
)
from understudy.actors.files import bytes_of, checked, item_of
from understudy.actors.graph import Graph
from understudy.actors.interrupts import OnTimeout, check_duration, question
from understudy.actors.mailbox import Mailbox
from understudy.actors.outcome import Outcome
from understudy.actors.own_effects import OwnEffect, own_effect, perform
from understudy.actors.questions import Questions
from understudy.actors.records import Interrupt, RunRecord
from understudy.actors.streaming import Stream, chunk_text
from understudy.actors.tool import Tool
from understudy.actors.workspace import TaskFiles

if TYPE_CHECKING:
    from understudy.actors.mcp.server import McpServer

R = TypeVar("R")


@dataclass(frozen=True)
class Residence:
    """What all tasks of a run share while it is in an actor."""

    mailbox: Mailbox
    stream: Stream
    ship: Ship
    """Makes the graphs of children known to other processes."""
    bind: Callable[[], None] = lambda: None
    """Called before a child is started that wants to be cancelled or told when the run ends: it is to be looked for."""
    births: children.Births = field(default_factory=children.Births)


class Context:
    """A node's door to the runtime, for `async def` nodes."""

    def __init__(
        self,
        place: Place,
        caller: Caller,
        clock: Callable[[], float],
        interrupts: Mapping[str, Interrupt],
        residence: Residence,
    ) -> None:
        self._place = place
        self._caller = caller
        self._clock = clock
        self._known = interrupts
        self._residence = residence
        self._loop = asyncio.get_running_loop()
        self._places: Counter[str] = Counter()
        self._work: set[asyncio.Task[Any]] = set()
        self.asked: dict[str, Interrupt] = {}
        """Questions of this attempt that have no answer yet, and timers that have fired, by id."""
        self.taken: dict[int, None] = {}
        """Messages that this attempt has received, by n."""
        self.over = False
        """Nobody wants what the node does any more: a cancellation from now on is the run's."""
        self._ended: Literal["", "returned", "raised"] = ""
        self.lost: Fenced | StoreUnavailable | None = None
        """What made a call impossible that is no fault of the tool: the run's residence ends with it, even if the node
        catches it, as an agent does that tells its model of every error."""

    @cached_property
    def _questions(self) -> Questions:
        """Made for a node that has any: it refers back to here."""
        return Questions(self._place, self._caller.ledger, self._clock, self._known, self._ask)

    @property
    def record(self) -> RunRecord:
        """The run as it was when its actor took it up."""
        return self._place.run

    @property
    def run_id(self) -> str:
        return self._place.run.run_id

    @property
    def thread_id(self) -> str:
        return self._place.run.thread_id

    @property
    def node(self) -> str:
        return self._place.task.node

    @property
    def step(self) -> int:
        return self._place.task.step

    def call(self, tool: "Tool[..., R]", /, **args: Any) -> "asyncio.Task[R]":
        """Call a tool: judged by the policy, executed in a sandbox, recorded by a receipt.

        Args: the tool's own, by name; validated through its annotations.
        Returns (awaited): the tool's result, as its annotation says.
        Raises ToolDenied (the policy or a person refused), ToolError (with the outcome), CallerError (arguments).
        """
        index = self._place_of(tool)

        async def called() -> R:
            outcome = await self._call(tool, args, index)
            if outcome.kind == "denied":
                raise ToolDenied(tool.name, outcome)
            if outcome.kind != "ok":
                raise ToolError(tool.name, outcome)
            value: R = check_value(tool, outcome)
            return value

        return self._begin(called())

    def outcome(self, tool: "Tool[..., Any]", /, **args: Any) -> asyncio.Task[Outcome]:
        """Like `call`, but returns the Outcome whatever its kind."""
        return self._begin(self._call(tool, args, self._place_of(tool)))

    @property
    def files(self) -> TaskFiles:
        """The run's workspace, as this attempt sees it."""
        return self._caller.files

    def read_file(self, path: str) -> bytes:
        """A file of the run's workspace, as the calls before have left it. Raises CallerError: there is none."""
        return bytes_of(self.files.now, path)

    def write_file(self, path: str, data: bytes | str, *, executable: bool = False) -> None:
        """Put a file into the run's workspace, for the calls that follow. Raises CallerError."""
        raw = data.encode() if isinstance(data, str) else data
        self.files.take(checked([item_of(path, raw, executable=executable)]))

    def tools(self, server: "McpServer") -> "asyncio.Task[list[dict[str, Any]]]":
        """What an MCP server can do, for a model: name, description and inputSchema of the tools that are accepted.

        The server is started, and asked, under the policy's decision on `mcp:NAME`; what is different from what was
        accepted before is set aside, see `understudy mcp`.
        Raises CallerError: it could not be asked.
        """
        return self._begin(self._tools(server))

    def effect(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        idempotent: bool = False,
        reconcile: Callable[[str], Any] | None = None,
        type: Any = None,
        about: Any = None,
        cost: Mapping[str, int | float | str | Decimal] | None = None,
    ) -> asyncio.Task[Any]:
        """Do something to the world from the node itself, on record: a model call, an HTTP call. It happens once.

        It is on record before `fn` starts, and its result before the node gets it; a node that runs again gets the
        result of the first time. If the run's process died meanwhile, nobody knows how it ended: with `idempotent` it
        is done again; else `reconcile` is asked; else, and if that cannot tell, a person is (`retry`, `fail`, value).

        Args:
            name: what it is, e.g. "ask-model"; a label of metrics, so not made of ids.
            fn: async or plain function without arguments, or of the effect key (text; the same when it is done again:
                send it along as idempotency key). A plain one runs in a thread.
            idempotent: doing it twice under the same key is the same as once.
            reconcile: async or plain function of the key; returns Done(value), NeverHappened() or Unsure(why).
            type: of the result, as pydantic knows it; None: JSON values as they are.
            about: JSON values that say what is asked, e.g. the prompt. A node that runs again and asks about something
                else is stopped (EffectMismatch), instead of getting the old answer.
            cost: what it costs at most (`seconds`, `bytes`, `tokens`, `money`): with it, even empty, the budgets of the
                policies count it, by `effect:NAME`. `fn` may tell what it did cost: `return Paid(answer, tokens=812)`.
                One that raises has cost all.
        Returns (awaited): the result. Raises EffectFailed (with type and message of what `fn` raised), EffectMismatch,
        BudgetExceeded.
        """
        asked = own_effect(name, fn, idempotent, reconcile, type, about, cost)
        return self._begin(self._effect(asked, self._next(asked.ledger_name)))

    def interrupt(
        self,
        payload: Any,
        *,
        deadline: timedelta | None = None,
        on_timeout: OnTimeout = None,
        schema: Any = None,
    ) -> asyncio.Task[Any]:
        """Ask a person: the run is put to sleep, durably, until somebody resumes it with an answer.

        Args:
            payload: JSON values that the one who answers is shown.
            deadline: how long the answer may take.
            on_timeout: what happens then. None: InterruptExpired is raised here; Continue(value): that is the answer;
                Escalate(payload, deadline): it is asked again, as another question.
            schema: pydantic model or type of the answer. One that does not fit its JSON schema is refused when it is
                given.
        Returns (awaited): the answer, of the type `schema`, or as JSON values. The node runs again from its start to
        get here; its effects before are answered by their receipts.
        Raises InterruptExpired, CallerError.
        """
        asked = question(self.node, payload, deadline, on_timeout, schema)
        return self._begin(self._asked(self._questions.answer, asked, self._next("interrupt")))

    def sleep(self, duration: timedelta) -> asyncio.Task[None]:
        """Wait durably, holding no actor: for minutes or months."""
        check_duration(duration, "ctx.sleep")
        return self._begin(self._asked(self._questions.sleep, duration, self._next("sleep")))

    def receive(self, *, deadline: timedelta | None = None) -> asyncio.Task[Any]:
        """The next message that was sent to this run (`run.send`), in order; waits for it durably, holding no actor.

        Args:
            deadline: how long to wait at most; then InterruptExpired is raised here.
        Returns (awaited): the message, as JSON values. It is this task's: it leaves the mailbox when the task is done,
        and if it has to run again, it receives the same here.
        """
        index = self._next("receive")
        return self._begin(self._receive(deadline, index))

    def start(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        labels: Mapping[str, str] | None = None,
        parent_close: ParentClose | None = None,
    ) -> "asyncio.Task[Child]":
        """Start a child run: durable and supervised like any other, and cancelled with this one.

        It goes on if this run succeeds without waiting for it, and if it fails or is quarantined: a retry finds what it
        has done. `understudy cancel` of this run, also when it is over, ends it. `parent_close` says it otherwise.

        Args:
            graph: a Graph, or `module:attribute`.
            input: its first state.
            key: the same key is the same child, wherever in this run it is asked for; default: each place in each task
                has a child of its own.
            labels: added to those of this run, which the child has too, as it has its policy.
            parent_close: what becomes of the child when this run ends. "cancel": it is cancelled, whether this run
                succeeds, fails or is cancelled; "abandon": it goes on in any case; "request": it is sent the message
                {"parent_ended": {"run_id", "status"}} in any case, and decides (it is cancelled if its mailbox is
                full). A quarantined run has not ended: `retry` takes it up. A run that fails has ended, and a retry
                starts other children in the place of those that were cancelled. It counts when the child is made.
        Returns (awaited): the child, once it is durable. It goes on by itself; `await child.result()` waits for it.
        Raises EffectMismatch, GraphError, CodeError, CallerError (the input does not fit).
        """
        index = -1 if key else self._next("start")
        return self._begin(self._start(graph, input, key, labels, index, parent_close))

    def run(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        labels: Mapping[str, str] | None = None,
        parent_close: ParentClose | None = None,
    ) -> asyncio.Task[Any]:
        """`start`, and wait for the child's result. Raises what both raise, e.g. ChildFailed."""
        started = self.start(graph, input, key=key, labels=labels, parent_close=parent_close)

        async def ran() -> Any:
            return await self._result_of((await started)._born)  # begun already, also if the node has returned by then

        return self._begin(ran())

    def stream(self, chunk: Any) -> None:
        """Send a piece of output (JSON values) to whoever follows the run. Returns at once; part of no state.

        If the task has to run again, what it streamed is marked as withdrawn, and it streams anew.
        Raises CallerError: the chunk is not JSON, or larger than 64 KiB, or the store does not keep up.
        """
        if not self._unwanted:
            self._check()
            self._residence.stream.put(self._place.task, chunk_text(chunk, self.node))

    # --- inside ---

    async def _receive(self, deadline: timedelta | None, index: int) -> Any:
        check_duration(deadline, "the deadline of ctx.receive")
        place, ledger = self._place, self._caller.ledger
        known = self._known.get(mailbox.interrupt_id(mailbox.key_of(place, index, place.task.attempt)))
        seconds = None if deadline is None else deadline.total_seconds()
        work = mailbox.receive(place, ledger, self._residence.mailbox, known, seconds, index)
        received = await self._recorded(work)
        self.taken[received.n] = None
        return received.body

    async def _start(
        self,
        graph: Graph | str,
        given: BaseModel | Mapping[str, Any] | None,
        key: str,
        labels: Mapping[str, str] | None,
        index: int,
        close: ParentClose | None,
    ) -> "Child":
        place, ledger, ship = self._place, self._caller.ledger, self._residence.ship
        if close in ("cancel", "request"):
            self._residence.bind()
        work = children.start(place, ledger, ship, graph, given, key, labels, index, close)
        born = await self._recorded(self._residence.births.bring(work))
        return Child(self, born)

    async def _result_of(self, born: children.Born) -> Any:
        known = self._known.get(born.interrupt_id)
        return await self._recorded(children.result(self._place, self._caller.ledger, born, known))

    async def _cancel_child(self, born: children.Born) -> None:
        await self._recorded(children.cancel(self._place, self._caller.ledger, born))

    def _place_of(self, tool: "Tool[..., Any]") -> int:
        if not isinstance(tool, Tool):
            raise CallerError(f"ctx.call wants a tool, not {tool!r}; put @tool on the function")
        return self._next("call:" + tool.name)

    def _next(self, what: str) -> int:
        index = self._places[what]
        self._places[what] += 1
        return index

    def _begin(self, work: Coroutine[Any, Any, R]) -> "asyncio.Task[R]":
        try:
            if self._unwanted:
                raise asyncio.CancelledError("nobody wants what this attempt does any more")
            self._check()
        except BaseException:
            work.close()
            raise
        task = _Work(work, self)
        self._work.add(task)
        task.add_done_callback(_mark_seen)
        return task

    @property
    def _unwanted(self) -> bool:
        """In a thread that nobody could stop, past the node's timeout; in a task beside one that raised."""
        return self.over or self._ended == "raised"

    def _check(self) -> None:
        """Raises CallerError. What a node leaves to others would be part of no step: called in one life of the run, and
        not in the next."""
        if self._ended:
            raise CallerError(
                f"ctx of node {self.node!r} is used after the node has returned; await in it what it begins"
            )
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if not here:
            raise CallerError(
                f"ctx of node {self.node!r} is used in another thread; write the node as `def` instead of `async def`: "
                f"its ctx can be used in threads, and its calls return their results"
            )

    async def _asked(self, work: Callable[..., Awaitable[R]], *how: Any) -> R:
        """The question is made here: one that was never begun would be complained about."""
        return await self._recorded(work(*how))

    async def _call(self, tool: "Tool[..., Any]", args: dict[str, Any], index: int) -> Outcome:
        if not tool.resolves:
            return await self._recorded(self._caller.call(self._place, tool, args, index))
        return await self._recorded(self._call_pinned(tool, args, index))

    async def _call_pinned(self, tool: Any, args: dict[str, Any], index: int) -> Outcome:
        from understudy.actors.mcp.look import Look

        return await Look(self._caller, self._place, self._next).call(tool, args, index)

    async def _tools(self, server: "McpServer") -> list[dict[str, Any]]:
        from understudy.actors.mcp.look import Look

        return await self._recorded(Look(self._caller, self._place, self._next).tools(server))

    async def _effect(self, asked: OwnEffect, index: int) -> Any:
        return await self._recorded(perform(self._caller, self._place, asked, index))

    async def _recorded(self, work: Awaitable[R]) -> R:
        """Do what leaves the system; keep what it asks, and what ended it that is no fault of the node."""
        try:
            return await work
        except Suspended as suspended:
            self._ask(suspended.args[0])
            raise
        except (Fenced, StoreUnavailable) as error:
            self.lost = error
            raise

    def _ask(self, interrupt: Interrupt) -> None:
        self.asked[interrupt.interrupt_id] = interrupt

    async def settle(self, *, returned: bool) -> None:
        """The node has ended: it begins nothing any more. Wait until everything that it began has ended: receipts and
        questions of all of it are known then."""
        self._ended = "returned" if returned else "raised"
        pending = [task for task in self._work if not task.done()]
        if pending:
            await asyncio.wait(pending)

    def release(self) -> None:
        """Leave the calls under way to the run's next owner: whatever ends here from now on does not end them."""
        self.over = self._caller.released = True

    def files_left(self) -> list[Any]:
        """What the attempt has changed in the workspace, all in all."""
        return self.files.change()

    @property
    def left_behind(self) -> bool:
        """Something that it began cannot be stopped: its process is not fit for another run."""
        return self._caller.left_behind

    def stop(self) -> None:
        """Cancel what is still at work."""
        self.over = True
        for task in self._work:
            task.cancel()


class _Work(asyncio.Task[R]):
    """Something that a node has begun.

    Once the node has come to a question, it is not cancelled by what unwinds around it: a TaskGroup takes the question
    of one of its tasks for an error, and ends the others. The node runs again, and wants their calls and effects then.
    """

    def __init__(self, work: Coroutine[Any, Any, R], context: Context) -> None:
        self._context = context
        super().__init__(work)

    def cancel(self, msg: Any = None) -> bool:
        """Whoever waits for it is told so when it ends."""
        if self._context.asked and not self._context.over:
            return False
        return super().cancel(msg)


class Unaided:
    """In the place of a context, for a node that takes none: it has asked, begun, received and changed nothing.
    (To make a context takes a tenth of the way from node to node.)"""

    asked: Mapping[str, Interrupt] = MappingProxyType({})
    taken: Mapping[int, None] = MappingProxyType({})
    left_behind = False

    def __init__(self) -> None:
        self.over = False
        """See Context."""

    def files_left(self) -> list[Any]:
        return []

    def release(self) -> None:
        self.over = True

    def stop(self) -> None:
        self.over = True


class Child:
    """A child run, in the hands of the node that started it."""

    def __init__(self, context: Context, born: children.Born) -> None:
        self._context = context
        self._born = born
        self.run_id = born.record.run_id

    def __repr__(self) -> str:
        return f"Child({self.run_id!r})"

    def result(self) -> asyncio.Task[Any]:
        """Wait for the child's end, durably: this run leaves its actor meanwhile.

        Returns (awaited): the child's final state, as its graph's model.
        Raises ChildFailed: it failed, was cancelled, or is quarantined.
        """
        return self._context._begin(self._context._result_of(self._born))

    def cancel(self) -> asyncio.Task[None]:
        """Ask the child, and its own children, to end. Asking twice is the same as once."""
        return self._context._begin(self._context._cancel_child(self._born))


def _mark_seen(task: "asyncio.Task[Any]") -> None:
    """A call that the node never awaited must not warn about its exception: what it did is on record."""
    if not task.cancelled():
        task.exception()
