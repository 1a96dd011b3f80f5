"""From which budgets a call would be paid, and what is left of them: for people, before anything is called.

The same accounts as `actors.budgets` finds, and none of them is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from understudy.actors.accounts import SHELF, account_in, name_of
from understudy.actors.budgets import Payer, payer_of
from understudy.actors.records import RunRecord
from understudy.actors.store import Store
from understudy.policies.bill import worst_of_call
from understudy.policies.budget import UNITS, ZERO, Amounts, Budget, Unit, opened, plain, spoken_all, title_of, written
from understudy.policies.permission import Allow, Ask, Policy, Request


@dataclass(frozen=True)
class Draw:
    """One budget that a call would be paid from."""

    budget: Budget
    policy: str
    layer: str
    most: Amounts
    """What is held of it for the call."""
    caller: RunRecord | None
    """The run that would call; None: any."""
    labels: Mapping[str, str]
    account: str = ""
    """Its name; empty: it is not known whose it would be."""
    whose: str = ""
    left: Amounts | None = None
    """None: nobody has looked."""

    @property
    def short(self) -> list[Unit]:
        """Of what there is too little left."""
        left = self.budget.limits if self.left is None else self.left
        return [unit for unit in UNITS if unit in left and self.most.get(unit, ZERO) > max(left[unit], ZERO)]

    async def looked_up(self, store: Store, now: float) -> "Draw":
        """With what is left of it at this time."""
        caller, payer = self.caller, Payer("", "", self.labels)
        if caller is not None:
            payer = await payer_of(store, Payer(caller.run_id, caller.thread_id, caller.labels), caller.parent)
        elif self.budget.scope != "tenant":
            return self
        title = title_of(self.budget, self.policy, self.layer, payer.of(self.budget), now)
        document = await store.read_document(SHELF, name_of(title))
        account = opened(title, self.budget, account_in(document) if document else None)
        left = {unit: amount for unit in self.budget.limits if (amount := account.left(unit)) is not None}
        whose = title.whose + (f", {title.window}" if title.window else "")
        return replace(self, account=name_of(title), whose=whose, left=left)

    def words(self) -> str:
        limits = self.budget.spoken_limits
        whose = f"each {self.budget.scope} has {limits}"
        if self.left is not None:
            whose = f"{self.whose}, has {spoken_all(self.left)} left of {limits}"
        then = f", too much of {', '.join(self.short)}: then {self.budget.at_limit}" if self.short else ""
        return f"{whose}; the call can cost {spoken_all(self.most) or 'nothing that it limits'}{then}"

    def data(self) -> dict[str, Any]:
        """JSON values; amounts as text."""
        budget = self.budget
        return {
            "budget": budget.id,
            "policy": self.policy,
            "layer": self.layer,
            "scope": budget.scope,
            "label": budget.label if budget.scope == "tenant" else None,
            "per": budget.per,
            "at_limit": budget.at_limit,
            "limits": written(budget.limits),
            "most": written(self.most),
            "account": self.account or None,
            "left": None if self.left is None else {unit: plain(amount) for unit, amount in self.left.items()},
            "short": self.short,
        }


def draws_of(
    layers: Sequence[tuple[str, Policy]], request: Request, decision: Allow | Ask, caller: RunRecord | None
) -> list[Draw]:
    """Of all layers, each with the name that its accounts stand under. Nothing is looked up."""
    worst = worst_of_call(decision.profile.limits, decision.cost)
    return [
        Draw(budget, policy.name, name, {u: a for u, a in worst.items() if u in budget.limits}, caller, request.labels)
        for name, policy in layers
        if policy.compiled.concerns(request.graph)
        for budget in policy.budgets
    ]
