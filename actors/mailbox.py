"""What a run was sent, and which place in which task has received which message.

Laws kept here:
4. What a place received is on record before the node sees it, with the message's body, under a key of its own, as an
   effect is: the node that runs again after a crash receives the same there, even if two tasks of a superstep receive,
   in whatever order. A deadline that passed is on record in the same way.
2. A message leaves the mailbox with the commit of the task that received it, so it is taken exactly once. What a task
   received whose attempt failed is received again by its next attempt; what that one does not want any more goes to
   whoever receives next.

Pure but for `receive`, which awaits the store.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from understudy.actors.effects import RECEIVE, read_outcome, write_outcome
from understudy.actors.errors import CallerError, InterruptExpired, Suspended
from understudy.actors.ledger import Ledger, Place, Wish
from understudy.actors.outcome import Outcome
from understudy.actors.records import Event, Interrupt, Loaded, Message, Receipt

MESSAGE_BYTES_MAX = 1_048_576
"""Of a message's JSON. Larger things belong where they can be fetched from; send a reference."""


class Mailbox:
    """The mailbox as one residence knows it. What comes in after the load wakes the run once it waits."""

    def __init__(self, loaded: Loaded) -> None:
        self._messages = {message.n: message for message in loaded.messages}
        self._newest = max(self._messages, default=0)
        self._receipts = {key: r for key, r in loaded.receipts.items() if r.tool == RECEIVE}
        self._holders: dict[int, str] = {}
        """Task by the n of the message that it has received, while it is at work."""
        for receipt in self._receipts.values():
            n = _received(receipt).get("n")
            if n in self._messages:
                self._holders[n] = receipt.task_id

    def ends(self, wait: Interrupt) -> bool:
        """Whether a wait is over: there is a message that nobody has, or the place had received one before a crash."""
        free = any(n not in self._holders for n in self._messages)
        return free or any(interrupt_id(key) == wait.interrupt_id for key in self._receipts)

    @property
    def listens_after(self) -> int:
        """A message beyond this n is news to a run that waits now (see `Commit.listens_after`)."""
        free = [n for n in self._messages if n not in self._holders]
        return min(free) - 1 if free else self._newest

    def on_record(self, key: str) -> Receipt | None:
        """What this place has received, or is about to."""
        return self._receipts.get(key)

    def first_free(self, before: float | None) -> Message | None:
        """The first message that nobody has, sent before a time (None: at any)."""
        free = [m for n, m in self._messages.items() if n not in self._holders and (before is None or m.at < before)]
        return min(free, key=lambda message: message.n, default=None)

    def record(self, receipt: Receipt) -> None:
        """This place has it from now on, and will after any crash once the receipt is stored."""
        self._receipts[receipt.key] = receipt
        if n := _received(receipt).get("n"):
            self._holders[n] = receipt.task_id

    def finish(self, task_id: str, taken: tuple[int, ...] = ()) -> None:
        """A task is done: what it took is gone, what an earlier attempt of it had received is free again."""
        for n in taken:
            self._messages.pop(n, None)
        if self._holders:
            self._holders = {n: holder for n, holder in self._holders.items() if holder != task_id}


@dataclass(frozen=True)
class Received:
    """A message at its place in a task."""

    n: int
    body: Any


async def receive(
    place: Place, ledger: Ledger, mailbox: Mailbox, known: Interrupt | None, deadline_s: float | None, index: int
) -> Received:
    """The message at this place.

    Args:
        known: the question of this place that is stored with the run, if it has waited already.
    Raises InterruptExpired, or Suspended with the Interrupt to wait with.
    """
    task, now = place.task, ledger.clock()
    for attempt in range(task.attempt + 1):
        key = key_of(place, index, attempt)
        receipt = mailbox.on_record(key)
        if receipt is not None and (attempt == task.attempt or "n" in _received(receipt)):
            return await _answer(place, ledger, mailbox, receipt)
    deadline = known.deadline if known else None
    message = mailbox.first_free(deadline)
    if message is None and (deadline is None or deadline > now):
        due = deadline if known or deadline_s is None else now + deadline_s
        asked_at = known.asked_at if known else now
        raise Suspended(
            Interrupt(interrupt_id(key), task.task_id, task.node, "message", {}, asked_at=asked_at, deadline=due)
        )
    if message is None:
        outcome = Outcome("error", error="no message came before the deadline", error_type="InterruptExpired")
    else:
        value = {"n": message.n, "message_id": message.message_id, "body": json.loads(message.body)}
        outcome = Outcome("ok", value=value)
    wish = Wish(place, RECEIVE, index, "", "ctx.receive()", attempt=task.attempt)
    fresh = wish.receipt("done", ledger.token(), now, outcome=write_outcome(outcome))
    return await _answer(place, ledger, mailbox, fresh)


async def _answer(place: Place, ledger: Ledger, mailbox: Mailbox, receipt: Receipt) -> Received:
    """Put it on record, unless it is, and give it to the node.

    It is noted here before it is stored there, and stored again under the same token by whoever comes to the place
    next: a node that was stopped while the store had it does not make a later attempt skip the message.
    """
    mailbox.record(receipt)
    value = _received(receipt)
    if receipt.key not in place.receipts:
        await ledger.durable()
        data = {"node": place.task.node, "task_id": place.task.task_id}
        data |= {name: value[name] for name in ("n", "message_id") if name in value}
        event = Event("received", receipt.at, data)
        begun = await ledger.store.begin(receipt, place.run.epoch, [event], {}, receipt.at)
        assert begun.fresh, f"receipt {receipt.key} of {RECEIVE} was made by nobody: {begun.receipt}"
    if "n" not in value:
        raise InterruptExpired(f"no message came for node {place.task.node!r} before its deadline")
    return Received(value["n"], value["body"])


def key_of(place: Place, index: int, attempt: int) -> str:
    """The effect key of one receive. A later attempt has one of its own, for a deadline that passed in this one."""
    return Wish(place, RECEIVE, index, "", "", attempt=attempt).key


def interrupt_id(key: str) -> str:
    """Of the wait at the place of this key."""
    return "m" + hashlib.sha256(key.encode()).hexdigest()[:15]


def _received(receipt: Receipt) -> dict[str, Any]:
    """`n`, `message_id` and `body` of the message; empty for a deadline that passed."""
    outcome = read_outcome(receipt.outcome)
    value: dict[str, Any] = outcome.value if outcome.kind == "ok" else {}
    return value


def message_text(message: Any) -> str:
    """JSON of a message. Raises CallerError: it is none, no store could hold it, or it is too large."""
    try:
        text = json.dumps(message, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(f"the message {message!r:.80} is not JSON: {error}; use .model_dump(mode='json')") from None
    if size > MESSAGE_BYTES_MAX:
        raise CallerError(
            f"the message has {size} bytes, and {MESSAGE_BYTES_MAX} is the limit; send a reference to where it can be "
            f"fetched from"
        )
    return text
