"""The table of attempts by tier and user, written to build/escape.md at the end of a session that made any."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from escape.probes import ALL

WALLED = {"sandbox", "granting", "as_root", "doomed"}
"""Fixtures whose parameter is a place."""


@dataclass
class Grid:
    """`contained` means that every assertion about the attempt held, also those about the host afterwards."""

    cells: dict[str, dict[str, bool]] = field(default_factory=dict)

    def add(self, attempt: str, place: str, contained: bool) -> None:
        row = self.cells.setdefault(attempt, {})
        row[place] = row.get(place, True) and contained

    @property
    def places(self) -> list[str]:
        return sorted({place for row in self.cells.values() for place in row})

    def by_probe(self) -> str:
        """Markdown: a row for each probe."""
        lines = [_row(["probe", "what", *self.places]), _row(["---", "---", *(":-:" for _ in self.places)])]
        for probe, (what, attempt) in ALL.items():
            made = [row for name, row in self.cells.items() if name.startswith(attempt)]
            cells = []
            for place in self.places:
                found = [row[place] for row in made if place in row]
                cells.append(_cell(all(found) if found else None))
            lines.append(_row([probe, what, *cells]))
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Markdown: a row for each attempt."""
        places = self.places
        lines = [_row(["attempt", *places]), _row(["---", *(":-:" for _ in places)])]
        for attempt, row in sorted(self.cells.items()):
            lines.append(_row([attempt, *(_cell(row.get(place)) for place in places)]))
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "escape.md").write_text(f"{self.by_probe()}\n\n{self.text()}")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(contained: bool | None) -> str:
    return "" if contained is None else "contained" if contained else "**NOT**"
