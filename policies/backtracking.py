"""How long a regular expression may take on text that somebody hostile has written, judged before it is ever used.

Python's engine tries one way after the other. Where two repetitions can share the same characters, each place between
them is tried: `.*a.*b` takes the square of the text's length, and `(a+)+b` more than there is time for. A tool's
arguments come from a model, and one policy actor judges for everybody. So a pattern is read here, and it is found out
in how many ways a text may be split among its repetitions: from that follows how long a text may be. Pure.

The judgement is on the safe side: what separates two repetitions for certain (a character that the first cannot take)
is seen, cleverer reasons are not. A possessive repetition (`a++`) or an atomic group (`(?>...)`) is never tried again.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import factorial
from typing import Any, Final

from re import _constants as ops  # type: ignore[attr-defined]  # isort: skip
from re import _parser as parser  # type: ignore[attr-defined]  # isort: skip

STEPS_MAX: Final = 2**22
"""Half a second at the worst, on the machine where it was measured; most patterns fail sooner."""
NESTED_MAX: Final = 4
UNROLLED_MAX: Final = 4
"""Rounds of a group that are looked at one by one."""
OPEN: Final = 4096
_FOLDS: Final = re.compile(r"\(\?[a-z]*i")
"""Somewhere in it, upper and lower case are the same."""
_LATIN: Final = range(256)
_LETTERS, _DIGITS, _SPACES, _REST = _OTHERS = 256, 257, 258, 259
"""Stand for all other characters, by what classes there are of them."""
_ALL: Final = frozenset((*_LATIN, *_OTHERS))
_REPEATS: Final = (ops.MAX_REPEAT, ops.MIN_REPEAT)


class Runaway(ValueError):
    """A pattern that may take longer than anybody can wait, on a text of few characters. Says which part."""


@dataclass(frozen=True, eq=False)
class _Loose:
    """A repetition that may end in several places. Another one is another one, be it alike."""

    chars: frozenset[int]
    width: int
    """In how many, at most."""


@dataclass
class _Walk:
    """Along a pattern, from left to right."""

    folded: bool
    depth: int = 0
    """Of loose repetitions around this place."""
    active: tuple[_Loose, ...] = ()
    """Repetitions that may still reach as far as this place."""
    worst: tuple[int, ...] = field(default=())
    """The widths of those that can share characters, where there were the most ways."""

    def along(self, items: Iterable[tuple[Any, Any]]) -> None:
        for op, value in items:
            self._step(op, value)

    def _step(self, op: Any, value: Any) -> None:
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            self._passed(_chars(op, value, self.folded))
        elif op is ops.SUBPATTERN:
            self.along(value[3])
        elif op is ops.BRANCH:
            self._branches(value[1])
        elif op in _REPEATS:
            self._repeat(*value)
        elif op is ops.POSSESSIVE_REPEAT:
            self._once([(ops.MAX_REPEAT, value)], at_least=value[0])
        elif op is ops.ATOMIC_GROUP:
            self._once(value, at_least=1)
        elif op in (ops.ASSERT, ops.ASSERT_NOT):
            before = self.active
            self.along(value[1])
            self.active = before
        elif op is ops.GROUPREF_EXISTS:
            self._branches([each for each in value[1:] if each is not None])

    def _passed(self, chars: frozenset[int]) -> None:
        """Something that has to be there: what cannot take it ends before it."""
        self.active = tuple(each for each in self.active if each.chars & chars)

    def _branches(self, branches: Sequence[Any]) -> None:
        before, after = self.active, dict[_Loose, None]()
        for branch in branches:
            self.active = before
            self.along(branch)
            after |= dict.fromkeys(self.active)
        self.active = tuple(after)
        if _begin_alike(branches, self.folded):
            self._loose(_Loose(_ALL, len(branches)), 0)

    def _once(self, items: Any, at_least: int) -> None:
        """What is in it is not tried again once it is over; but anew for each way that leads to it."""
        before = self.active
        self.along(items)
        self.active = before
        if at_least and _shortest(items):
            self._passed(_all_chars(items, self.folded))

    def _repeat(self, least: int, most: int, body: Any) -> None:
        width, rounds = min(int(most) - least + 1, OPEN), 1
        if _is_loose(body):
            if self.depth == NESTED_MAX:
                raise Runaway(f"repetitions that are nested more than {NESTED_MAX} deep")
            self.depth += 1
            if int(most) > 1 and self._shares_with_itself(body):
                rounds = int(most)
            if rounds > UNROLLED_MAX:
                raise Runaway(
                    "a repetition inside of a repetition, with nothing between its rounds that tells them apart"
                )
            for _ in range(rounds):
                self.along(body)
            self.depth -= 1
        if rounds > 1:
            return
        if width > 1:
            self._loose(_Loose(_all_chars(body, self.folded), width), least)
        elif least:
            self._passed(_all_chars(body, self.folded))

    def _shares_with_itself(self, body: Any) -> bool:
        """Whether what one round takes, the next one might have taken, in another way than round by round."""
        once, twice = _Walk(self.folded, self.depth), _Walk(self.folded, self.depth)
        once.along(body)
        twice.along(body)
        twice.along(body)
        return len(twice.worst) > len(once.worst) or _is_ambiguous(body, self.folded) or not _shortest(body)

    def _loose(self, one: _Loose, least: int) -> None:
        together = (*(each for each in self.active if each.chars & one.chars), one)
        widths = tuple(each.width for each in together)
        if _steps(widths, OPEN) > _steps(self.worst, OPEN):
            self.worst = widths
        self.active = (*(self.active if not least else together[:-1]), one)


def longest_text(pattern: str, most: int) -> int:
    """How many characters of a text the pattern may be asked about; `most` where it is not the pattern that bounds it.

    Raises Runaway: not even a short text; re.error: it is no pattern.
    """
    parsed = parser.parse(pattern)
    walk = _Walk(bool(parsed.state.flags & re.IGNORECASE) or _FOLDS.search(pattern) is not None)
    walk.along(parsed)
    length = most
    while _steps(walk.worst, length) > STEPS_MAX:
        length = length * 7 // 8
    if length < 32:
        raise Runaway(f"{len(walk.worst)} repetitions that can take the same characters, with nothing between them")
    return length


# --- parts ---------------------------------------------------------------------------------------------------------


def _steps(widths: Sequence[int], length: int) -> int:
    """In how many ways a text of this length is split among repetitions."""
    found = 1
    for width in widths:
        found *= min(width, length)
    return found // factorial(sum(width >= length for width in widths))


def _is_ambiguous(items: Any, folded: bool) -> bool:
    """Whether it has alternatives that may begin alike."""
    for op, value in items:
        if op is ops.BRANCH and _begin_alike(value[1], folded):
            return True
        if any(_is_ambiguous(inner, folded) for inner in _inside(op, value)):
            return True
    return False


def _begin_alike(branches: Sequence[Any], folded: bool) -> bool:
    seen: frozenset[int] = frozenset()
    for branch in branches:
        first = _first(branch, folded)
        if first & seen:
            return True
        seen |= first
    return False


def _first(items: Any, folded: bool) -> frozenset[int]:
    """What it may begin with; all characters where that is not seen at once."""
    for op, value in items:
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            return _chars(op, value, folded)
        if op is ops.SUBPATTERN:
            return _first(value[3], folded)
        if op in _REPEATS and value[0]:
            return _first(value[2], folded)
        if op is not ops.AT:
            break
    return _ALL


def _is_loose(items: Any) -> bool:
    """Whether it may match texts of several lengths, or one in several ways."""
    for op, value in items:
        if op is ops.BRANCH or (op in _REPEATS and (value[0] != value[1] or _is_loose(value[2]))):
            return True
        if op is ops.SUBPATTERN and _is_loose(value[3]):
            return True
    return False


def _shortest(items: Any) -> int:
    if isinstance(items, list):
        return sum(_shortest(value[2]) * value[0] if op in _REPEATS else 1 for op, value in items)
    return int(items.getwidth()[0])


def _inside(op: Any, value: Any) -> Iterable[Any]:
    if op is ops.SUBPATTERN:
        return [value[3]]
    if op is ops.BRANCH:
        return list(value[1])
    if op in (*_REPEATS, ops.POSSESSIVE_REPEAT):
        return [value[2]]
    if op is ops.ATOMIC_GROUP:
        return [value]
    if op is ops.GROUPREF_EXISTS:
        return [each for each in value[1:] if each is not None]
    return []


def _all_chars(items: Any, folded: bool) -> frozenset[int]:
    """Every character that may be in what it matches."""
    found: frozenset[int] = frozenset()
    for op, value in items:
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            found |= _chars(op, value, folded)
        elif op is ops.GROUPREF:
            return _ALL
        for inner in _inside(op, value):
            found |= _all_chars(inner, folded)
    return found


def _chars(op: Any, value: Any, folded: bool) -> frozenset[int]:
    """What one place may hold."""
    if op is ops.ANY:
        return _ALL
    if op is ops.LITERAL:
        return _both_cases({_place(value)}, folded)
    if op is ops.NOT_LITERAL:
        return _ALL - {value} if value in _LATIN and not folded else _ALL
    found: set[int] = set()
    whole: set[int] = set()  # what is in it for certain, and so not in its opposite
    for kind, what in value:
        if kind is ops.LITERAL:
            found.add(_place(what))
            whole.update({what} & {*_LATIN})
        elif kind is ops.RANGE:
            latin = range(what[0], min(what[1], 255) + 1)
            found.update(latin, _OTHERS if what[1] > 255 else ())
            whole.update(latin)
        elif kind is ops.CATEGORY:
            found |= _CLASSES[what]
            whole |= _CLASSES[what]
    if (ops.NEGATE, None) in value:
        return _ALL if folded else _ALL - whole
    return _both_cases(found, folded)


def _place(code: int) -> int:
    if code in _LATIN:
        return code
    sign = chr(code)
    return _SPACES if sign.isspace() else _DIGITS if sign.isdigit() else _LETTERS if sign.isalnum() else _REST


def _both_cases(found: set[int], folded: bool) -> frozenset[int]:
    if not folded:
        return frozenset(found)
    swapped = {_place(ord(each)) for code in found & {*_LATIN} for each in chr(code).swapcase()}
    return frozenset(found | swapped | {_LETTERS})


def _class(text: str, *others: int) -> frozenset[int]:
    return frozenset((*(code for code in _LATIN if re.fullmatch(text, chr(code))), *others))


_CLASSES: Final = {
    ops.CATEGORY_DIGIT: _class(r"\d", _DIGITS),
    ops.CATEGORY_NOT_DIGIT: _class(r"\D", _LETTERS, _DIGITS, _SPACES, _REST),
    ops.CATEGORY_SPACE: _class(r"\s", _SPACES),
    ops.CATEGORY_NOT_SPACE: _class(r"\S", _LETTERS, _DIGITS, _REST),
    ops.CATEGORY_WORD: _class(r"\w", _LETTERS, _DIGITS, _REST),
    ops.CATEGORY_NOT_WORD: _class(r"\W", _SPACES, _REST),
}
"""In doubt (a digit to one is none to another) in both."""
