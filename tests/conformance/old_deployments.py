"""Databases as the schema of version 1 had them, and what has to be true of them once they are opened today."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from understudy.actors.records import Receipt, run_id_on
from understudy.actors.store import BLOB_KEPT_S, Store
from understudy.cluster.testing.conformance.suite import T, checkpoint, commit_of, new_run

OLD = Path(__file__).parent / "old"
CODE_BLOB = "ab" * 32
POLICY = "cd" * 32
UNNAMED = "ef" * 32

ENDED, WAITING, BEHIND = (run_id_on("thread", name) for name in ("1", "2", "3"))
FORKED = run_id_on("fork", "1")

RUNS: list[dict[str, Any]] = [
    {"run_id": ENDED, "thread_id": "thread", "status": "succeeded", "head": "c1", "seq": 1, "result": '{"r": 1}'},
    {
        "run_id": WAITING,
        "thread_id": "thread",
        "status": "waiting",
        "head": "c2",
        "seq": 2,
        "epoch": 1,
        "interrupts": '[{"interrupt_id":"i1","task_id":"t","node":"n","kind":"question","payload":"?"}]',
        "open_ids": ["i1"],
        "seq_epoch": 1,
        "step": 2,
    },
    {"run_id": BEHIND, "thread_id": "thread", "status": "queued", "head": ""},
    {"run_id": FORKED, "thread_id": "fork", "status": "running", "head": "seed", "epoch": 1, "lease_until": T + 30},
]
CHECKPOINTS: list[tuple[Any, ...]] = [
    ("thread", "c1", "", 1, True, ENDED, T + 1, '"c1"'),
    ("thread", "c2", "c1", 2, False, WAITING, T + 2, '"c2"'),
    ("fork", "seed", "", 1, True, FORKED, T, '"seed"'),
]
RECEIPT = Receipt("k1", WAITING, "c2", "t", "pay", "d1", "done", "s1", "t1", "{}", T + 3)


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row), with the columns that both databases have."""
    for thread in ("thread", "fork"):
        yield "threads", {"thread_id": thread}
    for run in RUNS:
        given = {"graph": "g", "version": "1", "digest": "d", "key": "", "policy": POLICY, "created_at": T}
        yield "runs", {**given, "updated_at": T, **run}
    for row in CHECKPOINTS:
        names = ("thread_id", "checkpoint_id", "parent", "step", "snapshot", "run_id", "at", "body")
        yield "checkpoints", dict(zip(names, row, strict=True))
    yield "writes", {"run": 2, "task_id": "t9", "body": "[9]"}
    yield "receipts", {"run": 2, **{name: value for name, value in vars(RECEIPT).items() if name != "place"}}
    yield "events", {"run": 2, "n": 1, "kind": "created", "at": T, "data": "{}"}
    for digest in (CODE_BLOB, POLICY, UNNAMED):
        yield "blobs", {"digest": digest, "data": digest.encode()}


def code_of(run: dict[str, Any]) -> dict[str, str]:
    blob = CODE_BLOB if run["run_id"] == WAITING else ""
    return {"code": f'{{"ref": "", "blob": "{blob}", "paths": []}}', "input": "{}", "labels": "{}"}


def make_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript((OLD / "sqlite_1.sql").read_text())
        db.execute(f"PRAGMA application_id = {0x756E6472}")
        db.execute("PRAGMA user_version = 1")
        for table, row in rows():
            if table == "runs":
                inputs = code_of(row)
                row.pop("open_ids", None)
                n = _insert(db, table, row)
                _insert(db, "inputs", {"run": n, **inputs})
            else:
                _insert(db, table, row)
    db.close()


def _insert(db: sqlite3.Connection, table: str, row: dict[str, Any]) -> int:
    marks = ", ".join(["?"] * len(row))
    done = db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
    return done.lastrowid or 0


def make_postgres(url: str) -> None:
    with psycopg.connect(url) as db:
        db.execute((OLD / "postgres_1.sql").read_bytes())
        db.execute((OLD / "postgres_verbs_1.sql").read_bytes())
        db.execute("INSERT INTO meta (version) VALUES (1)")
        for table, row in rows():
            row = {**row, **code_of(row)} if table == "runs" else row
            marks = ", ".join(["%s"] * len(row))
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})".encode(), list(row.values()))


async def check_brought_up(store: Store) -> None:
    """Everything is there, and goes on under the laws of today."""
    waiting = await store.run(WAITING)
    assert (waiting.status, waiting.head, waiting.base, waiting.blobs) == ("waiting", "c2", "c1", (CODE_BLOB, POLICY))
    assert [(i.interrupt_id, i.payload, i.schema) for i in waiting.interrupts] == [("i1", "?", None)]
    loaded = await store.load(WAITING)
    assert [row.body for row in loaded.chain] == ['"c1"', '"c2"']
    assert (loaded.writes, loaded.receipts, loaded.messages) == ({"t9": "[9]"}, {"k1": RECEIPT}, ())
    forked = await store.run(FORKED)
    assert (forked.head, forked.base) == ("seed", "seed")
    assert [(await store.dump(thread)).head for thread in ("fork", "thread")] == ["seed", "c2"]

    assert await store.send(WAITING, "m1", "1", T + 4) == 1
    await store.resume(WAITING, "i1", '"yes"', T + 5)
    run = await store.claim(WAITING, "two", 30.0, T + 5)
    await store.commit(commit_of(run, checkpoint=checkpoint("c3", "c2", 3), step=3), commit_of(run, seq=4, step=4))
    assert (await store.load(WAITING)).writes == {}
    next_run = await store.create(new_run("4", busy="rollback"), [], {}, T + 6)
    assert (await store.run(BEHIND)).status == "cancelled"
    await store.commit(commit_of(run, seq=5, status="cancelled"))
    assert (await store.claim(next_run.run_id, "two", 30.0, T + 7)).head == "c1"

    await store.sweep(T + 10 * 365 * BLOB_KEPT_S)
    assert await store.blobs() == sorted([CODE_BLOB, POLICY])
