"""A condition says what one argument of a call has to be like; it holds, it does not, or it cannot be judged.

The third matters: `amount gt 100` on the text "500" is neither true nor false, and a rule that guessed would guess
wrong for somebody. Who asks decides what that means (see `permission`: never in the call's favour).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from understudy.policies.operators import JSON, TESTS, Op, Unclear, prepare, show
from understudy.policies.redact import REDACTED, is_hidden

Truth = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Condition:
    """What one argument has to be like. `field` is a path: `amount`, `order.lines.0.sku`."""

    field: str
    op: Op
    value: JSON


@dataclass(frozen=True)
class Check:
    """A condition, made ready."""

    condition: Condition
    name: str
    """The argument."""
    deeper: tuple[str, ...]
    """The way into it."""
    test: Callable[[Any, Any], bool]
    operand: Any
    absent: bool | None
    """What holds when the argument was not given; None: true in logic, and so nothing to allow a call for."""


class Finding(NamedTuple):
    """How a rule turned out. Put into words only when somebody asks: most findings are a quick no."""

    truth: Truth
    check: Check | None = None
    """The condition that settled it."""
    value: Any = None
    """What it was judged on."""
    note: str = ""
    """Why it could not be judged; or, without a check, why the rule is not about this call."""

    def words(self, hidden: Iterable[str] = ()) -> str:
        """Without the values at these paths."""
        if self.check is None:
            return self.note or "all conditions hold"
        condition = self.check.condition
        wanted = f"{condition.field!r} should be {condition.op} {show(condition.value)}"
        if is_hidden(condition.field, hidden) and self.value is not _MISSING:
            return f"{wanted}: it is {REDACTED}"
        if self.truth == "unclear":
            return f"{wanted}: {self.note}"
        return f"{wanted}: it is {'missing' if self.value is _MISSING else show(self.value)}"


FITS: Final = Finding("yes")


def make_ready(condition: Condition, allowing: bool) -> Check:
    """Compiles what can be compiled, once.

    Args:
        allowing: the rule gains a call by a yes; it is read strictly, others broadly (see `command_line`).
    """
    absent: bool | None = False
    match condition.op:
        case "exists":
            absent = condition.value is False
        case "ne" | "not_in":
            absent = None
        case _:
            pass
    name, *deeper = condition.field.split(".")
    operand = prepare(condition.op, condition.value, allowing)
    return Check(condition, name, tuple(deeper), TESTS[condition.op], operand, absent)


def judge(checks: Iterable[Check], args: Mapping[str, JSON], allowing: bool) -> Finding:
    """All conditions together: one that fails settles it, whatever the others are (so their order does not matter).

    Args:
        allowing: the call gains by a yes. Then nothing holds because of what was left out.
    """
    unclear: Finding | None = None
    for check in checks:
        try:
            value = args.get(check.name, _MISSING)
            if check.deeper:
                value = _look_into(value, check.deeper)
            if value is not _MISSING:
                holds = check.test(value, check.operand)
            else:
                holds = not allowing if check.absent is None else check.absent
        except Unclear as error:
            unclear = unclear or Finding("unclear", check, note=str(error))
            continue
        if not holds:
            return Finding("no", check, value)
    return unclear or FITS


_MISSING: Final = object()


def value_at(args: Mapping[str, JSON], field: str) -> Any:
    """What is at a path into arguments; None: nothing."""
    name, *deeper = field.split(".")
    try:
        found = _look_into(args.get(name, _MISSING), deeper)
    except Unclear:
        return None
    return None if found is _MISSING else found


def _look_into(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if value is _MISSING or value is None:
            return _MISSING
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else _MISSING
        else:
            raise Unclear(f"{show(value)} has no field {part!r}")
    return value
