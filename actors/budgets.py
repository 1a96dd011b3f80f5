"""What a call is paid from: before it is granted, the most that it may cost is held in every account it concerns.

It is held in all of them or in none: what was held in some when another one is short is given back, and what a process
left that died in between is given back by `budget_sweep`. A child pays from the accounts of the run that it comes from,
whatever labels it was given. A policy without budgets costs nothing: no store is asked.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from understudy.actors.accounts import Accounts, name_of
from understudy.actors.errors import NotFound
from understudy.actors.store import Store
from understudy.policies.bill import FREE, Bill, bill_of, worst_of_call, worst_of_effect
from understudy.policies.budget import Account, Budget, Hold, Short, Title, opened, reserve, title_of
from understudy.policies.permission import Allow, Ask, Decision, Deny
from understudy.policies.profile import Limits, Profile
from understudy.policies.rule import Policy, Request, globs_pattern

PAYERS_MAX: Final = 1024
"""Children whose payer is kept at hand (law 8)."""


@dataclass(frozen=True)
class Payer:
    """The run that pays: the one that was asked for, or the first of its ancestors."""

    run_id: str
    thread_id: str
    labels: Mapping[str, str]

    def of(self, budget: Budget) -> str:
        """Whose account of this budget it pays from."""
        return {"run": self.run_id, "thread": self.thread_id, "tenant": self.labels.get(budget.label, "")}[budget.scope]


async def payer_of(store: Store, run: Payer, parent: str) -> Payer:
    """The first of its ancestors that is there: what one has paid that was deleted meanwhile is forgotten with it."""
    first = run
    while parent:
        try:
            record = await store.run(parent)
        except NotFound:
            break
        first, parent = Payer(record.run_id, record.thread_id, record.labels), record.parent
    return first


@dataclass(frozen=True)
class Judged:
    """A decision, after the budgets have had their say."""

    decision: Decision
    approved: bool
    """Whether a person's word is good for what the decision asks."""
    bill: Bill = FREE
    noted: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: `budgets` that refuse or ask, or `beyond` those that the call goes."""


@dataclass(frozen=True)
class _Due:
    """One budget that a call concerns."""

    budget: Budget
    title: Title

    @property
    def name(self) -> str:
        return name_of(self.title)


def own_effect_allowed(request: Request) -> Allow:
    """The decision on an effect of a node: no rule speaks of it, and budgets may."""
    return Allow("", "", Profile(), cost=request.effect or ())


class Budgets:
    """One process's view of what runs may still spend."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._open_store = open_store
        self._accounts = Accounts(open_store)
        self._payers: OrderedDict[str, Payer] = OrderedDict()

    async def judge(
        self,
        layers: Sequence[tuple[str, Policy]],
        request: Request,
        decision: Decision,
        key: str,
        epoch: int,
        approved: bool,
        now: float,
    ) -> Judged:
        """The decision, and the bill if it is a grant. Raises StoreUnavailable.

        Args:
            layers: each with the name that its accounts stand under: a run's own policy is no deployment's, whatever it
                is called.
            approved: a person has approved this very call. That it may cost more than there is, is another question.
        """
        judged = Judged(decision, approved)
        if isinstance(decision, Deny) or not any(policy.budgets for _, policy in layers):
            return judged
        dues = await self._dues(layers, request, now)
        if not dues:
            return judged
        worst = worst_of_call(decision.profile.limits, decision.cost)
        if request.effect is not None:
            worst = worst_of_effect(request.effect)
        hold = Hold(worst, request.run_id, epoch, request.checkpoint_id, now)
        only_look = isinstance(decision, Ask) and not approved
        answers = await asyncio.gather(*(self._hold(due, key, hold, only_look=only_look) for due in dues))
        short = [(due, answer) for due, answer in zip(dues, answers, strict=True) if answer is not None]
        stops = [each for due, each in short if _ends(due.budget, each, request)]
        asks = [each for due, each in short if due.budget.at_limit == "ask" and not request.beyond]
        if not stops and not (asks and not only_look):
            if only_look:  # about the call itself: it is paid for once that is answered
                return judged
            late = await asyncio.gather(*(self._hold(due, key, hold, beyond=True) for due, _ in short))
            stops = [each for each in late if each is not None]
        if stops or (asks and not only_look):
            if not only_look:
                await self._accounts.release([due.name for due in dues], key, epoch)
            return _stopped(decision, request, stops) if stops else _asked(decision, asks)
        bill = bill_of([due.name for due in dues], worst, decision.cost)
        if not short:
            return replace(judged, bill=bill)
        lowered = _lowered(decision, [due.budget for due, _ in short if due.budget.at_limit == "degrade"])
        return Judged(lowered, approved, bill, {"beyond": [each.told() for _, each in short]})

    async def _hold(
        self, due: _Due, key: str, hold: Hold, *, beyond: bool = False, only_look: bool = False
    ) -> Short | None:
        def act(account: Account | None) -> tuple[Account | None, Short | None]:
            begun = opened(due.title, due.budget, account)
            held = reserve(begun, key, hold, beyond=beyond)
            if isinstance(held, Short):  # an account that there is can be raised, as the refusal says
                return (account if only_look else begun), held
            return (account if only_look else held), None

        return await self._accounts.change(due.name, act)

    async def _dues(self, layers: Sequence[tuple[str, Policy]], request: Request, now: float) -> list[_Due]:
        concerned = [(name, policy) for name, policy in layers if policy.compiled.concerns(request.graph)]
        concerned = [(name, policy) for name, policy in concerned if policy.budgets]
        if not concerned:
            return []
        payer = await self._payer(request)
        found = []
        for name, policy in concerned:
            for budget in policy.budgets:
                found.append(_Due(budget, title_of(budget, policy.name, name, payer.of(budget), now)))
        return found

    async def _payer(self, request: Request) -> Payer:
        own = Payer(request.run_id, request.thread_id, request.labels)
        if not request.parent:
            return own
        known = self._payers.get(request.run_id)
        if known is None:
            known = self._payers[request.run_id] = await payer_of(await self._open_store(), own, request.parent)
            while len(self._payers) > PAYERS_MAX:
                self._payers.popitem(last=False)
        return known


def _ends(budget: Budget, short: Short, request: Request) -> bool:
    """Whether the call is refused for it."""
    if short.unit is None or budget.at_limit == "stop":
        return True
    denied = budget.degrade.deny
    return budget.at_limit == "degrade" and bool(denied) and bool(globs_pattern(denied).fullmatch(request.tool))


def _stopped(decision: Allow | Ask, request: Request, stops: Sequence[Short]) -> Judged:
    short = stops[0]
    reason = f"{short}; {_remedy(short)}"
    if short.at_limit == "degrade" and short.unit is not None:
        reason = f"{short}, and then tool {request.tool!r} stops; {_remedy(short)}"
    denied = Deny("", short.title.policy, reason, redact=decision.redact)
    return Judged(denied, False, noted={"budgets": [each.told() for each in stops]})


def _asked(decision: Allow | Ask, asks: Sequence[Short]) -> Judged:
    reason = "; ".join(
        f"{short}; approve it to go beyond that with this one call, or raise it with {_raising(short)}, and the call "
        f"goes on by itself"
        for short in asks
    )
    asked = Ask("", asks[0].title.policy, reason, decision.profile, decision.redact, decision.marks, cost=decision.cost)
    return Judged(asked, False, noted={"budgets": [each.told() for each in asks]})


def _remedy(short: Short) -> str:
    if short.unit is None:
        return "then it goes on"
    later = ", or wait for the next window" if short.title.window else ""
    return f"raise it with {_raising(short)}, or in the policy{later}"


def _raising(short: Short) -> str:
    return f"`understudy budgets --raise {short.unit}=AMOUNT {name_of(short.title)}`"


def _lowered(decision: Allow | Ask, budgets: Sequence[Budget]) -> Allow | Ask:
    """With the tighter limits of the budgets that degrade."""
    limits = decision.profile.limits
    for budget in budgets:
        tighter = budget.degrade.limits
        known = {name.name: getattr(limits, name.name) for name in fields(Limits)}
        limits = Limits(**{name: min(value, tighter.get(name, value)) for name, value in known.items()})
    return replace(decision, profile=replace(decision.profile, limits=limits))
