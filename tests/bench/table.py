"""The table that `make bench` prints and writes: what was measured, beside its floor in the same run."""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    what: str
    where: str
    """Which store."""
    ours: float
    floor: float
    """The same work, done bare, measured in turns with ours; 0 where there is none."""
    unit: str
    ratio: float
    """Median of the ratios of the single rounds; 0 without a floor."""
    aim: str


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, where: str, ours: float, floor: float, unit: str, *, ratio: float = 0.0, aim: str) -> None:
        self.rows.append(Row(what, where, ours, floor, unit, ratio or (ours / floor if floor else 0.0), aim))

    def text(self) -> str:
        """Markdown, under a line about the machine."""
        lines = [
            f"{os.cpu_count()} cores ({processor()}), Python {platform.python_version()} of {sys.base_prefix}, "
            f"load {os.getloadavg()[0]:.1f} at the end",
            "",
            "| what | store | ours | floor | unit | ratio | aim |",
            "|---|---|---:|---:|---|---:|---|",
        ]
        for row in self.rows:
            floor, ratio = (_figure(row.floor), f"{row.ratio:.2f}") if row.floor else ("-", "-")
            lines.append(
                f"| {row.what} | {row.where} | {_figure(row.ours)} | {floor} | {row.unit} | {ratio} | {row.aim} |"
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.md").write_text(self.text())
        (folder / "bench.json").write_text(json.dumps([asdict(row) for row in self.rows], indent=2))


def processor() -> str:
    """The processor's model, as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
