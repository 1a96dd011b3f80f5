"""The shell around one run: does what `Run` says, and tells it what happened. Without Ray, so that tests need none.

Laws kept here:
1. A `Fenced` answer stops everything quietly; tool calls under way are left to whoever owns the run now.
3. A commit is on its way before the tasks that depend on it start, and has landed before anything leaves the system:
   their calls, their questions, the run itself (see flight.py).
9. There is nothing to do at the end: a driver that vanishes at any line leaves a run that another one can take up.
"""

import asyncio
import contextlib
import contextvars
import functools
import json
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from understudy.actors.blocking import BlockingContext
from understudy.actors.calls import Caller, Place, PolicyPort, SandboxPort
from understudy.actors.checkpoint import Checkpoint
from understudy.actors.children import Ship, are_bound, close_children, is_closed_with
from understudy.actors.context import Context, Residence, Unaided
from understudy.actors.errors import CallerError, EffectFailed, Fenced, NotFound, ToolError, tellable
from understudy.actors.files import CHANNEL
from understudy.actors.flight import IN_FLIGHT_MAX, Flight
from understudy.actors.lazy import state_of
from understudy.actors.plan import Node, Plan
from understudy.actors.pruning import PRUNE_EVERY, prune
from understudy.actors.records import Commit, Committed, Loaded, Status
from understudy.actors.refusals import child_answer
from understudy.actors.run import (
    Abandon,
    CancelAsked,
    ChildrenFound,
    CloseChildren,
    Effect,
    Elapsed,
    Execute,
    Failed,
    FindChildren,
    Finished,
    Input,
    Leave,
    Paused,
    Remind,
    Run,
    Save,
    Started,
)
from understudy.actors.ship import refer_to
from understudy.actors.step import Task, result_of
from understudy.actors.store import Store
from understudy.actors.streaming import Stream
from understudy.actors.threads import in_a_thread
from understudy.actors.values import compact
from understudy.actors.workspace import TaskFiles

MESSAGE_CHARS_MAX = 4000
GROUPS_MAX = 10
"""Exceptions of a group that are told, and groups in groups."""
ABANDON_S = 5.0
"""How long a cancelled node may take to end. One that swallows it is left behind, and its process with it."""


@dataclass
class Driver:
    """Drives one run, from its load to its end or its next wait."""

    store: Store
    policy: PolicyPort
    sandboxes: SandboxPort
    plan: Plan
    loaded: Loaded
    clock: Callable[[], float] = time.time
    in_flight_max: int = IN_FLIGHT_MAX
    """Commits that may be on their way while nodes go on; 0: every node waits for the commit of the one before."""
    ship: Ship = refer_to
    """Makes the graphs of children known to other processes."""
    dirty: bool = False
    """A node could not be stopped (a thread, or a swallowed cancellation): the process is not fit for another run."""
    _inbox: deque[Input] = field(default_factory=deque)
    _effects: deque[Effect] = field(default_factory=deque)
    """What is to be done before the next input is told."""
    _again: bool = False
    """What `_effects` starts may have been tried by an owner before this one."""
    _full: bool = False
    """As many commits are on their way as may be; the next effect waits until all have landed."""
    _turn: asyncio.Event = field(default_factory=asyncio.Event)
    """The next effect is one that takes time, and drive()'s to do; or there is an error for it to raise."""
    _error: BaseException | None = None
    _over: bool = False
    _work: dict[asyncio.Task[None], Context | Unaided] = field(default_factory=dict)
    _threads: int = 0
    _reminders: list[asyncio.TimerHandle] = field(default_factory=list)
    _checkpoints: int = 0
    _pruning: asyncio.Task[int] | None = None
    _run: Run | None = None
    _flight: Flight = field(init=False)
    _residence: Residence = field(init=False)
    _around: contextvars.Context = field(init=False)
    """The context variables of drive(): what one node sets is no other node's."""

    async def drive(self) -> Status:
        """Until the run leaves; its status then. Raises Fenced (stop quietly), StoreUnavailable, CodeError."""
        self._around = contextvars.copy_context()
        self.loaded = await self._with_ends_of_children()
        run = Run(self.plan, self.loaded, bound=False if self.loaded.run.epoch == 1 else None)  # its first residence
        self._flight = Flight(self.store, functools.partial(self._landed, run), self._fail)
        stream = Stream(self.store, self.loaded.run, self.clock, self._fail)
        self._residence = Residence(run.mailbox, stream, self.ship, functools.partial(setattr, run, "bound", None))
        try:
            self._inbox.appendleft(await self._first())
            self._run = run
            self._go_on()
            while True:
                await self._turn.wait()
                if self._error is not None:
                    raise self._error
                if isinstance(effect := self._effects[0], Leave):
                    await self._flight.landed()
                    await self._prune()
                    return effect.status
                await self._take_time(effect)
                self._effects.popleft()
                self._turn.clear()
                self._go_on()
        finally:
            self._over = True
            self._flight.stop()
            stream.stop()
            self._residence.births.stop()
            if self._pruning is not None:
                self._pruning.cancel()
            for reminder in self._reminders:
                reminder.cancel()
            for work, context in self._work.items():
                context.release()
                work.cancel()

    def _tell(self, told: Input) -> None:
        self._inbox.append(told)
        if self._run is not None and not self._over:
            # A task of a node may be what tells it. (Through a queue, it would take a turn of the loop for each node.)
            self._around.copy().run(self._go_on)

    def _fail(self, error: BaseException) -> None:
        """This residence is over: drive() raises it."""
        self._error = self._error or error
        self._turn.set()

    def _go_on(self) -> None:
        """Tell the run what happened, and do what it says, in order, up to what takes time."""
        assert self._run is not None
        try:
            while not (self._turn.is_set() or self._full or self._over):
                if self._effects:
                    if self._do(self._effects[0]):
                        self._effects.popleft()
                    else:
                        self._turn.set()
                elif self._inbox:
                    told = self._inbox.popleft()
                    self._again = isinstance(told, Started) and self.loaded.run.epoch > 1
                    self._effects.extend(self._run.handle(told))
                else:
                    return
        except BaseException as error:  # whoever told it has no part in it
            self._fail(error)

    def _do(self, effect: Effect) -> bool:
        """Whether it could be done at once."""
        match effect:
            case Save(commit) if commit.status == "running":
                self._send(commit)
            case Execute(tasks, checkpoint):
                for task in tasks:
                    self._start(task, checkpoint)
            case Remind(task, after_s):
                told_then = functools.partial(self._elapsed, task)
                self._reminders.append(asyncio.get_running_loop().call_later(after_s, told_then))
            case _:
                return False
        return True

    async def _take_time(self, effect: Effect) -> None:
        match effect:
            case Save(commit):  # the last word: after it, nothing can be streamed
                await self._residence.stream.flush()
                self._send(commit)
            case Abandon():
                await self._flight.landed()
                await self._abandon()
            case FindChildren():
                bound = await are_bound(self.store, self.loaded.run.run_id)
                self._inbox.append(ChildrenFound(self.clock(), bound))
            case CloseChildren(status):
                record = self.loaded.run
                await self._flight.landed()
                await self._residence.births.close()
                await close_children(self.store, record.run_id, status, self.clock(), record.epoch)

    def _send(self, commit: Commit) -> None:
        self._flight.send(commit)
        self._count_checkpoint(commit)
        self._full = self._flight.out >= self.in_flight_max

    async def _with_ends_of_children(self) -> Loaded:
        """The run, with the answers of children that ended while it had failed: nobody told them to a run that was
        final, and after a retry it would wait for them for ever (found by seeded story 20156)."""
        record = self.loaded.run
        if not any(asked.kind == "child" for asked in record.interrupts):
            return self.loaded
        answers = dict(record.answers)
        for asked in record.interrupts:
            if asked.kind == "child" and not asked.settled and asked.interrupt_id not in answers:
                with contextlib.suppress(NotFound):
                    child = await self.store.run(asked.payload["run_id"])
                    if child.final:
                        answers[asked.interrupt_id] = child_answer(child.status, child.error, child.result)
        return replace(self.loaded, run=replace(record, answers=answers))

    async def _first(self) -> Input:
        """A child whose parent was cancelled is cancelled too, if whoever did that did not live to ask it."""
        record = self.loaded.run
        if record.parent:
            with contextlib.suppress(NotFound):
                parent = await self.store.run(record.parent)
                if parent.status == "cancelled" and await is_closed_with(self.store, parent, record, self.clock()):
                    return CancelAsked(self.clock())
        return Started(self.clock())

    def cancel(self) -> None:
        """Somebody asked to cancel the run."""
        self._tell(CancelAsked(self.clock()))

    def fence(self) -> None:
        """The lease is lost: stop, and touch nothing."""
        self._fail(Fenced(f"run {self.loaded.run.run_id} has another owner"))

    def _landed(self, run: Run, committed: Committed, seconds: float) -> None:
        # Counted with the next commit, as one cannot count itself.
        run.commit_times.add(seconds)
        if committed.cancel_asked:
            self.cancel()
        if self._full and not self._flight.out:
            self._full = False
            self._around.copy().run(self._go_on)  # a node's task may be what has written it

    def _count_checkpoint(self, commit: Commit) -> None:
        """A long residence prunes now and then, beside its commits."""
        self._checkpoints += commit.checkpoint is not None
        due = commit.checkpoint is not None and self._checkpoints % PRUNE_EVERY == 0
        if due and (self._pruning is None or self._pruning.done()):
            self._pruning = asyncio.ensure_future(self._prune())

    async def _prune(self) -> int:
        return await prune(self.store, self.plan, self.loaded.run.thread_id, self.clock())

    async def _abandon(self) -> None:
        """End the tasks at work, and their tool calls; also those that an owner before this one has left."""
        for receipt in self.loaded.receipts.values():
            if receipt.state == "started":
                self.sandboxes.abort_nowait(receipt)
        for work, context in self._work.items():
            context.stop()
            work.cancel()
        stubborn: set[asyncio.Task[None]] = set()
        if self._work:
            _, stubborn = await asyncio.wait(list(self._work), timeout=ABANDON_S)
        self.dirty = self.dirty or bool(stubborn) or self._threads > 0

    # --- tasks ---

    def _start(self, task: Task, checkpoint: Checkpoint) -> None:
        context = self._context(task, checkpoint) if self.plan.nodes[task.node].context_name else Unaided()
        self._residence.stream.begin(task, again=self._again)
        work = asyncio.get_running_loop().create_task(self._attempt(task, checkpoint, context))
        self._work[work] = context
        work.add_done_callback(functools.partial(self._ended, task))

    def _context(self, task: Task, checkpoint: Checkpoint) -> Context:
        assert self._run is not None
        record = self.loaded.run
        place = Place(
            run=record,
            checkpoint_id=checkpoint.checkpoint_id,
            task=task,
            receipts=self._run.receipts_of(task),
            answers={key: json.loads(text) for key, text in record.answers.items()},
        )
        caller = Caller(
            self.store,
            self.policy,
            self.sandboxes,
            self.clock,
            lambda: uuid.uuid4().hex,
            self._flight.landed,
            files=TaskFiles(lambda: checkpoint.values.get(CHANNEL, "")),
        )
        mine = {i.interrupt_id: i for i in record.interrupts if i.task_id == task.task_id}
        return Context(place, caller, self.clock, mine, self._residence)

    def _ended(self, task: Task, work: "asyncio.Task[None]") -> None:
        context = self._work.pop(work)
        self.dirty = self.dirty or context.left_behind
        if work.cancelled():
            if not context.over:
                context.stop()
                self._tell(Failed(self.clock(), task, "CancelledError: the node cancelled itself"))
        elif (error := work.exception()) is not None:
            # A lost lease, the store, or a bug of ours: the supervisor decides what comes.
            self._fail(error)

    async def _attempt(self, task: Task, checkpoint: Checkpoint, context: Context | Unaided) -> None:
        """One try of a task: call the node, wait for all it began, tell the run how it ended, write what it says."""
        node = self.plan.nodes[task.node]
        began = time.perf_counter()
        failure: BaseException | None = None
        returned: Any = None
        limit: asyncio.Timeout | None = None
        try:
            if node.timeout_s is None:
                returned = await self._call(node, task, checkpoint, context)
            else:
                async with asyncio.timeout(node.timeout_s) as limit:
                    returned = await self._call(node, task, checkpoint, context)
        except BaseException as error:  # also Suspended, and SystemExit, which would end the whole actor from here
            if isinstance(error, asyncio.CancelledError) and context.over:
                raise
            failure = error  # a CancelledError of the node's own, e.g. of something it awaited, is its failure
            if limit is not None and limit.expired():
                failure = TimeoutError(f"the node took longer than its {node.timeout_s:g} s")
                context.stop()
                self.dirty = self.dirty or not node.is_async  # its thread goes on
        if isinstance(context, Context):
            await context.settle(returned=failure is None)
            if context.lost is not None:
                raise context.lost
        told = self._end_of(task, node, context, returned, failure, time.perf_counter() - began)
        await self._flight.write_what(lambda: self._tell(told))

    def _end_of(
        self,
        task: Task,
        node: Node,
        context: Context | Unaided,
        returned: Any,
        failure: BaseException | None,
        seconds: float,
    ) -> Input:
        """How an attempt ended, as the run is told of it."""
        asked = context.asked.values()
        if asked and any(not interrupt.settled for interrupt in asked):
            return Paused(self.clock(), task, tuple(asked))
        if failure is not None:
            return Failed(self.clock(), task, describe(failure), types_of(failure))
        try:
            result = result_of(self.plan, node, returned)
            if left := context.files_left():
                result = replace(result, writes={**result.writes, CHANNEL: compact(left)})
        except CallerError as error:
            return Failed(self.clock(), task, str(error))
        except Exception as error:  # of the user's own model: its validators may raise anything
            return Failed(self.clock(), task, describe(error), types_of(error))
        return Finished(self.clock(), task, result, seconds, tuple(context.taken))

    async def _call(self, node: Node, task: Task, checkpoint: Checkpoint, context: Context | Unaided) -> Any:
        args: list[Any] = []
        if node.takes_state:
            if task.arg is not None:
                args.append(node.arg_adapter.validate_json(task.arg))
            else:
                args.append(state_of(self.plan.state, self.plan.channels, checkpoint.values))
        if node.is_async:
            named = {node.context_name: context} if node.context_name else {}
            return await node.fn(*args, **named)
        loop = asyncio.get_running_loop()
        blocking = {node.context_name: BlockingContext(context, loop)} if isinstance(context, Context) else {}
        # A thread cannot be stopped: count those at work, so that a cancelled one is not forgotten.
        self._threads += 1
        future = in_a_thread(None, functools.partial(node.fn, *args, **blocking))
        future.add_done_callback(self._thread_ended)
        return await asyncio.shield(future)

    def _thread_ended(self, future: "asyncio.Future[Any]") -> None:
        self._threads -= 1
        if not future.cancelled():
            future.exception()

    def _elapsed(self, task: Task) -> None:
        self._tell(Elapsed(self.clock(), task))


def types_of(error: BaseException, depth: int = 0) -> tuple[str, ...]:
    """Names of the exception's classes, its own first; of a group, those of what is in it too; of an effect or a tool
    call that failed, also the name of what was raised in there."""
    names = [cls.__name__ for cls in type(error).__mro__]
    if isinstance(error, EffectFailed | ToolError) and error.outcome.error_type:
        names.append(error.outcome.error_type)
    if isinstance(error, BaseExceptionGroup) and depth < GROUPS_MAX:
        names += [name for inner in error.exceptions[:GROUPS_MAX] for name in types_of(inner, depth + 1)]
    return tuple(dict.fromkeys(names))


def describe(error: BaseException, depth: int = 0) -> str:
    """An exception for the one who reads a failed run: its type, its message, and where in the user's code."""
    if isinstance(error, BaseExceptionGroup) and depth < GROUPS_MAX:
        return "; ".join(describe(inner, depth + 1) for inner in error.exceptions[:GROUPS_MAX])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/understudy/actors/" not in f.filename]
    frames = [f for f in frames if "/asyncio/" not in f.filename and "/concurrent/" not in f.filename]
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    try:
        said = str(error)
    except Exception as broken:
        said = f"(its message cannot be had: {type(broken).__name__})"
    return f"{type(error).__name__}: {tellable(said, MESSAGE_CHARS_MAX)}{where}"
