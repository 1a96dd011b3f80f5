"""The table of probes by tier and user, written to build/escape.md at the end of a session that made any."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from escape.probes import ALL, ONLY_IN

from understudy.policies.profile import DEFAULT_TIER

WALLED = {"sandbox", "granting", "as_root", "doomed", "without"}
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

    def found(self, probe: str, place: str) -> bool | None:
        """Whether it was contained there; None if not all of its attempts were made."""
        _what, *attempts = ALL[probe]
        found = []
        for attempt in attempts:
            made = [row[place] for name, row in self.cells.items() if name.startswith(attempt) and place in row]
            found.append(all(made) if made else None)
        return False if False in found else None if None in found else True

    def by_probe(self) -> str:
        """Markdown: a row for each probe that was made anywhere."""
        lines = [_row(["probe", "what", *self.places]), _row(["---", "---", *(":-:" for _ in self.places)])]
        for probe, (what, *_attempts) in ALL.items():
            found = {place: self.found(probe, place) for place in self.places}
            if set(found.values()) != {None}:
                lines.append(_row([probe, what, *(_cell(each, applies(probe, at)) for at, each in found.items())]))
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Markdown: a row for each attempt."""
        places = self.places
        lines = [_row(["attempt", *places]), _row(["---", *(":-:" for _ in places)])]
        for attempt, row in sorted(self.cells.items()):
            lines.append(_row([attempt, *(_cell(row.get(place), place in row) for place in places)]))
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """Of each place, how many of the probes were made there, and which got through."""
        lines = []
        for place in self.places:
            wanted = [probe for probe in ALL if applies(probe, place)]
            found = {probe: self.found(probe, place) for probe in wanted}
            through = [probe for probe, contained in found.items() if contained is False]
            made = sum(contained is not None for contained in found.values())
            default = " (the default tier)" if place.startswith(DEFAULT_TIER) else ""
            lines.append(
                f"- {place}{default}: {made} of {len(wanted)} made, got through: {', '.join(through) or 'none'}"
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "escape.md").write_text(f"{self.summary()}\n{self.by_probe()}\n\n{self.text()}")


def applies(probe: str, place: str) -> bool:
    """Whether that place has what the probe is about."""
    return place.partition("-")[0] in ONLY_IN.get(probe, (place.partition("-")[0],))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(contained: bool | None, applies: bool) -> str:
    return "contained" if contained else "**NOT**" if contained is False else "not run" if applies else "-"
