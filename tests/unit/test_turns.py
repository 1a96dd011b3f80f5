"""Whose turn it is: runs that have begun go before those that have not, however many those are."""

from support.waiting import run_async
from understudy.actors.memory import MemoryStore
from understudy.actors.records import Commit, Interrupt, NewRun
from understudy.actors.store import Store
from understudy.actors.turns import LOOK_EVERY_S, Turns


async def queued(store: Store, name: str, at: float) -> None:
    await store.create(NewRun(f"r00-{name}", f"t-{name}", "g", "1", "{}", "{}", "d"), [], {}, at)


async def waiting(store: Store, name: str, turns: Turns) -> str:
    """A run that had its turn and waits for an answer."""
    await queued(store, name, 1.0)
    run = await store.claim(f"r00-{name}", "x", 60.0, 1.0)
    asked = Interrupt("q", "t", "n", "question", None)
    await store.commit(Commit(run.run_id, run.epoch, 1, 1.0, "waiting", 0, interrupts=(asked,)))
    turns.waits(run.run_id)
    return run.run_id


def test_who_was_answered_goes_before_a_thousand_who_came_earlier():
    async def played() -> None:
        store, turns = MemoryStore(), Turns()
        old = await waiting(store, "old", turns)
        for n in range(1000):
            await queued(store, f"new-{n:04}", 2.0)
        await store.resume(old, "q", '"yes"', 3.0)
        due = (await store.due(4.0, 2)).ready
        assert old not in due
        assert await turns.ready(store, due, 2, 4.0) == [old, *due]
        turns.takes(old)
        assert await turns.ready(store, due, 2, 4.0) == list(due)

    run_async(played())


def test_the_line_is_looked_along_now_and_then_only():
    looked: list[int] = []

    class Counting(MemoryStore):
        async def due(self, now: float, limit: int):  # type: ignore[no-untyped-def]
            looked.append(limit)
            return await super().due(now, limit)

    async def played() -> None:
        store, turns = Counting(), Turns()
        await waiting(store, "old", turns)
        for n in range(5):
            await queued(store, f"new-{n}", 2.0)
        for now in (4.0, 4.1, 4.2, 4.0 + LOOK_EVERY_S):
            await turns.ready(store, ["r00-new-0", "r00-new-1"], 2, now)
        assert len(looked) == 2
        await turns.ready(store, ["r00-new-0"], 2, 9.0)
        assert len(looked) == 2, "a line that is shorter is seen whole"

    run_async(played())


def test_who_crashed_comes_back_when_its_restart_policy_says_and_then_first():
    async def played() -> None:
        store, turns = MemoryStore(), Turns()
        turns.returns("r00-crashed", 5.0)
        assert await turns.ready(store, ["r00-new"], 9, 4.9) == ["r00-new"]
        assert await turns.ready(store, ["r00-new", "r00-crashed"], 9, 5.0) == ["r00-crashed", "r00-new"]

    run_async(played())
