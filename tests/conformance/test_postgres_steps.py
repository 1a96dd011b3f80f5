"""The short way of a step into Postgres: what it leaves in fewer rows than other commits is told as theirs is."""

import asyncio
import json
import random
from itertools import pairwise

import psycopg
import pytest
from conformance.on_postgres import one, using

from support.waiting import wait_until_async
from understudy.actors.errors import CallerError
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Committed, Event, RunRecord
from understudy.cluster.stores.postgres import PostgresStore
from understudy.cluster.testing.conformance.suite import T, checkpoint, commit_of, owned


def test_a_step_says_what_it_was_given_however_much_that_is(postgres_url: str) -> None:
    """By the short way (postgres_wire.py): no text ends early or is read as something else, and what is more than the
    socket takes at once arrives; a server that has forgotten the statement is told it again."""
    odd = 'a "quoted", {braced}, back\\slashed, NULL \u00e9\U0001f600 text\n'

    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        body = json.dumps([odd, "x" * 20_000_000], ensure_ascii=False)
        for seq, name in enumerate((odd, "second"), start=1):
            commit = commit_of(
                run,
                seq=seq,
                step=seq,
                checkpoint=checkpoint(f"c{seq}", f"c{seq - 1}" if seq > 1 else "", seq, seq == 1, body=body),
                events=(Event("node_finished", T + 0.25, {"node": name}), Event("checkpoint", T, {})),
                counters={"c" + odd: 1.0},
            )
            assert await store.commit(commit) == Committed(duplicate=False, cancel_asked=False)
            assert (await store.commit(commit)).duplicate
            await store.connections.run(lambda connection: connection.execute("DEALLOCATE ALL"))
        assert [row.body for row in await store.chain(run.thread_id, "c2")] == [body, body]
        events = await store.events(run.run_id)
        assert [(e.kind, e.at, e.data) for e in events[-4:-2]] == [
            ("node_finished", T + 0.25, {"node": odd}),
            ("checkpoint", T, {}),
        ]
        counted = await store.counters()
        assert counted["c" + odd] == 2.0
        with pytest.raises(CallerError, match=r"cannot hold this.*0x00"):
            await store.commit(commit_of(await store.run(run.run_id), checkpoint=checkpoint("c3", "c2", body="a\0b")))
        assert (await store.run(run.run_id)).seq == 2

    using(postgres_url, check)


def test_a_step_that_has_waited_for_another_verb_is_told_of_it(postgres_url: str) -> None:
    """The verb before it has noted an event meanwhile, and asked for an end: the step's events come behind that one."""

    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        other = await psycopg.AsyncConnection.connect(postgres_url)
        await other.execute("SET search_path TO understudy")
        await other.execute("SELECT run_cancel(%s, %s, %s, 0)", [run.run_id, T, T])
        events = (Event("node_finished", T, {"node": "a"}), Event("checkpoint", T, {}))
        step = commit_of(run, checkpoint=checkpoint("c1"), events=events, counters={"a": 1})
        committed = asyncio.ensure_future(store.commit(step))
        await wait_until_async(lambda: waits_for_a_row(store), 30, "the step to wait for the row")
        await other.commit()
        await other.close()
        assert await committed == Committed(duplicate=False, cancel_asked=True)
        stored = await store.events(run.run_id)
        assert [event.n for event in stored] == list(range(1, len(stored) + 1))
        assert [event.kind for event in stored[-3:]] == ["cancel_asked", "node_finished", "checkpoint"]
        counted = await store.counters()
        assert (counted["a"], counted['checkpoint_commits_total{result="ok"}']) == (1.0, 1.0)

    using(postgres_url, check)


def test_what_steps_count_is_neither_lost_nor_doubled_while_it_is_added_up(postgres_url: str) -> None:
    """Steps, two sweeps at once and a reader: what is read never falls, and is exact in the end, batch by batch. Also
    with counters that are not to be marked: one that is moved by two, and one that no index takes."""
    commits = 'checkpoint_commits_total{result="ok"}'
    seen: list[dict[str, float]] = [{}]

    async def check(store: PostgresStore) -> None:
        runs = [await owned(store, str(n), f"thread-{n}") for n in range(2)]
        at_work = 2

        async def steps(run: RunRecord) -> None:
            nonlocal at_work
            for seq in range(1, 61):
                events = (Event("node_finished", T, {"node": "a"}), Event("checkpoint", T, {"seq": seq}))
                counters = {"two": 2.0} if seq % 20 == 0 else {f"a{seq % 3}": 1.0}
                new = checkpoint(f"c{seq}", f"c{seq - 1}" if seq > 1 else "", seq, seq == 1)
                await store.commit(commit_of(run, seq=seq, checkpoint=new, events=events, counters=counters))
            at_work -= 1

        async def sweeps() -> None:
            while at_work:
                await asyncio.gather(store.sweep(T), store.sweep(T))

        async def reads() -> None:
            while at_work:
                seen.append(await store.counters())

        before = (await store.counters()).get(commits, 0.0)
        await asyncio.gather(*map(steps, runs), sweeps(), reads())
        for earlier, later in pairwise(seen):
            assert all(later.get(name, 0.0) >= value for name, value in earlier.items())
        counted = await store.counters()
        expected = {commits: before + 120.0, "two": 12.0, "a0": 38.0, "a1": 38.0, "a2": 38.0}
        assert {name: counted[name] for name in expected} == expected
        marked = "SELECT count(*) FROM counter_marks"
        await store.sweep(T)
        assert await store.counters() == counted
        assert await one(store, marked) == 0
        for seq, name in enumerate(("b", "b", random.Random(1).randbytes(2000).hex()), start=61):
            events = (Event("node_finished", T, {"node": "a"}), Event("checkpoint", T, {"seq": seq}))
            new = checkpoint(f"c{seq}", f"c{seq - 1}", seq)
            commit = commit_of(runs[0], seq=seq, checkpoint=new, events=events, counters={name: 1.0})
            if seq < 63:
                await store.commit(commit)
            else:
                with pytest.raises(CallerError, match="cannot hold this"):
                    await store.commit(commit)
        assert await one(store, marked) == 2
        counted = await store.counters()
        assert [await store._call("marks_fold", 1) for _ in range(3)] == [True, True, False]
        assert await store.counters() == counted
        assert (counted["b"], await one(store, marked)) == (2.0, 0)

    using(postgres_url, check)


def test_events_that_share_a_row_are_read_as_others_are(postgres_url: str) -> None:
    """From any cursor, in pages of any size, beside those of other verbs, and in another store."""

    async def check(store: PostgresStore) -> None:
        run = await owned(store)
        for seq in range(1, 4):
            events = (Event("node_finished", T, {"node": "a"}), Event("checkpoint", T + 1, {"seq": seq}))
            new = checkpoint(f"c{seq}", f"c{seq - 1}" if seq > 1 else "", seq, seq == 1)
            await store.commit(commit_of(run, seq=seq, checkpoint=new, events=events, counters={"a": 1.0}))
            await store.send(run.run_id, f"m{seq}", "1", T)
        rows = await one(store, "SELECT count(*) FROM event_rows WHERE kind_2 IS NOT NULL")
        stored = await store.events(run.run_id)
        assert rows == 3
        assert [event.n for event in stored] == list(range(1, len(stored) + 1))
        assert [event.kind for event in stored[-9:]] == ["node_finished", "checkpoint", "message"] * 3
        for after in range(len(stored) + 2):
            for limit in range(1, len(stored) + 1):
                assert await store.events(run.run_id, after, limit) == stored[after : after + limit]
        assert (await store.dump(run.thread_id)).runs[0].events == tuple(stored)

    using(postgres_url, check)


def test_a_step_takes_away_what_is_pending_also_if_it_came_from_another_store(postgres_url: str) -> None:
    async def check(store: PostgresStore) -> None:
        memory = MemoryStore()
        moved, run = await owned(memory, "1", "moved"), await owned(store)
        await memory.commit(commit_of(moved, writes={"t": "[]"}))
        await store.commit(commit_of(run, writes={"t": "[]"}))
        assert await store.adopt(await memory.dump("moved"))
        for each in (run, moved):
            events = (Event("node_finished", T, {"node": "a"}), Event("checkpoint", T, {}))
            new = checkpoint("c1", "", 1, True)
            assert (await store.load(each.run_id)).writes == {"t": "[]"}
            await store.commit(commit_of(each, seq=2, checkpoint=new, events=events, counters={"a": 1.0}))
            assert (await store.load(each.run_id)).writes == {}
        assert await one(store, "SELECT count(*) FROM counter_marks") == 2
        assert await one(store, "SELECT count(*) FROM runs WHERE has_writes") == 0

    using(postgres_url, check)


async def waits_for_a_row(store: PostgresStore) -> bool:
    return (
        await one(
            store,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        == 1
    )
