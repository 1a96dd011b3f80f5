"""The same verbs, the same answers: a random walk on a store and on MemoryStore, side by side, from a seed.

Each step takes what the model knows (so that most steps are possible) and bends it now and then (a stale epoch, another
token, a name that is not there). Answers and the kinds of errors have to be equal, and so has all that can be read.
"""

import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from conformance.differential_steps import DIGESTS, MORE_VERBS, MoreSteps

from understudy.actors.errors import NotFound, UnderstudyError
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Commit, RunRecord, partition_of_run, run_id_on
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    event,
    new_run,
    question,
    receipt_of,
)

THREADS = ("a", "b6", "thread ünï")
"""The first two have the same partition, so a run of the one may be the child of one of the other."""
NAMES = ("1", "2", "3", "4", "5")
KEYS = ("", "", "", "k1", "k2")

Verb = Callable[[Store], Awaitable[Any]]


class Walk(MoreSteps):
    threads = THREADS

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.model = MemoryStore()
        self.now = T
        self.checkpoints = 0
        self.deletions = 0
        self.trail: list[str] = []

    async def run(self, world: World, steps: int) -> None:
        clients = [await world.open() for _ in range(2)]
        for n in range(steps):
            self.now += self.dice.choice((0.0, 0.25, 0.5, 1.0, 7.5))
            name = self.dice.choice(VERBS)
            told, verb = await getattr(self, f"_{name}")()
            self.trail.append(f"{n}: {name} {told}")
            await self._same(verb, self.dice.choice(clients))
            if n % 25 == 24 or n == steps - 1:
                await self._same_to_read(self.dice.choice(clients))
        if world.leftovers:
            await self._finish_all(clients[0])
            assert not {k: v for k, v in (await world.leftovers()).items() if v}, "something is left"

    async def _same(self, verb: Verb, store: Store) -> None:
        expected, found = await _answer(verb, self.model), await _answer(verb, store)
        assert found == expected, f"\n found    {found}\n expected {expected}"

    async def _same_to_read(self, store: Store) -> None:
        reads: list[Verb] = [
            lambda s: s.runs(),
            lambda s: s.counts(),
            lambda s: s.counters(),
            lambda s: s.due(self.now, 100),
            lambda s: s.due(self.now + 20, 2),
        ]
        for thread in THREADS:
            reads.append(lambda s, thread=thread: s.history(thread))  # type: ignore[misc]
            reads.append(lambda s, thread=thread: s.runs("queued", 3, thread))  # type: ignore[misc]
            reads.append(lambda s, thread=thread: s.dump(thread))  # type: ignore[misc]
            for row in (await self.model.history(thread))[:3]:
                reads.append(lambda s, thread=thread, row=row: s.chain(thread, row.checkpoint_id))  # type: ignore[misc]
        for run in await self.model.runs():
            reads.append(lambda s, run=run: s.load(run.run_id))  # type: ignore[misc]
            reads.append(lambda s, run=run: s.events(run.run_id))  # type: ignore[misc]
            reads.append(lambda s, run=run: s.events(run.run_id, 2, 3))  # type: ignore[misc]
            reads.append(lambda s, run=run: s.chunks(run.run_id))  # type: ignore[misc]
            reads.append(lambda s, run=run: s.receipts(run.run_id))  # type: ignore[misc]
        for read in reads:
            await self._same(read, store)

    async def _finish_all(self, store: Store) -> None:
        for run in await self.model.runs():
            await store.cancel(run.run_id, self.now)
            run = await store.run(run.run_id)
            if run.status == "running":
                await store.commit(commit_of(run, status="cancelled", at=self.now))
        for thread in THREADS:
            await store.delete_thread(thread)

    # --- what a step is made of ---

    async def _some_run(self, *statuses: str) -> RunRecord:
        """A run that the model has, by preference with one of these statuses; else one that is nowhere."""
        runs = await self.model.runs()
        chosen = [run for run in runs if run.status in statuses]
        if chosen and self.dice.random() < 0.85:
            return self.dice.choice(chosen)
        if runs and self.dice.random() < 0.9:
            return self.dice.choice(runs)
        return await MemoryStore().create(new_run("none", "nowhere"), [], {}, T)

    def _epoch(self, run: RunRecord) -> int:
        return run.epoch + self.dice.choice((0,) * 12 + (-1, 1, -2))

    def _noted(self) -> tuple[Any, Any]:
        events = [
            event(self.dice.choice(("node_finished", "decided")), n=n) for n in range(self.dice.choice((0, 1, 3)))
        ]
        return events, {"x": 1.0, f"y{self.dice.randrange(3)}": 0.5} if self.dice.random() < 0.6 else {}

    # --- verbs ---

    async def _create(self) -> tuple[str, Verb]:
        thread = self.dice.choice(THREADS)
        # A run's id is made anew for each run: one that was deleted never comes back as another run.
        name = f"{self.dice.choice(NAMES)}{thread[0]}{self.deletions}"
        seed = checkpoint("seed", snapshot=True, body='{"s": 1}') if self.dice.random() < 0.2 else None
        near = [i for i in self.model._runs if partition_of_run(i) == partition_of_run(run_id_on(thread, "1"))]
        run = new_run(
            name,
            thread,
            key=self.dice.choice(KEYS),
            digest=self.dice.choice(("d1", "d1", "d2")),
            seed=seed,
            busy=self.dice.choice(("enqueue",) * 5 + ("reject", "interrupt", "rollback")),
            parent=self.dice.choice(near) if near and self.dice.random() < 0.4 else "",
            parent_interrupt=self.dice.choice(("i1", "i2", "i3")),
            blobs=tuple(self.dice.choices(DIGESTS, k=self.dice.choice((0, 0, 1, 2)))),
        )
        (events, counters), now = self._noted(), self.now
        return f"{run}", lambda s: s.create(run, events, counters, now)

    async def _claim(self) -> tuple[str, Verb]:
        ready = (await self.model.due(self.now, 100)).ready
        run_id = self.dice.choice(ready) if ready and self.dice.random() < 0.9 else (await self._some_run()).run_id
        owner, lease_s, now = self.dice.choice(("one", "two")), self.dice.choice((5.0, 30.0)), self.now
        return f"{run_id} {owner}", lambda s: s.claim(run_id, owner, lease_s, now)

    async def _commit(self) -> tuple[str, Verb]:
        commit = self._commit_of(await self._some_run("running"))
        return f"{commit}", lambda s: s.commit(commit)

    async def _commit_several(self) -> tuple[str, Verb]:
        run = await self._some_run("running")
        first = self._commit_of(run)  # bent, or not; the others follow it
        commits = [first]
        for _ in range(self.dice.choice((1, 1, 2))):
            run = replace(run, step=run.step + 1)  # its head is known only once it is stored
            commits.append(replace(self._commit_of(run), epoch=first.epoch, seq=commits[-1].seq + 1))
        return f"{commits}", lambda s: s.commit(*commits)

    def _commit_of(self, run: RunRecord) -> Commit:
        events, counters = self._noted()
        changes: dict[str, Any] = {}
        if self.dice.random() < 0.5:
            self.checkpoints += 1
            name = f"c{self.checkpoints}"
            snapshot = not run.head or self.dice.random() < 0.3
            changes["checkpoint"] = checkpoint(name, run.head, run.step + 1, snapshot, f'"{name}"')
        if self.dice.random() < 0.5:
            changes["writes"] = {f"task{n}": f"[{n}]" for n in range(self.dice.randrange(3))}
        status = self.dice.choice(("running",) * 5 + ("waiting",) * 4 + ("succeeded", "failed", "cancelled"))
        if status == "waiting":
            names = self.dice.sample(("i1", "i2", "i3"), self.dice.choice((0, 1, 2, 2, 3)))
            changes["interrupts"] = tuple(question(name, settled=self.dice.random() < 0.2) for name in names)
            changes["listens_after"] = self.dice.choice((None, 0, 1, 3))
            changes["wake_at"] = self.dice.choice((0.0, self.now + 3, self.now - 3))
        if self.dice.random() < 0.4:
            changes["taken"] = tuple(self.dice.sample(range(1, 6), 2))
        return commit_of(
            run,
            epoch=self._epoch(run),
            seq=run.seq + self.dice.choice((1,) * 15 + (0, 0, 2, -1)),
            at=self.now,
            status=status,
            step=run.step + 1,
            events=tuple(events),
            counters=counters,
            result=self.dice.choice(("", '{"r": 1}')),
            error=self.dice.choice(("", "why")),
            retain_s=self.dice.choice((-1.0, 0.0, 10.0, 86400.0)),
            **changes,
        )

    async def _commit_twice(self) -> tuple[str, Verb]:
        told, verb = await self._commit()

        async def twice(store: Store) -> Any:
            return [await _answer(verb, store), await _answer(verb, store)]

        return told, twice

    async def _renew(self) -> tuple[str, Verb]:
        runs = [await self._some_run("running") for _ in range(self.dice.randrange(4))]
        leases, now = [(run.run_id, self._epoch(run)) for run in runs], self.now
        return f"{leases}", lambda s: s.renew(leases, 10.0, now)

    async def _requeue(self) -> tuple[str, Verb]:
        run = await self._some_run("running")
        epoch, now = self._epoch(run), self.now
        not_before = self.dice.choice((0.0, now + 2, now - 2))
        crashed, quarantine = self.dice.random() < 0.7, self.dice.choice(("",) * 6 + ("too often",))
        events, counters = self._noted()
        return f"{run.run_id} {epoch} {not_before} {crashed} {quarantine}", lambda s: s.requeue(
            run.run_id, epoch, now, not_before, events, counters, crashed=crashed, quarantine=quarantine
        )

    async def _resume(self) -> tuple[str, Verb]:
        asking = [run for run in await self.model.runs() if run.interrupts]
        run = self.dice.choice(asking) if asking and self.dice.random() < 0.8 else await self._some_run("waiting")
        known = [i.interrupt_id for i in run.interrupts]
        name = self.dice.choice(known) if known and self.dice.random() < 0.8 else self.dice.choice(("i1", "i2", "i9"))
        answer, now = self.dice.choice(("1", "1", '"ünï"')), self.now
        return f"{run.run_id} {name} {answer}", lambda s: s.resume(run.run_id, name, answer, now)

    async def _cancel(self) -> tuple[str, Verb]:
        run, now = await self._some_run("queued", "waiting", "running"), self.now
        epoch = await self._parents_epoch(run)
        return f"{run.run_id} {epoch}", lambda s: s.cancel(run.run_id, now, epoch)

    async def _parents_epoch(self, run: RunRecord) -> int:
        """As whoever asks something of a child knows it: right, wrong, or not his to know."""
        if not run.parent:
            return self.dice.choice((0, 0, 0, 1))
        with contextlib.suppress(NotFound):
            return self.dice.choice((0, self._epoch(await self.model.run(run.parent))))
        return 1

    async def _begin(self) -> tuple[str, Verb]:
        run = await self._some_run("running")
        done = self.dice.random() < 0.2
        receipt = receipt_of(
            run,
            key=self.dice.choice(("k1", "k2", "k3")),
            token=self.dice.choice(("t1", "t2")),
            state="done" if done else "started",
            outcome="{}" if done else "",
            at=self.now,
            place=self.dice.choice(("", "1/a/pay/0")),
        )
        (events, counters), epoch, now = self._noted(), self._epoch(run), self.now
        return f"{receipt} {epoch}", lambda s: s.begin(receipt, epoch, events, counters, now)

    async def _place(self) -> tuple[str, str, str, str]:
        begun = [receipt for run in self.model._runs.values() for receipt in run.receipts.values()]
        started = [receipt for receipt in begun if receipt.state == "started"]
        if begun and self.dice.random() < 0.85:
            chosen = self.dice.choice(started or begun if self.dice.random() < 0.7 else begun)
            return chosen.run_id, chosen.key, chosen.checkpoint_id, self.dice.choice((chosen.token, chosen.token, "t2"))
        run = await self._some_run("running", "queued", "waiting")
        return run.run_id, self.dice.choice(("k1", "k2")), self.dice.choice((run.head, "", "c1")), "t1"

    async def _finish(self) -> tuple[str, Verb]:
        place, now = await self._place(), self.now
        events, counters = self._noted()
        return f"{place}", lambda s: s.finish(*place, '{"ok": "é"}', events, counters, now)

    async def _forget(self) -> tuple[str, Verb]:
        place = await self._place()
        events, counters = self._noted()
        return f"{place}", lambda s: s.forget(*place, events, counters)

    async def _receipt(self) -> tuple[str, Verb]:
        run_id, key, checkpoint_id, _ = await self._place()
        return f"{run_id} {key} {checkpoint_id}", lambda s: s.receipt(run_id, key, checkpoint_id)

    async def _due(self) -> tuple[str, Verb]:
        now, limit = self.now, self.dice.choice((1, 2, 100))
        return f"{now} {limit}", lambda s: s.due(now, limit)

    async def _sweep(self) -> tuple[str, Verb]:
        now = self.now + self.dice.choice((0.0, 5.0, 100.0, 100_000.0))
        self.deletions += 1
        return f"{now}", lambda s: s.sweep(now)

    async def _delete_thread(self) -> tuple[str, Verb]:
        thread = self.dice.choice((*THREADS, "nowhere"))
        self.deletions += 1
        return thread, lambda s: s.delete_thread(thread)

    async def _run(self) -> tuple[str, Verb]:
        run_id = self.dice.choice(((await self._some_run()).run_id, run_id_on("a", "zzz"), "nonsense"))
        return run_id, lambda s: s.run(run_id)


VERBS = (
    *("create", "claim", "commit") * 4,
    *("claim", "commit", "begin", "finish", "resume", "requeue") * 3,
    *("forget",) * 2,
    *MORE_VERBS,
    *("commit_twice", "commit_several", "renew", "cancel", "forget", "receipt", "due", "run", "sweep", "delete_thread"),
)


async def _answer(verb: Verb, store: Store) -> Any:
    try:
        return await verb(store)
    except (UnderstudyError, AssertionError) as error:
        return type(error)


async def walk(world: World, seed: int, steps: int) -> None:
    """Raises AssertionError that names the seed and the steps that led there."""
    path = Walk(seed)
    try:
        await path.run(world, steps)
    except Exception as error:
        trail = "\n".join(path.trail[-12:])
        raise AssertionError(
            f"seed {seed}, after {len(path.trail)} steps, the last of them:\n{trail}\n{error}"
        ) from error
