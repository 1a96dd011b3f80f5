"""Reads the values in a policy file one by one, and goes on after a mistake, so that all of them are found at once.

Every method answers something usable; whether it is true is told by `problems`. What the values mean together is said
in `policy_file`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, Literal

from understudy.policies.operators import normal_path, show

SHOWN_MAX = 50
"""Problems that a message lists."""
LOCATED_MAX = 100
"""Problems that are told with their line."""

Kind = Literal["duration", "size", "count"]
_UNITS: Final[Mapping[Kind, Mapping[str, float]]] = {
    "duration": {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0},
    "size": {
        **dict(zip(("", "B", "KiB", "MiB", "GiB", "TiB"), (1, 1, 2**10, 2**20, 2**30, 2**40), strict=True)),
        **dict(zip(("kB", "KB", "MB", "GB", "TB"), (10**3, 10**3, 10**6, 10**9, 10**12), strict=True)),
    },
    "count": {"": 1},
}
_MOST: Final[Mapping[Kind, float]] = {"duration": 30 * 86400.0, "size": 100 * 2**40, "count": 1_000_000}
_REMEDY: Final[Mapping[Kind, str]] = {
    "duration": "write e.g. 500ms, 10s, 2m, 1h, 2d or a number of seconds, 30 days at most",
    "size": "write e.g. 64KiB, 512MiB, 1GiB or a number of bytes, 100TiB at most",
    "count": "write a whole number from 1 to 1000000",
}
QUANTITY_MAX: Final = 10**15
_QUANTITY: Final[Mapping[Kind | None, str]] = {
    "duration": "write e.g. 10s, 2m, 1h, 2d or a number of seconds",
    "size": "write e.g. 512MiB, 1GiB or a number of bytes",
    "count": "write a whole number",
    None: 'write e.g. 25 or "0.05"',
}
_AMOUNT: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([^}]*)(?:\}|$)")


@dataclass(frozen=True)
class Problem:
    """One thing to change in a policy file."""

    source: str
    rule: str
    """Id of the rule, or its place in the file; empty: the file itself."""
    field: str
    words: str
    """The value and the remedy."""
    line: int = 0
    """In the file, from 1; 0: not known."""

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (where, self.rule and f"rule {self.rule}", self.field, self.words) if part)


class PolicyError(ValueError):
    """A policy that cannot be used. `problems` lists everything that has to be changed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        shown = [str(problem) for problem in self.problems[:SHOWN_MAX]]
        more = len(self.problems) - len(shown)
        return "\n".join([*shown, f"and {more} more"] if more else shown)


@dataclass
class Reader:
    """Values of one file, and what is wrong with them so far."""

    source: str
    variables: Mapping[str, str] | None
    """None: text stands for itself, as in a stored policy."""
    problems: list[Problem] = field(default_factory=list)
    rule: str = ""
    """Whose values are being read."""
    place: int | None = None
    """Which one that is, from 0."""
    locate: Callable[[int | None, str], int] = lambda place, field: 0
    """The line of a field of a rule."""

    def wrong(self, field: str, words: str) -> None:
        line = self.locate(self.place, field) if len(self.problems) < LOCATED_MAX else 0  # each looks through the file
        self.problems.append(Problem(self.source, self.rule, field, words, line))

    def amount(self, at: str, value: Any, kind: Kind) -> float:
        """A duration in seconds, a size in bytes, or a count."""
        found = None
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            # 1e-05 is a number, too; the rest is read as it is written.
            found = _AMOUNT.fullmatch(f"{value:.6f}" if isinstance(value, float) else str(value).strip())
        if found is None or found[2] not in _UNITS[kind]:
            self.wrong(at, f"{show(value)} is no {kind}; {_REMEDY[kind]}")
            return 1
        amount = round(float(found[1]) * _UNITS[kind][found[2]], 6)
        if not 0 < amount <= _MOST[kind] or (kind != "duration" and not amount.is_integer()):
            self.wrong(at, f"{show(value)} is no {kind} that can be kept; {_REMEDY[kind]}")
        return amount if kind == "duration" else int(amount)

    def quantity(self, at: str, value: Any, kind: Kind | None) -> Decimal:
        """An amount of a budget: many durations, sizes or counts together, or (None) money. Exact."""
        found = None
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            found = _AMOUNT.fullmatch(f"{value:.9f}" if isinstance(value, float) else str(value).strip())
        units = _UNITS[kind] if kind else {"": 1}
        amount = Decimal(-1)
        if found and found[2] in units:
            amount = round(Decimal(found[1]) * Decimal(str(units[found[2]])), 9)
        whole = kind in ("size", "count")
        if not 0 < amount <= QUANTITY_MAX or (whole and amount != int(amount)):
            self.wrong(at, f"{show(value)} is no amount that can be counted; {_QUANTITY[kind]}, {QUANTITY_MAX} at most")
            return Decimal(1)
        return amount.normalize() + 0 if not whole else Decimal(int(amount))

    def mapping(
        self, at: str, value: Any, keys: tuple[str, ...] | None = None, required: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            known = f" with the keys {', '.join(keys)}" if keys else ""
            what = "it is empty" if value is None and not at else f"{show(value)} is no mapping"
            self.wrong(at, f"{what}; write 'key: value' pairs{known}")
            return {}
        if keys is None:
            return value
        for key in sorted(value.keys() - set(keys)):
            known = near(key, keys) or f"; there are {', '.join(keys)}"
            self.wrong(f"{at}.{key[:64]}".lstrip("."), f"there is no such key{known}")
        for key in required:
            if key not in value:
                self.wrong(at, f"the key {key!r} is missing; add it")
        return {key: each for key, each in value.items() if key in keys}

    def name(self, at: str, value: Any) -> str:
        if is_name(value):
            return str(value)
        self.wrong(
            at, f"{show(value)} is no name; write up to 64 letters, digits, '.', '_' or '-', in quotes if need be"
        )
        return ""

    def names(self, at: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.wrong(at, f"{show(value)} is no list of names; write e.g. [secret]")
            return ()
        return tuple(dict.fromkeys(self.name(at, each) for each in value))

    def word(self, at: str, value: Any, what: str, known: tuple[str, ...], otherwise: str = "") -> str:
        if isinstance(value, str) and value in known:
            return value
        self.wrong(at, f"{show(value)} is no {what}; write one of {', '.join(known)}{near(value, known)}")
        return otherwise or known[0]

    def boolean(self, at: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.wrong(at, f"{show(value)} is neither true nor false; write one of them, without quotes")
        return value is True

    def texts(self, at: str, value: Any, example: str) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed:
            self.wrong(at, f"{show(value)} is no list of texts; write e.g. {example}")
            return ()
        return tuple(dict.fromkeys(self.text(at, each) for each in listed))

    def text(self, at: str, value: Any, quote: Callable[[str], str] = str) -> str:
        if not isinstance(value, str):
            self.wrong(at, f"{show(value)} is read as {_kind(value)}, not as text; put it in quotes")
            return ""
        return value if self.variables is None else _VARIABLE.sub(partial(self.variable, at, quote), value)

    def variable(self, at: str, quote: Callable[[str], str], found: re.Match[str]) -> str:
        name, known = found[1], self.variables or {}
        if name is None:
            return "${"
        if name not in known or not found[0].endswith("}"):
            given = ", ".join(sorted(known)) or "none"
            remedy = f"given are: {given}; for the text itself write $${{"
            self.wrong(at, f"the variable {show(found[0])} is not known{near(name, known)}; {remedy}")
            return ""
        given = known[name]
        if not given.isprintable():
            self.wrong(at, f"the variable {name!r} is {show(given)}; give it printable text")
            return ""
        return quote(given)

    def anything(self, at: str, value: Any) -> Any:
        """JSON, with the variables replaced in its texts."""
        if isinstance(value, str):
            return self.text(at, value)
        if isinstance(value, list):
            return [self.anything(at, each) for each in value]
        if isinstance(value, dict):
            return {key: self.anything(at, each) for key, each in value.items()}
        return value

    def globs(self, at: str, value: Any) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed:
            self.wrong(at, f"{show(value)} names none; write a name, a glob or a list of them, in quotes if need be")
            return ()
        found = tuple(self.text(at, each, literal_in_glob) for each in listed)
        for glob in found:
            if not 1 <= len(glob) <= 256:
                self.wrong(at, f"{show(glob)} has {len(glob)} characters; write 1 to 256")
            self.as_seen(at, glob)
        return found

    def as_seen(self, at: str, text: str) -> None:
        """A name with something in it that nobody sees is another name, and the rule would never fit. (What is stored
        with a run is as it was.)"""
        if self.variables is None:
            return
        hidden = next((sign for sign in text if not sign.isprintable()), "")
        if text != text.strip():
            self.wrong(at, f"{show(text)} begins or ends with a blank; take it away")
        elif hidden:
            self.wrong(at, f"{show(text)} holds {hidden!a}, which nobody sees; take it out")

    def paths(self, at: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.wrong(at, f"{show(value)} is no list of paths; write e.g. [/data]")
            return ()
        found = []
        for each in value:
            before = len(self.problems)
            path = self.text(at, each)
            self.as_seen(at, path)
            if len(self.problems) > before:
                continue
            if not path.startswith("/") or "\0" in path:
                self.wrong(at, f"{show(path)} is no absolute path; begin it with / (or with a variable that does)")
            elif ".." in path.split("/"):  # in a variable it would lead out of the folder that is written before it
                self.wrong(at, f"{show(path)} goes up with '..'; write where it leads")
            else:
                found.append(normal_path(path))
        return tuple(dict.fromkeys(found))


def is_name(value: Any) -> bool:
    """Whether a value can name a policy or a rule."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def literal_in_glob(text: str) -> str:
    """A glob for this very text."""
    return re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", text)


def near(word: Any, known: Iterable[str]) -> str:
    """A hint at the known word that is nearest, or nothing."""
    close = get_close_matches(str(word)[:64], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "a mapping"
