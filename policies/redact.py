"""Takes out of arguments what no event and no message may show. The call itself gets them whole."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

REDACTED: Final = "[redacted]"


def redacted(args: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy in which the value at each path is `REDACTED`. `*` in a path stands for every item or member."""
    shown: Any = dict(args)
    for path in paths:
        shown = _without(shown, path.split("."))
    found: dict[str, Any] = shown
    return found


def is_hidden(field: str, paths: Iterable[str]) -> bool:
    """Whether a field is, holds, or lies in what is hidden."""
    return any(_overlap(field.split("."), path.split(".")) for path in paths)


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    return all(a == b or "*" in (a, b) for a, b in zip(one, other, strict=False))


def _without(value: Any, path: Sequence[str]) -> Any:
    if not path:
        return REDACTED
    first, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {key: _without(each, rest) if first in ("*", key) else each for key, each in value.items()}
    if isinstance(value, list):
        return [_without(each, rest) if first in ("*", str(n)) else each for n, each in enumerate(value)]
    return REDACTED if rest or first else value
