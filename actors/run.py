"""What a run may do next, as a table; nothing here can touch the network or the clock.

A `Run` is told what happened (an input) and answers what is to be done (effects), in order. The shell around it
(driver.py) does those things and nothing else. Laws kept here:

2. Every finished task is one commit: its pending writes, or, for the last of a superstep, the checkpoint.
3. `Save` comes before the `Execute` that depends on it; the shell performs effects in order.
11. Faults are told apart: a caller's error ends the run as failed; anything unexpected here is a bug, and crashes.

The manner is h11's and Restate's: input in, effects out, no I/O (see `h11/_state.py`, restate `sdk-shared-core`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from understudy.actors.attempts import Attempt, Failure, ending, ending_in, next_attempt, of_tasks
from understudy.actors.checkpoint import Checkpoint, following, restore
from understudy.actors.effects import call_text
from understudy.actors.errors import CallerError, CodeError, StepLimitReached, tellable
from understudy.actors.events import COMMIT_BUCKETS_S, Observed, counters_of
from understudy.actors.mailbox import Mailbox
from understudy.actors.plan import Plan
from understudy.actors.quick import quick
from understudy.actors.records import FINAL, Commit, Event, Interrupt, Loaded, NewCheckpoint, Receipt, Status
from understudy.actors.results import stored_result
from understudy.actors.step import Task, TaskResult, apply, fallback_of, tasks_of
from understudy.actors.take_up import opened, take_up
from understudy.policies.retention import All

# --- inputs: what a run is told ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The run was loaded by its owner."""

    at: float


@quick
@dataclass(frozen=True)
class Finished:
    """A task returned."""

    at: float
    task: Task
    result: TaskResult
    seconds: float
    taken: tuple[int, ...] = ()
    """Messages that this attempt received, by n."""


@dataclass(frozen=True)
class Failed:
    """A task raised."""

    at: float
    task: Task
    error: str
    types: tuple[str, ...] = ()
    """Class names of the exception's MRO, itself first."""


@dataclass(frozen=True)
class Paused:
    """A task has questions that are not answered yet."""

    at: float
    task: Task
    interrupts: tuple[Interrupt, ...]


@dataclass(frozen=True)
class Elapsed:
    """The time has come for the next try of a task."""

    at: float
    task: Task


@dataclass(frozen=True)
class CancelAsked:
    at: float


@dataclass(frozen=True)
class ChildrenFound:
    """What FindChildren asks for."""

    at: float
    bound: bool


Input = Started | Finished | Failed | Paused | Elapsed | CancelAsked | ChildrenFound

# --- effects: what is to be done, in order -------------------------------------------------------------------------


@dataclass(frozen=True)
class Execute:
    """Start these tasks on this state."""

    tasks: tuple[Task, ...]
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Remind:
    """Tell `Elapsed` of this task after so many seconds."""

    task: Task
    after_s: float


@dataclass(frozen=True)
class Save:
    """Make this durable before anything that comes after it."""

    commit: Commit


@dataclass(frozen=True)
class Abandon:
    """Stop the tasks that are still running; what they return is not wanted any more."""


@dataclass(frozen=True)
class FindChildren:
    """Look whether there are children to be cancelled or told when the run ends: an owner before this one may have
    started them."""


@dataclass(frozen=True)
class CloseChildren:
    """Ask the unfinished children of the run to end, or tell them that it does (see children.ParentClose), once all
    that was saved is durable. Before the commit that ends the run, so that it is done again if it was done in part."""

    status: Status


@dataclass(frozen=True)
class Leave:
    """The run leaves its actor: it is final, or it waits."""

    status: Status


Effect = Execute | Remind | Save | Abandon | FindChildren | CloseChildren | Leave
RESIDENT_S = 5.0
"""A wait for the next try that is longer is none in the actor: the run leaves, and comes back."""
OBSERVED_S = 1.0
"""How old what the shell has observed may get before it is counted. With each commit, it would be 3 more counters."""
Phase = Literal["loaded", "stepping", "ending", "over"]


@dataclass
class Run:
    """One residence of a run in an actor, from `load` to `Leave`."""

    plan: Plan
    loaded: Loaded
    phase: Phase = "loaded"
    checkpoint: Checkpoint = field(init=False)
    seq: int = field(init=False)
    mailbox: Mailbox = field(init=False)
    commit_times: Observed = field(default_factory=lambda: Observed("checkpoint_commit_seconds", COMMIT_BUCKETS_S))
    """What the shell observes, about no event: it is counted with a commit now and then, and with the last one."""
    bound: bool | None = False
    """Whether there are children to be cancelled or told when the run ends by itself; None: nobody has looked."""
    _observed_at: float = 0.0
    """When some was counted last."""
    _open: dict[str, Task] = field(default_factory=dict)
    """Tasks at work."""
    _tasks: tuple[Task, ...] = ()
    """All tasks of the present superstep, in the order in which their writes are merged."""
    _results: dict[str, TaskResult] = field(default_factory=dict)
    _asked: dict[str, tuple[Interrupt, ...]] = field(default_factory=dict)
    """Open questions by task."""
    _attempts: dict[str, Attempt] = field(default_factory=dict)
    """Of tasks that have failed before, by id."""
    _later: dict[str, float] = field(default_factory=dict)
    """When tasks are due whose next try is so far away that the run leaves meanwhile."""
    _held: list[Event] = field(default_factory=list)
    """Events that go with the next commit."""
    _taken: tuple[int, ...] = ()
    """Messages that leave the mailbox with the next commit."""
    _recovered_at: float = 0.0
    _end_when_found: Callable[[], list[Effect]] = list
    """The end that waits for ChildrenFound."""

    def __post_init__(self) -> None:
        self.seq = self.loaded.run.seq
        self.checkpoint = restore(self.loaded.chain)
        self.mailbox = Mailbox(self.loaded)

    def handle(self, told: Input) -> list[Effect]:
        """The effects of an input, to be performed in order. An input that a phase does not know has none."""
        row = TABLE.get((self.phase, type(told)))
        if row is None:
            return []
        try:
            return row(self, told)
        except CodeError:
            raise  # this version of the graph cannot take the run up; whoever owns it sets it aside, untouched
        except CallerError as error:
            return self._end(told.at, "failed", str(error), [])

    # --- rows of the table ---

    def _start(self, told: Started) -> list[Effect]:
        record = self.loaded.run
        self.phase = "stepping"
        self._observed_at = told.at  # a short residence counts what was observed once, with its last commit
        error = ending_in(self.loaded.writes)
        if error is not None:  # the owner before this one did not live to tell all children
            return self._end(told.at, "failed", error, [], writes=ending(None))  # or each retry would find it again
        writes = of_tasks(self.loaded.writes)
        tried = {task_id: Attempt.read(body) for task_id, body in writes.items()}
        self._attempts = {task_id: attempt for task_id, attempt in tried.items() if attempt is not None}
        done = {task_id: body for task_id, body in writes.items() if task_id not in self._attempts}
        self._results = {task_id: TaskResult.read(body) for task_id, body in done.items()}
        for task_id in self._results:
            self.mailbox.finish(task_id)
        try:
            self.checkpoint, given = take_up(self.plan, record, self.checkpoint, self._results)
            if self.checkpoint.run_id != record.run_id:
                self.checkpoint = opened(self.plan, record, self.checkpoint, given)
        except CallerError:
            if record.cancel_asked:  # what cannot be taken up can still be cancelled
                return self._end(told.at, "cancelled", "", [])
            raise
        if record.cancel_asked:
            self._tasks = tasks_of(self.checkpoint, record.run_id)
            return self._cancel(CancelAsked(told.at))
        if record.detected_at:
            self._recovered_at = told.at
        return self._superstep(told.at, [], None)

    def _finish(self, told: Finished) -> list[Effect]:
        if self._open.pop(told.task.task_id, None) is None:
            return []
        event = Event(
            "node_finished",
            told.at,
            {
                "node": told.task.node,
                "task_id": told.task.task_id,
                "step": told.task.step,
                "seconds": round(told.seconds, 6),
            },
        )
        self._taken += told.taken
        return self._took(told.at, told.task, told.result, event, told.taken)

    def _took(
        self, at: float, task: Task, result: TaskResult, event: Event, taken: tuple[int, ...] = ()
    ) -> list[Effect]:
        self._results[task.task_id] = result
        self.mailbox.finish(task.task_id, taken)
        if any(other.task_id not in self._results for other in self._tasks):
            return self._progress(at, event, {task.task_id: result.body()})
        return self._close(at, event)

    def _pause(self, told: Paused) -> list[Effect]:
        if self._open.pop(told.task.task_id, None) is None:
            return []
        known = {interrupt.interrupt_id for interrupt in self.loaded.run.interrupts}
        self._asked[told.task.task_id] = told.interrupts
        self._held.append(Event("node_suspended", told.at, _who(told.task)))
        for interrupt in told.interrupts:
            if interrupt.interrupt_id not in known:
                self._held += _asking(interrupt, told.at)
        # Questions are stored when the run leaves to wait for them; until then its other tasks go on.
        return [] if self._open else self._wait(told.at, [])

    def _fail(self, told: Failed) -> list[Effect]:
        if self._open.pop(told.task.task_id, None) is None:
            return []
        task, node = told.task, self.plan.nodes[told.task.node]
        attempt = self._attempts.get(task.task_id, Attempt(0))
        tries = attempt.number - attempt.since + 1
        data = {**_who(task), "error": tellable(told.error), "attempt": attempt.number}
        again = next_attempt(node, attempt, told.at, told.types, task.task_id)
        if again is not None:
            data["again_at"] = round(again.due, 3)
            return self._try_again(told, again, Event("node_failed", told.at, data))
        event = Event("node_failed", told.at, data)
        who = f"node {task.node!r}"  # which some errors say by themselves
        error = told.error if told.error.startswith(f"{who} ") else f"{who}: {told.error}"
        if node.fallback:
            failure = Failure(task.node, told.error, next(iter(told.types), ""), tries)
            result = TaskResult({}, (fallback_of(self.plan, node, failure),))
            return self._took(told.at, task, result, event)
        if tries > 1:
            error += f" (tried {tries} times)"
        # The next owner, if somebody has the run retried, makes the calls again that failed; also those of the tasks
        # beside this one, which end here with it: else it would take our own `killed` for the end of their calls.
        # (Or those that an owner before this one has left, of tasks that wait: they are ended as well.)
        left = {r.task_id for r in self.loaded.receipts.values() if r.state == "started"} - self._results.keys()
        numbers = {task_id: self._attempts.get(task_id, Attempt(0)).number for task_id in {*self._open, *left}}
        numbers[task.task_id] = attempt.number
        kept = {task_id: Attempt(number + 1, number + 1).body() for task_id, number in numbers.items()}
        return self._end(told.at, "failed", error, [event], writes=kept)

    def _try_again(self, told: Failed, again: Attempt, event: Event) -> list[Effect]:
        task_id = told.task.task_id
        self._attempts[task_id] = again
        writes = {task_id: again.body()}
        if again.due - told.at <= RESIDENT_S:
            self._open[task_id] = told.task
            saved = self._save(told.at, "running", [event], writes=writes)
            return [saved, Remind(told.task, again.due - told.at)]
        self._later[task_id] = again.due
        return self._progress(told.at, event, writes)

    def _again(self, told: Elapsed) -> list[Effect]:
        if told.task.task_id not in self._open:
            return []
        task = replace(told.task, attempt=self._attempts[told.task.task_id].number)
        self._open[task.task_id] = task
        return [Execute((task,), self.checkpoint)]

    def _cancel(self, told: CancelAsked) -> list[Effect]:
        """What had finished is kept: a last checkpoint, after which nothing comes."""
        finished = [(task, self._results[task.task_id]) for task in self._tasks if task.task_id in self._results]
        if not finished:
            return self._end(told.at, "cancelled", "", [])
        try:
            values, changes, _, _ = apply(self.plan, self.checkpoint, finished)
        except CallerError:  # writes that do not go together, or a branch that leads nowhere: nothing is kept of them
            return self._end(told.at, "cancelled", "", [])
        self.checkpoint, new = following(
            self.checkpoint, self.loaded.run.run_id, values, changes, (), {}, self.plan.fingerprint
        )
        event = Event("checkpoint", told.at, {"checkpoint_id": new.checkpoint_id, "step": new.step})
        return self._end(told.at, "cancelled", "", [event], new)

    # --- what they share ---

    def _superstep(self, at: float, events: list[Event], new: NewCheckpoint | None) -> list[Effect]:
        """Store the checkpoint that was just reached, and start what is due; or end, or wait."""
        if not self.checkpoint.frontier:
            return self._end(at, "succeeded", "", events, new)
        if self.checkpoint.step - self.checkpoint.base_step >= self.plan.step_limit:
            message = (
                f"graph {self.plan.name!r} took {self.plan.step_limit} supersteps without an end; look for a loop, "
                f"or raise its step_limit"
            )
            return self._end(at, "failed", str(StepLimitReached(message)), events, new)
        self._tasks = tasks_of(self.checkpoint, self.loaded.run.run_id)
        if new:  # nobody has tried, asked or finished anything of it yet
            self._asked, self._later, due = {}, {}, self._tasks
        else:
            due = self._taken_up(at)
        self._open = {task.task_id: task for task in due}
        saved: list[Effect] = [self._save(at, "running", events, checkpoint=new)] if new else []
        if due:
            return [*saved, Execute(due, self.checkpoint)]
        if all(task.task_id in self._results for task in self._tasks):
            return self._close(at, None)
        return self._wait(at, events)

    def _taken_up(self, at: float) -> tuple[Task, ...]:
        """The tasks of a superstep that an owner before this one has begun which may go on now."""
        open_questions = self._open_questions(at)
        blocked = {interrupt.task_id for interrupt in open_questions}
        self._asked = {task_id: tuple(i for i in open_questions if i.task_id == task_id) for task_id in blocked}
        self._attempts = {t.task_id: self._attempts[t.task_id] for t in self._tasks if t.task_id in self._attempts}
        self._later = {i: attempt.due for i, attempt in self._attempts.items() if attempt.due > at}
        blocked |= set(self._later)
        return tuple(
            replace(t, attempt=self._attempts[t.task_id].number) if t.task_id in self._attempts else t
            for t in self._tasks
            if t.task_id not in self._results and t.task_id not in blocked
        )

    def _open_questions(self, at: float) -> list[Interrupt]:
        """Questions of the superstep that nobody has answered and whose time has not come."""
        record = self.loaded.run
        pending = [i for i in record.interrupts if not i.settled]
        ready = {
            i.task_id
            for i in pending
            if i.interrupt_id in record.answers
            or (i.deadline is not None and i.deadline <= at)
            or (i.kind == "message" and self.mailbox.ends(i))
        }
        # One answer is enough to run a task again; its other questions are asked again under the same ids.
        blocked = {i.task_id for i in pending} - ready
        return [i for i in record.interrupts if i.task_id in blocked]

    def _close(self, at: float, event: Event | None) -> list[Effect]:
        """All tasks of the superstep are done: merge, route, and make the checkpoint."""
        results = [(task, self._results[task.task_id]) for task in self._tasks]
        events = [event] if event else []
        try:
            values, changes, frontier, arrived = apply(self.plan, self.checkpoint, results)
        except CallerError as error:
            return self._end(at, "failed", str(error), events)
        self.checkpoint, new = following(
            self.checkpoint,
            self.loaded.run.run_id,
            values,
            changes,
            frontier,
            arrived,
            self.plan.fingerprint,
            self.plan.version,
            pruned=not isinstance(self.plan.keep, All),
        )
        self._results, self._attempts = {}, {}
        events.append(Event("checkpoint", at, {"checkpoint_id": new.checkpoint_id, "step": new.step}))
        return self._superstep(at, events, new)

    def _progress(self, at: float, event: Event, writes: Mapping[str, str]) -> list[Effect]:
        if not self._open:  # the others of this superstep wait for answers, or for their next try
            return self._wait(at, [event], writes)
        return [self._save(at, "running", [event], writes=writes)]

    def _wait(self, at: float, events: list[Event], writes: Mapping[str, str] | None = None) -> list[Effect]:
        interrupts = tuple(i for task in self._tasks for i in self._asked.get(task.task_id, ()))
        times = [i.deadline for i in interrupts if i.deadline is not None]
        times += self._later.values()
        listens = any(interrupt.kind == "message" for interrupt in interrupts)
        self.phase = "over"
        saved = self._save(
            at,
            "waiting",
            events,
            writes=writes or {},
            interrupts=interrupts,
            wake_at=min(times, default=0.0),
            listens_after=self.mailbox.listens_after if listens else None,
        )
        return [saved, Leave("waiting")]

    def _end(
        self,
        at: float,
        status: Status,
        error: str,
        events: list[Event],
        new: NewCheckpoint | None = None,
        writes: Mapping[str, str] | None = None,
    ) -> list[Effect]:
        assert status in FINAL
        error = tellable(error)
        if self._open and status == "failed":  # the tasks at work may be about to start some
            self.bound = True
        self._open = {}
        if self.bound is None and status != "cancelled":
            self.phase = "ending"
            self._end_when_found = lambda: self._end(at, status, error, events, new, writes)
            return [FindChildren()]
        self.phase = "over"
        before: list[Effect] = [CloseChildren(status)] if status == "cancelled" or self.bound else []
        if status != "cancelled" and self.bound:
            # They are told of an end that is durable (law 3), and that all are told is durable last: whoever takes the
            # run up in between goes on with its end. Tasks at work are stopped first, so that they start no other.
            if status == "failed":
                writes = {**(writes or {}), **ending(error)}
                before.insert(0, Abandon())
            if new or writes:
                before.insert(0, self._save(at, "running", events, checkpoint=new, writes=writes))
            events, new, writes = [], None, ending(None) if status == "failed" else None
        result = ""
        if status == "succeeded":
            result = stored_result(self.plan, self.checkpoint.values, self.loaded.run, checkpoint=new is not None)
        events = [*events, Event("finished", at, {"status": status, "error": error})]
        saved = self._save(at, status, events, checkpoint=new, writes=writes, result=result, error=error)
        # Calls are ended once the end is durable: else the next owner, if this one dies in between, would take `killed`
        # for their outcome in a run that goes on (found by seeded story 20096).
        return [*before, saved, Abandon(), Leave(status)]

    def _found(self, told: ChildrenFound) -> list[Effect]:
        self.bound = told.bound
        return self._end_when_found()

    def _save(
        self,
        at: float,
        status: Status,
        events: list[Event],
        *,
        checkpoint: NewCheckpoint | None = None,
        writes: Mapping[str, str] | None = None,
        interrupts: tuple[Interrupt, ...] = (),
        wake_at: float = 0.0,
        listens_after: int | None = None,
        result: str = "",
        error: str = "",
    ) -> Save:
        if self._recovered_at:
            seconds = max(0.0, self._recovered_at - self.loaded.run.detected_at)
            events = [Event("recovered", at, {"seconds": round(seconds, 6)}), *events]
            self._recovered_at = 0.0
        events, self._held = [*self._held, *events], []
        taken, self._taken = self._taken, ()
        counters = counters_of(self.plan.name, events)
        if self.commit_times and (status != "running" or at - self._observed_at >= OBSERVED_S):
            counters |= self.commit_times.take()
            self._observed_at = at
        self.seq += 1
        return Save(
            Commit(
                run_id=self.loaded.run.run_id,
                epoch=self.loaded.run.epoch,
                seq=self.seq,
                at=at,
                status=status,
                step=self.checkpoint.step,
                checkpoint=checkpoint,
                writes=writes or {},
                interrupts=interrupts,
                wake_at=wake_at,
                events=tuple(events),
                counters=counters,
                result=result,
                error=error,
                retain_s=self.plan.retain_s,
                taken=taken,
                listens_after=listens_after,
            )
        )

    # --- for the shell ---

    def receipts_of(self, task: Task) -> dict[str, Receipt]:
        """Receipts of a task's earlier attempts, by effect key."""
        return {key: r for key, r in self.loaded.receipts.items() if r.task_id == task.task_id}


def _asking(interrupt: Interrupt, at: float) -> list[Event]:
    data = {
        "interrupt_id": interrupt.interrupt_id,
        "node": interrupt.node,
        "kind": interrupt.kind,
        "payload": interrupt.payload,
        "deadline": interrupt.deadline,
    }
    events = [Event("interrupted", at, data)]
    then = interrupt.on_timeout
    if isinstance(then, dict) and "escalated_from" in then:
        told = {"interrupt_id": then["escalated_from"], "to": interrupt.interrupt_id, "node": interrupt.node}
        events.insert(0, Event("escalated", at, {**told, "deadline": interrupt.deadline}))
    if interrupt.kind == "approval":
        known = ("tool", "rule", "policy", "reason", "policies")
        decided = {key: interrupt.payload[key] for key in known if key in interrupt.payload}
        call = call_text(interrupt.payload["tool"], interrupt.payload["args"])
        decided |= {"call": call, "decision": "ask", "digest": interrupt.digest, "by": "policy"}
        events.append(Event("decided", at, decided))
    return events


def _who(task: Task) -> dict[str, Any]:
    return {"node": task.node, "task_id": task.task_id, "step": task.step}


TABLE: Mapping[tuple[Phase, type[Any]], Callable[[Run, Any], list[Effect]]] = {
    # phase       input          what the run does
    ("loaded", Started): Run._start,
    ("loaded", CancelAsked): Run._cancel,
    ("stepping", Finished): Run._finish,
    ("stepping", Failed): Run._fail,
    ("stepping", Paused): Run._pause,
    ("stepping", Elapsed): Run._again,
    ("stepping", CancelAsked): Run._cancel,
    ("ending", ChildrenFound): Run._found,
    # over: late news of abandoned tasks change nothing
}
