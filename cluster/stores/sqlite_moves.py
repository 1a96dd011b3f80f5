"""Whole threads, and what is around them, in SQLite: blobs, signs of life, deletion, and the way to another store."""

from collections.abc import Sequence
from sqlite3 import Connection, Row

from understudy.actors.records import Event, RunDump, ThreadDump
from understudy.actors.refusals import MEMBER_SILENT_S, no_blob, no_thread, thread_in_use
from understudy.actors.store import BLOB_KEPT_S
from understudy.cluster.stores.rows import (
    checkpoint_of,
    event_of,
    message_of,
    receipt_of,
    receipt_values,
    run_of,
    run_values,
    to_json,
)
from understudy.cluster.stores.sqlite_base import SQL, do, one, rows


def put_blob(db: Connection, digest: str, data: bytes, now: float) -> None:
    do(db, "put_blob", digest, data)
    do(db, "put_at", digest, now)


def get_blob(db: Connection, digest: str) -> bytes:
    row = one(db, "get_blob", digest)
    if row is None:
        raise no_blob(digest)
    return bytes(row["data"])


def blobs(db: Connection) -> list[str]:
    return [row["digest"] for row in rows(db, "blobs")]


def beat(db: Connection, member: str, data: str, now: float) -> None:
    do(db, "beat", member, now, data)


def beats(db: Connection) -> dict[str, tuple[float, str]]:
    return {row["member"]: (row["at"], row["data"]) for row in rows(db, "beats")}


# --- deleting ------------------------------------------------------------------------------------------------------


def sweep_some(db: Connection, now: float, limit: int) -> int:
    """At most `limit` threads, so that other writers get their turn in between."""
    do(db, "drop_silent", now - MEMBER_SILENT_S)
    past = db.execute(SQL["past_threads"], {"now": now, "limit": limit}).fetchall()
    for row in past:
        delete_thread(db, row["thread_id"])
    for row in rows(db, "past_blobs", now - BLOB_KEPT_S):
        do(db, "delete_blob", row["digest"])
        do(db, "delete_blob_time", row["digest"])
    return len(past)


def prune(db: Connection, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
    kept = {row["checkpoint_id"] for row in db.execute(SQL["kept_checkpoints"], {"thread_id": thread_id})}
    gone = 0
    for checkpoint_id in set(checkpoint_ids) - kept:
        if db.execute(SQL["prune_checkpoint"], (thread_id, checkpoint_id)).rowcount:
            do(db, "prune_receipts", thread_id, checkpoint_id)
            gone += 1
    return gone


def delete_thread(db: Connection, thread_id: str) -> None:
    unfinished = one(db, "unfinished", thread_id)
    if unfinished:
        raise thread_in_use(thread_id, unfinished["run_id"])
    for kind in (
        *("events", "receipts", "thread_writes", "messages", "sent", "chunks", "needs", "inputs", "checkpoints"),
        *("runs", "thread"),
    ):
        do(db, f"delete_{kind}", thread_id)


# --- from one store to another -------------------------------------------------------------------------------------


def threads(db: Connection, after: str, limit: int) -> list[str]:
    return [row["thread_id"] for row in rows(db, "threads", after, limit)]


def dump(db: Connection, thread_id: str) -> ThreadDump:
    thread = one(db, "thread", thread_id)
    if thread is None:
        raise no_thread(thread_id)
    return ThreadDump(
        thread_id,
        thread["head"],
        thread["expires_at"],
        tuple(_run_dump(db, row) for row in rows(db, "thread_records", thread_id)),
        tuple(checkpoint_of(row) for row in rows(db, "thread_checkpoints", thread_id)),
    )


def _run_dump(db: Connection, row: Row) -> RunDump:
    n = row["n"]
    return RunDump(
        record=run_of(row),
        seq_epoch=row["seq_epoch"],
        due_at=row["due_at"],
        events=tuple(event_of(event) for event in rows(db, "run_events", n)),
        writes={write["task_id"]: write["body"] for write in rows(db, "run_writes", n)},
        receipts=tuple(receipt_of(receipt) for receipt in rows(db, "run_receipts", n)),
        messages=tuple(message_of(message) for message in rows(db, "run_messages", n)),
        sent={sent["message_id"]: sent["n"] for sent in rows(db, "run_sent", n)},
        listens_after=row["listens_after"],
    )


def adopt(db: Connection, dump: ThreadDump) -> bool:
    if not db.execute(SQL["adopt_thread"], (dump.thread_id, dump.head, dump.expires_at)).rowcount:
        return False
    for run in dump.runs:
        _adopt_run(db, run)
    values = [
        (dump.thread_id, row.checkpoint_id, row.parent, row.step, row.snapshot, row.since, row.run_id, row.at, row.body)
        for row in dump.checkpoints
    ]
    db.executemany(SQL["insert_checkpoint"], values)
    return True


def _adopt_run(db: Connection, run: RunDump) -> None:
    n = db.execute(SQL["adopt_run"], run_values(run)).lastrowid
    assert n is not None
    record = run.record
    labels, blobs = to_json(dict(record.labels)), to_json(record.blobs)
    do(db, "insert_input", n, record.code, record.input, labels, blobs)
    db.executemany(SQL["insert_need"], [(n, digest) for digest in record.blobs])
    db.executemany(SQL["insert_event"], _numbered(n, run.events))
    db.executemany(SQL["insert_write"], [(n, task_id, body) for task_id, body in run.writes.items()])
    db.executemany(SQL["put_receipt"], [{**receipt_values(receipt), "run": n} for receipt in run.receipts])
    db.executemany(SQL["insert_message"], [(n, m.n, m.message_id, m.body, m.at) for m in run.messages])
    db.executemany(SQL["insert_sent"], [(n, message_id, place) for message_id, place in run.sent.items()])


def _numbered(n: int, events: Sequence[Event]) -> list[tuple[int, int, str, float, str]]:
    """Rows of events that have their numbers already."""
    return [(n, event.n, event.kind, event.at, to_json(dict(event.data))) for event in events]
