"""A call in a sandbox of another Ray cluster: its receipt is waited for as long as that cluster lives."""

import asyncio
import json
import time

import pytest

from support.waiting import run_async
from understudy.actors import elsewhere
from understudy.actors.elsewhere import attend_elsewhere
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.actors.records import Event, NewRun, Receipt, run_id_on

RUN = run_id_on("t", "run")
DONE = '{"kind": "ok", "value": "from over there"}'


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "POLL_S", 0.001)
    monkeypatch.setattr(elsewhere, "SILENT_AFTER_S", 0.3)
    monkeypatch.setattr(elsewhere, "GRACE_S", 0.0)


async def called(store: MemoryStore, wall_s: float = 30.0) -> Receipt:
    """A run's call at work in the sandbox of another cluster."""
    await store.create(NewRun(RUN, "t", "g", "1", "{}", "{}", "d"), [], {}, 1.0)
    run = await store.claim(RUN, "owner", 60.0, 2.0)
    receipt = Receipt("k", RUN, "", "task", "pay", "d", "started", "theirs-0", "token", at=time.time())
    started = Event("tool_started", 3.0, {"tool": "pay", "key": "k", "sandbox": "theirs-0", "wall_s": wall_s})
    await store.begin(receipt, run.epoch, [started], {}, 3.0)
    return receipt


async def beat(store: MemoryStore, *sandboxes: str, ahead_s: float = 0.0) -> None:
    await store.beat("their supervisor", json.dumps({"sandboxes": sandboxes}), time.time() + ahead_s)
    await store.beat("ours", json.dumps({"role": "daemon"}), time.time())


async def finish(store: MemoryStore, receipt: Receipt) -> None:
    assert await store.finish(RUN, "k", "", receipt.token, DONE, [], {}, time.time())


def test_its_receipt_is_waited_for():
    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store)
        await beat(store, "theirs-0", "theirs-1")
        attending = asyncio.ensure_future(attend_elsewhere(store, receipt))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not attending.done()
        await finish(store, receipt)
        return await attending

    assert run_async(played()) == Outcome("ok", value="from over there")


def test_a_receipt_is_found_though_its_cluster_is_gone():
    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store)
        await finish(store, receipt)
        return await attend_elsewhere(store, receipt)

    assert run_async(played()) == Outcome("ok", value="from over there")


@pytest.mark.parametrize("who", ["nobody", "another cluster"])
def test_nobody_is_at_work_on_it_if_its_cluster_gives_no_sign(who: str):
    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store)
        await beat(store, *(["others-0"] if who == "another cluster" else []))
        return await attend_elsewhere(store, receipt)

    assert run_async(played()) is None


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0], ids=["now", "before a clock was set back"])
def test_a_cluster_that_falls_silent_is_not_waited_for(ahead_s: float):
    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store)
        await beat(store, "theirs-0", ahead_s=ahead_s)
        return await attend_elsewhere(store, receipt)

    assert run_async(played(), timeout_s=10) is None


def test_nothing_is_at_work_beyond_its_wall_limit():
    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store, wall_s=0.05)

        async def beating() -> None:
            while True:
                await beat(store, "theirs-0")
                await asyncio.sleep(0.01)

        signs = asyncio.ensure_future(beating())
        try:
            return await attend_elsewhere(store, receipt)
        finally:
            signs.cancel()

    assert run_async(played(), timeout_s=10) is None


def test_another_start_is_another_call():
    """Somebody has started it anew meanwhile: whoever waits for the first start looks again."""

    async def played() -> Outcome | None:
        store = MemoryStore()
        receipt = await called(store)
        await beat(store, "theirs-0")
        attending = asyncio.ensure_future(attend_elsewhere(store, receipt))
        await asyncio.sleep(0)
        assert await store.forget(RUN, "k", "", "token", [], {})
        run = await store.run(RUN)
        await store.begin(
            Receipt("k", RUN, "", "task", "pay", "d", "started", "ours-0", "another", at=time.time()),
            run.epoch,
            [],
            {},
            4.0,
        )
        return await attending

    assert run_async(played(), timeout_s=10) is None
