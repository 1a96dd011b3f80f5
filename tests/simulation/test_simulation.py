"""Seeded stories: whatever happens on the way, every run ends as it would have in good weather, and no law is broken.

`make test` tells 300 of them, `make soak` ten thousand. One that goes wrong says how to tell it again.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulation.story import WatchedStore
from simulation.telling import wrong_with
from simulation.virtual import START, Stuck, now, run_virtual

from understudy.actors import driver
from understudy.actors.calls import Caller
from understudy.actors.records import Begun, Commit, Committed, Receipt

TESTS = Path(__file__).parents[1]
SEEDS = 300
SOAK_SEEDS = 10_000


def tell(first: int, count: int) -> None:
    """In two processes, as there are two cores at least."""
    half = first + count // 2
    command = [sys.executable, "-m", "simulation.telling"]
    told = [
        subprocess.Popen(
            [*command, f"{start}-{end}"], cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for start, end in ((first, half), (half, first + count))
    ]
    said = [process.communicate()[0] for process in told]
    assert [process.returncode for process in told] == [0, 0], "stories went wrong:\n" + "".join(said)
    assert "".join(said).count(" stories, all of them end well") == 2


def test_all_stories_end_as_in_good_weather() -> None:
    tell(0, SEEDS)


@pytest.mark.soak
def test_ten_thousand_stories() -> None:
    tell(1_000_000, SOAK_SEEDS)


TRACE = """
import hashlib, sys
from simulation.story import Story
from simulation.virtual import run_virtual
for seed in (1, 11, 59, 136):
    story = Story(seed, badness=1.0)
    run_virtual(story.tell(), f"{seed} bad")
    print(seed, len(story.trace), hashlib.sha256("\\n".join(story.trace).encode()).hexdigest())
"""


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    """Also where strings hash otherwise, so that an order that came from a set would show."""
    told = [
        subprocess.run(
            [sys.executable, "-c", TRACE],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].count("\n") == 4


# --- that they find what they are there to find --------------------------------------------------------------------


class Lenient(WatchedStore):
    """Takes commits from whoever sends them."""

    async def commit(self, *commits: Commit) -> Committed:
        record = await self.run(commits[0].run_id)
        return await super().commit(*(replace(c, epoch=record.epoch, seq=record.seq + 1) for c in commits))


class Forgetful(WatchedStore):
    """Lets an effect begin that has begun."""

    async def begin(self, receipt: Receipt, *args: Any) -> Begun:
        self._runs[receipt.run_id].receipts.pop((receipt.checkpoint_id, receipt.key), None)
        return await super().begin(receipt, *args)


class Deaf(WatchedStore):
    """Does not wake a run that is answered while it goes to sleep."""

    def _queue(self, run: Any, at: float) -> None:
        if run.record.status == "waiting" and len(run.events) % 3 == 0:
            run.record = replace(run.record, not_before=0.0)
            return
        super()._queue(run, at)


@pytest.mark.parametrize("store", [Lenient, Forgetful, Deaf])
def test_a_store_that_breaks_a_law_is_found(store: type[WatchedStore]) -> None:
    assert any(wrong_with(seed, store) for seed in range(60)), f"{store.__name__} passes for a store"


def test_an_effect_that_does_not_wait_for_its_checkpoint_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once() -> None: ...

    class Hasty(Caller):
        def __init__(
            self, store: Any, policy: Any, sandboxes: Any, clock: Any, token: Any, durable: Any, **more: Any
        ) -> None:
            super().__init__(store, policy, sandboxes, clock, token, at_once, **more)

    monkeypatch.setattr(driver, "Caller", Hasty)
    assert any("was durable" in wrong_with(seed) for seed in range(60))


# --- the loop ------------------------------------------------------------------------------------------------------


def test_time_passes_only_when_all_wait() -> None:
    async def told() -> Iterator[float]:
        async def later(after_s: float) -> float:
            await asyncio.sleep(after_s)
            return now() - START

        return iter(await asyncio.gather(later(86_400), later(1), later(0)))

    assert [round(at, 6) for at in run_virtual(told(), "x")] == [86_400, 1, 0]


def test_waiting_for_nothing_is_an_error() -> None:
    async def told() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        run_virtual(told(), "x")
