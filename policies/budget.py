"""May this still be paid for? What a call may cost at most is held before it begins, and settled once it is over.

An account is one budget of one run, thread or tenant, in one window of time. It knows what was settled, and what is
held, by the name of the effect. The laws it keeps:

- Settled and held together stay within the limit, whoever asks in whatever order: what would go beyond is `Short`, and
  changes nothing. Only who says so (`beyond`: a person has agreed, or the budget degrades) goes over.
- By name: to hold twice is to hold once, and to settle twice is to settle once, so whoever lost an answer asks again.
  Nothing is settled that is not held, so nothing has to be remembered for ever.
- Bounded (law 8): as many calls are held as `HELD_MAX`, and of those that were settled the last few names are kept.

Pure; amounts are decimals, and no float comes near. In which accounts a call is held, and that it is held in all of
them or in none, is the business of `actors/budgets.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from understudy.policies.budget_window import Per, a, start_and_end

Unit = Literal["calls", "seconds", "bytes", "tokens", "money"]
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
Scope = Literal["run", "thread", "tenant"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
AtLimit = Literal["stop", "ask", "degrade"]
AT_LIMIT: Final[tuple[AtLimit, ...]] = get_args(AtLimit)
"""From the strictest on."""
Amounts = Mapping[Unit, Decimal]

HELD_MAX: Final = 700
"""Calls that one account holds at once; it stays one small document."""
RECENT_MAX: Final = 64
"""Names of settled calls that an account still knows."""
NAME_CHARS: Final = 16
"""Of a settled call's name, what is kept."""
ZERO: Final = Decimal()


@dataclass(frozen=True)
class Degrade:
    """What goes on, and how, when a budget is at its limit."""

    deny: tuple[str, ...] = ()
    """Globs of the tools (and of effects, as `effect:NAME`) that stop. The others go on, beyond the limit."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Tighter limits of each call, by field of `profile.Limits`."""


@dataclass(frozen=True)
class Budget:
    """One entry of `budgets:` in a policy file."""

    id: str
    scope: Scope
    limits: Amounts
    per: Per | None = None
    """None: for as long as there is what it belongs to."""
    label: str = "tenant"
    """With scope tenant: the label of the run that names the tenant."""
    at_limit: AtLimit = "stop"
    degrade: Degrade = Degrade()

    @property
    def spoken_limits(self) -> str:
        """`100 calls, 5 money a day`."""
        return spoken_all(self.limits) + (f" {a(self.per)}" if self.per else "")


@dataclass(frozen=True)
class Cost:
    """What a call may cost at most, in one unit."""

    unit: Unit
    most: Decimal
    told: str = ""
    """A path into its result that says what it did cost; empty: nobody says, and it is taken to have cost all."""


@dataclass(frozen=True)
class Title:
    """Which account it is: what its document is named by."""

    scope: Scope
    of: str
    """Id of the run or thread, or the label's value. Those of a child are its first ancestor's."""
    layer: str
    policy: str
    budget: str
    window: str = ""
    ends_at: float | None = None
    """Seconds since the epoch; None: never."""
    label: str = ""
    """Of a tenant: the label of runs that names it. (It is not in the account's name: a budget has but one.)"""

    @property
    def whose(self) -> str:
        """Runs that lack the label of a tenant have one account together."""
        if self.scope == "tenant" and not self.of:
            return f"runs without a label {self.label!r}" if self.label else "runs without a tenant's label"
        return f"{self.scope} {self.of!r}"

    @property
    def words(self) -> str:
        who = self.whose + (f", {self.window}" if self.window else "")
        return f"budget {self.budget!r} of policy {self.policy!r} ({who})"


@dataclass(frozen=True)
class Hold:
    """What is held for one call that is not over."""

    amounts: Amounts
    run_id: str
    epoch: int
    """Of the run's owner that asked: once there is another, a call that has not begun never will."""
    checkpoint: str
    """The head that the call stands on."""
    at: float
    again: bool = False
    """A call of this name was settled here before."""


@dataclass(frozen=True)
class Account:
    title: Title
    limits: Amounts
    """As the policy said last."""
    at_limit: AtLimit = "stop"
    raised: Amounts = field(default_factory=dict)
    """What people have added."""
    settled: Amounts = field(default_factory=dict)
    held: Mapping[str, Hold] = field(default_factory=dict)
    """By effect key."""
    recent: tuple[str, ...] = ()
    """Beginnings of the names that were settled last."""

    def limit(self, unit: Unit) -> Decimal | None:
        """None: there is none."""
        return self.limits[unit] + self.raised.get(unit, ZERO) if unit in self.limits else None

    def holding(self, unit: Unit) -> Decimal:
        return sum((hold.amounts.get(unit, ZERO) for hold in self.held.values()), ZERO)

    def left(self, unit: Unit) -> Decimal | None:
        """None: there is no limit. Below zero where somebody went beyond it knowingly, or an effect of a node cost more
        than it had said."""
        limit = self.limit(unit)
        return None if limit is None else limit - self.settled.get(unit, ZERO) - self.holding(unit)


@dataclass(frozen=True)
class Short:
    """Why a call cannot be paid for."""

    title: Title
    at_limit: AtLimit
    unit: Unit | None
    """None: as many calls are held as there may be."""
    wanted: Decimal = ZERO
    limit: Decimal = ZERO
    spent: Decimal = ZERO
    held: Decimal = ZERO

    def __str__(self) -> str:
        if self.unit is None:
            return f"{self.title.words} holds {HELD_MAX} calls, and that is the most; wait until some have ended"
        return (
            f"{self.title.words} is at its limit: {spoken(self.wanted, self.unit)} wanted, the limit is "
            f"{plain(self.limit)}, spent are {plain(self.spent)} and held {plain(self.held)}"
        )

    def told(self) -> dict[str, Any]:
        """JSON values, for events, questions and the audit log."""
        title, unit = self.title, self.unit or "places"
        amounts = {name: plain(getattr(self, name)) for name in ("wanted", "limit", "spent", "held")}
        where = {"budget": title.budget, "policy": title.policy, "layer": title.layer, "scope": title.scope}
        return {**where, "of": title.of, "window": title.window, "at_limit": self.at_limit, "unit": unit, **amounts}


def title_of(budget: Budget, policy: str, layer: str, of: str, now: float) -> Title:
    """The account of a budget at this time."""
    window, ends_at = start_and_end(budget.per, now) if budget.per else ("", None)
    label = budget.label if budget.scope == "tenant" else ""
    return Title(budget.scope, of, layer, policy, budget.id, window, ends_at, label)


def opened(title: Title, budget: Budget, account: Account | None = None) -> Account:
    """A new account; or one that there is, with what the policy says today."""
    if account is None:
        return Account(title, budget.limits, budget.at_limit)
    if (account.title, account.limits, account.at_limit) == (title, budget.limits, budget.at_limit):
        return account
    return replace(account, title=title, limits=budget.limits, at_limit=budget.at_limit)


def reserve(account: Account, key: str, hold: Hold, *, beyond: bool = False) -> Account | Short:
    """Hold what a call may cost. What is held under its name already is raised if need be, and never lowered.

    Args:
        beyond: go over the limit, knowingly.
    """
    known = account.held.get(key)
    before = known.amounts if known else {}
    raised: dict[Unit, Decimal] = {}
    for unit in UNITS:
        amount = max(hold.amounts.get(unit, ZERO), before.get(unit, ZERO))
        more, left = amount - before.get(unit, ZERO), account.left(unit)
        if left is not None and not beyond and known is None and left < 0:
            return _short(account, unit, amount)  # overspent: not even what costs nothing
        if left is not None and not beyond and more > max(left, ZERO):
            return _short(account, unit, more)
        if amount:
            raised[unit] = amount
    if known is None and len(account.held) >= HELD_MAX:
        return Short(account.title, account.at_limit, None)
    again = known.again if known else key[:NAME_CHARS] in account.recent
    epoch = max(hold.epoch, known.epoch) if known else hold.epoch
    return replace(account, held={**account.held, key: replace(hold, amounts=raised, epoch=epoch, again=again)})


def settle(account: Account, key: str, cost: Amounts | None) -> Account:
    """Put what was spent in the place of what was held; None: all that was held. What is not held is settled already,
    and changes nothing."""
    hold = account.held.get(key)
    if hold is None:
        return account
    spent = hold.amounts if cost is None else cost
    settled = {unit: account.settled.get(unit, ZERO) + spent.get(unit, ZERO) for unit in UNITS}
    return replace(
        account,
        settled={unit: amount for unit, amount in settled.items() if amount},
        held={name: each for name, each in account.held.items() if name != key},
        recent=(*account.recent, key[:NAME_CHARS])[-RECENT_MAX:],
    )


def release(account: Account, key: str, epoch: int) -> Account:
    """Give back what was held for a call that was never made. It may be held again; what a later owner of the run holds
    under the name by now is that one's."""
    if key not in account.held or account.held[key].epoch != epoch:
        return account
    return replace(account, held={name: each for name, each in account.held.items() if name != key})


def lift(account: Account, more: Amounts) -> Account:
    """Add to the limits of this account. What has no limit has none to be raised."""
    known = {unit: account.raised.get(unit, ZERO) + amount for unit, amount in more.items() if unit in account.limits}
    return replace(account, raised={**account.raised, **known})


def dearest(costs: Sequence[Cost]) -> tuple[Cost, ...]:
    """Of several words on what a call may cost, the highest of each unit. Its result is believed only where all who
    speak of the unit believe the same: nobody talks another's price down."""
    found = []
    for unit in UNITS:
        said = [cost for cost in costs if cost.unit == unit]
        if said:
            told = {cost.told for cost in said}
            found.append(Cost(unit, max(cost.most for cost in said), told.pop() if len(told) == 1 else ""))
    return tuple(found)


# --- as it is stored -----------------------------------------------------------------------------------------------


def plain(amount: Decimal) -> str:
    """An amount as people write it: no exponent, no zeros that say nothing."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spoken(amount: Decimal, unit: Unit) -> str:
    """An amount with its unit: `1 call`, `2 calls`, `0.5 money`."""
    return f"{plain(amount)} {unit[:-1] if amount == 1 and unit.endswith('s') else unit}"


def spoken_all(amounts: Amounts) -> str:
    return ", ".join(spoken(amounts[unit], unit) for unit in UNITS if unit in amounts)


def written(amounts: Amounts) -> dict[str, str]:
    """JSON values; as text, so that none is rounded."""
    return {unit: plain(amounts[unit]) for unit in UNITS if unit in amounts}


def amounts_in(data: Mapping[str, str]) -> dict[Unit, Decimal]:
    """The inverse."""
    return {unit: Decimal(data[unit]) for unit in UNITS if unit in data}


def to_data(account: Account) -> dict[str, Any]:
    """JSON values."""
    title = account.title
    return {
        "title": [title.scope, title.of, title.layer, title.policy, title.budget, title.window, title.ends_at],
        "label": title.label,  # beside it: a process of before, which knows no label, goes on reading the account
        "at_limit": account.at_limit,
        "limits": written(account.limits),
        "raised": written(account.raised),
        "settled": written(account.settled),
        "held": {
            key: [hold.run_id, hold.epoch, hold.checkpoint, hold.at, hold.again, written(hold.amounts)]
            for key, hold in sorted(account.held.items())
        },
        "recent": list(account.recent),
    }


def from_data(data: Mapping[str, Any]) -> Account:
    """The inverse."""
    held = {
        key: Hold(amounts_in(amounts), run_id, epoch, checkpoint, at, again)
        for key, (run_id, epoch, checkpoint, at, again, amounts) in data["held"].items()
    }
    return Account(
        title=replace(Title(*data["title"][:7]), label=data.get("label", "")),
        at_limit=data["at_limit"],
        limits=amounts_in(data["limits"]),
        raised=amounts_in(data["raised"]),
        settled=amounts_in(data["settled"]),
        held=held,
        recent=tuple(data["recent"]),
    )


def _short(account: Account, unit: Unit, wanted: Decimal) -> Short:
    limit, spent = account.limit(unit), account.settled.get(unit, ZERO)
    assert limit is not None
    return Short(account.title, account.at_limit, unit, wanted, limit, spent, account.holding(unit))
