"""The table of attempts by tier and user, written to build/escape.md at the end of a session that made any."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WALLED = {"sandbox", "granting", "as_root", "doomed"}
"""Fixtures whose parameter is a place."""


@dataclass
class Grid:
    """`contained` means that every assertion about the attempt held, also those about the host afterwards."""

    cells: dict[str, dict[str, bool]] = field(default_factory=dict)

    def add(self, attempt: str, place: str, contained: bool) -> None:
        row = self.cells.setdefault(attempt, {})
        row[place] = row.get(place, True) and contained

    def text(self) -> str:
        """Markdown."""
        places = sorted({place for row in self.cells.values() for place in row})
        lines = [_row(["attempt", *places]), _row(["---", *(":-:" for _ in places)])]
        for attempt, row in sorted(self.cells.items()):
            lines.append(_row([attempt, *(_cell(row.get(place)) for place in places)]))
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "escape.md").write_text(self.text())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(contained: bool | None) -> str:
    return "" if contained is None else "contained" if contained else "**NOT**"
