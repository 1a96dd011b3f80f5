"""A store in Postgres: every verb is one function in the database, so one statement and one round trip.

Laws (the functions are in postgres_verbs.sql, which says how they keep them):
1. The epoch is compared on the locked row of the run.
2. A statement is a transaction; it is answered after its commit, which with `fsync` and `synchronous_commit` on (the
   defaults; `doctor` tells) is on the disk.
9. There is nothing to recover: Postgres rolls back what a killed client left.

Supervisors hear of work by NOTIFY, on a connection that only listens.
"""

import json
from collections.abc import Sequence
from typing import Any, Self

from understudy.actors.errors import CallerError
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
    Loaded,
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
from understudy.actors.store import StoreInfo
from understudy.cluster.stores.postgres_client import Connection, Connections
from understudy.cluster.stores.postgres_listener import Listener
from understudy.cluster.stores.rows import (
    checkpoint_of,
    events_json,
    interrupts_json,
    receipt_of,
    run_of,
    summed,
    to_json,
)
from understudy.cluster.stores.statements import script, statements

SQL = statements("postgres_reads.sql")
SCHEMA_VERSION = 1
SCHEMA_LOCK = 0x756E6472
SWEEP_BATCH = 20
COMMITTED = {sample("checkpoint_commits_total", result="ok"): 1.0}


class PostgresStore:
    def __init__(self, url: str) -> None:
        self.connections = Connections(url)
        self._listener = Listener(self.connections)

    @classmethod
    async def open(cls, url: str) -> Self:
        """Raises CallerError (wrong password, no such database, a newer schema), StoreUnavailable."""
        store = cls(url)
        try:
            await store.connections.run(store._prepare)
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
            events_json(events),
            _counted(counters),
            now,
        )
        match made["outcome"]:
            case "key":
                raise key_conflict(run, made["run"]["run_id"])
            case "seed":
                raise seed_conflict(run)
        return _run(made)

    async def due(self, now: float, limit: int) -> Due:
        ((ready, overdue, epochs),) = await self._rows("due", now=now, limit=limit)
        return Due(tuple(ready), tuple(zip(overdue, epochs, strict=True)))

    async def wait_work(self, timeout_s: float) -> None:
        await self._listener.wait(timeout_s)

    async def claim(self, run_id: str, owner: str, lease_s: float, now: float) -> RunRecord:
        taken = await self._call("run_claim", run_id, owner, lease_s, now)
        if taken["run"] is None:
            raise no_run(run_id)
        if taken["outcome"] != "ok":
            raise not_ready(_run(taken))
        return _run(taken)

    async def load(self, run_id: str) -> Loaded:
        rows = await self._rows("load", run_id=run_id)
        if not rows:
            raise no_run(run_id)
        ((run, chain, writes, receipts),) = rows
        return Loaded(
            _run({"run": run}),
            tuple(checkpoint_of(row) for row in chain),
            writes,
            {row["key"]: receipt_of(row) for row in receipts},
        )

    async def commit(self, commit: Commit) -> Committed:
        new = commit.checkpoint
        outcome, cancel_asked, stored = await self._one(
            "run_commit",
            commit.run_id,
            commit.epoch,
            commit.seq,
            commit.at,
            commit.status,
            commit.step,
            *((new.checkpoint_id, new.parent, new.step, new.snapshot, new.body) if new else (None,) * 5),
            list(commit.writes),
            list(commit.writes.values()),
            interrupts_json(commit.interrupts),
            [i.interrupt_id for i in commit.interrupts if not i.settled],
            commit.wake_at,
            events_json(commit.events),
            _counted(commit.counters, COMMITTED),
            commit.result,
            commit.error,
            None if commit.retain_s < 0 or commit.status not in FINAL else commit.at + commit.retain_s,
        )
        if outcome == "fenced":
            raise fenced(commit.run_id, commit.epoch, "commit")
        assert outcome != "gap", seq_gap(commit, stored)
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

    async def cancel(self, run_id: str, now: float) -> RunRecord:
        back = await self._call("run_cancel", run_id, now, now + RETAIN_S)
        if back["run"] is None:
            raise no_run(run_id)
        return _run(back)

    # --- effects ---

    async def begin(
        self, receipt: Receipt, epoch: int, events: Sequence[Event], counters: Counters, now: float
    ) -> Begun:
        names = ("run_id", "checkpoint_id", "key", "task_id", "tool", "digest", "state", "sandbox", "token", "outcome")
        values = [getattr(receipt, name) for name in names]
        begun = await self._call("effect_begin", *values, receipt.at, epoch, events_json(events), _counted(counters))
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

    async def put_blob(self, digest: str, data: bytes) -> None:
        await self._rows("put_blob", digest=digest, data=data)

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
        while True:
            batch = int(await self._call("threads_sweep", now, now - MEMBER_SILENT_S, SWEEP_BATCH))
            swept += batch
            if batch < SWEEP_BATCH:
                return swept

    async def delete_thread(self, thread_id: str) -> None:
        unfinished = await self._call("thread_delete", thread_id)
        if unfinished:
            raise thread_in_use(thread_id, unfinished)

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
        statement = f"SELECT * FROM {function}({', '.join(['%s'] * len(values))})"

        async def do(connection: Connection) -> tuple[Any, ...]:
            cursor = await connection.execute(statement.encode(), values)
            row = await cursor.fetchone()
            assert row is not None, f"{function} answers one row"
            return row

        return await self.connections.run(do)

    async def _call(self, function: str, *values: Any) -> Any:
        """As `_one`, of a function that answers one value."""
        return (await self._one(function, *values))[0]

    async def _rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        async def do(connection: Connection) -> list[tuple[Any, ...]]:
            cursor = await connection.execute(SQL[name].encode(), values)
            return await cursor.fetchall() if cursor.description else []

        return await self.connections.run(do)

    async def _prepare(self, connection: Connection) -> None:
        """Make what is missing; whoever comes first does it, the others wait."""
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise CallerError(f"{self.connections.where} keeps text as {encoding}; understudy needs a UTF8 database")
        if not await _version(connection):
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
                if not await _version(connection):
                    await connection.execute(script("postgres.sql").encode())
                    await connection.execute(script("postgres_verbs.sql").encode())
                    await connection.execute("INSERT INTO meta (version) VALUES (%s)", [SCHEMA_VERSION])
        version = await _version(connection)
        if version != SCHEMA_VERSION:
            raise CallerError(
                f"{self.connections.where} has schema version {version}, this understudy knows {SCHEMA_VERSION}; "
                f"upgrade understudy, or use another database"
            )


async def _version(connection: Connection) -> int:
    """Of the schema; 0 if there is none."""
    # Not to_regclass: it answers from a cache, which may not know yet what was made while we waited for the lock.
    cursor = await connection.execute(SQL["has_schema"].encode())
    if not await cursor.fetchone():
        return 0
    cursor = await connection.execute(SQL["version"].encode())
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


def _run(answer: dict[str, Any]) -> RunRecord:
    return run_of(answer["run"])


def _counted(*counters: Counters) -> str:
    return to_json(dict(summed(*counters)))
