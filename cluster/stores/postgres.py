"""A store in Postgres: every verb is one function in the database, so one statement and one round trip.

Laws (the functions are in postgres_verbs.sql, which says how they keep them):
1. The epoch is compared on the locked row of the run.
2. A statement is a transaction; it is answered after its commit, which with `fsync` and `synchronous_commit` on (the
   defaults; `doctor` tells) is on the disk.
9. There is nothing to recover: Postgres rolls back what a killed client left.

Whole threads are in postgres_moves.py. Supervisors hear of work by NOTIFY, on a connection that only listens.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

from understudy.actors.records import (
    FINAL,
    STATUSES,
    Begun,
    CheckpointRow,
    Chunk,
    Commit,
    Committed,
    Counters,
    Due,
    Event,
    Loaded,
    NewRun,
    Receipt,
    Renewed,
    RunRecord,
    Status,
    ThreadDump,
)
from understudy.actors.refusals import (
    CRASHES_MAX,
    MEMBER_SILENT_S,
    RETAIN_S,
    answer_conflict,
    fenced,
    key_conflict,
    mailbox_full,
    no_blob,
    no_checkpoint,
    no_interrupt,
    no_mailbox,
    no_run,
    no_thread,
    not_ready,
    not_retryable,
    seed_conflict,
    seq_gap,
    thread_busy,
    thread_in_use,
    thread_went_on,
)
from understudy.actors.store import BLOB_KEPT_S, CHUNKS_MAX, MAILBOX_MAX, OPENING_S, StoreInfo
from understudy.cluster.stores import postgres_moves
from understudy.cluster.stores.postgres_client import Connections
from understudy.cluster.stores.postgres_documents import PostgresDocuments
from understudy.cluster.stores.postgres_listener import Listener
from understudy.cluster.stores.postgres_schema import prepare
from understudy.cluster.stores.postgres_step import step_values, take_step
from understudy.cluster.stores.postgres_wire import Line, Prepared, told
from understudy.cluster.stores.rows import (
    COMMITTED,
    checkpoint_of,
    chunk_of,
    events_json,
    interrupts_json,
    message_of,
    open_ids,
    receipt_of,
    run_of,
    summed,
    to_json,
)
from understudy.cluster.stores.statements import statements

SQL = statements("postgres_reads.sql")
VALUE = re.compile(r"%\((\w+)\)s")
SWEEP_BATCH = 20
MARKS_BATCH = 100_000
"""Half a second of work."""


class PostgresStore(PostgresDocuments):
    def __init__(self, url: str) -> None:
        self.connections = Connections(url)
        self._listener = Listener(self.connections)

    @classmethod
    async def open(cls, url: str, within_s: float = OPENING_S) -> Self:
        """Raises CallerError (wrong password, no such database, a newer schema), StoreUnavailable."""
        store = cls(url)
        try:
            await store.connections.run(lambda c: prepare(c, store.connections.where), within_s)
        except BaseException:
            await store.close()
            raise
        return store

    # --- the life of a run ---

    async def create(self, run: NewRun, events: Sequence[Event], counters: Counters, now: float) -> RunRecord:
        names = ("run_id", "thread_id", "graph", "version", "code", "input", "digest", "key", "policy")
        seed = json.dumps(vars(run.seed)) if run.seed else None
        made = await self._call(
            "run_create",
            *(getattr(run, name) for name in names),
            to_json(dict(run.labels)),
            seed,
            run.busy,
            run.parent,
            run.parent_interrupt,
            run.parent_epoch,
            to_json(run.blobs),
            events_json(events),
            _counted(counters),
            now,
            now + RETAIN_S,
        )
        match made["outcome"]:
            case "fenced":
                raise fenced(run.parent, run.parent_epoch, "create")
            case "key":
                raise key_conflict(run, made["run"]["run_id"])
            case "seed":
                raise seed_conflict(run)
            case "busy":
                raise thread_busy(run, made["run"]["run_id"])
        return _run(made)

    async def due(self, now: float, limit: int) -> Due:
        ((ready, overdue, epochs),) = await self._rows("due", now=now, limit=limit)
        return Due(tuple(ready), tuple(zip(overdue, epochs, strict=True)))

    async def wait_work(self, timeout_s: float) -> None:
        await self._listener.wait(timeout_s)

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        times, (taken,) = await self._sent("run_claim", run_id, owner, lease_s, now)
        if taken["run"] is None:
            raise no_run(run_id)
        run = _run(taken)
        if taken["outcome"] == "ok":
            return run
        claimed = (run.status, run.owner, run.updated_at, run.lease_until)
        if times > 1 and claimed == ("running", owner, now, now + lease_s):
            return run  # this very claim: its answer was lost with the server
        raise not_ready(run)

    async def load(self, run_id: str) -> Loaded:
        rows = await self._rows("load", run_id=run_id)
        if not rows:
            raise no_run(run_id)
        ((run, chain, writes, receipts, messages),) = rows
        return Loaded(
            _run({"run": run}),
            tuple(checkpoint_of(row) for row in chain),
            writes,
            {row["key"]: receipt_of(row) for row in receipts},
            tuple(message_of(row) for row in messages),
        )

    async def commit(self, *commits: Commit) -> Committed:
        first = commits[0]
        if len(commits) == 1:
            step = step_values(first)
            if step is not None:
                asked = await self.connections.ask(lambda line: take_step(line, step))
                if asked is not None:
                    return Committed(duplicate=False, cancel_asked=asked)
            sent = await self._one("run_commit", first.run_id, first.epoch, *_values(first).values(), [first.seq])
        else:
            sent = await self._one("run_commits", first.run_id, first.epoch, _several(commits))
        outcome, cancel_asked, stored = sent
        if outcome == "fenced":
            raise fenced(first.run_id, first.epoch, "commit")
        if outcome == "gap":
            raise AssertionError(seq_gap(next((c for c in commits if c.seq > stored), commits[-1]), stored))
        return Committed(duplicate=outcome == "duplicate", cancel_asked=cancel_asked)

    async def renew(self, leases: Sequence[tuple[str, int]], lease_s: float, now: float) -> Renewed:
        if not leases:
            return Renewed((), ())
        run_ids, epochs = zip(*leases, strict=True)
        lost, cancelled = await self._one("run_renew", list(run_ids), list(epochs), now + lease_s)
        return Renewed(tuple(lost), tuple(cancelled))

    async def requeue(
        self,
        run_id: str,
        epoch: int,
        now: float,
        not_before: float,
        events: Sequence[Event],
        counters: Counters,
        *,
        crashed: bool = True,
        quarantine: str = "",
    ) -> RunRecord:
        noted = (events_json(events), _counted(counters), crashed, quarantine, now + RETAIN_S, CRASHES_MAX)
        back = await self._call("run_requeue", run_id, epoch, now, not_before, *noted)
        if back["outcome"] == "fenced":
            raise fenced(run_id, epoch, "requeue")
        return _run(back)

    async def resume(self, run_id: str, interrupt_id: str, answer: str, now: float) -> RunRecord:
        back = await self._call("run_resume", run_id, interrupt_id, answer, now)
        match back["outcome"]:
            case "missing":
                raise no_run(run_id)
            case "another":
                raise answer_conflict(run_id, interrupt_id)
            case "not asked":
                raise no_interrupt(run_id, interrupt_id)
        return _run(back)

    async def cancel(self, run_id: str, now: float, parent_epoch: int = 0) -> RunRecord:
        back = await self._call("run_cancel", run_id, now, now + RETAIN_S, parent_epoch)
        if back["outcome"] == "fenced":
            raise fenced(run_id, parent_epoch, "cancel")
        if back["run"] is None:
            raise no_run(run_id)
        return _run(back)

    async def retry(self, run_id: str, now: float) -> RunRecord:
        outcome, detail, found = await self._one("run_retry", run_id, now)
        if outcome == "missing":
            raise no_run(run_id)
        run = run_of(found)
        match outcome:
            case "over":
                raise not_retryable(run)
            case "busy":
                raise thread_went_on(run, f"has the unfinished run {detail}")
            case "went on":
                raise thread_went_on(run, f"is at checkpoint {detail!r} by now, after another run")
        return run

    # --- messages and streams ---

    async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
        outcome, n = await self._one("message_send", run_id, message_id, body, now, MAILBOX_MAX, parent_epoch)
        match outcome:
            case "missing":
                raise no_run(run_id)
            case "fenced":
                raise fenced(run_id, parent_epoch, "send")
            case "over":
                raise no_mailbox(await self.run(run_id))
            case "full":
                raise mailbox_full(run_id, n)
        return int(n)

    async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
        given = to_json([(c.task_id, c.node, c.attempt, c.data, c.at, c.withdrawn) for c in chunks])
        if not await self._call("run_stream", run_id, epoch, given, CHUNKS_MAX):
            raise fenced(run_id, epoch, "stream")

    async def chunks(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Chunk]:
        rows = await self._rows("chunks", run_id=run_id, after=after, limit=limit)
        if not rows:
            raise no_run(run_id)
        return [chunk_of(row) for (row,) in rows if row is not None]

    # --- effects ---

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        names = ("run_id", "checkpoint_id", "key", "task_id", "tool", "digest", "state", "sandbox", "token")
        values = (*(getattr(receipt, name) for name in names), receipt.outcome, receipt.place, receipt.at)
        begun = await self._call("effect_begin", *values, epoch, events_json(events), _counted(counters))
        if begun["outcome"] == "fenced":
            raise fenced(receipt.run_id, epoch, "begin")
        return Begun(begun["outcome"] == "fresh", receipt_of(begun["receipt"]) if "receipt" in begun else receipt)

    async def finish(
        self,
        run_id: str,
        key: str,
        checkpoint_id: str,
        token: str,
        outcome: str,
        events: Sequence[Event],
        counters: Counters,
        now: float,
    ) -> bool:
        noted = (events_json(events), _counted(counters))
        return bool(await self._call("effect_end", run_id, checkpoint_id, key, token, "done", outcome, *noted))

    async def forget(
        self, run_id: str, key: str, checkpoint_id: str, token: str, events: Sequence[Event], counters: Counters
    ) -> bool:
        noted = (events_json(events), _counted(counters))
        return bool(await self._call("effect_end", run_id, checkpoint_id, key, token, "unknown", "", *noted))

    async def receipt(self, run_id: str, key: str, checkpoint_id: str) -> Receipt | None:
        rows = await self._rows("receipt", run_id=run_id, key=key, checkpoint_id=checkpoint_id)
        return receipt_of(rows[0][0]) if rows else None

    async def receipts(self, run_id: str) -> list[Receipt]:
        return [receipt_of(row) for (row,) in await self._rows("receipts", run_id=run_id)]

    # --- reading ---

    async def run(self, run_id: str) -> RunRecord:
        rows = await self._rows("record", run_id=run_id)
        if not rows:
            raise no_run(run_id)
        return _run({"run": rows[0][0]})

    async def runs(self, status: Status | None = None, limit: int = 100, thread_id: str = "") -> list[RunRecord]:
        name = "runs_of_thread" if thread_id else "runs_with_status" if status else "all_runs"
        rows = await self._rows(name, status=status, limit=limit, thread_id=thread_id)
        return [_run({"run": run}) for (run,) in rows]

    async def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        rows = await self._rows("events", run_id=run_id, after=after, limit=limit)
        if not rows:
            raise no_run(run_id)
        return [Event(kind, at, json.loads(data), n) for n, kind, at, data in rows if n is not None]

    async def history(self, thread_id: str, limit: int = 1000) -> list[CheckpointRow]:
        return [checkpoint_of(row) for (row,) in await self._rows("history", thread_id=thread_id, limit=limit)]

    async def chain(self, thread_id: str, checkpoint_id: str) -> list[CheckpointRow]:
        rows = await self._rows("chain", thread_id=thread_id, checkpoint_id=checkpoint_id)
        if not rows:
            raise no_checkpoint(thread_id, checkpoint_id)
        return [checkpoint_of(row) for (row,) in rows]

    async def counts(self) -> dict[Status, int]:
        found = dict(await self._rows("counts"))
        return {status: found.get(status, 0) for status in STATUSES}

    async def counters(self) -> dict[str, float]:
        return dict(await self._rows("counters"))

    # --- around it ---

    async def put_blob(self, digest: str, data: bytes, now: float) -> None:
        await self._rows("put_blob", digest=digest, data=data, now=now)

    async def get_blob(self, digest: str) -> bytes:
        rows = await self._rows("get_blob", digest=digest)
        if not rows:
            raise no_blob(digest)
        return bytes(rows[0][0])

    async def beat(self, member: str, data: str, now: float) -> None:
        await self._rows("beat", member=member, data=data, now=now)

    async def beats(self) -> dict[str, tuple[float, str]]:
        return {member: (at, data) for member, at, data in await self._rows("beats")}

    async def sweep(self, now: float) -> int:
        swept = 0
        while await self._call("marks_fold", MARKS_BATCH):
            pass
        while True:
            batch = int(await self._call("threads_sweep", now, now - MEMBER_SILENT_S, now - BLOB_KEPT_S, SWEEP_BATCH))
            swept += batch
            if batch < SWEEP_BATCH:
                return swept

    async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
        return int(await self._call("thread_prune", thread_id, list(checkpoint_ids)))

    async def delete_thread(self, thread_id: str) -> None:
        unfinished = await self._call("thread_delete", thread_id)
        if unfinished:
            raise thread_in_use(thread_id, unfinished)

    # --- from one store to another ---

    async def threads(self, after: str = "", limit: int = 1000) -> list[str]:
        return [thread_id for (thread_id,) in await self._rows("threads", after=after, limit=limit)]

    async def dump(self, thread_id: str) -> ThreadDump:
        rows = await self._rows("dump", thread_id=thread_id)
        if not rows:
            raise no_thread(thread_id)
        return postgres_moves.dump_of(thread_id, *rows[0])

    async def adopt(self, dump: ThreadDump) -> bool:
        return await self.connections.run(lambda connection: postgres_moves.adopt(connection, dump))

    async def blobs(self) -> list[str]:
        return [digest for (digest,) in await self._rows("blobs")]

    async def count(self, counters: Counters) -> None:
        await self._rows("count", counters=_counted(counters))

    async def info(self) -> StoreInfo:
        ((version, fsync, synchronous, size),) = await self._rows("about")
        detail = {"server": version, "fsync": fsync, "synchronous_commit": synchronous, "bytes": str(size)}
        durable = fsync == "on" and synchronous != "off"
        if not durable:
            detail["note"] = "commits may be lost when the server crashes; set fsync and synchronous_commit to on"
        return StoreInfo("postgres", self.connections.where, durable=durable, detail=detail)

    async def close(self) -> None:
        await self._listener.close()
        await self.connections.close()

    # --- what they share ---

    async def _one(self, function: str, *values: Any) -> tuple[Any, ...]:
        """The row that a function of postgres_verbs.sql answers."""
        return (await self._sent(function, *values))[1]

    async def _sent(self, function: str, *values: Any) -> tuple[int, tuple[Any, ...]]:
        """As `_one`, and how often it was sent until there was an answer."""
        times = 0
        statement, given = _calling(function, len(values)), [told(value) for value in values]

        async def do(line: Line) -> tuple[int, tuple[Any, ...]]:
            nonlocal times
            times += 1
            [row] = await line.rows(statement, given)
            return times, row

        return await self.connections.ask(do)

    async def _call(self, function: str, *values: Any) -> Any:
        """As `_one`, of a function that answers one value."""
        return (await self._one(function, *values))[0]

    async def _rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        statement, names = _reading(name)
        given = [told(values[name]) for name in names]
        return await self.connections.ask(lambda line: line.rows(statement, given))


@cache
def _calling(function: str, values: int) -> Prepared:
    marks = ", ".join(f"${n}" for n in range(1, values + 1))
    return Prepared(f"understudy_{function}", f"SELECT * FROM {function}({marks})")


@cache
def _reading(name: str) -> tuple[Prepared, tuple[str, ...]]:
    """A statement of postgres_reads.sql, and the names of its values in their order."""
    names = tuple(dict.fromkeys(VALUE.findall(SQL[name])))
    sql = VALUE.sub(lambda found: f"${names.index(found[1]) + 1}", SQL[name])
    return Prepared(f"understudy_read_{name}", sql), names


def _run(answer: dict[str, Any]) -> RunRecord:
    return run_of(answer["run"])


def _counted(*counters: Counters) -> str:
    return to_json(dict(summed(*counters)))


def _values(commit: Commit) -> dict[str, Any]:
    """What `run_commit` takes of a commit, in its order; by the names that `run_commits` gives it."""
    new = commit.checkpoint
    return {
        "seq": commit.seq,
        "at": commit.at,
        "status": commit.status,
        "step": commit.step,
        "checkpoint_id": new and new.checkpoint_id,
        "parent": new and new.parent,
        "checkpoint_step": new and new.step,
        "snapshot": new and new.snapshot,
        "since": new and new.since,
        "body": new and new.body,
        "tasks": list(commit.writes),
        "bodies": list(commit.writes.values()),
        "interrupts": interrupts_json(commit.interrupts),
        "open_ids": open_ids(commit.interrupts),
        "wake_at": commit.wake_at,
        "events": events_json(commit.events),
        "counters": _counted(commit.counters, COMMITTED),
        "result": commit.result,
        "error": commit.error,
        "expires_at": None if commit.retain_s < 0 or commit.status not in FINAL else commit.at + commit.retain_s,
        "taken": list(commit.taken),
        "listens_after": commit.listens_after,
    }


def _several(commits: Sequence[Commit]) -> str:
    values = [_values(commit) for commit in commits]
    for one in values:  # JSON inside of JSON, as it is
        one["events"], one["counters"] = json.loads(one["events"]), json.loads(one["counters"])
    return to_json(values)
