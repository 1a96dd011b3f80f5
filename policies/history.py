"""What a run has been granted before, as far as rules may ask: "after reading a secret, no network".

Pure values, made from the run's own event log by whoever asks for a decision. A fork, a child, or the next run on a
thread carries in its state what those before it have read, and it has not done what they did: so there are two
readings, and neither is ever in the call's favour.
"""

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache


@dataclass(frozen=True)
class Past:
    """Calls that began, in their names and marks."""

    tools: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    """Of the rules that allowed them."""
    anything: bool = False
    """Nobody can tell any more: it may have been anything."""

    def __or__(self, other: "Past") -> "Past":
        return Past(self.tools | other.tools, self.marks | other.marks, self.anything or other.anything)


NOTHING = Past()
ANYTHING = Past(anything=True)


@dataclass(frozen=True)
class History:
    own: Past = NOTHING
    """What the run itself has done."""
    inherited: Past = NOTHING
    """What those have done that it comes from: a fork's origin, a child's parent, those before it on a thread."""

    @property
    def at_most(self) -> Past:
        return self.own | self.inherited if self.inherited is not NOTHING else self.own


@dataclass(frozen=True)
class Earlier:
    """What a rule asks of the past: one of these tools was called, or one of these marks was left."""

    tools: tuple[str, ...] = ()
    """Globs."""
    marks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tools or self.marks)

    def happened(self, past: Past) -> bool:
        if past.anything or not past.marks.isdisjoint(self.marks):
            return True
        return any(_glob(glob).match(tool) for glob in self.tools for tool in past.tools)

    def words(self) -> str:
        parts = [f"tool {' or '.join(map(repr, self.tools))}"] if self.tools else []
        return " or ".join([*parts, f"mark {' or '.join(map(repr, self.marks))}"] if self.marks else parts)


@lru_cache(maxsize=1024)
def _glob(glob: str) -> re.Pattern[str]:
    """Globs come from rules; each run may bring its own."""
    return re.compile(translate(glob))
