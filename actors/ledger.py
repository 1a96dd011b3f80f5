"""The ledger of effects: what tool calls, effects of nodes and whatever else leaves the system have in common (law 4).

An effect is a `Wish` in a place. What is on record there answers it; what was started and whose end nobody knows is
settled by the one who can (its declaration, the outside, a person); what a fork's origin has done is asked about.
Law 3: whoever puts something on record here waits for `durable` first.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.actors.effects import DEADLINE, call_digest, effect_key, place_of, read_outcome, stands, write_outcome
from understudy.actors.errors import CallerError, EffectMismatch, Suspended
from understudy.actors.events import counters_of
from understudy.actors.forks import Beyond, fork_of
from understudy.actors.outcome import Outcome
from understudy.actors.reconciled import Done, NeverHappened, Reconciled, Unsure
from understudy.actors.records import Event, Interrupt, InterruptKind, Receipt, ReceiptState, RunRecord
from understudy.actors.step import Task
from understudy.actors.store import Store


@dataclass(frozen=True)
class Place:
    """Where in a run a task stands, and what is known of it."""

    run: RunRecord
    checkpoint_id: str
    task: Task
    receipts: Mapping[str, Receipt]
    answers: Mapping[str, Any]


@dataclass(frozen=True)
class Wish:
    """One effect that a node asks for."""

    place: Place
    name: str
    """The tool's, or with a prefix of its kind (`effect:`)."""
    index: int
    """Counts those of this name in the task, from 0."""
    digest: str
    """Of all that makes it this very call and no other."""
    said: str
    """The call, for people."""
    attempt: int = 0
    """The attempt that its name belongs to: an earlier one, where that one's end is to be settled first."""
    about: tuple[str, str] = ("", "")
    """Key and token of the start that this effect only asks about (reconcile)."""

    @property
    def key(self) -> str:
        task = (self.place.run.thread_id, self.place.checkpoint_id, self.place.task.task_id)
        key = effect_key(*task, self.name, self.index, self.attempt)
        return call_digest(key, self.about[1], {}) if self.about[1] else key

    @property
    def where(self) -> str:
        return place_of(self.place.task, self.name, self.index)

    def receipt(self, state: ReceiptState, token: str, at: float, sandbox: str = "", outcome: str = "") -> Receipt:
        return Receipt(
            key=self.key,
            run_id=self.place.run.run_id,
            checkpoint_id=self.place.checkpoint_id,
            task_id=self.place.task.task_id,
            tool=self.name,
            digest=self.digest,
            state=state,
            sandbox=sandbox,
            token=token,
            outcome=outcome,
            at=at,
            place=self.where,
        )


@dataclass(frozen=True)
class Until:
    """How long an answer may take, and what happens then."""

    within_s: float | None
    then: str
    instead_of: str = ""
    """The question before, which nobody answered in time."""

    def deadline(self, asked_at: float) -> float | None:
        return None if self.within_s is None else asked_at + self.within_s

    @property
    def told(self) -> dict[str, str] | None:
        """JSON values, as they stand in the interrupt."""
        found = {} if self.within_s is None else {"then": "deny" if self.instead_of else self.then}
        if self.instead_of:
            found["escalated_from"] = self.instead_of
        return found or None


@dataclass(frozen=True)
class Ledger:
    """Reads and writes the receipts of one run."""

    store: Store
    clock: Callable[[], float]
    token: Callable[[], str]
    """Makes a new unguessable token."""
    durable: Callable[[], Awaitable[None]]
    """Returns once all that this attempt stands on is durable."""

    # --- what is on record ---

    async def find(self, place: Place, wish_in: Callable[[int], Wish]) -> tuple[Wish, Receipt | None]:
        """What is on record of this attempt, or of the newest before it; with the wish under that attempt's name.

        `wish_in` gives the wish under the name of an attempt. Raises EffectMismatch: on record is another call, and it
        may have happened. (One that is known to have failed in an earlier attempt may be followed by another.)
        """
        for attempt in range(place.task.attempt, -1, -1):
            wish = wish_in(attempt)
            receipt = place.receipts.get(wish.key)
            if receipt is None and attempt < place.task.attempt:  # made in this very residence, after its load
                receipt = await self.store.receipt(place.run.run_id, wish.key, place.checkpoint_id)
            if receipt is None:
                continue
            if receipt.digest == wish.digest:
                return wish, receipt
            if attempt == place.task.attempt or receipt.standing != "failed":
                raise await self.mismatch(wish, receipt)
            break
        return wish_in(place.task.attempt), None

    def answers(self, wish: Wish, outcome: Outcome) -> bool:
        """Whether an outcome on record is the answer; if not, the effect is made again in the present attempt."""
        return wish.attempt == wish.place.task.attempt or stands(outcome)

    async def mismatch(self, wish: Wish, receipt: Receipt) -> EffectMismatch:
        """The error that names both calls."""
        first = await self.said(receipt.run_id, receipt.digest) or f"another one ({receipt.digest})"
        return EffectMismatch(
            f"node {wish.place.task.node!r} runs again and asks for another call of {_kind(wish.name)} than the one on "
            f"record in this place ({wish.where}): on record is {first}, which is {receipt.standing}; now it asks for "
            f"{wish.said}. Neither is executed; make the node's calls depend on its state and on what earlier calls "
            f"answered, or fork the run"
        )

    async def said(self, run_id: str, digest: str) -> str:
        """What was asked for, from the event log; empty if it does not tell."""
        return (await calls_of(self.store, run_id)).get(digest, "")

    async def settle(self, wish: Wish, outcome: Outcome, events: list[Event]) -> Outcome:
        """Put an outcome on record that nothing was executed for, under a new receipt or one that is unknown.

        What somebody else has put there meanwhile stands.
        """
        await self.durable()
        now, run = self.clock(), wish.place.run
        done = wish.receipt("done", self.token(), now, outcome=write_outcome(outcome))
        begun = await self.store.begin(done, run.epoch, events, counters_of(run.graph, events), now)
        return outcome if begun.fresh or not begun.receipt.outcome else read_outcome(begun.receipt.outcome)

    # --- started, and not known ---

    async def lost(self, receipt: Receipt, run: RunRecord, event: Event) -> Receipt:
        """Mark an effect as unknown that nobody is at work on; its record then (done, if it was told just now)."""
        events = [event]
        await self.store.forget(
            run.run_id, receipt.key, receipt.checkpoint_id, receipt.token, events, counters_of(run.graph, events)
        )
        return await self.store.receipt(run.run_id, receipt.key, receipt.checkpoint_id) or receipt

    async def reconciled(
        self, wish: Wish, receipt: Receipt, told: Reconciled, fits: Callable[[Any], Any], caution: str = ""
    ) -> Outcome | None:
        """What the outside told of an unknown effect: its outcome, or None where it is to be made.

        `caution`: what the person who is asked has to know of a value. `fits` raises CallerError for a value that
        cannot be its result. Raises Suspended where the outside cannot tell either, and nobody has answered.
        """
        if isinstance(told, Done):
            try:
                fits(told.value)
            except CallerError as error:
                told = Unsure(str(error))
        match told:
            case Done(value):
                outcome = Outcome("ok", value=value, note="reconciled: the other side had it")
                return await self.settle(wish, outcome, [self._reconciled(wish, "done", "reconcile")])
            case NeverHappened():
                return None
            case Unsure(why):
                return await self._ask_unknown(wish, receipt, why, fits, caution)

    async def _ask_unknown(
        self, wish: Wish, receipt: Receipt, why: str, fits: Callable[[Any], Any], caution: str
    ) -> Outcome | None:
        """What a person told of an unknown effect. A value that cannot be its result is asked for again."""
        interrupt_id, problem = "u" + receipt.token[:15], ""
        answers = wish.place.answers
        while interrupt_id in answers and isinstance(answers[interrupt_id], dict):
            try:
                fits(answers[interrupt_id].get("value"))
                break
            except CallerError as error:
                problem = str(error)
                interrupt_id = "u" + call_digest(interrupt_id, "again", {})[:15]
        if interrupt_id not in answers:
            # As the log has it: a policy may have kept arguments out of it.
            said = await self.said(receipt.run_id, receipt.digest) or wish.said
            how, printed = await self._how_lost(receipt)
            question = f"{how} ({said}), so nobody knows whether it took effect; "
            if why:
                question += f"its reconcile did not tell either: {why}; "
            payload = {
                "tool": wish.name,
                "question": question + 'look, and answer "retry", "fail" or {"value": ...}' + caution,
            }
            if printed:
                payload["printed"] = printed
            if problem:
                payload["problem"] = problem
            raise self.question(wish, interrupt_id, "unknown", payload)
        match answers[interrupt_id]:
            case "retry":
                return None
            case {"value": value}:
                outcome = Outcome("ok", value=value, note="answered by a person")
                return await self.settle(wish, outcome, [self._reconciled(wish, "done", "person")])
            case _:
                outcome = Outcome("unknown", error="nobody knows how it ended; a person decided not to call again")
                return await self.settle(wish, outcome, [self._reconciled(wish, "fail", "person")])

    async def _how_lost(self, receipt: Receipt) -> tuple[str, str]:
        """In words; what the tool has said of it, where it lost sight of its call itself; and what it had printed."""
        if not receipt.sandbox:
            return "the run's process died during this effect", ""
        told, printed = await told_lost(self.store, receipt)
        if told:
            return f"this call lost sight of what it had begun: {told}", printed
        return "the sandbox died during this call", ""

    # --- time ---

    def expiry(self, place: Place, interrupt_id: str) -> Wish:
        """Under this name it is on record that a question's deadline has passed."""
        digest = call_digest(DEADLINE, interrupt_id, {})
        return Wish(place, f"{DEADLINE}:{interrupt_id}", 0, digest, f"the deadline of {interrupt_id}")

    async def expire(self, wish: Wish, interrupt_id: str) -> str | None:
        """Put on record that nobody answered in time; or give the answer (JSON) of somebody who was faster.

        From here on it is so for whoever runs the node: an answer that comes later leads it no other way.
        """
        answer = (await self.store.run(wish.place.run.run_id)).answers.get(interrupt_id)
        if answer is None:
            data = {"interrupt_id": interrupt_id, "node": wish.place.task.node}
            await self.settle(wish, Outcome("ok"), [Event("expired", self.clock(), data)])
        return answer

    # --- in a fork ---

    async def in_fork(self, wish: Wish) -> Outcome | None:
        """What is to be done where the origin of a fork has had an effect: its outcome, or None where it is made.

        Raises Suspended while a person has to say so.
        """
        fork = fork_of(wish.place.run.input)
        told = fork.of_origin(wish.where, wish.digest) if fork else None
        if fork is None or told is None or fork.mode == "repeat":
            return None
        origin = await self.store.receipt(told.run_id, told.key, told.checkpoint_id)
        usable = origin is not None and origin.state == "done"
        same = told.digest == wish.digest
        exact = same and told.place == wish.where  # only then does the mode answer for it
        asked = call_digest(wish.place.task.task_id, wish.where, {"digest": wish.digest, "usable": usable})
        interrupt_id = "f" + asked[:15]
        by, answer = f"effects={fork.mode!r}", fork.mode
        if interrupt_id in wish.place.answers:
            by, answer = "a person", wish.place.answers[interrupt_id]
        elif not exact or fork.mode == "ask" or (fork.mode == "reuse" and not usable):
            answers = ["repeat", "reuse", "refuse"] if usable else ["repeat", "refuse"]
            payload = {
                "tool": wish.name,
                "call": wish.said,
                "origin": {
                    "call": told.call,
                    "standing": origin.standing if origin else told.standing,
                    "run_id": told.run_id,
                    "place": told.place,
                },
                "place": wish.where,
                "same": same,
                "question": _question(wish, told, same, usable),
                "answers": answers,
            }
            raise self.question(wish, interrupt_id, "repeat", payload, {"enum": answers})
        match answer:
            case "reuse" if origin is not None and usable:
                taken = replace(read_outcome(origin.outcome), note=f"reused from run {told.run_id}")
                return await self.settle(wish, taken, [self._decided(wish, "reuse", "the origin's outcome", by)])
            case "repeat":
                return None
            case _:
                reason = f"it is an effect of the run that this one was forked from, and is not repeated ({by})"
                refused = Outcome("denied", error=reason)
                return await self.settle(wish, refused, [self._decided(wish, "deny", reason, by)])

    # --- words ---

    def question(
        self,
        wish: Wish,
        interrupt_id: str,
        kind: InterruptKind,
        payload: Any,
        schema: Any = None,
        until: "Until | None" = None,
    ) -> Suspended:
        """What is raised to ask a person about an effect. One that stands already keeps its time."""
        task = wish.place.task
        standing = (i.asked_at for i in wish.place.run.interrupts if i.interrupt_id == interrupt_id)
        asked_at = next(standing, self.clock())
        return Suspended(
            Interrupt(
                interrupt_id=interrupt_id,
                task_id=task.task_id,
                node=task.node,
                kind=kind,
                payload=payload,
                digest=wish.digest,
                asked_at=asked_at,
                deadline=until.deadline(asked_at) if until else None,
                schema=schema,
                on_timeout=until.told if until else None,
            )
        )

    def _reconciled(self, wish: Wish, answer: str, by: str) -> Event:
        return Event("reconciled", self.clock(), {"tool": wish.name, "key": wish.key, "answer": answer, "by": by})

    def _decided(self, wish: Wish, decision: str, reason: str, by: str) -> Event:
        return Event("decided", self.clock(), decision_data(wish, decision, reason=reason, by=by))


def decision_data(
    wish: Wish,
    decision: str,
    *,
    rule: str = "",
    policy: str = "",
    reason: str = "",
    by: str = "policy",
    **noted: Any,
) -> dict[str, Any]:
    """Data of the event `decided`: who decided what about which call; and what a verdict notes besides."""
    return {
        **noted,
        "tool": wish.name,
        "key": wish.key,
        "call": wish.said,
        "decision": decision,
        "rule": rule,
        "policy": policy,
        "reason": reason,
        "digest": wish.digest,
        "by": by,
    }


async def calls_of(store: Store, run_id: str) -> dict[str, str]:
    """What the effects of a run asked for, in words, by digest: from its event log."""
    calls: dict[str, str] = {}
    after = 0
    while events := await store.events(run_id, after):
        after = events[-1].n
        calls |= {event.data["digest"]: event.data["call"] for event in events if event.data.get("call")}
    return calls


LOST = "its sandbox died"
"""What the event log has of a call that nobody is at work on any more, and nobody has told the end of."""


async def told_lost(store: Store, receipt: Receipt) -> tuple[str, str]:
    """Why a call is unknown, as the log has it of its last start (empty: its sandbox died), and what it had printed."""
    found, printed, after = "", "", 0
    while events := await store.events(receipt.run_id, after):
        after = events[-1].n
        for event in events:
            if event.kind == "tool_finished" and event.data["key"] == receipt.key:
                found, printed = event.data["error"], event.data.get("printed", "")
    return ("", "") if found == LOST else (found, printed)


def _kind(name: str) -> str:
    kind, colon, rest = name.partition(":")
    return f"{kind} {rest!r}" if colon else f"tool {name!r}"


def _question(wish: Wish, told: Beyond, same: bool, usable: bool) -> str:
    where = "in this place" if told.place == wish.where else f"in another place ({told.place})"
    words = f"run {told.run_id}, which this one was forked from, has asked for {told.call or told.name} {where}"
    words += f" ({told.standing})"
    words += "; the fork asks for the same" if same else f"; the fork asks for another call, {wish.said}"
    choices = ['"repeat" (it is done, if the policy allows it)']
    if usable:
        choices.append('"reuse" (nothing is done: the outcome there answers here)')
    choices.append('"refuse" (nothing is done, and the node is told so)')
    return f"{words}. Answer {', or '.join(choices)}"
