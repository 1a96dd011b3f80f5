"""What a node may ask of the runtime: tool calls, questions, durable sleep. Given to it as its second argument.

Each of these has a place in its task, counted when it is asked for, so that a node that runs again finds the receipts
and answers of its earlier attempt. They are plain functions that return an awaitable for this very reason: in
`asyncio.gather(ctx.call(a), ctx.call(b))` the places are given in the order of the text.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from pydantic import ValidationError

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
from understudy.actors.interrupts import (
    EXPIRED,
    Continue,
    Escalate,
    OnTimeout,
    Question,
    asked_again,
    check_duration,
    escalated,
    interrupt_id,
    new_interrupt,
    next_id,
    problem_of,
    question,
    typed,
)
from understudy.actors.outcome import Outcome
from understudy.actors.own_effects import OwnEffect, own_effect, perform
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

    def effect(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        idempotent: bool = False,
        reconcile: Callable[[str], Any] | None = None,
        type: Any = None,
        about: Any = None,
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
        Returns (awaited): the result. Raises EffectFailed (with type and message of what `fn` raised), EffectMismatch.
        """
        asked = own_effect(name, fn, idempotent, reconcile, type, about)
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
        return self._begin(self._interrupt(asked, self._next("interrupt")))

    def sleep(self, duration: timedelta) -> asyncio.Task[None]:
        """Wait durably, holding no actor: for minutes or months."""
        check_duration(duration, "ctx.sleep")
        return self._begin(self._sleep(duration, self._next("sleep")))

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
        return await self._recorded(self._caller.call(self._place, tool, args, index))

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

    async def _interrupt(self, asked: Question, index: int) -> Any:
        task, answers = self._place.task, self._place.answers
        named, since = interrupt_id(task.task_id, "question", index), ""
        while True:
            known = self._known.get(named)
            answered, answer = named in answers, answers.get(named)
            if not answered and known is not None and self._is_due(known):
                answered, answer = True, EXPIRED if known.settled else await self._expire(named)
            if answered and answer == EXPIRED:
                if known is not None:
                    self._ask(_settled(known))
                match asked.on_timeout:
                    case Continue(value):
                        return value
                    case Escalate() as then:
                        asked, since, named = escalated(asked, then), named, next_id(named, "escalated")
                    case None:
                        raise InterruptExpired(f"nobody answered {named} of node {task.node!r} before its deadline")
            elif answered:
                try:
                    return typed(asked, answer)
                except ValidationError as error:
                    asked, named = asked_again(asked, problem_of(error)), next_id(named, json.dumps(answer))
            else:
                found = known or new_interrupt(named, task.task_id, task.node, asked, self._clock(), since)
                self._ask(found)
                raise Suspended(found)

    async def _sleep(self, duration: timedelta, index: int) -> None:
        task, now = self._place.task, self._clock()
        named = interrupt_id(task.task_id, "timer", index)
        timer = self._known.get(named)
        if timer is not None and self._is_due(timer):
            self._ask(_settled(timer))
            return
        until = now + duration.total_seconds()
        timer = timer or Interrupt(named, task.task_id, task.node, "timer", {}, "", now, until)
        self._ask(timer)
        raise Suspended(timer)

    def _is_due(self, interrupt: Interrupt) -> bool:
        return interrupt.settled or (interrupt.deadline is not None and interrupt.deadline <= self._clock())

    async def _expire(self, named: str) -> Any:
        """Let time answer, unless somebody was faster: from here on there is one answer, whoever runs the node."""
        try:
            return await self._caller.ledger.answer(self._place.run, named, EXPIRED)
        except (Fenced, StoreUnavailable) as error:
            self.lost = error
            raise

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

    @property
    def left_behind(self) -> bool:
        """Something that it began cannot be stopped: its process is not fit for another run."""
        return self._caller.left_behind

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

    def effect(self, name: str, fn: Callable[..., Any], **more: Any) -> Any:
        """See Context.effect."""
        return self._wait(lambda: self._context.effect(name, fn, **more))

    def interrupt(
        self, payload: Any, *, deadline: timedelta | None = None, on_timeout: OnTimeout = None, schema: Any = None
    ) -> Any:
        """See Context.interrupt."""
        return self._wait(
            lambda: self._context.interrupt(payload, deadline=deadline, on_timeout=on_timeout, schema=schema)
        )

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
