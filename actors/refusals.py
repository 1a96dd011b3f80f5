"""What stores say when they refuse: one wording for all of them, so that a caller cannot tell them apart.

Each names the thing, the value and the remedy. Also what else is the same everywhere: limits, and the first record of
a run.
"""

import json

from understudy.actors.errors import Conflict, Fenced, NotFound
from understudy.actors.records import Commit, NewRun, RunRecord

RETAIN_S = 7 * 86400.0
"""How long a thread is kept after a run of it was cancelled or quarantined."""
CRASHES_MAX = 20
MEMBER_SILENT_S = 86400.0


def key_conflict(run: NewRun, other: str) -> Conflict:
    return Conflict(
        f"key {run.key!r} on thread {run.thread_id!r} belongs to run {other} with another graph or input; "
        f"use another key, or the same input"
    )


def seed_conflict(run: NewRun) -> Conflict:
    return Conflict(f"thread {run.thread_id!r} has runs already, so run {run.run_id} cannot seed it; fork to a new one")


def not_ready(run: RunRecord) -> Conflict:
    return Conflict(
        f"run {run.run_id} is {run.status} and not ready to be claimed (epoch {run.epoch}, owner {run.owner!r}, "
        f"not before {run.not_before}); ask `due` again"
    )


def answer_conflict(run_id: str, interrupt_id: str) -> Conflict:
    return Conflict(f"interrupt {interrupt_id!r} of run {run_id} has another answer already; the first one stands")


def thread_in_use(thread_id: str, run_id: str) -> Conflict:
    return Conflict(f"thread {thread_id!r} still has run {run_id}, which is not final; cancel it first")


def thread_busy(run: NewRun, other: str) -> Conflict:
    return Conflict(
        f"thread {run.thread_id!r} is busy with run {other}; wait for it, or start with busy='enqueue', 'interrupt' or "
        f"'rollback'"
    )


def not_retryable(run: RunRecord) -> Conflict:
    return Conflict(
        f"run {run.run_id} is {run.status}; only a failed or quarantined run can be retried: fork it instead"
    )


def thread_went_on(run: RunRecord, why: str) -> Conflict:
    return Conflict(f"run {run.run_id} cannot be retried, as its thread {run.thread_id!r} {why}; fork it instead")


def no_mailbox(run: RunRecord) -> Conflict:
    return Conflict(f"run {run.run_id} is {run.status} and takes no messages any more; start another one")


def mailbox_full(run_id: str, size: int) -> Conflict:
    return Conflict(
        f"the mailbox of run {run_id} holds {size} messages, which is its limit; wait until some are received"
    )


def no_thread(thread_id: str) -> NotFound:
    return NotFound(f"there is no thread {thread_id!r} in this store")


def no_run(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id!r} in this store; `understudy ps` lists them")


def no_interrupt(run_id: str, interrupt_id: str) -> NotFound:
    return NotFound(f"run {run_id} has no open interrupt {interrupt_id!r}; `understudy show {run_id}` lists them")


def no_checkpoint(thread_id: str, checkpoint_id: str) -> NotFound:
    return NotFound(
        f"thread {thread_id!r} has no checkpoint {checkpoint_id!r}: it never had, or its graph does not keep it so "
        f"long (Graph(keep=...)); `understudy history RUN` lists those that there are"
    )


def no_blob(digest: str) -> NotFound:
    return NotFound(f"there is no blob {digest!r} in this store; it was put into another store, or never")


def fenced(run_id: str, epoch: int, op: str) -> Fenced:
    return Fenced(f"{op} of run {run_id} with epoch {epoch} refused: a newer owner has the run, or it is given back")


def seq_gap(commit: Commit, stored: int) -> str:
    return f"commit {commit.seq} of run {commit.run_id} (epoch {commit.epoch}) does not follow commit {stored}"


def new_record(run: NewRun, now: float) -> RunRecord:
    """A run as `create` makes it."""
    return RunRecord(
        run_id=run.run_id,
        thread_id=run.thread_id,
        graph=run.graph,
        version=run.version,
        code=run.code,
        input=run.input,
        digest=run.digest,
        key=run.key,
        policy=run.policy,
        labels=dict(run.labels),
        status="queued",
        epoch=0,
        owner="",
        lease_until=0.0,
        seq=0,
        step=0,
        head=run.seed.checkpoint_id if run.seed else "",
        restarts=0,
        crashes=(),
        detected_at=0.0,
        not_before=0.0,
        cancel_asked=False,
        interrupts=(),
        answers={},
        created_at=now,
        updated_at=now,
        error="",
        result="",
        base=run.seed.checkpoint_id if run.seed else "",
        parent=run.parent,
        parent_interrupt=run.parent_interrupt,
        blobs=run.blobs,
    )


def child_answer(status: str, error: str = "", result: str = "") -> str:
    """What a child's end answers to its parent. `result` is JSON, or empty for none. Escaped as little as can be, which
    is what SQL and Lua do too."""
    return f'{{"status":"{status}","error":{json.dumps(error, ensure_ascii=False)},"result":{result or "null"}}}'
