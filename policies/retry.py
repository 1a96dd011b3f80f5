"""A node that raised is tried again, a bounded number of times, each time after a longer wait.

This is for exceptions in a node (law 11); a crash of the process is restart's, and a refusal is final. The wait is
spread by a hash of the seed, not by chance: the same attempt of the same task always waits the same, so a replay is
exact, and a thousand tasks that failed together still do not come back together.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Retry:
    """How often and when a node is tried again."""

    attempts: int = 1
    """Tries in all, the first one included: 1 means no retry."""
    base_s: float = 0.5
    """Wait before the second try."""
    factor: float = 2.0
    """Every further wait is this many times longer."""
    max_s: float = 60.0
    jitter: float = 0.1
    """Share of the wait by which it is spread, up and down; `max_s` holds nevertheless."""
    on: tuple[str | type[BaseException], ...] = ("*",)
    """The exceptions that are worth it: classes, or names of them (globs); a base class stands for all below it."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("attempts", int),
            ("base_s", float),
            ("factor", float),
            ("max_s", float),
            ("jitter", float),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | kind):
                raise ValueError(f"{name} is {value!r}; give {'a whole number' if kind is int else 'a number'}")
        if not 1 <= self.attempts <= 1000:
            raise ValueError(f"attempts is {self.attempts}; give 1 (no retry) to 1000")
        if not (0 <= self.base_s <= self.max_s < float("inf") and 1 <= self.factor <= 100):
            raise ValueError(
                f"backoff is base {self.base_s} s, factor {self.factor}, max {self.max_s} s; "
                f"give a base from 0 to the maximum, and a factor from 1 to 100"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}; give a share from 0 to 1")
        if not isinstance(self.on, tuple):
            one = self.on.__name__ if _is_exception(self.on) else repr(self.on)
            good = one if _is_exception(self.on) or isinstance(self.on, str) else "ConnectionError"
            raise ValueError(f"on is {one}; give a tuple of exceptions or names of them, e.g. ({good},)")
        wrong = [item for item in self.on if not (isinstance(item, str) or _is_exception(item))]
        if wrong:
            raise ValueError(f"on has {wrong[0]!r}, which is no exception; give classes or names of them")

    @property
    def names(self) -> tuple[str, ...]:
        """The class names (globs) that `on` says."""
        return tuple(item if isinstance(item, str) else item.__name__ for item in self.on)


def _is_exception(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseException)


def next_delay(retry: Retry, attempt: int, error_type_names: Sequence[str], seed: str) -> float | None:
    """Seconds until the next try; None: it was the last.

    Args:
        attempt: how many tries there were, the failed one included.
        error_type_names: class names of the exception's MRO.
        seed: names this very task, e.g. its id.
    """
    if attempt >= retry.attempts or not any(
        fnmatchcase(name, glob) for name in error_type_names for glob in retry.names
    ):
        return None
    wait_s = retry.base_s
    for _ in range(attempt - 1):  # not a power: that overflows where this is capped
        wait_s = min(retry.max_s, wait_s * retry.factor)
    digest = hashlib.sha256(f"{seed}\0{attempt}".encode(errors="replace")).digest()
    spread = int.from_bytes(digest[:4]) / 0xFFFFFFFF * 2 - 1
    return max(0.0, min(retry.max_s, wait_s * (1 + retry.jitter * spread)))
