"""Effects that a node performs itself (`ctx.effect`): a model call, an HTTP call, anything that it awaits.

Laws kept here:
3. It is on record before it starts, and nothing starts before all that it stands on is durable.
4. It runs in the run's own process. Whoever finds one that is started, and has not started it, knows that this process
   is gone, or has lost the run: its end is unknown, and is settled as its declaration says.
8. Its result has a limit.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from understudy.actors.accounts import settled
from understudy.actors.alike import difference
from understudy.actors.calls import Caller, Granted
from understudy.actors.channels import reason_of
from understudy.actors.effects import BUDGET, OWN, call_digest, call_text, place_of, read_outcome, write_outcome
from understudy.actors.errors import BudgetExceeded, CallerError, EffectFailed, StoreUnavailable, tellable
from understudy.actors.events import counters_of
from understudy.actors.ledger import Ledger, Place, Wish, decision_data
from understudy.actors.names import check_name
from understudy.actors.outcome import Outcome
from understudy.actors.paid import Paid, costs_of
from understudy.actors.plan import is_async
from understudy.actors.reconciled import Done, Reconciled, Unsure, read_reconciled
from understudy.actors.records import Event, Receipt
from understudy.actors.threads import in_a_thread
from understudy.policies.bill import FREE, Bill, cost_of_effect
from understudy.policies.budget import Cost, Unit
from understudy.policies.permission import Request

RESULT_BYTES_MAX = 8 * 1024 * 1024
ERROR_CHARS_MAX = 4000
PAUSE_S = 0.1

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_THREADS = ThreadPoolExecutor(max_workers=64, thread_name_prefix="effects")
"""Not the loop's own threads: `def` nodes sit in those while they wait for the very effect."""


@dataclass(frozen=True)
class OwnEffect:
    """What a node asks for with `ctx.effect`; see there."""

    name: str
    fn: Callable[..., Any]
    idempotent: bool
    reconcile: Callable[[str], Any] | None
    adapter: TypeAdapter[Any]
    about: Any
    costs: tuple[Cost, ...] | None = None
    """What it may cost; None: no budget counts it."""

    @property
    def ledger_name(self) -> str:
        return OWN + self.name


def own_effect(
    name: str, fn: Any, idempotent: bool, reconcile: Any, type_: Any, about: Any, cost: Any = None
) -> OwnEffect:
    """Raises CallerError: what was given cannot be meant."""
    if not isinstance(name, str) or not name:
        raise CallerError(f"ctx.effect wants a name for what it does, not {name!r:.80}; write ctx.effect('ask', fn)")
    check_name("the name of an effect,", name)
    if not callable(fn):
        hint = "; give the function, and do not call it" if inspect.isawaitable(fn) else ""
        if inspect.iscoroutine(fn):
            fn.close()  # or Python warns that it was never awaited
        raise CallerError(f"ctx.effect({name!r}) wants a function that performs it, not {fn!r:.80}{hint}")
    if reconcile is not None and not callable(reconcile):
        raise CallerError(f"ctx.effect({name!r}): reconcile is a function of the effect key, not {reconcile!r:.80}")
    try:
        json.dumps(about, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(f"ctx.effect({name!r}): about= is not JSON ({error}); use .model_dump(mode='json')") from None
    adapter = _ANY if type_ is None else TypeAdapter(type_)
    return OwnEffect(name, fn, idempotent, reconcile, adapter, about, costs_of(name, cost))


async def perform(caller: Caller, place: Place, effect: OwnEffect, index: int) -> Any:
    """The effect's result, from its receipt or made now.

    Raises EffectFailed, EffectMismatch, Suspended (a person is asked), Fenced, StoreUnavailable.
    """
    ledger = caller.ledger
    told = {} if effect.about is None else {"about": effect.about}
    # Nothing is known of what it is about: it is the same as the one in this place, and as no other one.
    meant = told or {"place": place_of(place.task, effect.ledger_name, index)}
    digest = call_digest(effect.ledger_name, "", meant)
    blank = Wish(place, effect.ledger_name, index, digest, call_text(effect.name, told))
    wish, receipt = await ledger.find(place, lambda attempt: replace(blank, attempt=attempt))
    while True:
        if receipt is not None:
            outcome = await _on_record(caller, effect, wish, receipt)
            if outcome is not None and ledger.answers(wish, outcome):
                return _result(effect, outcome)
            if outcome is not None:
                wish = replace(wish, attempt=place.task.attempt)
        settled = await ledger.in_fork(wish)
        if settled is not None:
            return _result(effect, settled)
        bill = FREE if effect.costs is None else await _paid_for(caller, wish, effect.costs)
        if isinstance(bill, Outcome):
            return _result(effect, bill)
        begun = await _begin(ledger, wish, effect)
        if begun.fresh:
            return await _perform(caller, wish, effect, begun.receipt, bill)
        receipt = begun.receipt


async def _on_record(caller: Caller, effect: OwnEffect, wish: Wish, receipt: Receipt) -> Outcome | None:
    """What a receipt answers; None where the effect is to be made again."""
    ledger = caller.ledger
    if receipt.digest != wish.digest:
        raise await ledger.mismatch(wish, receipt)
    if receipt.state == "started":
        receipt = await ledger.lost(receipt, wish.place.run, _finished(ledger, effect, wish, "unknown", 0.0, ""))
    if receipt.state == "done":
        return read_outcome(receipt.outcome)
    if effect.idempotent:
        return None
    told = await _reconcile(caller, effect, wish.key)
    return await ledger.reconciled(wish, receipt, told, functools.partial(_typed, effect))


async def _reconcile(caller: Caller, effect: OwnEffect, key: str) -> Reconciled:
    if effect.reconcile is None:
        return Unsure()
    try:
        told = read_reconciled(await _called(caller, effect.reconcile, key))
    except Exception as error:
        return Unsure(f"{type(error).__name__}: {tellable(_text(error), 300)}")
    if not isinstance(told, Done):
        return told
    try:
        return Done(_jsonable(effect, told.value))
    except Exception as error:
        return Unsure(tellable(f"{told.value!r:.80} does not fit its type: {reason_of(error)}", 300))


async def _begin(ledger: Ledger, wish: Wish, effect: OwnEffect) -> Any:
    await ledger.durable()
    now, run = ledger.clock(), wish.place.run
    data = {"name": effect.name, "key": wish.key, "call": wish.said, "digest": wish.digest}
    events = [Event("effect_started", now, data)]
    receipt = wish.receipt("started", ledger.token(), now)
    return await ledger.store.begin(receipt, run.epoch, events, counters_of(run.graph, events), now)


async def _paid_for(caller: Caller, wish: Wish, costs: tuple[Cost, ...]) -> Bill | Outcome:
    """Where it is paid from; or the outcome, if it may not be. Raises Suspended where a person has to say."""
    run, ledger = wish.place.run, caller.ledger
    request = Request(
        tool=wish.name,
        args={},
        run_id=run.run_id,
        graph=run.graph,
        digest=wish.digest,
        labels=run.labels,
        thread_id=run.thread_id,
        parent=run.parent,
        checkpoint_id=wish.place.checkpoint_id,
        effect=costs,
    )
    verdict = await caller.word_on(wish, request, False)
    if isinstance(verdict, Granted):
        return verdict.bill
    refused = Outcome("denied", error=verdict.reason, error_type=BUDGET)
    told = decision_data(wish, "deny", reason=verdict.reason, policy=verdict.policy, **verdict.noted)
    return await ledger.settle(wish, refused, [Event("decided", ledger.clock(), told)])


async def _perform(caller: Caller, wish: Wish, effect: OwnEffect, receipt: Receipt, bill: Bill) -> Any:
    ledger = caller.ledger
    began = time.perf_counter()
    cause: BaseException | None = None
    value: Any = None
    told: dict[Unit, Decimal] = {}
    try:
        returned = await _called(caller, effect.fn, wish.key)
        try:
            if isinstance(returned, Paid):
                told, returned = returned.told(), returned.value
            value = _jsonable(effect, returned)
        except Exception as error:
            raise ValueError(f"it was performed, but its result cannot be kept: {reason_of(error)}") from error
        outcome = Outcome("ok", value=value)
    except BaseException as error:  # whatever it is, it is the end of this effect, and the run's to judge
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            await _give_up(caller, wish, effect, receipt, time.perf_counter() - began)
            raise
        cause = error
        outcome = Outcome("error", error=tellable(_text(error), ERROR_CHARS_MAX), error_type=type(error).__name__)
    outcome = replace(outcome, duration_s=round(time.perf_counter() - began, 6))
    if bill:
        size = len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
        outcome = replace(outcome, cost=cost_of_effect(bill, outcome.duration_s, size, told))
    await _finish(ledger, wish, effect, receipt, outcome)
    await settled(caller.accounts, bill, receipt.key, outcome)
    if cause is not None:
        raise EffectFailed(effect.name, outcome) from cause
    return effect.adapter.validate_json(json.dumps(value))


async def _give_up(caller: Caller, wish: Wish, effect: OwnEffect, receipt: Receipt, seconds: float) -> None:
    """Nobody wants it any more, and how far it got is not known. If the run has another owner, that one says so."""
    if caller.released:
        return
    event = _finished(caller.ledger, effect, wish, "unknown", seconds, "it was cancelled while it was at work")
    with contextlib.suppress(StoreUnavailable):  # it stays started, which the next owner takes for the same
        await caller.ledger.lost(receipt, wish.place.run, event)


async def _finish(ledger: Ledger, wish: Wish, effect: OwnEffect, receipt: Receipt, outcome: Outcome) -> None:
    """Write the outcome, however long the store is away: it exists only here until then."""
    pause_s = PAUSE_S
    error = tellable(outcome.said, 500)
    event = _finished(ledger, effect, wish, outcome.kind, outcome.duration_s, error)
    counters = counters_of(wish.place.run.graph, [event])
    while True:
        try:
            await ledger.store.finish(
                receipt.run_id,
                receipt.key,
                receipt.checkpoint_id,
                receipt.token,
                write_outcome(outcome),
                [event],
                counters,
                event.at,
            )
            return
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


def _result(effect: OwnEffect, outcome: Outcome) -> Any:
    """An outcome on record, as the node gets it."""
    if outcome.error_type == BUDGET and outcome.kind == "denied":
        raise BudgetExceeded(effect.name, outcome)
    if outcome.kind != "ok":
        raise EffectFailed(effect.name, outcome)
    return _typed(effect, outcome.value)


def _typed(effect: OwnEffect, value: Any) -> Any:
    """A result from JSON values. Raises CallerError: it is none."""
    try:
        return effect.adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        raise CallerError(
            f"effect {effect.name!r}: {json.dumps(value)[:80]} does not fit its type: {reason_of(error)}"
        ) from None


def _jsonable(effect: OwnEffect, value: Any) -> Any:
    """The result as JSON values. Raises if it cannot be kept, or would come back as something else."""
    if effect.adapter is _ANY:
        value = to_jsonable_python(value, inf_nan_mode="constants")
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    else:
        checked = effect.adapter.validate_python(value)
        text = effect.adapter.dump_json(checked).decode()
        where = difference(checked, effect.adapter.validate_json(text))
        if where is not None:
            raise ValueError(f"what stands at {where or 'its top'} would come back as something else")
    size = len(text.encode())
    if size > RESULT_BYTES_MAX:
        raise ValueError(f"it has {size} bytes, and the limit is {RESULT_BYTES_MAX}; store it, and return where")
    return json.loads(text)


async def _called(caller: Caller, fn: Callable[..., Any], key: str) -> Any:
    """Call a plain function in a thread, an async one here; with the key, if it takes an argument."""
    args = (key,) if _wants_key(fn) else ()
    if is_async(fn):
        return await fn(*args)
    try:
        value = await in_a_thread(_THREADS, lambda: fn(*args))
    except asyncio.CancelledError:
        caller.left_behind = True
        raise
    return await value if isinstance(value, Awaitable) else value


def _wants_key(fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        return False
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def _is_cancelled() -> bool:
    """Whether this very task was asked to end; what it awaits may be cancelled by its own doing."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its message cannot be had: {type(broken).__name__})"


def _finished(ledger: Ledger, effect: OwnEffect, wish: Wish, outcome: str, seconds: float, error: str) -> Event:
    data = {"name": effect.name, "key": wish.key, "outcome": outcome, "seconds": round(seconds, 6), "error": error}
    return Event("effect_finished", ledger.clock(), data)
