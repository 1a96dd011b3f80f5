"""What the outside knows of an effect whose end is not on record: it took effect, it never did, or nobody can tell.

Pure and light: a tool's own module imports it, inside every sandbox.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Done:
    """It took effect, and this is what it answered (JSON values, or what the effect's `type` reads)."""

    value: Any = None

    def model_dump(self, mode: str = "json") -> Any:
        """As it leaves a sandbox."""
        from pydantic_core import to_jsonable_python

        return {"done": to_jsonable_python(self.value)}


@dataclass(frozen=True)
class NeverHappened:
    """It did not take effect, and never will: it is started."""

    def model_dump(self, mode: str = "json") -> Any:
        """As it leaves a sandbox."""
        return "never happened"


@dataclass(frozen=True)
class Unsure:
    """The outside cannot tell either: a person is asked. `why` is shown to them."""

    why: str = ""

    def model_dump(self, mode: str = "json") -> Any:
        """As it leaves a sandbox."""
        return {"unsure": self.why}


class EndUnknown(Exception):
    """Raised by a tool that began something elsewhere, and lost sight of it: how it ended is for its declaration to say
    (`idempotent`, `reconcile`), else for a person, just as if its sandbox had died."""

    leaves_unknown = True
    """By this the sandbox knows it, without an import."""


Reconciled = Done | NeverHappened | Unsure


def read_reconciled(told: Any) -> Reconciled:
    """What a `reconcile` told: one of the three, the class itself, or its JSON. Anything else is Unsure."""
    match told:
        case Done() | NeverHappened() | Unsure():
            return told
        case {"done": value} if len(told) == 1:
            return Done(value)
        case {"unsure": str(why)} if len(told) == 1:
            return Unsure(why)
    if told == "never happened" or told is NeverHappened:
        return NeverHappened()
    if told is Unsure:
        return Unsure()
    return Unsure(f"reconcile told {told!r:.80}, which is none of Done(value), NeverHappened() and Unsure(why)")
