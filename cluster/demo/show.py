"""What the demo looks like on a terminal, as pure values: a snapshot in, something that rich can print out.

`view` is drawn again and again while the runs go on; `summary` is the last word. Both fit into 80 columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from understudy.cluster.demo.audit import ASK_FROM, SUSPICIOUS_FROM
from understudy.cluster.demo.report import Entry, Kill, Report

STATUSES = {
    "succeeded": "green",
    "running": "cyan",
    "waiting": "yellow",
    "queued": "bright_black",
    "failed": "red",
    "cancelled": "red",
    "quarantined": "red",
}
VERDICTS = {"clean": "green", "suspicious": "yellow", "approved": "cyan", "rejected": "red"}
NAME_MAX = 26
ROWS = 5
"""Lines of each list in the live view; what is left out is counted."""


@dataclass(frozen=True)
class Question:
    """A run that waits for a person."""

    run: str
    distribution: str
    score: int
    reason: str


@dataclass(frozen=True)
class Finished:
    distribution: str
    version: str
    score: int
    verdict: str


@dataclass(frozen=True)
class Snapshot:
    """The demo at one moment."""

    total: int
    statuses: Mapping[str, int]
    elapsed_s: float
    restarts: int = 0
    kills: Sequence[Kill] = ()
    kills_planned: int = 0
    tools: int = 0
    tools_per_s: float = 0.0
    waiting: Sequence[Question] = ()
    finished: Sequence[Finished] = ()
    """The last ones first."""
    message: str = ""
    """What is going on besides: "starting Ray", "3 questions for you"."""


def view(snapshot: Snapshot) -> RenderableType:
    """The live display."""
    parts: list[RenderableType] = [_bars(snapshot), _numbers(snapshot)]
    if snapshot.kills:
        parts += [_title("killed with SIGKILL", snapshot.kills), _kills(snapshot.kills[-ROWS:])]
    if snapshot.waiting:
        parts += [_title("waiting for a person", snapshot.waiting), _questions(snapshot.waiting[:ROWS])]
    if snapshot.finished:
        parts += [_title("finished last", ()), _finished(snapshot.finished[:ROWS])]
    if snapshot.message:
        parts.append(Text(snapshot.message, style="italic"))
    return Panel(Group(*parts), title="understudy demo", title_align="left", border_style="bright_black")


def summary(report: Report) -> RenderableType:
    """The end: is everything there, what was found, what was killed."""
    colour = "green" if report.ok else "red"
    parts: list[RenderableType] = [_verdict(report)]
    high = [entry for entry in report.entries if entry.score > 0][: 2 * ROWS]
    if high:
        parts += [_title("highest scores", ()), _entries(high)]
    if report.failures:
        parts.append(_title("not audited", report.failures))
        for failure in report.failures:
            parts.append(Text(f"{failure.distribution}: {failure.status}: {failure.error}", style="red"))
    if report.kills:
        parts += [_title("killed with SIGKILL", report.kills), _kills(report.kills)]
    if report.paths:
        parts += [Rule(style="bright_black"), _paths(report.paths)]
    return Panel(Group(*parts), title="understudy demo", title_align="left", border_style=colour)


def _bars(snapshot: Snapshot) -> Table:
    """Runs by status; those that nobody is in are left out, except the first three."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=11)
    table.add_column(justify="right", width=4)
    table.add_column(ratio=1)
    for status, colour in STATUSES.items():
        count = snapshot.statuses.get(status, 0)
        if count or status in ("succeeded", "running", "queued"):
            bar = ProgressBar(
                total=max(snapshot.total, 1), completed=count, complete_style=colour, finished_style=colour
            )
            table.add_row(Text(status, style=colour if count else "bright_black"), str(count), bar)
    return table


def _numbers(snapshot: Snapshot) -> Text:
    killed = f"{len(snapshot.kills)}" + (f" of {snapshot.kills_planned}" if snapshot.kills_planned else "")
    parts = (
        (f"{snapshot.total}", " runs"),
        (f"{snapshot.elapsed_s:.0f}", " s"),
        (f"{snapshot.tools}", f" tool calls ({snapshot.tools_per_s:.1f}/s)"),
        (killed, " killed"),
        (f"{snapshot.restarts}", " restart" + ("" if snapshot.restarts == 1 else "s")),
    )
    text = Text("\n")
    for place, (number, what) in enumerate(parts):
        text.append(" · " if place else "", style="bright_black")
        text.append(number, style="bold").append(what)
    return text


def _title(text: str, listed: Sequence[object]) -> Rule:
    count = f" ({len(listed)})" if listed else ""
    return Rule(Text(f"{text}{count}", "dim"), align="left", style="bright_black")


def _kills(kills: Sequence[Kill]) -> Table:
    rows = []
    for kill in kills:
        back = Text("not seen back", style="yellow")
        if kill.recovery_s is not None:
            back = Text(f"back after {kill.recovery_s:.2f} s", style="green")
        rows.append((Text(f"{kill.at:.1f} s", justify="right"), Text(f"pid {kill.pid}"), Text(kill.distribution), back))
    return _grid(rows)


def _questions(questions: Sequence[Question]) -> Table:
    return _grid([(Text(q.run), Text(q.distribution), _score(q.score), Text(q.reason)) for q in questions])


def _finished(finished: Sequence[Finished]) -> Table:
    return _grid([(Text(f.distribution), Text(f.version), _score(f.score), _coloured(f.verdict)) for f in finished])


def _entries(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry in entries:
        reason = Text(entry.reasons[0] if entry.reasons else "", style="dim")
        rows.append((Text(entry.distribution), _score(entry.score), _coloured(entry.verdict), reason))
    return _grid(rows)


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _verdict(report: Report) -> Text:
    verdicts = ", ".join(f"{count} {kind}" for kind, count in report.verdicts().items() if count)
    text = Text()
    text.append("Good: " if report.ok else "Not good: ", style="bold green" if report.ok else "bold red")
    text.append(f"{report.ledger.words()}.\n")
    text.append(
        f"{len(report.entries)} of {len(report.entries) + len(report.failures)} audited ({verdicts or 'none'}), "
    )
    text.append(f"{report.tools} tool calls in {report.duration_s:.1f} s ({report.tools_per_s:.1f} a second).\n")
    text.append(f"{counted(len(report.kills), 'actor')} killed, {counted(report.restarts, 'restart')}.")
    recoveries = sorted(kill.recovery_s for kill in report.kills if kill.recovery_s is not None)
    if recoveries:
        least, most = f"{recoveries[0]:.2f}", f"{recoveries[-1]:.2f}"
        text.append(f" Back after {least} s." if least == most else f" Back after {least} to {most} s.")
    return text


def _paths(paths: Mapping[str, str]) -> Table:
    """Whole, over several lines if need be: they are there to be copied. A folder that all share is named once."""
    folders = {str(PurePath(path).parent) for path in paths.values()}
    rows = dict(paths)
    if len(paths) > 1 and len(folders) == 1:
        rows = {"report": folders.pop() + "/", "files": ", ".join(PurePath(path).name for path in paths.values())}
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for what, text in rows.items():
        table.add_row(what, Text(text))
    return table


def _score(score: int) -> Text:
    colour = "red" if score >= ASK_FROM else "yellow" if score >= SUSPICIOUS_FROM else "green"
    return Text(str(score), style=colour, justify="right")


def _coloured(verdict: str) -> Text:
    return Text(verdict, style=VERDICTS.get(verdict, ""))


def _grid(rows: Sequence[Sequence[Text]]) -> Table:
    """One line for each row. The last column gives way where there is no room, and names that are very long."""
    table = Table.grid(padding=(0, 2))
    for place in range(len(rows[0]) - 1):
        width = min(max(len(row[place]) for row in rows), NAME_MAX)
        table.add_column(no_wrap=True, overflow="ellipsis", width=width)
    table.add_column()  # rich shortens only columns that may wrap; its texts refuse to
    for row in rows:
        row[-1].no_wrap, row[-1].overflow = True, "ellipsis"
        table.add_row(*row)
    return table
