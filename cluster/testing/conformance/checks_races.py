"""Checks: several clients write at the same time, at random; what must hold, holds. A failure names its seed."""

import asyncio
import random

from understudy.actors.errors import Conflict, Fenced
from understudy.actors.records import RunRecord
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    create,
    event,
    new_run,
    question,
)

THREADS = 3
RUNS = 12
WORKERS = 6
STEPS = 5


class Clock:
    """Time that grows by a tick at each look."""

    def __init__(self) -> None:
        self.now = T

    def tick(self) -> float:
        self.now += 0.5
        return self.now


async def _work(
    store: Store, name: str, clock: Clock, dice: random.Random, applied: list[tuple[str, int, int]]
) -> None:
    """Claim what is due and move it on, now and then crash, wait or send twice, until all runs are final."""
    while True:
        due = await store.due(clock.tick(), 50)
        for run_id, epoch in due.overdue:
            try:
                await store.requeue(run_id, epoch, clock.tick(), 0.0, [event("crashed", cause="lease")], {"crashed": 1})
            except Fenced:
                continue
        if not due.ready:
            if not any(not run.final for run in await store.runs(limit=100)):
                return
            await asyncio.sleep(0)
            continue
        try:
            run = await store.claim(dice.choice(due.ready), name, dice.choice((2.0, 40.0)), clock.tick())
        except Conflict:
            continue
        await _residence(store, run, clock, dice, applied)


async def _residence(
    store: Store, run: RunRecord, clock: Clock, dice: random.Random, applied: list[tuple[str, int, int]]
) -> None:
    loaded = await store.load(run.run_id)
    if loaded.run.epoch != run.epoch:
        return  # taken away between claim and load: to go on would be to act under the new owner's epoch
    run = loaded.run
    step, head, seq = len(loaded.run.head and loaded.chain), run.head, run.seq
    step = loaded.chain[-1].step if loaded.chain else 0
    while True:
        seq, step = seq + 1, step + 1
        new = checkpoint(f"{run.run_id}-{run.epoch}-{seq}", head, step, snapshot=step % 4 == 1)
        status = "succeeded" if seq >= STEPS else dice.choice(("running", "running", "waiting"))
        commit = commit_of(
            run,
            seq=seq,
            at=clock.tick(),
            status=status,
            step=step,
            checkpoint=new,
            interrupts=(question(new.checkpoint_id),) if status == "waiting" else (),
            wake_at=clock.now + 3 if status == "waiting" else 0.0,
            events=(event("node_finished", step=step),),
            counters={"commits": 1.0},
        )
        try:
            for _ in range(dice.choice((1, 1, 2))):
                if not (await store.commit(commit)).duplicate:
                    applied.append((run.run_id, run.epoch, seq))
        except Fenced:
            return  # the lease ran out: somebody else goes on
        head = new.checkpoint_id
        if status != "running" or dice.random() < 0.2:  # left, or crashed without a word
            return


async def check_many_workers_on_few_threads(world: World) -> None:
    for seed in (1, 2, 3):
        await _check_many_workers(world, seed)


async def _check_many_workers(world: World, seed: int) -> None:
    clients = [await world.open() for _ in range(3)]
    before = await clients[0].counters()
    clock, applied = Clock(), list[tuple[str, int, int]]()
    threads = [f"thread-{seed}-{n}" for n in range(THREADS)]
    made = [
        clients[n % 3].create(new_run(f"{n:02}", threads[n % THREADS]), [event("created")], {"created": 1.0}, T)
        for n in range(RUNS)
    ]
    runs = await asyncio.gather(*made)
    workers = [_work(clients[n % 3], f"w{n}", clock, random.Random(f"{seed}-{n}"), applied) for n in range(WORKERS)]
    await asyncio.wait_for(asyncio.gather(*workers), 120)
    told = f"seed {seed}"
    store = clients[0]
    counted = {name: value - before.get(name, 0.0) for name, value in (await store.counters()).items()}
    logs = {run.run_id: await store.events(run.run_id) for run in runs}
    total: dict[str, int] = {}
    for log in logs.values():
        assert [e.n for e in log] == list(range(1, len(log) + 1)), told
        for e in log:
            total[e.kind] = total.get(e.kind, 0) + 1
    # one commit of a kind each, in the log as in the counters as in what workers saw
    assert len(applied) == len({(run_id, seq) for run_id, _, seq in applied}) == RUNS * STEPS, told
    assert counted["commits"] == total["node_finished"] == RUNS * STEPS, told
    assert counted['checkpoint_commits_total{result="ok"}'] == RUNS * STEPS, told
    assert counted.get("crashed", 0) == total.get("crashed", 0), told
    assert counted["created"] == total["created"] == RUNS, told
    for run in runs:
        record = await store.run(run.run_id)
        assert (record.status, record.seq) == ("succeeded", STEPS), told
        assert record.epoch == sum(e.kind in ("claimed", "crashed") for e in logs[run.run_id]), told
    for thread in threads:  # serial: an unbroken line of checkpoints, the runs one after another
        rows = list(reversed(await store.history(thread)))
        assert [row.step for row in rows] == list(range(1, len(rows) + 1)), told
        assert [row.parent for row in rows] == ["", *(row.checkpoint_id for row in rows[:-1])], told
        owners = [row.run_id for row in rows]
        assert len(owners) == RUNS // THREADS * STEPS, told
        assert all(len(set(owners[n : n + STEPS])) == 1 for n in range(0, len(owners), STEPS)), told


async def check_two_owners_cannot_both_commit(world: World) -> None:
    """The old owner and the new one send the same seq at once; one of them has it."""
    clients = [await world.open() for _ in range(2)]
    for n in range(10):
        run = await create(clients[0], "1", f"thread-{n}")
        old = await clients[0].claim(run.run_id, "old", 30, T)

        async def takeover(old: RunRecord = old) -> RunRecord:
            await clients[1].requeue(old.run_id, old.epoch, T + 1, 0.0, [], {})
            return await clients[1].claim(old.run_id, "new", 30, T + 1)

        late, new = await asyncio.gather(
            clients[0].commit(commit_of(old, counters={"old": 1.0})), takeover(), return_exceptions=True
        )
        assert isinstance(new, RunRecord)
        assert isinstance(late, Fenced) or new.seq == 1
        await clients[1].commit(commit_of(new))
        assert (await clients[0].run(run.run_id)).seq == new.seq + 1
