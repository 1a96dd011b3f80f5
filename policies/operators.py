"""The operators of conditions: what each one asks of a value, and on which values it cannot be asked.

Each takes the value and its own operand, made ready once by `prepare`. It raises Unclear where yes and no would both be
a guess: a number that is text, a host in an odd spelling, a command line that no reader can be sure of.
"""

import posixpath
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from understudy.policies.argv import Unreadable, read_line, read_words
from understudy.policies.command_line import CommandTest, compiled
from understudy.policies.hosts import (
    HostPattern,
    NotCanonical,
    UrlPattern,
    read_host_pattern,
    read_target,
    read_url,
    read_url_pattern,
)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Op = Literal[
    "eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "matches", "under", "exists", "host", "url", "command", "plain"
]

MATCHED_TEXT_MAX = 4096
"""Characters that `matches` looks at, and fewer where the pattern could take too long on them (`backtracking`); longer
text cannot be judged."""


class Unclear(Exception):
    """A condition that cannot be judged on this value."""


def prepare(op: Op, value: Any, allowing: bool) -> Any:
    """An operand, made ready. Raises ValueError (re.error, Runaway, NotCanonical) where it is none."""
    match op:
        case "matches":
            from understudy.policies.backtracking import longest_text  # only where a rule has a pattern

            return re.compile(str(value)), longest_text(str(value), MATCHED_TEXT_MAX)
        case "under":
            return tuple(f"{normal_path(each).rstrip('/')}/" for each in listed(value))
        case "host":
            return tuple(read_host_pattern(each) for each in listed(value))
        case "url":
            return tuple(read_url_pattern(each) for each in listed(value))
        case "command":
            test = CommandTest(**{name: tuple(listed(each)) for name, each in value.items()})
            return compiled(test, allowing)
        case _:
            return value


def listed(value: Any) -> list[Any]:
    """A text stands for a list of one."""
    return [value] if isinstance(value, str) else list(value or ())


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


_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = 80


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
        raise Unclear(f"it is {show(value)}, and only a number can be compared")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unclear(f"it is {show(value)}, and only text can be looked at")
    return value


def _matches(value: Any, ready: tuple[re.Pattern[str], int]) -> bool:
    text, (pattern, longest) = _text(value), ready
    if len(text) > longest:
        raise Unclear(f"it has {len(text)} characters, and 'matches' looks at {longest} at most with this pattern")
    return pattern.fullmatch(text) is not None


def _under(value: Any, folders: tuple[str, ...]) -> bool:
    path = _text(value)
    if not path.startswith("/") or "\0" in path:
        raise Unclear(f"it is {show(value)}, and only an absolute path has a known place")
    path = normal_path(path)
    return (path if path == "/" else path + "/").startswith(folders)


def _fits_one(found: Iterable[bool | None]) -> bool:
    """One pattern that fits is enough; one that might, if a port were known, makes it unclear."""
    all_found = tuple(found)
    if True in all_found:
        return True
    if None in all_found:
        raise Unclear("it names no port, and the rule does")
    return False


def _host(value: Any, patterns: tuple[HostPattern, ...]) -> bool:
    text = _text(value)
    try:
        target = read_target(text)
    except NotCanonical as error:
        raise Unclear(f"it is {show(value)}: {error}") from None
    return _fits_one(pattern.fits(target) for pattern in patterns)


def _url(value: Any, patterns: tuple[UrlPattern, ...]) -> bool:
    text = _text(value)
    try:
        target = read_url(text)
    except NotCanonical as error:
        raise Unclear(f"it is {show(value)}: {error}") from None
    return _fits_one(pattern.fits(target) for pattern in patterns)


def _command(value: Any, fits: Callable[[Any], bool]) -> bool:
    try:
        return fits(_line(value))
    except Unreadable as error:
        raise Unclear(f"it is {show(value)}: {error}") from None


def _plain(value: Any, wanted: bool) -> bool:
    line = _line(value)
    try:
        if isinstance(line, str):
            read_line(line)
        else:
            read_words(line)
    except Unreadable:
        return wanted is False
    return wanted is True


def _line(value: Any) -> str | list[Any]:
    if not isinstance(value, str | list):
        raise Unclear(f"it is {show(value)}, and only a text or a list of words is a command")
    return value


TESTS: Final[Mapping[Op, Callable[[Any, Any], bool]]] = {
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
    "host": _host,
    "url": _url,
    "command": _command,
    "plain": _plain,
}
