"""One tool call, from the node's wish to its outcome: receipt, decision, execution (the middle of the path).

Laws kept here:
4. The receipt answers; never started starts; started and not known is `unknown`, and is never repeated silently.
5. A call outlives its run actor: one that is on record as started is attended, not repeated.
7. No call without a decision; an approval is good for the digest of the exact call.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from understudy.actors.effects import call_digest, effect_key, read_outcome, write_outcome
from understudy.actors.errors import CallerError, EffectMismatch, Suspended, tellable
from understudy.actors.events import counters_of
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.records import Event, Interrupt, Receipt, RunRecord
from understudy.actors.step import Task
from understudy.actors.store import Store
from understudy.actors.tool import Tool
from understudy.policies.permission import Request


@dataclass(frozen=True)
class Granted:
    """Go: the signed grant, and which rule gave it."""

    token: str
    rule: str
    policy: str
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    rule: str
    policy: str
    reason: str


@dataclass(frozen=True)
class Refused:
    rule: str
    policy: str
    reason: str


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


class SandboxDied(Exception):
    """The sandbox actor went away during the call."""


@dataclass(frozen=True)
class Place:
    """Where in a run a call stands."""

    run: RunRecord
    checkpoint_id: str
    task: Task
    receipts: Mapping[str, Receipt]
    answers: Mapping[str, Any]


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

    async def call(self, place: Place, tool: Tool[Any, Any], args: dict[str, Any], index: int) -> Outcome:
        """The outcome of the call at this place: from its receipt, or made now.

        Raises Suspended with an Interrupt where a person is needed, EffectMismatch, Fenced, CallerError.
        """
        encoded = tool.encode(args)
        digest = call_digest(tool.name, tool.version, encoded)
        run = place.run
        key = effect_key(run.thread_id, place.checkpoint_id, place.task.task_id, tool.name, index)
        receipt = place.receipts.get(key)
        while True:
            if receipt is not None:
                outcome = await self._on_record(place, tool, digest, receipt)
                if outcome is not None:
                    return outcome
            granted = await self._decide(place, tool, encoded, digest, key)
            if isinstance(granted, Outcome):
                return granted
            found = await self._execute(place, tool, encoded, digest, key, granted)
            if isinstance(found, Outcome):
                return found
            receipt = found  # somebody else began it meanwhile: attend it

    async def _or_abort(self, receipt: Receipt, call: Awaitable[T]) -> T:
        """Wait for a call; end it if the run or its node does not want it any more (law 5: only then)."""
        try:
            return await call
        except asyncio.CancelledError:
            if not self.released:
                self.sandboxes.abort_nowait(receipt)
            raise

    async def _on_record(self, place: Place, tool: Tool[Any, Any], digest: str, receipt: Receipt) -> Outcome | None:
        """What a receipt answers; None where the call is to be made again."""
        if receipt.digest != digest:
            raise EffectMismatch(
                f"node {place.task.node!r} runs again and asks for another call of tool {tool.name!r} than the one on "
                f"record in this place ({receipt.key}); make the node's calls depend on its state alone"
            )
        if receipt.state == "started":
            outcome = await self._or_abort(receipt, self.sandboxes.attend(receipt))
            if outcome is not None:
                return outcome
            gone = [Event("tool_finished", self.clock(), _end(receipt, "unknown", 0.0, "its sandbox died"))]
            run = place.run
            await self.store.forget(
                run.run_id, receipt.key, receipt.checkpoint_id, receipt.token, gone, counters_of(run.graph, gone)
            )
            receipt = await self.store.receipt(run.run_id, receipt.key, receipt.checkpoint_id) or receipt
        if receipt.state == "done":
            return read_outcome(receipt.outcome)
        return None if tool.idempotent else self._ask_unknown(place, tool, receipt)

    def _ask_unknown(self, place: Place, tool: Tool[Any, Any], receipt: Receipt) -> Outcome | None:
        interrupt_id = "u" + receipt.token[:15]
        if interrupt_id not in place.answers:
            raise Suspended(
                Interrupt(
                    interrupt_id=interrupt_id,
                    task_id=place.task.task_id,
                    node=place.task.node,
                    kind="unknown",
                    payload={
                        "tool": tool.name,
                        "question": "the sandbox died during this call, so nobody knows whether it took effect; "
                        'look, and answer "retry", "fail" or {"value": ...}',
                    },
                    digest=receipt.digest,
                    asked_at=self.clock(),
                )
            )
        match place.answers[interrupt_id]:
            case "retry":
                return None
            case {"value": value}:
                return Outcome("ok", value=value)
            case _:
                return Outcome("unknown", error="its sandbox died; a person decided not to call again")

    async def _decide(
        self, place: Place, tool: Tool[Any, Any], args: dict[str, Any], digest: str, key: str
    ) -> Granted | Outcome:
        run = place.run
        request = Request(
            tool=tool.name, args=args, run_id=run.run_id, graph=run.graph, digest=digest, labels=run.labels
        )
        interrupt_id = "a" + call_digest(key, digest, {})[:15]
        answer = place.answers.get(interrupt_id)
        approved = isinstance(answer, dict) and answer.get("approve") is True
        verdict = await self.policy.decide(request, key, run.epoch, run.policy, approved)
        match verdict:
            case Granted():
                return verdict
            case Asked() if interrupt_id in place.answers:
                note = answer.get("note", "") if isinstance(answer, dict) else ""
                return await self._denied(
                    place,
                    tool,
                    digest,
                    key,
                    verdict.rule,
                    verdict.policy,
                    "a person said no" + (f": {note}" if note else ""),
                )
            case Asked():
                raise Suspended(
                    Interrupt(
                        interrupt_id=interrupt_id,
                        task_id=place.task.task_id,
                        node=place.task.node,
                        kind="approval",
                        payload={
                            "tool": tool.name,
                            "args": args,
                            "rule": verdict.rule,
                            "policy": verdict.policy,
                            "reason": verdict.reason,
                        },
                        digest=digest,
                        asked_at=self.clock(),
                    )
                )
            case Refused():
                return await self._denied(place, tool, digest, key, verdict.rule, verdict.policy, verdict.reason)

    async def _denied(
        self, place: Place, tool: Tool[Any, Any], digest: str, key: str, rule: str, policy: str, reason: str
    ) -> Outcome:
        """A refusal is an outcome with a receipt: the node that runs again gets the same answer."""
        await self.durable()
        now, run = self.clock(), place.run
        outcome = Outcome("denied", error=reason)
        receipt = Receipt(
            key=key,
            run_id=run.run_id,
            checkpoint_id=place.checkpoint_id,
            task_id=place.task.task_id,
            tool=tool.name,
            digest=digest,
            state="done",
            sandbox="",
            token=self.token(),
            outcome=write_outcome(outcome),
            at=now,
        )
        events = [
            Event("decided", now, _decision(tool.name, "deny", rule, policy, reason, digest)),
            Event("tool_finished", now, _end(receipt, "denied", 0.0, reason)),
        ]
        begun = await self.store.begin(receipt, run.epoch, events, counters_of(run.graph, events), now)
        return outcome if begun.fresh or not begun.receipt.outcome else read_outcome(begun.receipt.outcome)

    async def _execute(
        self, place: Place, tool: Tool[Any, Any], args: dict[str, Any], digest: str, key: str, granted: Granted
    ) -> Outcome | Receipt:
        await self.durable()
        now, run = self.clock(), place.run
        receipt = Receipt(
            key=key,
            run_id=run.run_id,
            checkpoint_id=place.checkpoint_id,
            task_id=place.task.task_id,
            tool=tool.name,
            digest=digest,
            state="started",
            sandbox=self.sandboxes.pick(),
            token=self.token(),
            at=now,
        )
        decided = _decision(tool.name, "allow", granted.rule, granted.policy, granted.reason, digest)
        order = Order(
            call=ToolCall(key=key, tool=tool.name, code=self.sandboxes.code_of(tool), args=args),
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
            return await self.store.receipt(run.run_id, key, place.checkpoint_id) or await self._execute(
                place, tool, args, digest, key, granted
            )


def _decision(tool: str, decision: str, rule: str, policy: str, reason: str, digest: str) -> dict[str, Any]:
    return {
        "tool": tool,
        "decision": decision,
        "rule": rule,
        "policy": policy,
        "reason": reason,
        "digest": digest,
    }


def _end(receipt: Receipt, outcome: str, seconds: float, error: str) -> dict[str, Any]:
    return {"tool": receipt.tool, "key": receipt.key, "outcome": outcome, "seconds": seconds, "error": error}


def finished_event(receipt: Receipt, outcome: Outcome, at: float) -> Event:
    """What the event log says of a call's end. The value itself is in the receipt."""
    error = tellable(outcome.said if len(outcome.said) <= 500 else outcome.said[:497] + "...")
    return Event("tool_finished", at, _end(receipt, outcome.kind, round(outcome.duration_s, 6), error))


def check_value(tool: Tool[Any, Any], outcome: Outcome) -> Any:
    """The result as the tool's annotation says. Raises CallerError if untrusted code answered something else."""
    try:
        return tool.decode(outcome.value)
    except CallerError as error:
        raise CallerError(f"{error} (got {json.dumps(outcome.value)[:80]})") from None
