"""One tool call, from the node's wish to its outcome: receipt, decision, execution (the middle of the path).

Laws kept here:
4. The receipt answers; never started starts; started and not known is `unknown`, and is never repeated silently.
5. A call outlives its run actor: one that is on record as started is attended, not repeated.
7. No call without a decision; an approval is good for the digest of the exact call.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from understudy.actors.accounts import Accounts, given
from understudy.actors.approvals import Submission, is_withdrawn, read_approval, submission
from understudy.actors.effects import BUDGET, call_digest, call_text, read_outcome, write_outcome
from understudy.actors.errors import CallerError, tellable
from understudy.actors.events import counters_of
from understudy.actors.files import text_of
from understudy.actors.ledger import LOST, Ledger, Until, Wish, decision_data
from understudy.actors.ledger import Place as Place
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.reconciled import Reconciled, Unsure, read_reconciled
from understudy.actors.records import Event, Receipt
from understudy.actors.store import Store
from understudy.actors.tool import Tool
from understudy.actors.workspace import TaskFiles
from understudy.policies.bill import FREE, Bill
from understudy.policies.permission import Request
from understudy.policies.profile import Workspace, least
from understudy.policies.redact import redacted


@dataclass(frozen=True)
class Granted:
    """Go: the signed grant, and which rule gave it."""

    token: str
    rule: str
    policy: str
    reason: str = ""
    by: str = "policy"
    """Who has decided it: the policy, or the person whom it asked."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that the event log has of the decision besides: policies, with their versions, and marks."""
    redact: tuple[str, ...] = ()
    """Paths into the arguments that no event shows."""
    workspace: Workspace = "none"
    order: str = ""
    """The name of the one start that it is good for; empty: any."""
    bill: Bill = FREE
    """Where it is paid from. That of a tool call is in its grant, too, and only that one counts there."""


@dataclass(frozen=True)
class Asked:
    rule: str
    policy: str
    reason: str
    noted: Mapping[str, Any] = field(default_factory=dict)
    redact: tuple[str, ...] = ()
    deadline_s: float | None = None
    """Seconds for the answer; None: no end."""
    on_timeout: Literal["deny", "escalate"] = "deny"


@dataclass(frozen=True)
class Refused:
    rule: str
    policy: str
    reason: str
    noted: Mapping[str, Any] = field(default_factory=dict)
    redact: tuple[str, ...] = ()


Verdict = Granted | Asked | Refused


class PolicyPort(Protocol):
    """The policy actor, as the run sees it."""

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict: ...


@dataclass(frozen=True)
class Order:
    """All that a sandbox actor needs to put a call on record, to make it, and to write its receipt."""

    call: ToolCall
    token: str
    receipt: Receipt
    epoch: int
    graph: str
    decided: Event


class SandboxPort(Protocol):
    """The sandbox actors, as the run sees them."""

    def pick(self) -> str:
        """Name of the sandbox actor for the next call."""

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        """How the sandboxes find the tool's function."""

    async def execute(self, order: Order) -> Outcome | Receipt:
        """Make the call; or, if its key is on record already, answer that receipt. Raises Fenced, SandboxDied."""

    async def attend(self, receipt: Receipt) -> Outcome | None:
        """The outcome of a call at work in the receipt's sandbox; None if nobody works on it."""

    def abort_nowait(self, receipt: Receipt) -> None:
        """End a call that nobody wants any more. To stop waiting for `execute` or `attend` does not end it."""


T = TypeVar("T")
LOST_MOST = 3
"""So often a residence makes an idempotent call whose end the tool does not know: the server that it asks may die of
this very call. Then that is its outcome."""


PRINTED_CHARS = 2000
"""Of what a call has printed whose end its tool does not know: the tail, for the person who is asked."""
FILES_ARE_LOST = "; what it changed in the workspace is lost, and with a value the files stay as they were before it"


class SandboxDied(Exception):
    """The sandbox actor went away during the call."""


async def _at_once() -> None:
    """What a run stands on whose commits are awaited anyway."""


@dataclass
class Caller:
    """Makes calls for the nodes of one run."""

    store: Store
    policy: PolicyPort
    sandboxes: SandboxPort
    clock: Any
    token: Any
    """Makes a new unguessable token."""
    durable: Callable[[], Awaitable[None]] = _at_once
    """Returns once all that this attempt stands on is durable. Awaited before anything leaves the system (law 3)."""
    released: bool = False
    """The run has, or will have, another owner: calls under way are that one's, and are not ended from here."""
    left_behind: bool = False
    """A thread of an effect that nobody wants any more may still be at work: the process is not fit for another run."""
    files: TaskFiles = field(default_factory=lambda: TaskFiles(lambda: ""))
    """The workspace, as the task sees it."""
    ledger: Ledger = field(init=False)
    accounts: Accounts = field(init=False)

    def __post_init__(self) -> None:
        self.accounts = Accounts(given(self.store))
        self.ledger = Ledger(self.store, self.clock, self.token, self.durable)

    async def call(self, place: Place, tool: Tool[Any, Any], args: dict[str, Any], index: int) -> Outcome:
        """The outcome of the call at this place: from its receipt, or made now.

        Raises Suspended with an Interrupt where a person is needed, EffectMismatch, Fenced, CallerError.
        """
        wish = Wish(place, tool.name, index, "", "")
        if tool.workspace == "none":
            return await self._outcome(tool, tool.encode(args), wish)
        async with self.files.turn:
            outcome = await self._outcome(tool, tool.encode(args), wish)
            self.files.take(outcome.files)
            return outcome

    async def _outcome(self, tool: Tool[Any, Any], args: dict[str, Any], blank: Wish) -> Outcome:
        """`blank` is the wish but for what people may have changed about it."""
        place = blank.place

        def submitted(attempt: int) -> Submission:
            key = replace(blank, attempt=attempt).key
            return submission(tool, args, key, place.answers, lambda named: self._is_expired(place, named))

        def wish_in(attempt: int) -> Wish:
            told = submitted(attempt)
            return replace(blank, attempt=attempt, digest=told.digest, said=call_text(tool.name, told.args))

        wish, receipt = await self.ledger.find(place, wish_in)
        lost = 0
        while True:
            if receipt is not None:
                outcome = await self._on_record(wish, tool, receipt, submitted(wish.attempt).args)
                if outcome is not None and self.ledger.answers(wish, outcome):
                    return outcome
                if outcome is not None:
                    wish = wish_in(place.task.attempt)
            plain = submission(tool, args, wish.key, {})  # what the node asks for: that is compared with the origin's
            settled = await self.ledger.in_fork(replace(wish, digest=plain.digest, said=call_text(tool.name, args)))
            if settled is not None:
                return settled
            told = await self._in_time(place, tool, args, wish.key)
            granted = await self._decide(wish, tool, told)
            if isinstance(granted, Outcome):
                return granted
            found = await self._execute(wish, tool, told.args, granted)
            if isinstance(found, Outcome) and found.kind != "unknown":
                return found
            if isinstance(found, Outcome):
                lost += 1
                if tool.idempotent and lost == LOST_MOST:
                    return await self.ledger.settle(wish, found, [])
                found = await self._receipt(wish)
            receipt = found  # the tool does not know how it ended; or somebody else began it meanwhile: attend it

    async def _receipt(self, wish: Wish) -> Receipt:
        found = await self.store.receipt(wish.place.run.run_id, wish.key, wish.place.checkpoint_id)
        assert found is not None, f"the sandbox has put {wish.key} on record"
        return found

    async def _or_abort(self, receipt: Receipt, call: Awaitable[T]) -> T:
        """Wait for a call; end it if the run or its node does not want it any more (law 5: only then)."""
        try:
            return await call
        except asyncio.CancelledError:
            if not self.released:
                self.sandboxes.abort_nowait(receipt)
            raise

    # --- what is on record ---

    async def _on_record(
        self, wish: Wish, tool: Tool[Any, Any], receipt: Receipt, args: dict[str, Any]
    ) -> Outcome | None:
        """What a receipt answers; None where the call is to be made again."""
        if receipt.digest != wish.digest:
            raise await self.ledger.mismatch(wish, receipt)
        if receipt.state == "started":
            outcome = await self._or_abort(receipt, self.sandboxes.attend(receipt))
            if outcome is not None and outcome.kind != "unknown":
                return outcome
            gone = Event("tool_finished", self.clock(), _end(receipt, "unknown", 0.0, LOST))
            receipt = await self.ledger.lost(receipt, wish.place.run, gone)
        if receipt.state == "done":
            return read_outcome(receipt.outcome)
        if tool.idempotent:
            return None
        told = await self._reconcile(wish, tool, receipt, args)
        caution = FILES_ARE_LOST if tool.workspace == "write" else ""
        return await self.ledger.reconciled(wish, receipt, told, tool.decode, caution)

    async def _reconcile(self, wish: Wish, tool: Tool[Any, Any], receipt: Receipt, args: dict[str, Any]) -> Reconciled:
        """Ask the outside how a call ended, in a sandbox, under the policy's decision on the same call."""
        looker = tool.reconciler
        if looker is None:
            return Unsure()
        blank = Wish(wish.place, looker.name, wish.index, "", "", about=(wish.key, receipt.token))
        try:
            outcome = await self._outcome(looker, looker.encode(args), blank)
        except CallerError as error:
            return Unsure(str(error))
        if outcome.kind != "ok":
            return Unsure(f"{looker.name} ended with {outcome.kind}: {outcome.said}")
        return read_reconciled(outcome.value)

    # --- what may be ---

    def _is_expired(self, place: Place, interrupt_id: str) -> bool:
        """Whether it is on record that nobody answered a question in time."""
        return self.ledger.expiry(place, interrupt_id).key in place.receipts

    async def _in_time(self, place: Place, tool: Tool[Any, Any], args: dict[str, Any], key: str) -> Submission:
        """What people have said, and time where they were too late: on record, unless somebody was faster after all."""
        answers, late = dict(place.answers), set[str]()
        while True:
            told = submission(tool, args, key, answers, lambda i: i in late or self._is_expired(place, i))
            named = told.interrupt_id
            asked = next((i for i in place.run.interrupts if i.interrupt_id == named), None)
            if told.approval is not None or asked is None or (asked.deadline or math.inf) > self.clock():
                return told
            faster = await self.ledger.expire(self.ledger.expiry(place, named), named)
            if faster is None:
                late.add(named)
            else:
                answers[named] = json.loads(faster)

    async def _decide(self, wish: Wish, tool: Tool[Any, Any], told: Submission) -> Granted | Outcome:
        """A grant, or the outcome where nothing is executed. Raises Suspended where a person has to say."""
        run, approval = wish.place.run, told.approval
        if tool.refused:
            refused = Outcome("denied", error=tool.refused)
            return await self.ledger.settle(wish, refused, self._events(wish, "deny", tool.refused, by="pins"))
        request = Request(
            tool=tool.judged_as,
            args=told.args,
            run_id=run.run_id,
            graph=run.graph,
            digest=wish.digest,
            labels=run.labels,
            shell=tool.shell,
            code=self.sandboxes.code_of(tool).digest,
            thread_id=run.thread_id,
            parent=run.parent,
            checkpoint_id=wish.place.checkpoint_id,
        )
        approved = approval is not None and approval.approve
        if approval is not None and approval.answered:
            outcome = Outcome("ok", value=approval.value, note=f"answered by {approval.who}")
            reason = f"nothing is executed: {approval.who} gave the answer{approval.noted}"
            return await self.ledger.settle(wish, outcome, self._events(wish, "answer", reason, by=approval.who))
        verdict = await self.word_on(wish, request, approved)
        shown = redacted(told.args, verdict.redact)
        wish = replace(wish, said=call_text(tool.name, shown))
        match verdict:
            case Granted() if approval is not None and approved:
                changed = ", with other arguments" if approval.args is not None else ""
                reason = f"approved by {approval.who}{changed}{approval.noted}"
                return replace(verdict, reason=reason, by=approval.who)
            case Granted():
                return verdict
            case Asked() if approval is None and not (told.expired and verdict.on_timeout == "deny"):
                payload = {
                    "tool": tool.name,
                    "args": shown,
                    "rule": verdict.rule,
                    "policy": verdict.policy,
                    "reason": verdict.reason,
                    **verdict.noted,
                }
                if told.problem:
                    payload["problem"] = told.problem
                until = Until(verdict.deadline_s, verdict.on_timeout, told.expired)
                raise self.ledger.question(wish, told.interrupt_id, "approval", payload, until=until)
            case Asked() if approval is not None and not approval.expired:
                reason, by = f"a person said no{approval.noted}", approval.who
            case Asked():
                reason, by = f"nobody answered in time; {verdict.reason}", "time"
            case Refused():
                reason, by = verdict.reason, "policy"
        # A refusal is an outcome with a receipt: the node that runs again gets the same answer.
        refused = Outcome("denied", error=reason, error_type=BUDGET if "budgets" in verdict.noted else "")
        noted = {"rule": verdict.rule, "policy": verdict.policy, **verdict.noted}
        events = self._events(wish, "deny", reason, by=by, **noted)
        return await self.ledger.settle(wish, refused, events)

    async def word_on(self, wish: Wish, request: Request, approved: bool) -> Verdict:
        """What the policy says; and a person, where the call goes beyond a budget that asks. Raises Suspended."""
        run = wish.place.run
        verdict = await self.policy.decide(request, wish.key, run.epoch, run.policy, approved)
        named = _budget_question(wish)
        approval = read_approval(wish.place.answers[named]) if named in wish.place.answers else None
        if isinstance(verdict, Granted) and approval is not None and not approval.approve:
            # There is room by now, and somebody has said no all the same.
            await self.accounts.release(verdict.bill.accounts, wish.key, run.epoch)
            reason = f"{approval.who} said no{approval.noted}"
            return Refused(verdict.rule, verdict.policy, reason, verdict.noted, verdict.redact)
        if not isinstance(verdict, Asked) or "budgets" not in verdict.noted:
            return verdict
        if approval is None:
            told = {"rule": verdict.rule, "policy": verdict.policy, "reason": verdict.reason, **verdict.noted}
            shown = {"tool": request.tool, "args": redacted(request.args, verdict.redact), **told}
            raise self.ledger.question(wish, named, "approval", shown)
        if not approval.approve:
            reason = f"{approval.who} said no{approval.noted}; {verdict.reason}"
            return Refused(verdict.rule, verdict.policy, reason, verdict.noted, verdict.redact)
        verdict = await self.policy.decide(replace(request, beyond=True), wish.key, run.epoch, run.policy, approved)
        if isinstance(verdict, Granted):
            reason = f"{approval.who} lets it go beyond its budget{approval.noted}"
            return replace(verdict, reason=reason, by=approval.who)
        return verdict

    def _events(self, wish: Wish, decision: str, reason: str, *, by: str, **noted: Any) -> list[Event]:
        """The decision, and the end of a call that was not made."""
        now = self.clock()
        outcome, error = ("denied", reason) if decision == "deny" else ("ok", "")
        return [
            Event("decided", now, decision_data(wish, decision, reason=reason, by=by, **noted)),
            Event("tool_finished", now, _told(wish.name, wish.key, outcome, 0.0, error)),
        ]

    # --- doing it ---

    async def _execute(
        self, wish: Wish, tool: Tool[Any, Any], args: dict[str, Any], granted: Granted
    ) -> Outcome | Receipt:
        await self.durable()
        now, run = self.clock(), wish.place.run
        receipt = wish.receipt("started", granted.order or self.token(), now, sandbox=self.sandboxes.pick())
        wish = replace(wish, said=call_text(tool.name, redacted(args, granted.redact)))
        noted = {"rule": granted.rule, "policy": granted.policy, **granted.noted}
        if tool.judged_as != tool.name:  # rules that ask for the past know it by that name
            noted["judged_as"] = tool.judged_as
        decided = decision_data(wish, "allow", reason=granted.reason, by=granted.by, **noted)
        used = least([tool.workspace, granted.workspace])
        order = Order(
            call=ToolCall(
                key=wish.about[0] or wish.key,
                tool=tool.judged_as,
                code=self.sandboxes.code_of(tool),
                args=args,
                files=None if used == "none" else text_of(self.files.now),
                keeps=used == "write",
                tier=tool.tier or "",
            ),
            token=granted.token,
            receipt=receipt,
            epoch=run.epoch,
            graph=run.graph,
            decided=Event("decided", now, decided),
        )
        try:
            return await self._or_abort(receipt, self.sandboxes.execute(order))
        except SandboxDied:
            # It may have died before it put the call on record (then it never started), during it, or after it.
            return await self.store.receipt(run.run_id, wish.key, wish.place.checkpoint_id) or await self._execute(
                wish, tool, args, granted
            )


def _budget_question(wish: Wish) -> str:
    """About money, and not about the call: so it is a question of its own, whatever was approved before. One that was
    withdrawn, as the budget was raised, is asked under another name if it has to be asked again."""
    named = "b" + call_digest(wish.key, "budget", {"digest": wish.digest})[:15]
    while is_withdrawn(wish.place.answers.get(named)):
        named = "b" + call_digest(named, "again", {})[:15]
    return named


def _end(receipt: Receipt, outcome: str, seconds: float, error: str) -> dict[str, Any]:
    return _told(receipt.tool, receipt.key, outcome, seconds, error)


def _told(tool: str, key: str, outcome: str, seconds: float, error: str) -> dict[str, Any]:
    return {"tool": tool, "key": key, "outcome": outcome, "seconds": seconds, "error": error}


async def finish(store: Store, order: Order, outcome: Outcome, events: Sequence[Event], now: float) -> None:
    """Write the receipt of a call that is over. One whose end the tool itself does not know is not over: it is as if
    its sandbox had died. Raises StoreUnavailable."""
    receipt, counters = order.receipt, counters_of(order.graph, events)
    place = (receipt.run_id, receipt.key, receipt.checkpoint_id, receipt.token)
    if outcome.kind == "unknown":
        await store.forget(*place, events, counters)
    else:
        await store.finish(*place, write_outcome(outcome), events, counters, now)


def finished_event(receipt: Receipt, outcome: Outcome, at: float) -> Event:
    """What the event log says of a call's end. The value itself is in the receipt."""
    error = tellable(outcome.said if len(outcome.said) <= 500 else outcome.said[:497] + "...")
    data = _end(receipt, outcome.kind, round(outcome.duration_s, 6), error)
    if outcome.kind == "unknown" and outcome.printed:  # its receipt has no outcome, and a person will be asked
        data["printed"] = tellable(outcome.printed[-PRINTED_CHARS:])
    return Event("tool_finished", at, data)


def check_value(tool: Tool[Any, Any], outcome: Outcome) -> Any:
    """The result as the tool's annotation says. Raises CallerError if untrusted code answered something else."""
    try:
        return tool.decode(outcome.value)
    except CallerError as error:
        raise CallerError(f"{error} (got {json.dumps(outcome.value)[:80]})") from None
