"""What is written between commits, in SQLite: effects, messages and streams. Plain functions, as sqlite_verbs.py."""

from collections.abc import Sequence
from sqlite3 import Connection

from understudy.actors.records import FINAL, Begun, Chunk, Counters, Event, Receipt
from understudy.actors.refusals import fenced, mailbox_full, no_mailbox
from understudy.actors.store import CHUNKS_MAX, MAILBOX_MAX
from understudy.cluster.stores.rows import receipt_of, receipt_values
from understudy.cluster.stores.sqlite_base import SQL, check_parent, do, held, note, one, owned, record


def begin(db: Connection, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters) -> Begun:
    run = owned(db, receipt.run_id, epoch, "begin")
    known = find_receipt(db, receipt.run_id, receipt.key, receipt.checkpoint_id)
    if known and (known.token == receipt.token or known.state != "unknown"):
        return Begun((known.token, known.state) == (receipt.token, receipt.state), known)
    db.execute(SQL["put_receipt"], {**receipt_values(receipt), "run": run["n"]})
    note(db, run["n"], events, counters)
    return Begun(True, receipt)


def end_effect(db: Connection, how: str, values: dict[str, str], events: Sequence[Event], counters: Counters) -> bool:
    """`finish` or `forget`: whether there was a start with this token to be ended so."""
    run = db.execute(SQL[how], values).fetchall()
    if run:
        note(db, run[0]["run"], events, counters)
    return bool(run)


def find_receipt(db: Connection, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
    row = one(db, "receipt", run_id, checkpoint_id, key)
    return receipt_of(row) if row else None


def send(db: Connection, run_id: str, message_id: str, body: str, now: float, parent_epoch: int) -> tuple[int, bool]:
    """The message's n, and whether the run became ready by it."""
    run = held(db, run_id)
    check_parent(db, run, parent_epoch, "send")
    if run["status"] in FINAL:
        raise no_mailbox(record(db, run_id))
    run_n = run["n"]
    known = one(db, "sent", run_n, message_id)
    if known:
        return known["n"], False
    size = db.execute(SQL["mailbox_size"], (run_n,)).fetchone()[0]
    if size >= MAILBOX_MAX:
        raise mailbox_full(run_id, size)
    n = run["messages_sent"] + 1
    do(db, "insert_message", run_n, n, message_id, body, now)
    do(db, "insert_sent", run_n, message_id, n)
    do(db, "set_sent", n, run_n)
    note(db, run_n, [Event("message", now, {"n": n, "message_id": message_id})])
    wakes = run["status"] == "waiting" and run["listens_after"] is not None and n > run["listens_after"]
    if wakes:
        do(db, "queue", now, run_n)
    return n, wakes


def stream(db: Connection, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
    run = one(db, "hold", run_id)
    if run is None or run["epoch"] != epoch or run["status"] != "running":
        raise fenced(run_id, epoch, "stream")
    last = db.execute(SQL["last_chunk"], (run["n"],)).fetchone()[0] or 0
    values = [
        (run["n"], n, chunk.task_id, chunk.node, chunk.attempt, chunk.data, chunk.at, chunk.withdrawn)
        for n, chunk in enumerate(chunks, start=last + 1)
    ]
    db.executemany(SQL["insert_chunk"], values)
    do(db, "trim_chunks", run["n"], last + len(values) - CHUNKS_MAX)
