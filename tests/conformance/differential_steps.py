"""More steps of the random walk: mailboxes, streams, retries, pruning, blobs, moving threads. See differential.py."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from understudy.actors.errors import UnderstudyError
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Chunk, RunRecord
from understudy.actors.store import Store

Verb = Callable[[Store], Awaitable[Any]]

DIGESTS = ("b1", "b2", "b3")
MORE_VERBS = (
    *("send",) * 6,
    *("retry", "stream") * 3,
    *("prune", "put_blob", "sweep", "move", "chunks", "receipts", "threads", "count") * 2,
    *("adopt_a_copy", "blobs"),
)


class MoreSteps:
    dice: random.Random
    model: MemoryStore
    now: float
    threads: Sequence[str]

    async def _some_run(self, *statuses: str) -> RunRecord:
        raise NotImplementedError  # of the walk

    def _epoch(self, run: RunRecord) -> int:
        raise NotImplementedError

    async def _parents_epoch(self, run: RunRecord) -> int:
        raise NotImplementedError

    async def _send(self) -> tuple[str, Verb]:
        run, now = await self._some_run("waiting", "running", "queued"), self.now
        name, epoch = f"m{self.dice.randrange(8)}", await self._parents_epoch(run)
        return f"{run.run_id} {name} {epoch}", lambda s: s.send(run.run_id, name, f'"{name} ünï"', now, epoch)

    async def _stream(self) -> tuple[str, Verb]:
        run = await self._some_run("running")
        epoch, count = self._epoch(run), self.dice.randrange(4)
        chunks = [Chunk("task1", "n", f"try{n}", f"[{n}]", self.now, n % 2 == 1) for n in range(count)]
        return f"{run.run_id} {epoch} {count}", lambda s: s.stream(run.run_id, epoch, chunks)

    async def _chunks(self) -> tuple[str, Verb]:
        run, after, limit = await self._some_run(), self.dice.choice((0, 1, 3)), self.dice.choice((1, 2, 1000))
        return f"{run.run_id} {after} {limit}", lambda s: s.chunks(run.run_id, after, limit)

    async def _retry(self) -> tuple[str, Verb]:
        run, now = await self._some_run("failed", "quarantined"), self.now
        return run.run_id, lambda s: s.retry(run.run_id, now)

    async def _receipts(self) -> tuple[str, Verb]:
        run = await self._some_run()
        return run.run_id, lambda s: s.receipts(run.run_id)

    async def _prune(self) -> tuple[str, Verb]:
        """No chain may need what goes, so only what lies before a snapshot. Heads are tried as well, and are kept."""
        thread = self.dice.choice((*self.threads, "nowhere"))
        rows = await self.model.history(thread)
        needed: set[str] = set()
        for leaf in {row.checkpoint_id for row in rows} - {row.parent for row in rows}:
            needed |= {row.checkpoint_id for row in await self.model.chain(thread, leaf)}
        for run in await self.model.runs(thread_id=thread):
            for head in filter(None, (run.head, run.base)):
                if any(row.checkpoint_id == head for row in rows):
                    needed |= {row.checkpoint_id for row in await self.model.chain(thread, head)}
        chosen = [row.checkpoint_id for row in rows if row.checkpoint_id not in needed]
        heads = [run.head for run in await self.model.runs(thread_id=thread) if run.head and not run.final]
        # All or none: what no leaf needs may still need one another.
        ids = [*self.dice.choice((chosen, [])), *heads, "c0", "c0"]
        return f"{thread} {ids}", lambda s: s.prune(thread, ids)

    async def _put_blob(self) -> tuple[str, Verb]:
        digest, at = self.dice.choice(DIGESTS), self.now - self.dice.choice((0.0, 90_000.0))
        return f"{digest} {at}", lambda s: s.put_blob(digest, digest.encode(), at)

    async def _blobs(self) -> tuple[str, Verb]:
        async def all_of_them(store: Store) -> Any:
            return {digest: await store.get_blob(digest) for digest in await store.blobs()}

        return "", all_of_them

    async def _threads(self) -> tuple[str, Verb]:
        after, limit = self.dice.choice(("", "a", "b", "zzz")), self.dice.choice((1, 2, 1000))
        return f"{after} {limit}", lambda s: s.threads(after, limit)

    async def _count(self) -> tuple[str, Verb]:
        return "", lambda s: s.count({"x": 2.0, "ünï": 0.25})

    async def _move(self) -> tuple[str, Verb]:
        """Out of the store and in again: what a move to another one does, and what must change nothing."""
        thread = self.dice.choice(self.threads)

        async def move(store: Store) -> Any:
            try:
                dump = await store.dump(thread)
                await store.delete_thread(thread)
            except UnderstudyError as error:
                return type(error)
            return [await store.adopt(dump), await store.adopt(dump), await store.dump(thread) == dump]

        return thread, move

    async def _adopt_a_copy(self) -> tuple[str, Verb]:
        """The thread is there already."""
        thread, head = self.dice.choice(self.threads), f"never-{self.now}"

        async def adopt(store: Store) -> Any:
            try:
                return await store.adopt(replace(await store.dump(thread), head=head))
            except UnderstudyError as error:
                return type(error)

        return thread, adopt
