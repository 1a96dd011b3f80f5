"""Reads what a policy file counts: its `budgets`, and the `cost` of the calls that a rule allows."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from understudy.policies.budget import AT_LIMIT, SCOPES, AtLimit, Budget, Cost, Degrade, Scope, Unit, plain, written
from understudy.policies.budget_window import PERS, Per
from understudy.policies.condition_reader import ConditionReader
from understudy.policies.operators import show
from understudy.policies.reading import Kind

BUDGETS_MAX: Final = 20
"""In one policy: each call is held in every account that it concerns."""
KINDS: Final[Mapping[Unit, Kind | None]] = {
    "calls": "count",
    "seconds": "duration",
    "bytes": "size",
    "tokens": "count",
    "money": None,
}
COST_UNITS: Final[tuple[Unit, ...]] = ("tokens", "money")
"""What a rule has to say; calls, seconds and bytes are counted, and the limits of the call bound them."""
BUDGET_KEYS: Final = ("id", "scope", "label", "per", "limits", "at_limit", "degrade")
LIMITS: Final[Mapping[str, tuple[str, Kind]]] = {
    "wall": ("wall_s", "duration"),
    "cpu": ("cpu_s", "duration"),
    "memory": ("memory_bytes", "size"),
    "processes": ("processes", "count"),
    "open_files": ("open_files", "count"),
    "disk": ("disk_bytes", "size"),
    "output": ("output_bytes", "size"),
    "network": ("network_bytes", "size"),
    "connections": ("connections", "count"),
}
"""Limits of one call, as files name them."""


class BudgetReader(ConditionReader):
    """The parts of a policy file that count."""

    def budgets(self, data: Any) -> tuple[Budget, ...]:
        if not isinstance(data, list) or len(data) > BUDGETS_MAX:
            self.wrong("budgets", f"{show(data)} is no list of budgets (of {BUDGETS_MAX} at most); begin with '- id:'")
            return ()
        found = tuple(self.budget(f"budgets.{number}", each) for number, each in enumerate(data))
        ids = [budget.id for budget in found]
        for twice in sorted({id for id in ids if ids.count(id) > 1 and id}):
            self.wrong("budgets", f"the id {twice!r} is there {ids.count(twice)} times; give every budget its own")
        return found

    def budget(self, at: str, data: Any) -> Budget:
        raw = self.mapping(at, data, BUDGET_KEYS, required=("id", "scope", "limits"))
        scope = cast(Scope, self.word(f"{at}.scope", raw.get("scope", "run"), "scope", SCOPES))
        at_limit = cast(AtLimit, self.word(f"{at}.at_limit", raw.get("at_limit", "stop"), "end", AT_LIMIT))
        if "label" in raw and scope != "tenant":
            self.wrong(f"{at}.label", f"a budget of scope {scope} asks for no label; leave it out, or say tenant")
        if ("degrade" in raw) != (at_limit == "degrade") and not self.problems:
            words = "say what goes on, e.g. degrade: {deny: [search]}, with 'at_limit: degrade', or leave both out"
            self.wrong(f"{at}.degrade", words)
        label = self.text(f"{at}.label", raw.get("label", "tenant"))
        self.as_seen(f"{at}.label", label)
        limits = self.amounts(f"{at}.limits", raw.get("limits", {}))
        if raw.get("limits") == {}:  # else it is said already what is wrong with what is there
            self.wrong(f"{at}.limits", f"it limits nothing; write e.g. {{calls: 100}} of {', '.join(KINDS)}")
        return Budget(
            id=self.name(f"{at}.id", raw.get("id", "")) if "id" in raw else "",
            scope=scope,
            limits=limits,
            per=cast(Per, self.word(f"{at}.per", raw["per"], "window", PERS)) if "per" in raw else None,
            label=label,
            at_limit=at_limit,
            degrade=self.degrade(f"{at}.degrade", raw["degrade"]) if "degrade" in raw else Degrade(),
        )

    def amounts(self, at: str, data: Any) -> dict[Unit, Any]:
        raw = self.mapping(at, data, tuple(KINDS))
        return {unit: self.quantity(f"{at}.{unit}", raw[unit], kind) for unit, kind in KINDS.items() if unit in raw}

    def degrade(self, at: str, data: Any) -> Degrade:
        raw = self.mapping(at, data, ("deny", "limits"))
        deny = self.globs(f"{at}.deny", raw["deny"]) if raw.get("deny", []) != [] else ()
        found = Degrade(deny, dict(self.call_limits(f"{at}.limits", raw.get("limits", {}))))
        if found == Degrade():
            self.wrong(at, "it says nothing, so nothing would happen at the limit; name tools to deny, or lower limits")
        return found

    def call_limits(self, at: str, data: Any) -> Iterable[tuple[str, float]]:
        """Limits of one call, by field of `profile.Limits`."""
        for name, value in self.mapping(at, data, tuple(LIMITS)).items():
            kept, kind = LIMITS[name]
            yield kept, self.amount(f"{at}.{name}", value, kind)

    def cost(self, data: Any) -> Iterable[Cost]:
        raw = self.mapping("cost", data, COST_UNITS)
        for unit in COST_UNITS:
            if unit not in raw:
                continue
            at, said, told = f"cost.{unit}", raw[unit], ""
            if isinstance(said, dict):
                said = self.mapping(at, said, ("most", "told"), required=("most", "told"))
                told = self.text(f"{at}.told", said.get("told", "x"))
                self.field_path(f"{at}.told", told)
                said = said.get("most", 1)
            yield Cost(unit, self.quantity(at, said, KINDS[unit]), told)


def budget_data(budget: Budget) -> dict[str, Any]:
    """JSON values, as a file has them."""
    data: dict[str, Any] = {"id": budget.id, "scope": budget.scope, "limits": written(budget.limits)}
    if budget.per:
        data["per"] = budget.per
    if budget.scope == "tenant" and budget.label != "tenant":
        data["label"] = budget.label
    if budget.at_limit != "stop":
        data["at_limit"] = budget.at_limit
    if budget.at_limit == "degrade":
        limits = {
            name: budget.degrade.limits[kept] for name, (kept, _) in LIMITS.items() if kept in budget.degrade.limits
        }
        degrade = {"deny": list(budget.degrade.deny), "limits": limits}
        data["degrade"] = {key: value for key, value in degrade.items() if value}
    return data


def cost_data(costs: Iterable[Cost]) -> dict[str, Any]:
    """JSON values, as a file has them."""
    return {
        cost.unit: {"most": plain(cost.most), "told": cost.told} if cost.told else plain(cost.most) for cost in costs
    }
