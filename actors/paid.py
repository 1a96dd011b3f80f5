"""What effects of nodes cost: what they may cost is said before (`cost=`), and what they did cost after (`Paid`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from understudy.actors.errors import CallerError
from understudy.policies.budget import Cost, Unit

TOLD: Final[tuple[Unit, ...]] = ("seconds", "bytes", "tokens", "money")
"""What a node may say beforehand. That it is one call goes without saying."""
MOST: Final = Decimal(10) ** 15


@dataclass(frozen=True)
class Paid:
    """What the function of a `ctx.effect` may return instead of its result alone: the result, and what it did cost.

    `return Paid(answer, tokens=answer["usage"]["total_tokens"], money="0.012")`. What is not told here has cost what
    `cost=` said; seconds and bytes are measured.
    """

    value: Any
    tokens: int | float | Decimal | str | None = None
    money: int | float | Decimal | str | None = None

    def told(self) -> dict[Unit, Decimal]:
        """Raises CallerError: that is no amount."""
        said: dict[Unit, Any] = {"tokens": self.tokens, "money": self.money}
        return {unit: amount(unit, each, "Paid") for unit, each in said.items() if each is not None}


def costs_of(name: str, cost: Any) -> tuple[Cost, ...] | None:
    """`cost=` of an effect, read. Raises CallerError."""
    if cost is None:
        return None
    where = f"ctx.effect({name!r}): cost"
    if not isinstance(cost, Mapping) or not set(cost) <= set(TOLD):
        raise CallerError(
            f"{where} is a mapping with the keys {', '.join(TOLD)}, e.g. {{'tokens': 4000}}, not {cost!r:.80}"
        )
    return tuple(Cost(unit, amount(unit, cost[unit], where)) for unit in TOLD if unit in cost)


def amount(unit: str, said: Any, where: str) -> Decimal:
    """Raises CallerError."""
    try:
        if isinstance(said, bool) or not isinstance(said, int | float | str | Decimal):
            raise InvalidOperation
        found = Decimal(str(said))
        if not found.is_finite() or not 0 <= found <= MOST:
            raise InvalidOperation
    except InvalidOperation:
        raise CallerError(f"{where}: {unit} = {said!r:.80} is no amount; give a number from 0 to {MOST:f}") from None
    return round(found, 9)
