"""A condition says what one argument of a call has to be like; it holds, it does not, or it cannot be judged.

The third matters: `amount gt 100` on the text "500" is neither true nor false, and a rule that guessed would guess
wrong for somebody. Who asks decides what that means (see `permission`: never in the call's favour).
"""

import posixpath
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from understudy.policies.profile import covers

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Op = Literal["eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "matches", "under", "exists"]
Truth = Literal["yes", "no", "unclear"]

MATCHED_TEXT_MAX = 4096
"""Characters that `matches` looks at; longer text cannot be judged. It bounds what a pattern with two open ends costs,
and not one that backtracks exponentially, like `(a+)+b`: patterns come from people who are trusted to write rules."""


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

    def words(self) -> str:
        if self.check is None:
            return self.note or "all conditions hold"
        condition = self.check.condition
        wanted = f"{condition.field!r} should be {condition.op} {show(condition.value)}"
        if self.truth == "unclear":
            return f"{wanted}: {self.note}"
        return f"{wanted}: it is {'missing' if self.value is _MISSING else show(self.value)}"


FITS: Final = Finding("yes")


def make_ready(condition: Condition) -> Check:
    """Compiles what can be compiled, once."""
    operand: Any = condition.value
    absent: bool | None = False
    match condition.op:
        case "matches":
            operand = re.compile(str(operand))
        case "under":
            operand = tuple(normal_path(each) for each in ([operand] if isinstance(operand, str) else operand or ()))
        case "exists":
            absent = operand is False
        case "ne" | "not_in":
            absent = None
        case _:
            pass
    name, *deeper = condition.field.split(".")
    return Check(condition, name, tuple(deeper), _TESTS[condition.op], operand, absent)


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
        except _Unclear as error:
            unclear = unclear or Finding("unclear", check, note=str(error))
            continue
        if not holds:
            return Finding("no", check, value)
    return unclear or FITS


def normal_path(path: str) -> str:
    """An absolute path without `.`, `..` and repeated slashes (posix lets a path begin with two; here it may not)."""
    if path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path:
        return path  # as most are: this saves half of the time of `under`
    return posixpath.normpath("/" + path.lstrip("/"))


def show(value: Any) -> str:
    """A value in a message: never longer than 80 characters, however long or deep it is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python writes no int of more than 4300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


class _Unclear(Exception):
    """A condition that cannot be judged on this value."""


_MISSING: Final = object()
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = 80


def _look_into(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if value is _MISSING or value is None:
            return _MISSING
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else _MISSING
        else:
            raise _Unclear(f"{show(value)} has no field {part!r}")
    return value


def _same(value: JSON, other: JSON) -> bool:
    """Equal as JSON: `true` is not 1, as it is in Python; 1 is 1.0."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return value == other


def _within(value: JSON, others: list[JSON]) -> bool:
    return any(_same(value, other) for other in others)


def _number(value: Any) -> float:
    if type(value) is int:
        return value
    # NaN is refused: every comparison with it is false, so `deny when amount gt 100` would let it pass.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise _Unclear(f"it is {show(value)}, and only a number can be compared")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unclear(f"it is {show(value)}, and only text can be looked at")
    return value


def _matches(value: Any, pattern: re.Pattern[str]) -> bool:
    text = _text(value)
    if len(text) > MATCHED_TEXT_MAX:
        raise _Unclear(f"it has {len(text)} characters, and 'matches' looks at {MATCHED_TEXT_MAX} at most")
    return pattern.fullmatch(text) is not None


def _under(value: Any, folders: tuple[str, ...]) -> bool:
    path = _text(value)
    if not path.startswith("/") or "\0" in path:
        raise _Unclear(f"it is {show(value)}, and only an absolute path has a known place")
    return covers(folders, normal_path(path))


_TESTS: Final[Mapping[Op, Callable[[Any, Any], bool]]] = {
    "eq": _same,
    "ne": lambda value, other: not _same(value, other),
    "in": _within,
    "not_in": lambda value, others: not _within(value, others),
    "lt": lambda value, bound: _number(value) < bound,
    "le": lambda value, bound: _number(value) <= bound,
    "gt": lambda value, bound: _number(value) > bound,
    "ge": lambda value, bound: _number(value) >= bound,
    "matches": _matches,
    "under": _under,
    "exists": lambda value, wanted: wanted is True,
}
