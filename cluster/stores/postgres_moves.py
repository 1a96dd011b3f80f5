"""A whole thread as Postgres has it, and one from another store put into it."""

from collections.abc import Mapping
from typing import Any

from understudy.actors.records import RunDump, ThreadDump
from understudy.cluster.stores.postgres_client import Connection
from understudy.cluster.stores.rows import (
    checkpoint_of,
    event_of,
    message_of,
    open_ids,
    receipt_of,
    receipt_values,
    run_of,
    run_values,
    to_json,
)
from understudy.cluster.stores.statements import statements

SQL = statements("postgres_reads.sql")


def dump_of(thread_id: str, expires_at: float | None, head: str, checkpoints: Any, runs: Any) -> ThreadDump:
    return ThreadDump(
        thread_id,
        head,
        expires_at,
        tuple(_run_dump(run) for run in runs),
        tuple(checkpoint_of(row) for row in checkpoints),
    )


def _run_dump(row: Mapping[str, Any]) -> RunDump:
    return RunDump(
        record=run_of(row["record"]),
        seq_epoch=row["seq_epoch"],
        due_at=row["due_at"],
        events=tuple(event_of(event) for event in row["events"]),
        writes=row["writes"],
        receipts=tuple(receipt_of(receipt) for receipt in row["receipts"]),
        messages=tuple(message_of(message) for message in row["messages"]),
        sent=row["sent"],
        listens_after=row["listens_after"],
    )


async def adopt(connection: Connection, dump: ThreadDump) -> bool:
    """In one transaction (law 2); False if the thread is there."""
    async with connection.transaction():
        values = {"thread_id": dump.thread_id, "head": dump.head, "expires_at": dump.expires_at}
        made = await connection.execute(SQL["adopt_thread"].encode(), values)
        if not await made.fetchone():
            return False
        for run in dump.runs:
            await _adopt_run(connection, run)
        rows = [
            (
                dump.thread_id,
                row.checkpoint_id,
                row.parent,
                row.step,
                row.snapshot,
                row.since,
                row.body,
                row.run_id,
                row.at,
            )
            for row in dump.checkpoints
        ]
        await connection.cursor().executemany(SQL["adopt_checkpoint"].encode(), rows)
        await connection.execute("SELECT ring()")
    return True


async def _adopt_run(connection: Connection, run: RunDump) -> None:
    given = {
        **run_values(run),
        "crashes": list(run.record.crashes),
        "open_ids": open_ids(run.record.interrupts),
        "has_writes": bool(run.writes),
    }
    made = await (await connection.execute(SQL["adopt_run"].encode(), given)).fetchone()
    assert made is not None
    n = made[0]
    for name, rows in (
        ("need", [(n, digest) for digest in dict.fromkeys(run.record.blobs)]),
        ("event", [(n, e.n, e.kind, e.at, to_json(dict(e.data))) for e in run.events]),
        ("write", [(n, task_id, body) for task_id, body in run.writes.items()]),
        ("receipt", [{**receipt_values(receipt), "run": n} for receipt in run.receipts]),
        ("message", [(n, m.n, m.message_id, m.body, m.at) for m in run.messages]),
        ("sent", [(n, message_id, place) for message_id, place in run.sent.items()]),
    ):
        if rows:
            await connection.cursor().executemany(SQL[f"adopt_{name}"].encode(), rows)
