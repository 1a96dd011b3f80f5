"""Records as JSON documents for programs, and as text of eighty columns for people. Pure but for the words it is given.

Times in documents are ISO 8601 in UTC with milliseconds; for people they are local, or an age.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from understudy.actors.records import CheckpointRow, Event, Interrupt, RunRecord

STYLES: Mapping[str, str] = {
    "queued": "blue",
    "running": "cyan",
    "waiting": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "quarantined": "bold red",
}


class Typed(Protocol):
    """Turns words into a command that can be typed as it is (`Here.command`)."""

    def __call__(self, *words: str) -> str: ...


GAP = 2
"""Blanks between two columns."""
YIELDING_MIN = 8
LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
"""No date is written for what is later."""

# --- documents -----------------------------------------------------------------------------------------------------


def iso(at: float) -> str | None:
    """None for the zero that stands for never."""
    if not at:
        return None
    return datetime.fromtimestamp(min(at, LAST), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_document(record: RunRecord, questions: Sequence[Interrupt], typed: Typed) -> dict[str, Any]:
    """A run, as every command with --json prints it."""
    document: dict[str, Any] = {
        "run_id": record.run_id,
        "thread_id": record.thread_id,
        "graph": record.graph,
        "version": record.version,
        "status": record.status,
        "step": record.step,
        "restarts": record.restarts,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
        "error": record.error,
        "key": record.key,
        "parent": record.parent,
        "labels": dict(record.labels),
        "head": record.head,
        "epoch": record.epoch,
        "cancel_asked": record.cancel_asked,
        "not_before": iso(record.not_before),
        "questions": [question_document(record.run_id, question, typed) for question in questions],
    }
    if record.result:
        document["result"] = json.loads(record.result)
    return document


def question_document(run_id: str, question: Interrupt, typed: Typed) -> dict[str, Any]:
    """An open question, with the commands that answer it."""
    return {
        "id": question.interrupt_id,
        "kind": question.kind,
        "node": question.node,
        "payload": question.payload,
        "asked_at": iso(question.asked_at),
        "deadline": iso(question.deadline or 0.0),
        "schema": question.schema,
        "on_timeout": question.on_timeout,
        "commands": answers_to(run_id, question, typed),
    }


def answers_to(run_id: str, question: Interrupt, typed: Typed) -> list[str]:
    """What to type. `JSON` stands for the answer where any will do."""
    named = question.interrupt_id
    match question.kind:
        case "approval":
            return [typed("approve", run_id, named), typed("deny", run_id, named)]
        case "repeat":
            words = question.payload["answers"]
            return [typed("resume", run_id, json.dumps(word), "--question", named) for word in words]
        case "unknown":
            return [typed("resume", run_id, word, "--question", named) for word in ('"retry"', '"fail"')]
        case _:
            return [typed("resume", run_id, "JSON", "--question", named)]


def event_document(event: Event) -> dict[str, Any]:
    return {"n": event.n, "at": iso(event.at), "kind": event.kind, "data": dict(event.data)}


def checkpoint_document(row: CheckpointRow) -> dict[str, Any]:
    return {
        "checkpoint_id": row.checkpoint_id,
        "parent": row.parent,
        "step": row.step,
        "run_id": row.run_id,
        "at": iso(row.at),
        "snapshot": row.snapshot,
    }


# --- for people ----------------------------------------------------------------------------------------------------


def clock(at: float) -> str:
    """Local time of day, with milliseconds."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]


def moment(at: float) -> str:
    """Local date and time."""
    return datetime.fromtimestamp(min(at, LAST)).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """A duration in the unit that fits it."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1_000_000:.0f} us"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def counted(count: int, thing: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def short(value: Any, limit: int = 60) -> str:
    """A JSON value on one line, as it is but for its end, where that is too long."""
    text = on_one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def abridged(value: Any, limit: int = 160) -> str:
    """A JSON value on one line, as it is; where its end is cut off, it is said how much that is."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({counted(len(text) - limit, 'character')} more; --json has all)"


def on_one_line(text: str) -> str:
    """Without ends of lines: what begins a line on a screen is ours to say."""
    return " ".join(text.splitlines())


def status_text(status: str) -> Text:
    return Text(status, style=STYLES.get(status, ""))


class PlainTable(Table):
    """A table without lines. Where it is too wide, one column gives way, and the others are whole."""

    def __init__(self, columns: Sequence[str], yields: str, fold: bool) -> None:
        style = {"box": None, "pad_edge": False, "show_edge": False, "header_style": "bold"}
        super().__init__(**style, show_header=any(columns), padding=(0, GAP, 0, 0))  # type: ignore[arg-type]
        for name in columns:
            right = name in ("STEP", "RESTARTS", "PID", "RUNS")
            self.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
        self._yielding = self.columns[columns.index(yields) if yields else -1]
        if fold:
            self._yielding.no_wrap, self._yielding.overflow = False, "fold"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        others = [column for column in self.columns if column is not self._yielding]
        taken = sum(max(_width(cell) for cell in (column.header, *column.cells)) + GAP for column in others)
        self._yielding.max_width = max(YIELDING_MIN, options.max_width - taken - GAP)
        return super().__rich_console__(console, options)


def _width(cell: RenderableType) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(str(cell))


def plain_table(*columns: str, yields: str = "", fold: bool = False) -> Table:
    """A table without lines; what does not fit is cut.

    Args:
        yields: the column that is cut where the screen is too narrow; default: the last one.
        fold: whether it is folded instead, for what is to be copied.
    """
    return PlainTable(columns, yields, fold)


def runs_table(records: Iterable[RunRecord], notes: Mapping[str, str], now: float) -> Table:
    table = plain_table("RUN", "GRAPH", "STATUS", "STEP", "RESTARTS", "AGE", "NOTE")
    for record in records:
        table.add_row(
            record.run_id,
            short(record.graph, 14),
            status_text(record.status),
            str(record.step),
            Text(str(record.restarts), style="yellow" if record.restarts else "dim"),
            span(now - record.created_at),
            Text(notes.get(record.run_id, ""), style="dim"),
        )
    return table


def note_on(record: RunRecord, questions: Sequence[Interrupt], now: float) -> str:
    """The one thing to know about a run, in a few words."""
    if questions:
        first = questions[0]
        if first.kind == "approval":
            return f"approve {first.payload['tool']}?"
        if first.kind in ("unknown", "repeat"):  # its payload is a document, whose beginning says nothing
            tool = first.payload["tool"]
            return f"how did {tool} end?" if first.kind == "unknown" else f"repeat {tool}?"
        return f"asks: {short(first.payload, 40)}"
    if record.status == "waiting":
        return wait_of(record, now)
    if record.status == "queued" and record.not_before > now:
        return f"restarts in {span(record.not_before - now)}"
    return short(record.error, 60)


def open_waits(record: RunRecord) -> list[Interrupt]:
    """What a run waits for, be it a person, a time, a child or a message."""
    return [i for i in record.interrupts if not i.settled and i.interrupt_id not in record.answers]


def wait_of(record: RunRecord, now: float) -> str:
    """What a waiting run that asks nobody waits for."""
    waits = open_waits(record)
    children = [i.payload["run_id"] for i in waits if i.kind == "child"]
    parts = [f"for child {child}" for child in children[:3]]
    if len(children) > 3:
        parts.append(f"and {len(children) - 3} more")
    if any(i.kind == "message" for i in waits):
        parts.append("for a message")
    left = span(record.not_before - now) if record.not_before else ""
    if not parts:
        return f"sleeps {left}" if left else "waits"
    return f"waits {', '.join(parts)}" + (f", at most {left}" if left else "")


def question_lines(run_id: str, question: Interrupt, now: float, typed: Typed) -> Text:
    """What waits for a person, readable, and what to type."""
    text = Text()
    words = {"approval": "asks to approve a tool call", "unknown": "cannot know how a tool call ended"}
    words["repeat"] = "comes to what the run that it was forked from has done"
    text.append(f"node {question.node!r} {words.get(question.kind, 'asks')}", style="bold yellow")
    text.append(f"  ({span(now - question.asked_at)} ago", style="dim")
    if question.deadline is not None:
        text.append(f", until {moment(question.deadline)}", style="dim")
    text.append(")\n", style="dim")
    payload = question.payload
    if question.kind == "approval":
        text.append(f"  {on_one_line(payload['tool'])}({_arguments(payload['args'])})\n", style="bold")
        if payload["reason"]:
            text.append(f"  {on_one_line(payload['reason'])}\n")
        if payload["rule"]:  # else the reason names the budget that asks
            text.append(f"  rule {payload['rule']!r} of policy {payload['policy']!r}\n", style="dim")
    elif question.kind in ("unknown", "repeat"):
        text.append(f"  {on_one_line(payload['tool'])}: {on_one_line(payload['question'])}\n")
        text.append("".join(f"  | {line}\n" for line in payload.get("printed", "").splitlines()), style="dim")
    else:
        shown = payload if isinstance(payload, str) else json.dumps(payload, indent=2, ensure_ascii=False)
        # Set off, so that no text can look like one of the commands below.
        text.append("".join(f"  | {line}\n" for line in shown.splitlines()))
    if question.kind in ("approval", "unknown") and "problem" in payload:
        text.append(f"  the answer before could not be used: {on_one_line(payload['problem'])}\n", style="yellow")
    if question.kind == "question" and question.schema is not None:
        text.append(f"  an answer has to fit {short(question.schema, 300)}\n", style="dim")
    for command in answers_to(run_id, question, typed):
        text.append(f"  $ {command}\n", style="cyan")
    return text


def _arguments(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in args.items())


def event_line(event: Event) -> Text:
    """One event on one line: cursor, time, kind, and what matters of its data."""
    bad = event.kind in ("crashed", "node_failed") or event.data.get("outcome", "ok") != "ok"
    bad = bad or event.data.get("decision") == "deny" or event.data.get("status") in ("failed", "quarantined")
    good = event.kind in ("recovered", "finished") and not bad
    style = "red" if bad else "green" if good else "yellow" if event.kind in ("interrupted", "answered") else ""
    text = Text().append(f"{event.n:>4}  {clock(event.at)}  ", "dim")
    text.append(f"{event.kind:<15}", style=style)
    text.append(f" {on_one_line(_gist(event))}")
    return text


def _gist(event: Event) -> str:
    data = event.data
    seconds = f"{span(float(data['seconds']))}" if "seconds" in data else ""
    match event.kind:
        case "created":
            return f"{data['graph']} {data['version']}"
        case "claimed":
            return f"by {data['owner']}, epoch {data['epoch']}"
        case "crashed":
            return f"{data['cause']}, crash {data['attempt']}"
        case "recovered":
            return f"after {seconds}"
        case "node_finished":
            return f"{data['node']}  step {data['step']}, {seconds}"
        case "node_failed":
            again = f"; again at {clock(float(data['again_at']))}" if "again_at" in data else ""
            return f"{data['node']}  {short(data['error'], 200)}{again}"
        case "node_suspended":
            return f"{data['node']}"
        case "checkpoint":
            return f"{data['checkpoint_id']}  step {data['step']}"
        case "interrupted":
            payload = data["payload"]
            if data["kind"] in ("timer", "message"):
                until = f" until {moment(data['deadline'])}" if data.get("deadline") is not None else ""
                return f"{data['interrupt_id']}  {data['kind']}{until}, node {data['node']}"
            if data["kind"] == "child":
                return f"{data['interrupt_id']}  child {payload['run_id']}, node {data['node']}"
            what = f"{payload['tool']}({_arguments(payload['args'])})" if data["kind"] == "approval" else short(payload)
            return f"{data['interrupt_id']}  {data['kind']}, node {data['node']}: {short(what, 100)}"
        case "answered":
            return str(data["interrupt_id"])
        case "expired":
            return f"{data['interrupt_id']}  node {data['node']}"
        case "received":
            return (
                f"{data['node']}  message {data['n']}" if "n" in data else f"{data['node']}  none before the deadline"
            )
        case "child_started":
            close = f"  ({data['close']} when this run ends)" if "close" in data else ""
            return f"{data['run_id']}  {data['call']}{close}"
        case "decided":
            by = "" if data.get("by", "policy") == "policy" else f"by {data['by']}  "
            rule = f"rule {data['rule'] or '-'}"
            return f"{data['decision']} {data['tool']}  {by}{rule}  {short(data['reason'], 80)}".rstrip()
        case "tool_started":
            return f"{data['tool']}  in {data['sandbox']}"
        case "connected":
            if "more" in data:
                return f"{data['tool']}  and {data['more']} connections more, {data['denied']} of them denied"
            moved = f"{data['sent_bytes']} bytes out, {data['received_bytes']} in"
            place = f"{data['method'] or 'no request'} {data['host']}:{data['port']}"
            return f"{data['decision']} {data['tool']}  {place}  {moved}  {short(data['reason'], 100)}"
        case "tool_finished":
            took = f", {seconds}" if data.get("seconds") else ""  # refused, or its sandbox died: nobody has measured it
            return f"{data['tool']}  {data['outcome']}{took}  {short(data['error'], 120)}".rstrip()
        case "effect_started":
            return short(data["call"], 100)
        case "effect_finished":
            return f"{data['name']}  {data['outcome']}, {seconds}  {short(data['error'], 120)}".rstrip()
        case "mcp_tools":
            seen = "first seen" if data["first"] else "looked at"
            aside = f", {data['waiting']} set aside: `understudy mcp diff {data['server']}`" if data["waiting"] else ""
            return f"{data['server']}  {seen}, {counted(data['tools'], 'tool')} accepted{aside}"
        case "reconciled":
            return f"{data['tool']}  {data['answer']}, by {data['by']}"
        case "escalated":
            return f"{data['interrupt_id']} to {data['to']}, node {data['node']}"
        case "finished":
            return f"{data['status']}  {short(data.get('error', ''), 200)}".rstrip()
        case _:
            return short(dict(data), 100) if data else ""
