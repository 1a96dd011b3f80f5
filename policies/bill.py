"""A bill says from which accounts a call is paid, and what it may cost at most; its grant carries it.

What a call did cost is never more than what the bill holds for it: so no tool, whatever it answers, leads its budgets
over their limits. Pure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from understudy.policies.budget import Amounts, Cost, Unit, amounts_in, written
from understudy.policies.profile import Limits

ONE: Final = Decimal(1)


@dataclass(frozen=True)
class Bill:
    """Texts only, so that it is the same after any journey."""

    accounts: tuple[str, ...] = ()
    """Names of their documents; none: the call costs nothing that anybody counts."""
    most: tuple[tuple[str, str], ...] = ()
    """Amounts that are held, by unit."""
    told: tuple[tuple[str, str], ...] = ()
    """Paths into the result that say what it did cost, by unit."""

    def __bool__(self) -> bool:
        return bool(self.accounts)

    @property
    def amounts(self) -> dict[Unit, Decimal]:
        return amounts_in(dict(self.most))

    def text(self) -> str:
        return json.dumps([self.accounts, self.most, self.told]) if self else ""


FREE: Final = Bill()


def bill_in(data: Sequence[Any]) -> Bill:
    """The inverse of its JSON values, be they in a text or in a grant."""
    accounts, most, told = data
    return Bill(tuple(accounts), tuple((u, a) for u, a in most), tuple((u, p) for u, p in told))


def bill_of(accounts: Sequence[str], amounts: Amounts, costs: Sequence[Cost]) -> Bill:
    told = tuple((cost.unit, cost.told) for cost in costs if cost.told)
    return Bill(tuple(accounts), tuple(written(amounts).items()), told)


def worst_of_call(limits: Limits, costs: Sequence[Cost]) -> dict[Unit, Decimal]:
    """The most that a tool call with these limits can cost."""
    seconds, size = Decimal(str(limits.wall_s)), Decimal(2 * limits.output_bytes)  # its result, and what it prints
    return {"calls": ONE, "seconds": seconds, "bytes": size, **{cost.unit: cost.most for cost in costs}}


def worst_of_effect(costs: Sequence[Cost]) -> dict[Unit, Decimal]:
    """The most that an effect of a node says that it costs."""
    return {"calls": ONE, **{cost.unit: cost.most for cost in costs}}


def cost_of_call(bill: Bill, seconds: float, value: Any, printed: str) -> dict[str, str]:
    """What a call did cost, in words of JSON: counted where it can be, else what its result says, else all."""
    held = bill.amounts
    size = len(printed.encode(errors="surrogatepass"))
    size += 0 if value is None else len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    counted: dict[Unit, Decimal | None] = {"seconds": Decimal(f"{seconds:.6f}"), "bytes": Decimal(size)}
    for unit, path in bill.told:
        counted[unit] = _amount_at(value, path)  # type: ignore[index]
    return written({unit: _within(counted.get(unit), most) for unit, most in held.items()})


def cost_of_effect(bill: Bill, seconds: float, size: int, told: Mapping[Unit, Decimal]) -> dict[str, str]:
    """What an effect of a node did cost: what was counted, what it says itself, else what it said before. The node's
    own code is believed, also that it was more."""
    counted: dict[Unit, Decimal] = {"seconds": Decimal(f"{seconds:.6f}"), "bytes": Decimal(size)}
    return written({**bill.amounts, **counted, **told})


def _within(amount: Decimal | None, most: Decimal) -> Decimal:
    return most if amount is None else min(amount, most)


def _amount_at(value: Any, path: str) -> Decimal | None:
    """The number at a path into a result; None: there is none that could be believed."""
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
        return None
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        return None
    return round(found, 9) if found.is_finite() and 0 <= found < Decimal(10) ** 18 else None
