"""What Postgres adds to the suite: a server that goes away, a schema that several make at once or that is newer."""

import asyncio
import builtins
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import psycopg
import pytest
from conformance.old_deployments import check_brought_up, make_postgres
from conformance.on_postgres import using
from pydantic import BaseModel

from support.servers import PostgresServer
from support.stage import Stage
from support.waiting import wait_until_async
from understudy import END, START, Context, Graph, append
from understudy.actors.errors import CallerError, Conflict, StoreUnavailable
from understudy.actors.records import run_id_on
from understudy.cluster.stores import open_store
from understudy.cluster.stores.postgres import PostgresStore
from understudy.cluster.testing.conformance.suite import T, commit_of, create, owned


def test_a_killed_server_is_unavailable_and_then_goes_on(postgres_server: PostgresServer, postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        await store.wait_work(0.0)
        waiting = asyncio.ensure_future(store.wait_work(30.0))
        await asyncio.sleep(0)
        postgres_server.kill()
        store.connections.patience_s = 0.3
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await store.commit(commit_of(run))
        await asyncio.wait_for(waiting, 10)  # sent to look
        store.connections.patience_s = 30.0
        late = asyncio.ensure_future(store.commit(commit_of(run)))  # tries until somebody answers
        await asyncio.to_thread(postgres_server.start)
        assert not (await late).duplicate
        assert (await store.commit(commit_of(run))).duplicate
        await store.wait_work(0.1)
        waiting = asyncio.ensure_future(store.wait_work(30.0))
        await create(store, "1", "other")
        await asyncio.wait_for(waiting, 10)

    using(postgres_url, check)


class Many(BaseModel):
    done: Annotated[list[int], append] = []


def many(gate: asyncio.Event) -> Graph:
    """Twenty nodes, one after the other; half way they wait at a gate, so that none has ended before it opens."""
    graph = Graph("many", Many)

    @graph.node
    async def step(state: Many) -> dict[str, Any]:
        if len(state.done) == 10:
            await gate.wait()
        return {"done": [len(state.done)]}

    return graph.edge(START, step).branch(step, lambda state: END if len(state.done) == 20 else "step", ["step", END])


def test_an_outage_is_no_crash_of_the_runs_under_way(postgres_server: PostgresServer, postgres_url: str) -> None:
    """Killed under twelve runs and started again: each goes on with the commit it was at, and nothing is doubled."""

    async def check(store: PostgresStore) -> None:
        gate = asyncio.Event()
        stage = Stage(store, many(gate))
        runs = [await stage.start({}) for _ in range(12)]
        driven = [asyncio.ensure_future(stage.drive(run)) for run in runs]
        await wait_until_async(lambda: half_way(store), 60, "60 commits")
        postgres_server.kill()
        gate.set()
        enough = store.connections.connects + 8
        await wait_until_async(lambda: tried(store, enough), 60, "all to notice, and to go on trying")
        assert not any(task.done() and task.exception() for task in driven)
        await asyncio.to_thread(postgres_server.start)
        assert await asyncio.gather(*driven) == ["succeeded"] * 12
        for run in runs:
            record = await run.record()
            assert (record.restarts, json.loads(record.result)["done"]) == (0, list(range(20)))
            kinds = await stage.kinds(run)
            assert (kinds.count("claimed"), kinds.count("node_finished"), kinds.count("checkpoint")) == (1, 20, 20)

    using(postgres_url, check)


def test_a_server_that_says_nothing_is_unavailable(postgres_url: str) -> None:
    """Its socket is open, and takes what is sent."""

    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        [(backend,)] = await store.connections.run(_backend)
        store.connections.patience_s = 0.1
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await store.commit(commit_of(run))
        finally:
            os.kill(backend, signal.SIGCONT)
        assert (await store.commit(commit_of(run))).cancel_asked is False  # on another connection
        assert (await store.run(run.run_id)).seq == 1

    using(postgres_url, check)


async def _backend(connection: Any) -> list[Any]:
    return list(await (await connection.execute("SELECT pg_backend_pid()")).fetchall())


async def half_way(store: PostgresStore) -> bool:
    return (await store.counters()).get('checkpoint_commits_total{result="ok"}', 0) >= 60


async def tried(store: PostgresStore, connects: int) -> bool:
    return store.connections.connects >= connects


def test_a_claim_whose_answer_was_lost_is_still_ours(postgres_server: PostgresServer, postgres_url: str) -> None:
    """Else a run would stay claimed by nobody until its lease ends, and that would count as a crash."""

    async def check(store: PostgresStore) -> None:
        run = await create(store)
        real = store.connections._once
        lost = []

        async def once(do: Callable[[Any], Awaitable[Any]], until: float) -> Any:
            answer = await real(do, until)
            if not lost:
                lost.append(answer)
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            return answer

        store.connections._once = once  # type: ignore[method-assign,assignment]
        claimed = await store.claim(run.run_id, "one", 30.0, T)
        assert lost
        assert (claimed.status, claimed.epoch, claimed.owner) == ("running", 1, "one")
        with pytest.raises(Conflict):
            await store.claim(run.run_id, "two", 30.0, T)

    using(postgres_url, check)


def test_several_open_an_empty_database_at_once(postgres_url: str) -> None:
    async def go() -> None:
        stores = await asyncio.gather(*(open_store(postgres_url) for _ in range(6)))
        run = await create(stores[0])
        assert await stores[5].run(run.run_id) == run
        for store in stores:
            await store.close()

    asyncio.run(go())


def test_many_verbs_at_once_share_few_connections(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        runs = await asyncio.gather(*(owned(store, str(n), f"thread-{n % 7}") for n in range(7)))
        await asyncio.gather(*(store.commit(commit_of(run, counters={"a": 1})) for run in runs))
        assert (await store.counters())["a"] == 7.0
        rows = await store.connections.run(_clients)
        assert 1 <= rows <= 4

    using(postgres_url, check)


async def _clients(connection: Any) -> int:
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'client%'"
    )
    return int((await (await connection.execute(statement)).fetchone())[0])


def test_a_cancelled_verb_leaves_the_store_usable(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        other = await psycopg.AsyncConnection.connect(postgres_url)
        await other.execute("SELECT 1 FROM understudy.runs FOR UPDATE")
        stuck = asyncio.ensure_future(store.commit(commit_of(run)))
        await asyncio.sleep(0.1)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await other.close()
        assert (await store.commit(commit_of(run, counters={"a": 1}))).cancel_asked is False
        assert (await store.run(run.run_id)).seq == 1

    using(postgres_url, check)


def test_a_database_of_schema_version_1_is_brought_up_to_date(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Several open it at once: one of them does it, and all go on."""
    make_postgres(postgres_url)
    with psycopg.connect(postgres_url) as db:
        db.execute("INSERT INTO understudy.counters (shard, name, value) VALUES (1, 'a', 2), (2, 'a', 3)")

    async def go() -> None:
        stores = await asyncio.gather(*(PostgresStore.open(postgres_url) for _ in range(4)))
        fresh_url = postgres_server.create_database()
        fresh = await PostgresStore.open(fresh_url)
        assert await fresh.connections.run(_shape) == await stores[0].connections.run(_shape)
        assert await stores[2].counters() == {"a": 5.0}
        await check_brought_up(stores[1])
        for store in (*stores, fresh):
            await store.close()
        await asyncio.to_thread(postgres_server.drop_database, fresh_url)

    asyncio.run(go())


async def _shape(connection: Any) -> list[Any]:
    """Columns, indexes and functions, whatever the order of columns."""
    found = []
    for statement in (
        "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'understudy' ORDER BY 1, 2",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'understudy' ORDER BY 1",
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'understudy'::regnamespace ORDER BY 1",
    ):
        found.append(await (await connection.execute(statement)).fetchall())
    return found


def test_a_newer_schema_is_refused(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        await store.connections.run(lambda c: c.execute("UPDATE meta SET version = 99"))

    using(postgres_url, check)
    with pytest.raises(CallerError, match="version 99"):
        asyncio.run(open_store(postgres_url))


def test_what_waiting_does_not_mend_is_the_callers(postgres_server: PostgresServer) -> None:
    with pytest.raises(CallerError, match="does not exist"):
        asyncio.run(open_store(postgres_server.url_of("nowhere")))
    with pytest.raises(CallerError, match="does not exist") as error:
        asyncio.run(open_store(f"postgresql://me:secret@127.0.0.1:{postgres_server.port}/postgres"))
    assert "secret" not in str(error.value)
    with pytest.raises(CallerError):
        asyncio.run(open_store("postgresql://127.0.0.1/x?no_such_option=1"))


def test_what_no_row_can_hold_is_the_callers_at_once(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        store.connections.patience_s = 0.0
        for name in (
            "a\0b",
            random.Random(1).randbytes(9000).hex(),
        ):  # the second fits no index
            with pytest.raises(CallerError, match="cannot hold this"):
                await store.send(run.run_id, name, '"hello"', 1.0)
        assert await store.send(run.run_id, "m1", '"hello"', 1.0) == 1

    using(postgres_url, check)


def test_a_role_without_rights_is_the_callers(postgres_server: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE ROLE guest LOGIN")
    try:
        with pytest.raises(CallerError, match="permission denied"):
            asyncio.run(open_store(postgres_url.replace("postgres@", "guest@")))
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("DROP ROLE guest")


def test_without_psycopg_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("understudy.cluster.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "psycopg":
            raise ImportError("No module named 'psycopg'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CallerError, match=r"pip install 'understudy\[postgres\]'"):
        asyncio.run(open_store("postgresql://127.0.0.1/x"))


def test_the_store_works_on_one_loop_after_another(postgres_url: str) -> None:
    stores = []

    async def first() -> None:
        stores.append(await open_store(postgres_url))
        await stores[0].wait_work(0.0)
        await create(stores[0])

    async def second() -> None:
        await asyncio.wait_for(stores[0].wait_work(30.0), 10)
        assert (await stores[0].due(T, 10)).ready == (run_id_on("thread", "1"),)
        await stores[0].close()

    asyncio.run(first())
    asyncio.run(second())


def test_info_tells_whether_it_is_durable(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        info = await store.info()
        assert (info.kind, info.durable, info.detail["fsync"]) == ("postgres", True, "on")
        assert "@" not in info.where

    using(postgres_url, check)


class Talk(BaseModel):
    said: Annotated[list[str], append] = []


def talk() -> Graph:
    graph = Graph("talk", Talk)

    @graph.node
    async def say(state: Talk) -> dict[str, Any]:
        return {"said": ["hello"]}

    @graph.node
    async def ask(state: Talk, ctx: Context) -> dict[str, Any]:
        ctx.stream("well")
        await ctx.effect("look", lambda: 1)
        return {"said": [await ctx.interrupt("go on?"), await ctx.receive()]}

    graph.edge(START, say).edge(ask, END)
    return graph.branch(say, lambda state: "say" if len(state.said) < 40 else "ask", ["say", "ask"])


def test_no_table_is_read_whole_however_small_it_was_when_that_was_planned(postgres_url: str) -> None:
    """Plans are kept: that of a fresh database read all checkpoints there were, for each row of a chain it loaded."""

    async def told(store: PostgresStore, statement: str) -> list[Any]:
        found = await store.connections.run(lambda connection: connection.execute(statement.encode()))
        return await found.fetchall() if found.description else []

    async def read(store: PostgresStore) -> dict[str, tuple[int, int]]:
        """By table: how often it was read whole, and how many rows were found by an index."""
        await told(store, "SELECT pg_stat_force_next_flush()")
        rows = await told(store, "SELECT relname, seq_scan, idx_tup_fetch FROM pg_stat_user_tables")
        return {name: (scans, found or 0) for name, scans, found in rows}

    async def check(store: PostgresStore) -> None:
        await told(store, "ANALYZE")
        stage = Stage(store, talk())
        before = await read(store)
        for _ in range(5):
            run = await stage.start()
            await store.claim(run.run_id, "one that dies", 10.0, stage.clock())
            await stage.crash(run)
            assert await stage.drive(run) == "waiting"
            await store.resume(run.run_id, (await run.record()).interrupts[0].interrupt_id, '"fine"', stage.clock())
            await store.send(run.run_id, "m", '"yes"', stage.clock())
            assert await stage.drive(run) == "succeeded"
            await store.sweep(T)
        after = await read(store)
        whole = {name for name, (scans, _) in after.items() if scans > before[name][0]}
        assert whole <= {"beats", "blobs", "counter_marks"}  # a sweep looks at all of them, which are few
        assert after["checkpoints"][1] - before["checkpoints"][1] < 5 * 20  # a chain of 8 for each answer

    using(postgres_url, check)
