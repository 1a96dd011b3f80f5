"""The report of the demo: what the audit found, and whether anything was lost or done twice on the way.

Pure: from the states of the runs, the rows of the ledger and the kills, to values, Markdown and JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from understudy.cluster.demo.audit import Audit
from understudy.cluster.demo.ledger import Check, Row, check_ledger

__all__ = ["Check", "Entry", "Failure", "Kill", "Report", "as_json", "as_markdown", "check_ledger", "entries_of"]


@dataclass(frozen=True)
class Kill:
    """A run actor that was ended with SIGKILL."""

    pid: int
    actor: str
    run: str
    """The run it was working on."""
    distribution: str
    at: float
    """Seconds since the first run started."""
    recovery_s: float | None = None
    """Seconds until another actor had the run; None while that was not seen (the run may have just ended)."""


@dataclass(frozen=True)
class Failure:
    """A run that did not succeed."""

    distribution: str
    run: str
    status: str
    error: str


@dataclass(frozen=True)
class Entry:
    """One distribution in the report."""

    distribution: str
    version: str
    licence: str
    files: int
    faults: tuple[str, ...]
    """`2 altered`, `1 missing`, ..."""
    imports: str
    """`3 ok`, or `2 ok, 1 timeout`."""
    score: int
    verdict: str
    approved_by: str
    """Who answered, and the note; empty where nobody was asked."""
    reasons: tuple[str, ...]
    findings: tuple[str, ...]
    """Places and files, for the one who wants to look."""


@dataclass(frozen=True)
class Report:
    """Everything about one demo."""

    environment: str
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    ledger: Check
    kills: tuple[Kill, ...]
    restarts: int
    tools: int
    """Tool calls that were executed."""
    duration_s: float
    paths: Mapping[str, str]
    """Where it was written: `markdown`, `json`, `ledger`."""

    @property
    def ok(self) -> bool:
        return self.ledger.ok and not self.failures

    @property
    def tools_per_s(self) -> float:
        return self.tools / self.duration_s if self.duration_s > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """What `understudy demo --json` prints."""
        return {
            "ok": self.ok,
            "environment": self.environment,
            "distributions": len(self.entries) + len(self.failures),
            "succeeded": len(self.entries),
            "failed": len(self.failures),
            "failures": [asdict(failure) for failure in self.failures],
            "ledger": {
                "rows": self.ledger.rows,
                "missing": list(self.ledger.missing),
                "doubled": list(self.ledger.doubled),
                "unexpected": list(self.ledger.unexpected),
                "unreadable": self.ledger.unreadable,
            },
            "kills": [asdict(kill) for kill in self.kills],
            "restarts": self.restarts,
            "tools": self.tools,
            "duration_s": round(self.duration_s, 3),
            "tools_per_s": round(self.tools_per_s, 2),
            "verdicts": {verdict: count for verdict, count in self.verdicts().items() if count},
            "report": dict(self.paths),
        }

    def verdicts(self) -> dict[str, int]:
        kinds = ("clean", "suspicious", "approved", "rejected")
        return {kind: sum(entry.verdict == kind for entry in self.entries) for kind in kinds}


def entries_of(states: Sequence[Audit | Mapping[str, Any]], rows: Sequence[Row]) -> tuple[Entry, ...]:
    """The states of the runs that succeeded, as models or as JSON, by score. The verdicts are those of the ledger."""
    by_name = {row.distribution: row for row in rows}
    audits = [state if isinstance(state, Audit) else Audit.model_validate(state) for state in states]
    audits.sort(key=lambda audit: (-audit.score, audit.distribution.lower()))
    return tuple(_entry(audit, by_name.get(audit.distribution)) for audit in audits)


def _entry(audit: Audit, row: Row | None) -> Entry:
    ended: dict[str, int] = {}
    for imported in audit.imports:
        ended[imported.ended] = ended.get(imported.ended, 0) + 1
    approval = audit.approval
    return Entry(
        distribution=audit.distribution,
        version=audit.version,
        licence=audit.metadata.licence,
        files=audit.metadata.files,
        faults=tuple(f"{count} {kind}" for kind, count in sorted(audit.faults.counts.items())),
        imports=", ".join(f"{ended[kind]} {kind}" for kind in sorted(ended, key=lambda kind: (kind != "ok", kind))),
        score=audit.score,
        verdict=row.verdict if row else "not in the ledger",
        approved_by=f"{approval.by}: {approval.note}".rstrip(": ") if approval else "",
        reasons=tuple(f"{reason.points:+d} {reason.text}" for reason in audit.reasons),
        findings=tuple(
            f"{example['kind']}: " + " ".join(text for key in ("where", "what", "text") if (text := example.get(key)))
            for example in (*audit.faults.examples, *audit.code.examples)
        ),
    )


def as_json(report: Report) -> str:
    """The whole report."""
    return json.dumps({**report.summary(), "audits": [asdict(entry) for entry in report.entries]}, indent=2) + "\n"


def as_markdown(report: Report) -> str:
    """The whole report, for people."""
    parts = [_head(report), _table(report.entries)]
    if report.failures:
        parts.append("## Not audited\n\n" + "\n".join(_failure(failure) for failure in report.failures))
    if report.kills:
        parts.append("## Killed on purpose\n\n" + _kills(report.kills))
    parts += [_details(entry) for entry in report.entries if entry.reasons and entry.score >= DETAILS_FROM]
    return "\n\n".join(parts) + "\n"


DETAILS_FROM = 10
"""Score from which the report tells the reasons."""


def _head(report: Report) -> str:
    verdicts = ", ".join(f"{count} {kind}" for kind, count in report.verdicts().items() if count)
    restarts = f"{report.restarts} restart" + ("" if report.restarts == 1 else "s")
    return (
        f"# Audit of {_code(report.environment)}\n\n"
        f"{len(report.entries)} distributions: {verdicts or 'none'}. "
        f"{report.tools} tool calls in {report.duration_s:.1f} s, {len(report.kills)} actors killed, {restarts}.\n\n"
        f"**{'Good' if report.ok else 'Not good'}**: {report.ledger.words()}."
    )


def _table(entries: Sequence[Entry]) -> str:
    lines = [
        "| distribution | version | licence | files | faults | imports | score | verdict | approved by |",
        "|---|---|---|---:|---|---|---:|---|---|",
    ]
    for entry in entries:
        cells = (
            *(entry.distribution, entry.version, entry.licence, f"{entry.files}", ", ".join(entry.faults)),
            *(entry.imports, f"{entry.score}", entry.verdict, entry.approved_by),
        )
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _kills(kills: Sequence[Kill]) -> str:
    lines = ["| at | process | run | of | back after |", "|---:|---|---|---|---:|"]
    for kill in kills:
        back = "not seen" if kill.recovery_s is None else f"{kill.recovery_s:.2f} s"
        lines.append(f"| {kill.at:.1f} s | {kill.pid} | {_cell(kill.run)} | {_cell(kill.distribution)} | {back} |")
    return "\n".join(lines)


def _failure(failure: Failure) -> str:
    return f"- {_cell(failure.distribution)}: run {failure.run} {failure.status}: {_cell(failure.error)}"


def _details(entry: Entry) -> str:
    lines = [f"## {_cell(entry.distribution)} {_cell(entry.version)}: {entry.score}, {entry.verdict}", ""]
    lines += [f"- {_cell(reason)}" for reason in entry.reasons]
    if entry.findings:
        lines += ["", "```text", *(finding.replace("`", "'") for finding in entry.findings), "```"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text of others: it must not end the cell, the line, or the table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"
