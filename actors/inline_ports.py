"""Policy and sandboxes without Ray, for `run_inline`, tests and simulations: tools are plain functions of this process.

There is no isolation here: a tool sees all that this process sees, and no limit ends it. What is kept is the ledger:
4. A receipt is durable before the tool starts, and its outcome before anyone is told.
5. A call outlives the residence that ordered it, as long as this process lives; whoever owns the run attends it.
"""

import asyncio
import functools
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from understudy.actors.accounts import Accounts, charged, given, settled
from understudy.actors.budget_sweep import sweep_all
from understudy.actors.budgets import Budgets, own_effect_allowed
from understudy.actors.calls import Granted, Order, SandboxDied, Verdict, finish, finished_event
from understudy.actors.errors import StoreUnavailable
from understudy.actors.events import counters_of
from understudy.actors.files import checked, left_by
from understudy.actors.inline_folder import apart, workspace
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, OutcomeKind, ToolCode
from understudy.actors.reconciled import EndUnknown
from understudy.actors.records import Event, Receipt
from understudy.actors.run_history import RunHistories
from understudy.actors.sandbox.runner import LONGEST_MESSAGE, to_json, validated
from understudy.actors.secret import entrusted_inline
from understudy.actors.secret_traces import Traces
from understudy.actors.store import Store
from understudy.actors.threads import in_a_thread
from understudy.actors.tool import Tool
from understudy.actors.verdicts import verdict
from understudy.policies.bill import FREE, Bill, bill_in
from understudy.policies.history import ANYTHING, History
from understudy.policies.permission import NO_HISTORY, Policy, Request, decide

PAUSE_S = 0.5
BILL = "bill:"
"""Begins the token of a grant here."""
LONGEST_PRINTED = 1024 * 1024


class YesPolicy:
    """Grants every call. It is for graphs that run in one's own process, where nothing is walled off anyway."""

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        return Granted("", "yes", "inline", workspace="write")


class RulesPolicy:
    """Real rules, judged as the policy actor does; the grant is a mere bill, as nobody but this process reads it.

    Args:
        store: where the runs' histories are; without one, a rule that asks for the past takes it as the worst.
        clock: seconds since the epoch.
    """

    def __init__(
        self, policies: Sequence[Policy], store: Store | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._policies = tuple(policies)
        self._store = store
        self._histories = RunHistories(store) if store is not None else None
        held = store or MemoryStore()  # where there is none, accounts live as long as this object
        self._budgets = Budgets(given(held))
        self._clock = clock

    async def mend(self) -> None:
        """Settle what a process before this one has left held, which nobody else does where no supervisor is."""
        if self._store is not None and any(policy.budgets for policy in self._policies):
            await sweep_all(self._store, Accounts(given(self._store)), self._clock(), mend_after_s=0.0)

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        now, history = self._clock(), NO_HISTORY
        if any(each.compiled.for_tool(request.tool).asks_history for each in self._policies):
            unknown = History(inherited=ANYTHING)
            history = await self._histories.of(request.run_id) if self._histories is not None else unknown
        own = request.effect is not None
        decision = own_effect_allowed(request) if own else decide(self._policies, request, now, history)
        layers = [("run", policy) for policy in self._policies]
        judged = await self._budgets.judge(layers, request, decision, key, epoch, approved, now)
        return verdict(self._policies, request, judged, lambda _: BILL + judged.bill.text())


class InlineSandboxes:
    """`SandboxPort` over this process.

    Args:
        store: where receipts go.
        stand_ins: functions to call in the place of tools, by the tool's name.
        clock: seconds since the epoch.
        in_thread: call tools in a thread, one at a time, so that they may block or run a loop of their own; else on the
            event loop, which is the same every time.
        name: of the sandbox, as it stands in receipts.
        secrets: what tools get by `understudy.secret`, by name; every tool gets all.
    """

    def __init__(
        self,
        store: Store,
        stand_ins: Mapping[str, Callable[..., Any]] | None = None,
        *,
        clock: Callable[[], float] = time.time,
        in_thread: bool = False,
        name: str = "inline",
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.store = store
        self.stand_ins = dict(stand_ins or {})
        self.calls: list[tuple[str, dict[str, Any]]] = []
        """What was executed: tool and arguments, in order."""
        self.name = name
        self._clock = clock
        self._secrets = dict(secrets or {})
        self._traces = Traces(self._secrets)
        self._accounts = Accounts(given(store))
        self._tools: dict[str, Tool[Any, Any]] = {}
        self._work: dict[tuple[str, str], asyncio.Task[Outcome | Receipt]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inline-tools") if in_thread else None

    def pick(self) -> str:
        return self.name

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        """The very function of this process: nothing is shipped."""
        ref = f"inline:{id(tool)}"
        self._tools[ref] = tool
        return ToolCode(ref=ref)

    async def execute(self, order: Order) -> Outcome | Receipt:
        place = (order.receipt.key, order.receipt.token)
        if place not in self._work:
            work = self._work[place] = asyncio.ensure_future(self._perform(order))
            work.add_done_callback(lambda done: self._over(place, done))
        return await self._outcome_of(self._work[place], order.receipt)

    async def attend(self, receipt: Receipt) -> Outcome | None:
        work = self._work.get((receipt.key, receipt.token))
        if work is None:
            return None
        try:
            outcome = await self._outcome_of(work, receipt)
        except SandboxDied:
            return None
        return outcome if isinstance(outcome, Outcome) else None

    def abort_nowait(self, receipt: Receipt) -> None:
        work = self._work.get((receipt.key, receipt.token))
        if work is not None:
            work.cancel()

    def close(self) -> None:
        """Let the thread of the tools go."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    # --- inside ---

    async def _outcome_of(self, work: "asyncio.Task[Outcome | Receipt]", receipt: Receipt) -> Outcome | Receipt:
        """Wait for a call, without ending it when the one who waits is cancelled."""
        await asyncio.wait([work])
        if work.cancelled():
            raise SandboxDied(receipt.sandbox)
        return work.result()

    def _over(self, place: tuple[str, str], work: "asyncio.Task[Outcome | Receipt]") -> None:
        self._work.pop(place, None)
        if not work.cancelled():
            work.exception()  # seen, also where nobody waits for it any more

    async def _perform(self, order: Order) -> Outcome | Receipt:
        now = self._clock()
        receipt = replace(order.receipt, at=now)
        started = {"tool": order.call.tool, "key": order.call.key, "sandbox": receipt.sandbox}
        events = [order.decided, Event("tool_started", now, started)]
        begun = await self.store.begin(receipt, order.epoch, events, counters_of(order.graph, events), now)
        if not begun.fresh:
            return begun.receipt
        began = time.perf_counter()
        try:
            outcome = await self._called(order)
        except asyncio.CancelledError:
            outcome = Outcome("killed", error="ended from outside: the run was cancelled, or its node gave up on it")
        outcome = self._traces.outcome(outcome, LONGEST_PRINTED, LONGEST_MESSAGE)
        outcome = replace(outcome, duration_s=round(time.perf_counter() - began, 6))
        bill = _bill_of(order.token)
        outcome = charged(outcome, bill)
        await self._record(order, outcome)
        await settled(self._accounts, bill, receipt.key, outcome)
        return outcome

    async def _record(self, order: Order, outcome: Outcome) -> None:
        """Write the receipt, however long the store is away: the outcome exists only here until then."""
        while True:
            now = self._clock()
            events = [finished_event(order.receipt, outcome, now)]
            try:
                await finish(self.store, order, outcome, events, now)
                return
            except StoreUnavailable:
                await asyncio.sleep(PAUSE_S)

    async def _called(self, order: Order) -> Outcome:
        """The tool's own end, as the sandbox would tell it: its result is JSON, its exception is text."""
        tool = self._tools[order.call.code.ref]
        fn = self.stand_ins.get(tool.name, tool.fn)
        self.calls.append((tool.name, order.call.args))
        try:
            value, files = await self._value(fn, order)
            outcome = Outcome("ok", value=json.loads(to_json(value)), files=files and checked(files))
            return left_by(order.call, outcome)
        except Exception as error:
            kind: OutcomeKind = "unknown" if isinstance(error, EndUnknown) else "error"
            return Outcome(kind, error=str(error), error_type=type(error).__name__)

    async def _value(self, fn: Callable[..., Any], order: Order) -> tuple[Any, Any]:
        """What the tool returns, and what it changed in its workspace."""
        in_thread = functools.partial(self._in_thread, fn, order)
        if order.call.files is not None:
            in_thread = functools.partial(apart, in_thread)
        if self._thread is not None:
            return await in_a_thread(self._thread, in_thread)
        if order.call.files is not None:
            return in_thread()  # the loop waits, as it does for any plain function that it calls
        with _effect_key(order.call.key), entrusted_inline(self._secrets):
            value = fn(**validated(fn, order.call.args))
            return await value if inspect.isawaitable(value) else value, None

    def _in_thread(self, fn: Callable[..., Any], order: Order) -> tuple[Any, Any]:
        with _effect_key(order.call.key), entrusted_inline(self._secrets), workspace(order) as look:
            value = fn(**validated(fn, order.call.args))
            return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value, look()


@contextmanager
def _effect_key(key: str) -> Iterator[None]:
    """The environment as a tool finds it in its sandbox."""
    before = os.environ.get("UNDERSTUDY_EFFECT_KEY")
    os.environ["UNDERSTUDY_EFFECT_KEY"] = key
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("UNDERSTUDY_EFFECT_KEY", None)
        else:
            os.environ["UNDERSTUDY_EFFECT_KEY"] = before


def _bill_of(token: str) -> Bill:
    """Other policies' tokens are other things."""
    text = token.removeprefix(BILL)
    return bill_in(json.loads(text)) if text and text != token else FREE


async def _awaited(value: Any) -> Any:
    return await value
