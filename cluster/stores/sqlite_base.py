"""What the verbs of a SQLite store share: its statements by name, and how events and counters are written."""

from collections.abc import Sequence
from sqlite3 import Connection, Row
from typing import Any

from understudy.actors.errors import Fenced
from understudy.actors.events import sample
from understudy.actors.records import Counters, Event, RunRecord
from understudy.actors.refusals import fenced, no_run
from understudy.cluster.stores.rows import event_values, run_of, summed
from understudy.cluster.stores.statements import statements

SQL = {**statements("sqlite.sql"), **statements("sqlite_moves.sql"), **statements("sqlite_documents.sql")}


def roll_back(db: Connection) -> None:
    if db.in_transaction:  # a full disk may have ended it already
        db.execute("ROLLBACK")


def do(db: Connection, name: str, *values: Any) -> None:
    db.execute(SQL[name], values)


def one(db: Connection, name: str, *values: Any) -> Row | None:
    row: Row | None = db.execute(SQL[name], values).fetchone()
    return row


def rows(db: Connection, name: str, *values: Any) -> list[Row]:
    return db.execute(SQL[name], values).fetchall()


def record(db: Connection, run_id: str) -> RunRecord:
    row = one(db, "record", run_id)
    if row is None:
        raise no_run(run_id)
    return run_of(row)


def held(db: Connection, run_id: str) -> Row:
    """A run, for a verb that may change it. Raises NotFound."""
    run = one(db, "hold", run_id)
    if run is None:
        raise no_run(run_id)
    return run


def owned(db: Connection, run_id: str, epoch: int, op: str) -> Row:
    """A running run, for its owner (law 1). Raises Fenced."""
    run = one(db, "hold", run_id)
    if run is None or run["epoch"] != epoch or run["status"] != "running":
        raise refused(db, run_id, epoch, op)
    return run


def check_parent(db: Connection, run: Row, epoch: int, op: str) -> None:
    """Who asks this of a child owns its parent with this epoch (0: somebody else asks). Raises Fenced."""
    if epoch and one(db, "owned_parent", run["n"], epoch) is None:
        raise refused(db, run["run_id"], epoch, op)


def refused(db: Connection, run_id: str, epoch: int, op: str) -> Fenced:
    count(db, {sample("fence_rejections_total", op=op): 1.0})
    return fenced(run_id, epoch, op)


def note(db: Connection, n: int, events: Sequence[Event], counters: Counters | None = None) -> None:
    """Events behind those of the run, and counters."""
    if events:
        last = db.execute(SQL["last_event"], (n,)).fetchone()[0] or 0
        db.executemany(SQL["insert_event"], event_values(n, last, events))
    if counters:
        count(db, counters)


def count(db: Connection, *counters: Counters) -> None:
    db.executemany(SQL["count"], summed(*counters))
