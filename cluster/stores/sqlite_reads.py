"""What can be asked of a SQLite store, as plain functions on a connection; each sees one snapshot."""

from sqlite3 import Connection

from understudy.actors.records import STATUSES, CheckpointRow, Chunk, Due, Event, Loaded, Receipt, RunRecord, Status
from understudy.actors.refusals import no_checkpoint, no_run
from understudy.cluster.stores.rows import checkpoint_of, chunk_of, event_of, message_of, receipt_of, run_of
from understudy.cluster.stores.sqlite_base import SQL, one, record, rows


def due(db: Connection, now: float, limit: int) -> Due:
    ready = tuple(row["run_id"] for row in rows(db, "ready", now, limit))
    return Due(ready, tuple((row["run_id"], row["epoch"]) for row in rows(db, "overdue", now, limit)))


def load(db: Connection, run_id: str) -> Loaded:
    run = record(db, run_id)
    line = chain(db, run.thread_id, run.head) if run.head else []
    writes = {row["task_id"]: row["body"] for row in rows(db, "pending", run_id)}
    at_head = {row["key"]: receipt_of(row) for row in rows(db, "receipts_at", run_id, run.head)}
    messages = tuple(message_of(row) for row in rows(db, "messages", run_id))
    return Loaded(run, tuple(line), writes, at_head, messages)


def receipts(db: Connection, run_id: str) -> list[Receipt]:
    return [receipt_of(row) for row in rows(db, "receipts_of", run_id)]


def runs(db: Connection, status: Status | None, limit: int, thread_id: str) -> list[RunRecord]:
    name = "runs_of_thread" if thread_id else "runs_with_status" if status else "all_runs"
    values = {"status": status, "limit": limit, "thread_id": thread_id}
    return [run_of(row) for row in db.execute(SQL[name], values)]


def events(db: Connection, run_id: str, after: int, limit: int) -> list[Event]:
    return [event_of(row) for row in rows(db, "events", _number(db, run_id), after, limit)]


def chunks(db: Connection, run_id: str, after: int, limit: int) -> list[Chunk]:
    return [chunk_of(row) for row in rows(db, "chunks", _number(db, run_id), after, limit)]


def history(db: Connection, thread_id: str, limit: int) -> list[CheckpointRow]:
    return [checkpoint_of(row) for row in rows(db, "history", thread_id, limit)]


def chain(db: Connection, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
    found = db.execute(SQL["chain"], {"thread_id": thread_id, "checkpoint_id": checkpoint_id}).fetchall()
    if not found:
        raise no_checkpoint(thread_id, checkpoint_id)
    return [checkpoint_of(row) for row in found]


def counts(db: Connection) -> dict[Status, int]:
    found = {row["status"]: row["runs"] for row in rows(db, "counts")}
    return {status: found.get(status, 0) for status in STATUSES}


def all_counters(db: Connection) -> dict[str, float]:
    return {row["name"]: row["value"] for row in rows(db, "counters")}


def _number(db: Connection, run_id: str) -> int:
    run = one(db, "run_number", run_id)
    if run is None:
        raise no_run(run_id)
    return int(run["n"])
