"""The commit of a superstep after which the run goes on, as nearly all are, in one statement (see sqlite_step.sql)."""

from sqlite3 import Connection, Row

from understudy.actors.records import Commit
from understudy.cluster.stores.rows import step_counters, to_json
from understudy.cluster.stores.statements import script, split

STEP = f"INSERT INTO step VALUES ({', '.join('?' * 24)})"


def prepare(db: Connection) -> None:
    """Once for each connection."""
    for statement in split(script("sqlite_step.sql")):
        db.execute(statement)


def took_step(db: Connection, run: Row, commit: Commit) -> bool:
    """Whether the commit was one of these; else nothing was done. `run`: as `hold_for_commit` has it, and compared."""
    counters = step_counters(commit)
    if counters is None:
        return False
    (first, second), new = commit.events, commit.checkpoint
    assert new is not None
    values = (
        run["n"],
        run["thread_id"],
        commit.run_id,
        commit.epoch,
        commit.seq,
        commit.at,
        commit.step,
        new.checkpoint_id,
        new.parent,
        new.step,
        new.snapshot,
        new.since,
        new.body,
        run["last_event"] or 0,
        *(first.kind, first.at, to_json(dict(first.data))),
        *(second.kind, second.at, to_json(dict(second.data))),
        *counters[0],
        *counters[1],
    )
    db.execute(STEP, values)
    return True
