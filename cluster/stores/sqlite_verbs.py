"""The life of a run as plain functions on a SQLite connection; each runs inside one transaction of its caller.

The docstrings of `understudy.actors.store` say what they do. `Fenced` is raised before anything but its counter was
changed, so that the caller may commit then (law 1). Nothing here waits or knows a thread. Effects, messages and streams
are in sqlite_effects.py, reading in sqlite_reads.py, whole threads in sqlite_moves.py.
"""

import json
from collections.abc import Sequence
from sqlite3 import Connection, Row

from understudy.actors.errors import Fenced
from understudy.actors.events import sample
from understudy.actors.records import (
    FINAL,
    Commit,
    Committed,
    Counters,
    Event,
    Interrupt,
    NewCheckpoint,
    NewRun,
    Renewed,
    RunRecord,
    Status,
)
from understudy.actors.refusals import (
    CRASHES_MAX,
    RETAIN_S,
    answer_conflict,
    child_answer,
    key_conflict,
    no_interrupt,
    no_run,
    not_ready,
    not_retryable,
    seed_conflict,
    seq_gap,
    thread_busy,
    thread_went_on,
)
from understudy.cluster.stores.rows import COMMITTED, event_values, interrupts_json, interrupts_of, run_of, to_json
from understudy.cluster.stores.sqlite_base import (
    SQL,
    check_parent,
    count,
    do,
    held,
    note,
    one,
    owned,
    record,
    refused,
    rows,
)
from understudy.cluster.stores.sqlite_step import took_step

DUPLICATE = {sample("checkpoint_commits_total", result="duplicate"): 1.0}


def create(db: Connection, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
    known = one(db, "record", run.run_id)
    if known:
        return run_of(known)
    if run.parent_epoch:
        owned(db, run.parent, run.parent_epoch, "create")
    other = one(db, "run_with_key", run.thread_id, run.key) if run.key else None
    if other:
        if other["digest"] != run.digest:
            raise key_conflict(run, other["run_id"])
        return run_of(other)
    if run.seed and one(db, "has_runs", run.thread_id):
        raise seed_conflict(run)
    unfinished = rows(db, "unfinished_runs", run.thread_id)
    if unfinished and run.busy == "reject":
        raise thread_busy(run, unfinished[0]["run_id"])
    if run.busy in ("interrupt", "rollback"):
        for busy in unfinished:
            do(db, "set_rollback", run.busy == "rollback", busy["n"])
            _cancel(db, busy, now)
        unfinished = [busy for busy in unfinished if busy["status"] == "running"]
    head = run.seed.checkpoint_id if run.seed else ""
    do(db, "keep_thread", run.thread_id, head)
    values = {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "graph": run.graph,
        "version": run.version,
        "digest": run.digest,
        "key": run.key,
        "policy": run.policy,
        "head": head,
        "parent": run.parent,
        "parent_interrupt": run.parent_interrupt,
        "now": now,
        "due_at": None if unfinished else now,
    }
    n = db.execute(SQL["insert_run"], values).lastrowid
    assert n is not None
    do(db, "insert_input", n, run.code, run.input, to_json(dict(run.labels)), to_json(run.blobs))
    db.executemany(SQL["insert_need"], [(n, digest) for digest in run.blobs])
    if run.seed:
        _store_checkpoint(db, run.thread_id, run.run_id, run.seed, now)
    note(db, n, events, counters)
    return record(db, run.run_id)


def claim(db: Connection, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
    values = {"run_id": run_id, "owner": owner, "lease_until": now + lease_s, "now": now}
    taken = db.execute(SQL["claim"], values).rowcount
    found = one(db, "record", run_id)
    if found is None:
        raise no_run(run_id)
    if not taken:
        raise not_ready(run_of(found))
    note(db, found["n"], [Event("claimed", now, {"owner": owner, "epoch": found["epoch"]})])
    return run_of(found)


Told = Committed | Fenced | AssertionError
"""What a commit is told. A refusal is a value here: it changed nothing but its counter, and what was committed with it,
before it or for other runs, has to stay."""


def commit(db: Connection, commits: Sequence[Commit]) -> tuple[Told, bool]:
    """What the last one is told, or the first that is refused; and whether a run may have become ready by them."""
    told: Told = AssertionError("commit() needs a commit")
    together = {one_of_them.seq for one_of_them in commits}
    for one_of_them in commits:
        told = _commit(db, one_of_them, together)
        if not isinstance(told, Committed):
            break
    return told, any(one_of_them.status != "running" for one_of_them in commits)


def _commit(db: Connection, commit: Commit, together: set[int]) -> Told:
    run = one(db, "hold_for_commit", commit.run_id)
    if run is None or run["epoch"] != commit.epoch:
        return refused(db, commit.run_id, commit.epoch, "commit")
    cancel_asked = bool(run["cancel_asked"])
    if run["seq_epoch"] == commit.epoch and commit.seq <= run["seq"] and run["seq"] in together:
        count(db, DUPLICATE)
        return Committed(duplicate=True, cancel_asked=cancel_asked)
    if run["status"] != "running":
        return refused(db, commit.run_id, commit.epoch, "commit")
    if commit.seq != run["seq"] + 1:
        return AssertionError(seq_gap(commit, run["seq"]))
    n, head = run["n"], run["head"]
    if commit.checkpoint and (run["asks"] or run["answers"] != "{}"):
        do(db, "clear_questions", n)
    if took_step(db, run, commit):
        return Committed(duplicate=False, cancel_asked=cancel_asked)
    if commit.checkpoint:
        head = commit.checkpoint.checkpoint_id
        _store_checkpoint(db, run["thread_id"], commit.run_id, commit.checkpoint, commit.at)
        do(db, "delete_writes", n)
    elif commit.writes:
        db.executemany(SQL["insert_write"], [(n, task_id, body) for task_id, body in commit.writes.items()])
    if commit.taken:
        db.executemany(SQL["take_message"], [(n, taken) for taken in commit.taken])
    db.executemany(SQL["insert_event"], event_values(n, run["last_event"] or 0, commit.events))
    count(db, COMMITTED, commit.counters)
    values = {
        "n": n,
        "seq": commit.seq,
        "epoch": commit.epoch,
        "step": commit.step,
        "head": head,
        "at": commit.at,
        "result": "" if commit.status in FINAL else commit.result,
        "error": commit.error,
    }
    db.execute(SQL["advance"], values)
    if commit.status == "waiting":
        answers = {} if commit.checkpoint else json.loads(run["answers"])
        _sleep(db, n, commit, wake_now=cancel_asked or _answered(commit.interrupts, answers) or _hears(db, n, commit))
    elif commit.status in FINAL:
        _end(db, n, commit.status, commit.at, commit.retain_s, commit.result)
    return Committed(duplicate=False, cancel_asked=cancel_asked)


def renew(db: Connection, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
    lost, cancelled = [], []
    for run_id, epoch in leases:
        run = one(db, "hold", run_id)
        if run is None or run["epoch"] != epoch:
            lost.append(run_id)
            refused(db, run_id, epoch, "renew")
        elif run["status"] == "running":
            do(db, "renew", now + lease_s, run["n"])
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
    run = owned(db, run_id, epoch, "requeue")
    n = run["n"]
    db.execute(SQL["requeue"], {"n": n, "now": now, "not_before": not_before, "due_at": max(now, not_before)})
    if crashed:
        crashes = to_json([*json.loads(run["crashes"]), now][-CRASHES_MAX:])
        db.execute(SQL["crashed"], {"n": n, "now": now, "crashes": crashes})
    note(db, n, events, counters)
    if quarantine:
        do(db, "set_error", quarantine, n)
        _end(db, n, "quarantined", now, RETAIN_S)
    return record(db, run_id)


def resume(db: Connection, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
    run = held(db, run_id)
    if run["status"] in FINAL:
        raise no_interrupt(run_id, interrupt_id)
    answers = json.loads(run["answers"])
    if interrupt_id in answers:
        if answers[interrupt_id] != answer:
            raise answer_conflict(run_id, interrupt_id)
        return record(db, run_id)
    if not _answered(interrupts_of(run["interrupts"]), {interrupt_id: answer}):
        raise no_interrupt(run_id, interrupt_id)
    do(db, "answer", to_json({**answers, interrupt_id: answer}), now, run["n"])
    if run["status"] == "waiting":
        do(db, "queue", now, run["n"])
    note(db, run["n"], [Event("answered", now, {"interrupt_id": interrupt_id})])
    return record(db, run_id)


def cancel(db: Connection, run_id: str, now: float, parent_epoch: int) -> RunRecord:
    run = held(db, run_id)
    check_parent(db, run, parent_epoch, "cancel")
    _cancel(db, run, now)
    return record(db, run_id)


def retry(db: Connection, run_id: str, now: float) -> RunRecord:
    run = record(db, run_id)
    if not run.final:
        return run
    if run.status not in ("failed", "quarantined"):
        raise not_retryable(run)
    for other in rows(db, "unfinished_runs", run.thread_id):
        raise thread_went_on(run, f"has the unfinished run {other['run_id']}")
    head = db.execute(SQL["head_of"], (run.thread_id,)).fetchone()[0]
    if head != run.head:
        raise thread_went_on(run, f"is at checkpoint {head!r} by now, after another run")
    n = held(db, run_id)["n"]
    db.execute(SQL["retry"], {"n": n, "now": now})
    do(db, "keep_again", run.thread_id)
    note(db, n, [Event("retried", now)])
    return record(db, run_id)


# --- what they share -----------------------------------------------------------------------------------------------


def _cancel(db: Connection, run: Row, now: float) -> None:
    n = run["n"]
    if run["status"] == "running":
        if not run["cancel_asked"]:
            do(db, "ask_to_cancel", now, n)
            note(db, n, [Event("cancel_asked", now)])
    elif run["status"] not in FINAL:
        do(db, "cancel", now, n)
        counted = sample("runs_finished_total", graph=run["graph"], status="cancelled")
        note(db, n, [Event("finished", now, {"status": "cancelled"})], {counted: 1.0})
        _end(db, n, "cancelled", now, RETAIN_S)


def _answered(interrupts: Sequence[Interrupt], answers: dict[str, str]) -> bool:
    return any(i.interrupt_id in answers for i in interrupts if not i.settled)


def _hears(db: Connection, n: int, commit: Commit) -> bool:
    return commit.listens_after is not None and one(db, "hears", n, commit.listens_after) is not None


def _sleep(db: Connection, n: int, commit: Commit, *, wake_now: bool) -> None:
    wake_at = 0.0 if wake_now else commit.wake_at
    values = {
        "n": n,
        "status": "queued" if wake_now else "waiting",
        "interrupts": interrupts_json(commit.interrupts),
        "not_before": wake_at,
        "due_at": commit.at if wake_now else wake_at or None,
        "listens_after": commit.listens_after,
    }
    db.execute(SQL["sleep"], values)


def _end(db: Connection, n: int, status: Status, at: float, retain_s: float, result: str = "") -> None:
    do(db, "end", status, n)
    if status in ("succeeded", "cancelled"):  # the others keep what `retry` goes on with
        do(db, "empty_mailbox", n)
        do(db, "delete_writes", n)
        do(db, "clear_questions", n)
    run = one(db, "ended", n)
    assert run is not None
    undone = status == "cancelled" and run["rollback"] and run["head"] != run["base"]
    leaves = {
        "thread_id": run["thread_id"],
        "expires_at": None if retain_s < 0 else at + retain_s,
        "was_at": run["head"],
        "leaves": run["base"] if undone else run["head"],
    }
    db.execute(SQL["leave_thread"], leaves)
    db.execute(SQL["release"], {"thread_id": run["thread_id"], "at": at})
    if run["parent"]:
        _tell_parent(db, run, child_answer(status, run["error"], result or run["result"]), at)
    if result:  # last: every further change of the row would write it again, and leave the room of it empty
        do(db, "give_result", result, n)


def _tell_parent(db: Connection, child: Row, answer: str, at: float) -> None:
    parent = one(db, "hold", child["parent"])
    if parent is None or parent["status"] in FINAL:
        return
    interrupt_id, answers = child["parent_interrupt"], json.loads(parent["answers"])
    if interrupt_id in answers:
        return
    do(db, "child_answer", to_json({**answers, interrupt_id: answer}), parent["n"])
    note(db, parent["n"], [Event("answered", at, {"interrupt_id": interrupt_id})])
    if parent["status"] == "waiting" and _answered(interrupts_of(parent["interrupts"]), {interrupt_id: answer}):
        do(db, "queue", at, parent["n"])


def _store_checkpoint(db: Connection, thread_id: str, run_id: str, new: NewCheckpoint, at: float) -> None:
    values = (thread_id, new.checkpoint_id, new.parent, new.step, new.snapshot, new.since, run_id, at, new.body)
    db.execute(SQL["insert_checkpoint"], values)
