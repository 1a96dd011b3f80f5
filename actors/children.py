"""Child runs: started by a node, durable and supervised like any other, and tied to their parent by its interrupt.

Laws kept here:
3. What the parent stands on is durable before a child is made.
4. A child's id and thread follow from the place that starts it (or from its key), so a node that runs again finds the
   child that it has. The receipt of its start tells which one it was.
2. A child lives in its parent's partition, so that the child's end and the parent's answer are one move of the store.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import BaseModel

from understudy.actors.code import Code
from understudy.actors.effects import START, call_text, read_outcome, write_outcome
from understudy.actors.errors import (
    CallerError,
    ChildFailed,
    Conflict,
    EffectMismatch,
    Fenced,
    NotFound,
    StoreUnavailable,
    Suspended,
    ToolDenied,
)
from understudy.actors.events import counters_of
from understudy.actors.graph import Graph
from understudy.actors.ledger import Ledger, Place, Wish
from understudy.actors.names import check_name
from understudy.actors.outcome import Outcome
from understudy.actors.records import (
    Event,
    Interrupt,
    NewRun,
    RunRecord,
    Status,
    partition_of_thread,
    run_id_on,
)
from understudy.actors.start import create, new_run
from understudy.actors.store import Store

EVENTS_PAGE = 1000

Ship = Callable[[Graph | str], Awaitable[tuple[Code, Graph]]]
"""Where other processes find the code of a graph, once this has returned; and the graph."""

ParentClose = Literal["cancel", "abandon", "request"]
"""What becomes of a child when its parent ends. `cancel`: it is cancelled, however the parent ended; `abandon`: it goes
on, also if the parent was cancelled; `request`: it is told so by a message, and decides. Where nothing was said: it is
cancelled with its parent, and goes on without one that has succeeded or failed."""

CLOSES: tuple[ParentClose, ...] = get_args(ParentClose)


@dataclass(frozen=True)
class Born:
    """A child as it was found or made."""

    record: RunRecord
    graph: Graph

    @property
    def interrupt_id(self) -> str:
        return self.record.parent_interrupt


class Births:
    """The starts of children that are under way while a run is in an actor. What a node has begun of one is done to its
    end, also if the node is stopped: a request that is on its way makes the child, whoever still waits for it."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Born]] = set()
        self._too_late: set[asyncio.Future[Born]] = set()
        self._closed = False
        self._lost: Fenced | StoreUnavailable | None = None

    async def bring(self, work: Coroutine[Any, Any, Born]) -> Born:
        """The child that is started by this; once they are closed, none is, and this waits to be cancelled. If it is
        cancelled, it ends when the child is made: the next try of its node, or the end of the run, looks for that."""
        if self._closed:
            work.close()
            never: asyncio.Future[Born] = asyncio.get_running_loop().create_future()
            self._too_late.add(never)
            never.add_done_callback(self._too_late.discard)
            return await never
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._over)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if self._lost is not None:
                raise self._lost from None
            raise

    async def close(self) -> None:
        """No other is started from now on; returns when all that were begun are made, so that they can be found (by
        seeded story 1003444). Raises Fenced, StoreUnavailable: of one that is not known, and only another epoch, in
        which what is still on its way is refused, can tell."""
        self._closed = True
        if self._under_way:
            await asyncio.wait([*self._under_way])
        if self._lost is not None:
            raise self._lost

    def stop(self) -> None:
        """The run has left, or is somebody else's. Nobody who waits for a child is kept waiting, e.g. a thread."""
        for waited in [*self._under_way, *self._too_late]:
            waited.cancel()

    def _over(self, task: "asyncio.Task[Born]") -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Fenced | StoreUnavailable):
            self._lost = error


async def start(
    place: Place,
    ledger: Ledger,
    ship: Ship,
    graph: Graph | str,
    given: BaseModel | Mapping[str, Any] | None,
    key: str,
    labels: Mapping[str, str] | None,
    index: int,
    close: ParentClose | None = None,
) -> Born:
    """The child of this place: the one that there is, or a new one.

    A later attempt of the node takes the child of an earlier one, unless that has failed or was cancelled. In a fork,
    a child that the origin has started is asked about, as every effect of it.
    Raises EffectMismatch: the place, or the key, has a child of another graph or input; ToolDenied: a fork that is not
    to repeat it; CallerError, CodeError.
    """
    if close is not None and close not in CLOSES:
        raise CallerError(f"parent_close={close!r} is none of {', '.join(CLOSES)}")
    if not isinstance(graph, Graph | str):
        raise CallerError(f"ctx.start and ctx.run take a Graph or MODULE:GRAPH, not {graph!r:.80}")
    code, loaded = await ship(graph)
    check_name("the key of a child", key)
    plain = new_run(loaded.plan(), code, given, labels={**place.run.labels, **(labels or {})})
    said = call_text(plain.graph, json.loads(plain.input)["values"])
    blank = Wish(place, f"{START}:{key}" if key else START, index, plain.digest, said)
    attempts = [] if key else [replace(blank, attempt=attempt) for attempt in range(place.task.attempt)]
    own = _digest("child", place.run.run_id, key) if key else ""
    for wish in [*attempts, replace(blank, attempt=place.task.attempt)]:
        wanted = _named(place.run, plain, own or wish.key)
        there = await _there(ledger.store, wanted.run_id) if own or wish in attempts else None
        if there is not None and (own or _is_of_use(there, place.answers)):
            return Born(_same(wish, wanted, there), loaded)
    return Born(await _made(ledger, wish, wanted, close), loaded)


async def _made(ledger: Ledger, wish: Wish, wanted: NewRun, close: ParentClose | None) -> RunRecord:
    """On record first, then made: a crash between the two leaves a receipt from which the same child is made."""
    place = wish.place
    run, task = place.run, place.task
    receipt = place.receipts.get(wish.key)
    if receipt is not None and receipt.digest != wish.digest:
        raise await ledger.mismatch(wish, receipt)
    outcome = await ledger.in_fork(wish) if receipt is None else read_outcome(receipt.outcome)
    if outcome is None:
        await ledger.durable()
        now = ledger.clock()
        outcome = Outcome("ok", value={"run_id": wanted.run_id})
        data = {"node": task.node, "task_id": task.task_id, "run_id": wanted.run_id, "graph": wanted.graph}
        data |= {"key": wish.key, "call": wish.said, "digest": wish.digest}
        data |= {"close": close} if close else {}
        events = [Event("child_started", now, data)]
        receipt = wish.receipt("done", ledger.token(), now, outcome=write_outcome(outcome))
        begun = await ledger.store.begin(receipt, run.epoch, events, counters_of(run.graph, events), now)
        outcome = read_outcome(begun.receipt.outcome)
    if outcome.kind != "ok":
        raise ToolDenied(wish.name, outcome)
    if outcome.value["run_id"] != wanted.run_id:  # the child of a fork's origin, whose end answers here too
        return await ledger.store.run(outcome.value["run_id"])
    return _same(wish, wanted, await create(ledger.store, wanted, ledger.clock()))


def _named(parent: RunRecord, wanted: NewRun, name: str) -> NewRun:
    """The child under its own name: on a thread of the parent's partition, with the parent's policy."""
    thread_id = next(t for t in _threads(name) if partition_of_thread(t) == partition_of_thread(parent.thread_id))
    return replace(
        wanted,
        run_id=run_id_on(thread_id, name[:16]),
        thread_id=thread_id,
        policy=parent.policy,
        parent=parent.run_id,
        parent_epoch=parent.epoch,
        parent_interrupt="c" + _digest("end of", name)[:15],
        blobs=tuple(blob for blob in (Code.read(wanted.code).blob, parent.policy) if blob),
    )


def _threads(name: str) -> Any:
    """Names for the thread of a child, until one lies in the right partition: one in 64 does."""
    number = 0
    while True:
        yield f"child-{name[:20]}-{number}"
        number += 1


async def _there(store: Store, run_id: str) -> RunRecord | None:
    try:
        return await store.run(run_id)
    except NotFound:
        return None


def _is_of_use(child: RunRecord, answers: Mapping[str, Any]) -> bool:
    """To a later attempt. One whose end has been told as a failure could not tell another end any more."""
    return child.status == "succeeded" or not (child.final or child.parent_interrupt in answers)


def _same(wish: Wish, wanted: NewRun, there: RunRecord) -> RunRecord:
    if there.digest != wanted.digest:
        first = call_text(there.graph, json.loads(there.input)["values"])
        raise EffectMismatch(
            f"node {wish.place.task.node!r} starts {wish.said} in the place of its child {there.run_id}, which is "
            f"{first}; make what the node starts depend on its state and on what earlier calls answered, or give the "
            f"other child a key of its own"
        )
    return there


async def result(place: Place, ledger: Ledger, born: Born, known: Interrupt | None) -> Any:
    """How a child ended: its final state, as its graph's model.

    Args:
        known: the wait for it that is stored with the run, if it has waited already.
    Raises ChildFailed, or Suspended with the Interrupt to wait with.
    """
    child = born.record
    answer = place.answers.get(born.interrupt_id)
    if child.status == "succeeded":  # known when it was found: e.g. retried after its first end was told
        answer = {"status": child.status, "error": "", "result": json.loads(child.result)}
    elif answer is None:
        # It may have ended in a superstep before: the answer to it went with that checkpoint.
        child = await ledger.store.run(child.run_id)
        if not child.final and child.parent != place.run.run_id:
            raise CallerError(
                f"run {child.run_id} is {child.status}, and its end is told to {child.parent} alone, which this run "
                f"was forked from; wait until it has ended, and have this run retried"
            )
        if not child.final:
            payload, task = {"run_id": child.run_id, "graph": child.graph}, place.task
            asked_at = known.asked_at if known else ledger.clock()
            raise Suspended(Interrupt(born.interrupt_id, task.task_id, task.node, "child", payload, asked_at=asked_at))
        answer = {
            "status": child.status,
            "error": child.error,
            "result": json.loads(child.result) if child.result else None,
        }
    if answer["status"] != "succeeded":
        raise ChildFailed(child.run_id, child.graph, answer["status"], answer["error"])
    return born.graph.state.model_validate_json(json.dumps(answer["result"]))


async def cancel(place: Place, ledger: Ledger, born: Born) -> None:
    """Ask a child, and its own children, to end. Raises Fenced: somebody else has the run that asks (law 1)."""
    await ledger.durable()
    now, child = ledger.clock(), born.record
    ours = child.parent == place.run.run_id  # else it is the child of a fork's origin
    await ledger.store.cancel(child.run_id, now, place.run.epoch if ours else 0)
    await cancel_children(ledger.store, child.run_id, now)


# --- a run and its children ----------------------------------------------------------------------------------------


async def children_of(store: Store, run_id: str) -> list[str]:
    """Ids of the runs that a run has started, in order; from its event log, which is there as long as the run."""
    return list(await _bonds(store, run_id))


async def _bonds(store: Store, run_id: str) -> dict[str, ParentClose | None]:
    """The runs that a run has started, in order, and what was said about its end."""
    found: dict[str, ParentClose | None] = {}
    after = 0
    while events := await store.events(run_id, after, EVENTS_PAGE):
        for event in events:
            if event.kind == "child_started":
                found.setdefault(event.data["run_id"], event.data.get("close"))
        after = events[-1].n
    return found


async def are_bound(store: Store, run_id: str) -> bool:
    """Whether there are children to be cancelled or told when the run ends by itself."""
    return any(close in ("cancel", "request") for close in (await _bonds(store, run_id)).values())


async def cancel_children(store: Store, run_id: str, now: float, epoch: int = 0) -> int:
    """What a cancelled run owes its children: to ask the unfinished ones to end, and theirs, or to tell them (see
    ParentClose). How many those were. Can be repeated.

    Args:
        now: seconds since the epoch.
        epoch: of the run, if it is its owner who asks.
    Raises NotFound; Fenced: somebody else owns the run.
    """
    return await close_children(store, run_id, "cancelled", now, epoch)


async def close_children(store: Store, run_id: str, status: Status, now: float, epoch: int = 0) -> int:
    """As `cancel_children`, for any end of the run."""
    asked = 0
    for child, close in (await _bonds(store, run_id)).items():
        if close == "abandon" or (close is None and status != "cancelled"):
            continue
        record = await _there(store, child)
        if record is None:  # on record as started, but never made; or deleted
            continue
        if not record.final:
            asked += 1
            if close == "request" and await _is_told(store, child, run_id, status, now, epoch):
                continue
            await store.cancel(child, now, epoch)
        asked += await cancel_children(store, child, now)
    return asked


async def is_closed_with(store: Store, parent: RunRecord, child: RunRecord, now: float) -> bool:
    """Whether a child ends with its parent, which was cancelled; one that wants to be told so is told."""
    close = (await _bonds(store, parent.run_id)).get(child.run_id)
    if close == "request":
        return not await _is_told(store, child.run_id, parent.run_id, parent.status, now)
    return close != "abandon"


async def _is_told(store: Store, child: str, parent: str, status: Status, now: float, epoch: int = 0) -> bool:
    """Tell a child that its parent has ended; False if it takes no messages: its mailbox is full."""
    body = json.dumps({"parent_ended": {"run_id": parent, "status": status}})
    try:
        await store.send(child, f"parent-ended-{parent}", body, now, epoch)
    except Conflict:
        return (await store.run(child)).final
    return True


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
