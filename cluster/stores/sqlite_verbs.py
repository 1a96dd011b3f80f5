"""The verbs of a store as plain functions on a SQLite connection; each runs inside one transaction of its caller.

The docstrings of `understudy.actors.store` say what they do. `Fenced` is raised before anything but its counter was
changed, so that the caller may commit then (law 1). Nothing here waits or knows a thread.
"""

import json
from collections.abc import Sequence
from sqlite3 import Connection, Row
from typing import Any

from understudy.actors.errors import Fenced
from understudy.actors.events import sample
from understudy.actors.records import (
    FINAL,
    STATUSES,
    Begun,
    CheckpointRow,
    Commit,
    Committed,
    Counters,
    Due,
    Event,
    Interrupt,
    Loaded,
    NewCheckpoint,
    NewRun,
    Receipt,
    Renewed,
    RunRecord,
    Status,
)
from understudy.actors.refusals import (
    CRASHES_MAX,
    MEMBER_SILENT_S,
    RETAIN_S,
    answer_conflict,
    fenced,
    key_conflict,
    no_blob,
    no_checkpoint,
    no_interrupt,
    no_run,
    not_ready,
    seed_conflict,
    seq_gap,
    thread_in_use,
)
from understudy.cluster.stores.rows import (
    checkpoint_of,
    event_of,
    event_values,
    interrupts_json,
    interrupts_of,
    receipt_of,
    receipt_values,
    run_of,
    summed,
    to_json,
)
from understudy.cluster.stores.statements import statements

SQL = statements("sqlite.sql")
COMMITTED = {sample("checkpoint_commits_total", result="ok"): 1.0}
DUPLICATE = {sample("checkpoint_commits_total", result="duplicate"): 1.0}

# --- the life of a run ---------------------------------------------------------------------------------------------


def create(db: Connection, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
    known = _one(db, "record", run.run_id)
    if known:
        return run_of(known)
    other = _one(db, "run_with_key", run.thread_id, run.key) if run.key else None
    if other:
        if other["digest"] != run.digest:
            raise key_conflict(run, other["run_id"])
        return run_of(other)
    thread = _one(db, "thread_runs", run.thread_id)
    assert thread is not None
    if run.seed and thread["runs"]:
        raise seed_conflict(run)
    _do(db, "keep_thread", run.thread_id)
    values = {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "graph": run.graph,
        "version": run.version,
        "digest": run.digest,
        "key": run.key,
        "policy": run.policy,
        "head": run.seed.checkpoint_id if run.seed else "",
        "now": now,
        "due_at": None if thread["unfinished"] else now,
    }
    n = db.execute(SQL["insert_run"], values).lastrowid
    assert n is not None
    _do(db, "insert_input", n, run.code, run.input, to_json(dict(run.labels)))
    if run.seed:
        _store_checkpoint(db, run.thread_id, run.run_id, run.seed, now)
    _note(db, n, events, counters)
    return record(db, run.run_id)


def due(db: Connection, now: float, limit: int) -> Due:
    ready = tuple(row["run_id"] for row in _all(db, "ready", now, limit))
    return Due(ready, tuple((row["run_id"], row["epoch"]) for row in _all(db, "overdue", now, limit)))


def claim(db: Connection, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
    values = {"run_id": run_id, "owner": owner, "lease_until": now + lease_s, "now": now}
    taken = db.execute(SQL["claim"], values).rowcount
    found = _one(db, "record", run_id)
    if found is None:
        raise no_run(run_id)
    if not taken:
        raise not_ready(run_of(found))
    _note(db, found["n"], [Event("claimed", now, {"owner": owner, "epoch": found["epoch"]})], {})
    return run_of(found)


def load(db: Connection, run_id: str) -> Loaded:
    run = record(db, run_id)
    line = chain(db, run.thread_id, run.head) if run.head else []
    writes = {row["task_id"]: row["body"] for row in _all(db, "pending", run_id)}
    receipts = {row["key"]: receipt_of(row) for row in _all(db, "receipts_at", run_id, run.head)}
    return Loaded(run, tuple(line), writes, receipts)


def commit(db: Connection, commit: Commit) -> tuple[Committed, bool]:
    """What the verb answers, and whether a run may have become ready by it."""
    run = _one(db, "hold_for_commit", commit.run_id)
    if run is None or run["epoch"] != commit.epoch:
        raise _fenced(db, commit.run_id, commit.epoch, "commit")
    cancel_asked = bool(run["cancel_asked"])
    if (run["seq_epoch"], run["seq"]) == (commit.epoch, commit.seq):
        _count(db, DUPLICATE)
        return Committed(duplicate=True, cancel_asked=cancel_asked), False
    if run["status"] != "running":
        raise _fenced(db, commit.run_id, commit.epoch, "commit")
    assert commit.seq == run["seq"] + 1, seq_gap(commit, run["seq"])
    n, head = run["n"], run["head"]
    if commit.checkpoint:
        head = commit.checkpoint.checkpoint_id
        _store_checkpoint(db, run["thread_id"], commit.run_id, commit.checkpoint, commit.at)
        _do(db, "delete_writes", n)
        if run["asks"] or run["answers"] != "{}":
            _do(db, "clear_questions", n)
    elif commit.writes:
        db.executemany(SQL["insert_write"], [(n, task_id, body) for task_id, body in commit.writes.items()])
    db.executemany(SQL["insert_event"], event_values(n, run["last_event"] or 0, commit.events))
    _count(db, COMMITTED, commit.counters)
    values = {
        "n": n,
        "seq": commit.seq,
        "epoch": commit.epoch,
        "step": commit.step,
        "head": head,
        "at": commit.at,
        "result": commit.result,
        "error": commit.error,
    }
    db.execute(SQL["advance"], values)
    if commit.status == "waiting":
        answers = {} if commit.checkpoint else json.loads(run["answers"])
        _sleep(db, n, commit, wake_now=cancel_asked or _answered(commit.interrupts, answers))
    elif commit.status in FINAL:
        _end(db, n, run["thread_id"], commit.status, commit.at, commit.retain_s)
    return Committed(duplicate=False, cancel_asked=cancel_asked), commit.status != "running"


def renew(db: Connection, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
    lost, cancelled = [], []
    for run_id, epoch in leases:
        run = _one(db, "hold", run_id)
        if run is None or run["epoch"] != epoch:
            lost.append(run_id)
            _fenced(db, run_id, epoch, "renew")
        elif run["status"] == "running":
            _do(db, "renew", now + lease_s, run["n"])
            if run["cancel_asked"]:
                cancelled.append(run_id)
    return Renewed(tuple(lost), tuple(cancelled))


def requeue(
    db: Connection,
    run_id: str,
    epoch: int,
    now: float,
    not_before: float,
    events: Sequence[Event],
    counters: Counters,
    crashed: bool,
    quarantine: str,
) -> RunRecord:
    run = _owned(db, run_id, epoch, "requeue")
    n = run["n"]
    db.execute(SQL["requeue"], {"n": n, "now": now, "not_before": not_before, "due_at": max(now, not_before)})
    if crashed:
        crashes = to_json([*json.loads(run["crashes"]), now][-CRASHES_MAX:])
        db.execute(SQL["crashed"], {"n": n, "now": now, "crashes": crashes})
    _note(db, n, events, counters)
    if quarantine:
        _do(db, "set_error", quarantine, n)
        _end(db, n, run["thread_id"], "quarantined", now, RETAIN_S)
    return record(db, run_id)


def resume(db: Connection, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
    run = _held(db, run_id)
    answers = json.loads(run["answers"])
    if interrupt_id in answers:
        if answers[interrupt_id] != answer:
            raise answer_conflict(run_id, interrupt_id)
        return record(db, run_id)
    if not _answered(interrupts_of(run["interrupts"]), {interrupt_id: answer}):
        raise no_interrupt(run_id, interrupt_id)
    _do(db, "answer", to_json({**answers, interrupt_id: answer}), now, run["n"])
    if run["status"] == "waiting":
        _do(db, "queue", now, run["n"])
    _note(db, run["n"], [Event("answered", now, {"interrupt_id": interrupt_id})], {})
    return record(db, run_id)


def cancel(db: Connection, run_id: str, now: float) -> RunRecord:
    run = _held(db, run_id)
    n = run["n"]
    if run["status"] == "running":
        if not run["cancel_asked"]:
            _do(db, "ask_to_cancel", now, n)
            _note(db, n, [Event("cancel_asked", now)], {})
    elif run["status"] not in FINAL:
        _do(db, "cancel", now, n)
        counted = sample("runs_finished_total", graph=run["graph"], status="cancelled")
        _note(db, n, [Event("finished", now, {"status": "cancelled"})], {counted: 1.0})
        _end(db, n, run["thread_id"], "cancelled", now, RETAIN_S)
    return record(db, run_id)


# --- effects -------------------------------------------------------------------------------------------------------


def begin(db: Connection, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters) -> Begun:
    run = _owned(db, receipt.run_id, epoch, "begin")
    known = find_receipt(db, receipt.run_id, receipt.key, receipt.checkpoint_id)
    if known and (known.token, known.state) == (receipt.token, receipt.state):
        return Begun(True, known)
    if known and known.state != "unknown":
        return Begun(False, known)
    db.execute(SQL["put_receipt"], {**receipt_values(receipt), "run": run["n"]})
    _note(db, run["n"], events, counters)
    return Begun(True, receipt)


def end_effect(db: Connection, how: str, values: dict[str, str], events: Sequence[Event], counters: Counters) -> bool:
    """`finish` or `forget`: whether there was a start with this token to be ended so."""
    run = db.execute(SQL[how], values).fetchall()
    if run:
        _note(db, run[0]["run"], events, counters)
    return bool(run)


def find_receipt(db: Connection, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
    row = _one(db, "receipt", run_id, checkpoint_id, key)
    return receipt_of(row) if row else None


# --- reading -------------------------------------------------------------------------------------------------------


def record(db: Connection, run_id: str) -> RunRecord:
    row = _one(db, "record", run_id)
    if row is None:
        raise no_run(run_id)
    return run_of(row)


def runs(db: Connection, status: Status | None, limit: int, thread_id: str) -> list[RunRecord]:
    name = "runs_of_thread" if thread_id else "runs_with_status" if status else "all_runs"
    values = {"status": status, "limit": limit, "thread_id": thread_id}
    return [run_of(row) for row in db.execute(SQL[name], values)]


def events(db: Connection, run_id: str, after: int, limit: int) -> list[Event]:
    run = _one(db, "run_number", run_id)
    if run is None:
        raise no_run(run_id)
    return [event_of(row) for row in _all(db, "events", run["n"], after, limit)]


def history(db: Connection, thread_id: str, limit: int) -> list[CheckpointRow]:
    return [checkpoint_of(row) for row in _all(db, "history", thread_id, limit)]


def chain(db: Connection, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
    rows = db.execute(SQL["chain"], {"thread_id": thread_id, "checkpoint_id": checkpoint_id}).fetchall()
    if not rows:
        raise no_checkpoint(thread_id, checkpoint_id)
    return [checkpoint_of(row) for row in rows]


def counts(db: Connection) -> dict[Status, int]:
    found = {row["status"]: row["runs"] for row in _all(db, "counts")}
    return {status: found.get(status, 0) for status in STATUSES}


def all_counters(db: Connection) -> dict[str, float]:
    return {row["name"]: row["value"] for row in _all(db, "counters")}


# --- around it -----------------------------------------------------------------------------------------------------


def put_blob(db: Connection, digest: str, data: bytes) -> None:
    _do(db, "put_blob", digest, data)


def get_blob(db: Connection, digest: str) -> bytes:
    row = _one(db, "get_blob", digest)
    if row is None:
        raise no_blob(digest)
    return bytes(row["data"])


def beat(db: Connection, member: str, data: str, now: float) -> None:
    _do(db, "beat", member, now, data)


def beats(db: Connection) -> dict[str, tuple[float, str]]:
    return {row["member"]: (row["at"], row["data"]) for row in _all(db, "beats")}


def sweep_some(db: Connection, now: float, limit: int) -> int:
    """At most `limit` threads, so that other writers get their turn in between."""
    _do(db, "drop_silent", now - MEMBER_SILENT_S)
    past = db.execute(SQL["past_threads"], {"now": now, "limit": limit}).fetchall()
    for row in past:
        delete_thread(db, row["thread_id"])
    return len(past)


def delete_thread(db: Connection, thread_id: str) -> None:
    unfinished = _one(db, "unfinished", thread_id)
    if unfinished:
        raise thread_in_use(thread_id, unfinished["run_id"])
    for kind in ("events", "receipts", "thread_writes", "inputs", "checkpoints", "runs", "thread"):
        _do(db, f"delete_{kind}", thread_id)


# --- what they share -----------------------------------------------------------------------------------------------


def _do(db: Connection, name: str, *values: Any) -> None:
    db.execute(SQL[name], values)


def _one(db: Connection, name: str, *values: Any) -> Row | None:
    row: Row | None = db.execute(SQL[name], values).fetchone()
    return row


def _all(db: Connection, name: str, *values: Any) -> list[Row]:
    return db.execute(SQL[name], values).fetchall()


def _held(db: Connection, run_id: str) -> Row:
    run = _one(db, "hold", run_id)
    if run is None:
        raise no_run(run_id)
    return run


def _owned(db: Connection, run_id: str, epoch: int, op: str) -> Row:
    run = _one(db, "hold", run_id)
    if run is None or run["epoch"] != epoch or run["status"] != "running":
        raise _fenced(db, run_id, epoch, op)
    return run


def _fenced(db: Connection, run_id: str, epoch: int, op: str) -> Fenced:
    _count(db, {sample("fence_rejections_total", op=op): 1.0})
    return fenced(run_id, epoch, op)


def _answered(interrupts: Sequence[Interrupt], answers: dict[str, str]) -> bool:
    return any(i.interrupt_id in answers for i in interrupts if not i.settled)


def _sleep(db: Connection, n: int, commit: Commit, *, wake_now: bool) -> None:
    wake_at = 0.0 if wake_now else commit.wake_at
    values = {
        "n": n,
        "status": "queued" if wake_now else "waiting",
        "interrupts": interrupts_json(commit.interrupts),
        "not_before": wake_at,
        "due_at": commit.at if wake_now else wake_at or None,
    }
    db.execute(SQL["sleep"], values)


def _end(db: Connection, n: int, thread_id: str, status: Status, at: float, retain_s: float) -> None:
    db.execute(SQL["end"], {"n": n, "status": status})
    _do(db, "delete_writes", n)
    _do(db, "set_expiry", None if retain_s < 0 else at + retain_s, thread_id)
    db.execute(SQL["release"], {"thread_id": thread_id, "at": at})


def _store_checkpoint(db: Connection, thread_id: str, run_id: str, new: NewCheckpoint, at: float) -> None:
    values = (thread_id, new.checkpoint_id, new.parent, new.step, new.snapshot, run_id, at, new.body)
    db.execute(SQL["insert_checkpoint"], values)


def _note(db: Connection, n: int, events: Sequence[Event], counters: Counters) -> None:
    if events:
        last = db.execute(SQL["last_event"], (n,)).fetchone()[0] or 0
        db.executemany(SQL["insert_event"], event_values(n, last, events))
    if counters:
        _count(db, counters)


def _count(db: Connection, *counters: Counters) -> None:
    db.executemany(SQL["count"], summed(*counters))
