"""What a node may ask of the runtime: tool calls, questions, durable sleep. Given to it as its second argument.

Each of these has a place in its task, counted when it is asked for, so that a node that runs again finds the receipts
and answers of its earlier attempt. They are plain functions that return an awaitable for this very reason: in
`asyncio.gather(ctx.call(a), ctx.call(b))` the places are given in the order of the text.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from understudy.actors.calls import Caller, Place, check_value
from understudy.actors.errors import (
    CallerError,
    Fenced,
    InterruptExpired,
    StoreUnavailable,
    Suspended,
    ToolDenied,
    ToolError,
)
from understudy.actors.outcome import Outcome
from understudy.actors.records import Interrupt, RunRecord
from understudy.actors.tool import Tool

R = TypeVar("R")


class Context:
    """A node's door to the runtime, for `async def` nodes."""

    def __init__(
        self, place: Place, caller: Caller, clock: Callable[[], float], interrupts: Mapping[str, Interrupt]
    ) -> None:
        self._place = place
        self._caller = caller
        self._clock = clock
        self._known = interrupts
        self._places: Counter[str] = Counter()
        self._work: set[asyncio.Task[Any]] = set()
        self.asked: dict[str, Interrupt] = {}
        """Questions of this attempt that have no answer yet, and timers that have fired, by id."""
        self.over = False
        """Nobody wants what the node does any more: a cancellation from now on is the run's."""
        self.lost: Fenced | StoreUnavailable | None = None
        """What made a call impossible that is no fault of the tool: the run's residence ends with it, even if the node
        catches it, as an agent does that tells its model of every error."""

    @property
    def run(self) -> RunRecord:
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

    def interrupt(self, payload: Any, *, deadline: timedelta | None = None) -> asyncio.Task[Any]:
        """Ask a person: the run is put to sleep, durably, until somebody resumes it with an answer.

        Args:
            payload: JSON values that the one who answers is shown.
            deadline: how long the answer may take. Past it, InterruptExpired is raised here.
        Returns (awaited): the answer, as JSON values. The node runs again from its start to get here; its tool calls
        before are answered by their receipts.
        """
        return self._begin(self._interrupt("question", payload, deadline, self._next("interrupt")))

    def sleep(self, duration: timedelta) -> asyncio.Task[None]:
        """Wait durably, holding no actor: for minutes or months."""
        return self._begin(self._interrupt("timer", {}, duration, self._next("sleep")))

    # --- inside ---

    def _place_of(self, tool: "Tool[..., Any]") -> int:
        if not isinstance(tool, Tool):
            raise CallerError(f"ctx.call wants a tool, not {tool!r}; put @tool on the function")
        return self._next("call:" + tool.name)

    def _next(self, what: str) -> int:
        index = self._places[what]
        self._places[what] += 1
        return index

    def _begin(self, work: Coroutine[Any, Any, R]) -> "asyncio.Task[R]":
        if self.over:  # a thread that nobody could stop, e.g. past the node's timeout
            work.close()
            raise asyncio.CancelledError("nobody wants what this attempt does any more")
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(_mark_seen)
        return task

    async def _call(self, tool: "Tool[..., Any]", args: dict[str, Any], index: int) -> Outcome:
        try:
            return await self._caller.call(self._place, tool, args, index)
        except Suspended as suspended:
            self._ask(suspended.args[0])
            raise
        except (Fenced, StoreUnavailable) as error:
            self.lost = error
            raise

    async def _interrupt(self, kind: Any, payload: Any, duration: timedelta | None, index: int) -> Any:
        task = self._place.task
        name = "\0".join((task.task_id, kind, str(index)))
        interrupt_id = ("t" if kind == "timer" else "q") + hashlib.sha256(name.encode()).hexdigest()[:15]
        if interrupt_id in self._place.answers:
            return self._place.answers[interrupt_id]
        known = self._known.get(interrupt_id)
        now = self._clock()
        if known is not None and (known.settled or (known.deadline is not None and known.deadline <= now)):
            self._ask(_settled(known))
            if kind == "timer":
                return None
            raise InterruptExpired(f"nobody answered {interrupt_id} of node {task.node!r} before its deadline")
        try:
            # UnicodeEncodeError is a ValueError: a lone surrogate is no text, and not every store could hold it.
            json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CallerError(
                f"ctx.interrupt in node {task.node!r}: the payload is not JSON ({error}); use .model_dump(mode='json')"
            ) from None
        if not isinstance(duration, timedelta | None):
            what = "ctx.sleep" if kind == "timer" else "the deadline of ctx.interrupt"
            raise CallerError(f"{what} is a timedelta, not {duration!r:.80}; write e.g. timedelta(seconds=3)")
        deadline = None if duration is None else now + duration.total_seconds()
        asked = known or Interrupt(interrupt_id, task.task_id, task.node, kind, payload, "", now, deadline)
        self._ask(asked)
        raise Suspended(asked)

    def _ask(self, interrupt: Interrupt) -> None:
        self.asked[interrupt.interrupt_id] = interrupt

    async def settle(self) -> None:
        """Wait until everything that the node began has ended: receipts and questions of all of it are known then."""
        pending = [task for task in self._work if not task.done()]
        if pending:
            await asyncio.wait(pending)

    def release(self) -> None:
        """Leave the calls under way to the run's next owner: whatever ends here from now on does not end them."""
        self.over = self._caller.released = True

    def stop(self) -> None:
        """Cancel what is still at work."""
        self.over = True
        for task in self._work:
            task.cancel()


class BlockingContext:
    """The same for `def` nodes, which run in a thread: every call returns its result, not an awaitable."""

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self.run_id = context.run_id
        self.thread_id = context.thread_id
        self.node = context.node
        self.step = context.step

    def call(self, tool: "Tool[..., R]", /, **args: Any) -> R:
        """See Context.call."""
        return self._wait(lambda: self._context.call(tool, **args))

    def outcome(self, tool: "Tool[..., Any]", /, **args: Any) -> Outcome:
        """See Context.outcome."""
        return self._wait(lambda: self._context.outcome(tool, **args))

    def interrupt(self, payload: Any, *, deadline: timedelta | None = None) -> Any:
        """See Context.interrupt."""
        return self._wait(lambda: self._context.interrupt(payload, deadline=deadline))

    def sleep(self, duration: timedelta) -> None:
        """See Context.sleep."""
        self._wait(lambda: self._context.sleep(duration))

    def _wait(self, begin: Callable[[], Awaitable[R]]) -> R:
        async def waited() -> R:
            return await begin()

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result()


def _settled(interrupt: Interrupt) -> Interrupt:
    return replace(interrupt, settled=True, deadline=None)


def _mark_seen(task: "asyncio.Task[Any]") -> None:
    """A call that the node never awaited must not warn about its exception: what it did is on record."""
    if not task.cancelled():
        task.exception()
