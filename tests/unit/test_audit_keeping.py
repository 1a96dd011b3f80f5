"""The audit log is kept as long as the settings say; what is not good of it is kept longer."""

import asyncio
import time
from pathlib import Path

import pytest

from support.waiting import run_async, wait_until_async
from understudy.actors.audit_log import ANCHORS, SHELF, AuditLog
from understudy.actors.memory import MemoryStore
from understudy.actors.store import Store
from understudy.cluster.audit_keeping import DAY_S, keep_pruning
from understudy.cluster.auditing import verify
from understudy.cluster.settings import Settings
from understudy.policies.audit import name_of


async def written(settings: Settings, *days_ago: int) -> MemoryStore:
    """A log with a segment of each of these days."""
    store = MemoryStore()

    async def opened() -> Store:
        return store

    for days in days_ago:
        log = AuditLog(opened, settings.secret(), lambda days=days: time.time() - days * DAY_S)
        await log.append("decision", run="r", key="k")
    return store


def test_who_serves_the_store_prunes_what_is_older_than_the_settings_say(tmp_path: Path) -> None:
    async def played() -> None:
        settings = Settings(state_dir=tmp_path, audit_keep_days=25)
        store = await written(settings, 40, 30, 20, 10)
        pruning = asyncio.ensure_future(keep_pruning(store, settings))

        async def pruned() -> bool:
            return len(await store.documents(SHELF)) == 2

        await wait_until_async(pruned, 10, "the log to be pruned")
        pruning.cancel()
        await asyncio.wait([pruning])
        found = await verify(store, settings.secret())
        assert (found.first, found.entries, found.fault) == (3, 2, None)

    run_async(played())


def test_by_default_nothing_is(tmp_path: Path) -> None:
    async def played() -> None:
        settings = Settings(state_dir=tmp_path)
        store = await written(settings, 4000, 30)
        await keep_pruning(store, settings)  # ends at once
        assert len(await store.documents(SHELF)) == 2

    run_async(played())


def test_what_is_not_good_stays_and_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def played() -> None:
        settings = Settings(state_dir=tmp_path, audit_keep_days=5)
        store = await written(settings, 40, 30, 20)
        await store.erase_document(SHELF, name_of(2), 1)
        pruning = asyncio.ensure_future(keep_pruning(store, settings))

        async def told() -> bool:
            return "segment 2 is missing" in caplog.text

        await wait_until_async(told, 10, "the log of the daemon to tell")
        pruning.cancel()
        await asyncio.wait([pruning])
        assert len(await store.documents(SHELF)) == 2
        assert not await store.documents(ANCHORS)

    run_async(played())
