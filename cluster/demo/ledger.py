"""The ledger: an append-only file outside of the store, in which every audited distribution has exactly one line.

It stands for the world. Nothing in the runtime can take a line back, so a call that was lost shows as a missing line
and one that was repeated as a second one. The lines are written by `tools.append_ledger`, in the sandbox.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line."""

    distribution: str
    version: str
    score: int
    verdict: str
    run: str
    key: str
    """The effect key of the call that wrote it. Two lines with one key: the runtime made one call twice."""


@dataclass(frozen=True)
class Check:
    """Is everything in the ledger that has to be, and nothing else?"""

    rows: int
    missing: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    unreadable: int = 0
    """Lines that are no rows, as a torn write leaves them."""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.doubled or self.unexpected or self.unreadable)

    def words(self) -> str:
        """One sentence."""
        if self.ok:
            return f"every distribution has exactly one row in the ledger ({self.rows} rows)"
        parts = [
            f"{len(names)} {what}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
            for what, names in (("missing", self.missing), ("doubled", self.doubled), ("unexpected", self.unexpected))
            if names
        ]
        if self.unreadable:
            parts.append(f"{self.unreadable} unreadable")
        return f"the ledger is wrong ({self.rows} rows): " + "; ".join(parts)


def create(path: Path) -> None:
    """An empty ledger: the sandbox is shown this very file, so it has to be there before the first call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=False)


def read(path: Path) -> tuple[list[Row], int]:
    """The rows, and how many lines are none."""
    rows, unreadable = [], 0
    for line in path.read_bytes().splitlines():
        row = _row(line)
        if row is None:
            unreadable += 1
        else:
            rows.append(row)
    return rows, unreadable


def _row(line: bytes) -> Row | None:
    try:
        raw: dict[str, Any] = json.loads(line)
        return Row(**{name: raw[name] for name in Row.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


def check_ledger(expected: Iterable[str], rows: Iterable[Row], unreadable: int = 0) -> Check:
    """Compare the ledger with the names of the distributions that were to be audited."""
    wanted = set(expected)
    found = Counter(row.distribution for row in rows)
    return Check(
        rows=found.total(),
        missing=tuple(sorted(wanted - set(found))),
        doubled=tuple(sorted(name for name, count in found.items() if count > 1)),
        unexpected=tuple(sorted(set(found) - wanted)),
        unreadable=unreadable,
    )
