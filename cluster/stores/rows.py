"""How records look in rows of a SQL database, for SQLite and Postgres alike.

Columns are named as fields are. What a database never searches in is JSON text, in ASCII, so that a lone surrogate in
somebody's payload is no trouble for the database.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from understudy.actors.events import sample
from understudy.actors.records import (
    CheckpointRow,
    Chunk,
    Commit,
    Event,
    Interrupt,
    Message,
    Receipt,
    RunDump,
    RunRecord,
)
from understudy.actors.spelling import to_ascii

to_json = to_ascii
COMMITTED = {sample("checkpoint_commits_total", result="ok"): 1.0}
RUN = tuple(field.name for field in fields(RunRecord))
RECEIPT = tuple(field.name for field in fields(Receipt))
CHUNK = tuple(field.name for field in fields(Chunk))
INTERRUPT = tuple(field.name for field in fields(Interrupt))


class Row(Protocol):
    """A row whose columns are found by name."""

    def __getitem__(self, column: str, /) -> Any: ...


def interrupts_json(interrupts: Sequence[Interrupt]) -> str:
    return to_json([{name: getattr(i, name) for name in INTERRUPT} for i in interrupts]) if interrupts else "[]"


def open_ids(interrupts: Sequence[Interrupt]) -> list[str]:
    """Of the questions that may be answered."""
    return [i.interrupt_id for i in interrupts if not i.settled]


def interrupts_of(text: str) -> tuple[Interrupt, ...]:
    return tuple(Interrupt(**raw) for raw in json.loads(text)) if text != "[]" else ()


def run_of(row: Row) -> RunRecord:
    values = {name: row[name] for name in RUN}
    for name in ("labels", "crashes", "answers", "blobs"):
        if isinstance(values[name], str):  # Postgres has some of them as what they are
            values[name] = json.loads(values[name])
    values["crashes"] = tuple(values["crashes"])
    values["blobs"] = tuple(values["blobs"])
    values["cancel_asked"] = bool(values["cancel_asked"])
    values["rollback"] = bool(values["rollback"])
    values["interrupts"] = interrupts_of(values["interrupts"])
    return RunRecord(**values)


def run_values(run: RunDump) -> dict[str, Any]:
    """The columns of a run that comes from another store; structures as JSON text."""
    record = run.record
    return {
        **{name: getattr(record, name) for name in RUN},
        "labels": to_json(dict(record.labels)),
        "crashes": to_json(record.crashes),
        "answers": to_json(dict(record.answers)),
        "blobs": to_json(record.blobs),
        "interrupts": interrupts_json(record.interrupts),
        "seq_epoch": run.seq_epoch,
        "due_at": run.due_at,
        "listens_after": run.listens_after,
        "messages_sent": len(run.sent),
    }


def checkpoint_of(row: Row) -> CheckpointRow:
    return CheckpointRow(
        row["checkpoint_id"],
        row["parent"],
        row["step"],
        bool(row["snapshot"]),
        row["body"],
        since=row["since"],
        run_id=row["run_id"],
        at=row["at"],
    )


def receipt_of(row: Row) -> Receipt:
    return Receipt(**{name: row[name] for name in RECEIPT})


def receipt_values(receipt: Receipt) -> dict[str, Any]:
    return {name: getattr(receipt, name) for name in RECEIPT}


def message_of(row: Row) -> Message:
    return Message(row["n"], row["message_id"], row["body"], row["at"])


def chunk_of(row: Row) -> Chunk:
    return Chunk(**{name: row[name] for name in CHUNK if name != "withdrawn"}, withdrawn=bool(row["withdrawn"]))


def event_of(row: Row) -> Event:
    return Event(row["kind"], row["at"], json.loads(row["data"]), row["n"])


def event_values(run: int, after: int, events: Iterable[Event]) -> list[tuple[int, int, str, float, str]]:
    """Rows of events of a run (by its number), numbered from after + 1."""
    return [
        (run, n, event.kind, event.at, to_json(dict(event.data))) for n, event in enumerate(events, start=after + 1)
    ]


def events_json(events: Iterable[Event]) -> str:
    """Events as the functions of Postgres take them: [[kind, at, data as text], ...]."""
    return to_json([(event.kind, event.at, to_json(dict(event.data))) for event in events])


def step_counters(commit: Commit) -> list[tuple[str, float]] | None:
    """The two counters of a commit that stores have a short way for: the end of a superstep, with two events, after
    which the run goes on, as nearly all are. None: it is another one."""
    plain = not (commit.taken or commit.result or commit.error)
    if commit.checkpoint is None or commit.status != "running" or not plain or len(commit.events) != 2:
        return None
    counters = summed(commit.counters, COMMITTED)
    return counters if len(counters) == 2 else None


def summed(*counters: Mapping[str, float]) -> list[tuple[str, float]]:
    """Increments of several origins, one row for each name."""
    total: dict[str, float] = {}
    for part in counters:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    # In one order everywhere: two transactions that lock the same rows in another order would wait for each other.
    return sorted(total.items())
