"""The audit log and revocations on a real Ray: through deaths of the actors that write, and over a call at work."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import graphs
from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.cluster.auditing import entries_of, verify
from understudy.cluster.client import Cluster
from understudy.cluster.grants import grants_of, revoke
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

RULES = """
policy: house
version: 1
rules:
  - {id: write, effect: allow, tool: write_down, files: {write: ["%s"]}, limits: {wall: 20s, memory: 256MiB}}
  - {id: slow, effect: allow, tool: slow, files: {write: ["%s"]}, limits: {wall: 120s, memory: 256MiB}}
  - {id: pay, effect: ask, tool: pay}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


def settings_in(folder: Path) -> Settings:
    (folder / "house.yaml").write_text(RULES % (folder, folder))
    return Settings(
        state_dir=folder / "state",
        store=f"sqlite://{folder}/test.db",
        policy=folder / "house.yaml",
        run_actors=2,
        spare_actors=1,
        sandbox_actors=2,
    )


async def kinds(cluster: Cluster, run_id: str) -> list[str]:
    return [str(entry["kind"]) async for _, entry in entries_of(cluster.store, run_id)]


async def kill_policy_actor(cluster: Cluster) -> None:
    assert cluster.host is not None
    services: dict[str, Any] = (await cluster.host.report())["services"]
    os.kill(next(pid for name, pid in services.items() if name.endswith("policy")), signal.SIGKILL)


def test_the_chain_is_whole_though_those_who_write_it_die(folder: Path) -> None:
    settings = settings_in(folder)

    async def played() -> None:
        async with connect(settings=settings, embedded=True) as cluster:
            first = await cluster.start(graphs.short, {"folder": str(folder)})
            await first.result(90)
            assert await kinds(cluster, first.run_id) == ["decision", "grant_used"]
            runs = [await cluster.start(graphs.short, {"folder": str(folder)}) for _ in range(6)]
            await kill_policy_actor(cluster)
            await asyncio.gather(*(run.result(120) for run in runs))

            bill = await cluster.start(graphs.paying, {"amount": 7})
            await bill.wait(90, until=("waiting",))
            (question,) = await bill.questions()
            await bill.approve(question.interrupt_id, by="ann")
            await bill.result(90)
            entries = [entry async for _, entry in entries_of(cluster.store, bill.run_id)]
            told = [(entry["kind"], entry.get("decision", "")) for entry in entries]
            assert told[-4:] == [("decision", "ask"), ("answer", ""), ("decision", "allow"), ("grant_used", "")]
            assert (entries[-3]["by"], entries[-2]["approved"]) == ("ann", True)
            assert entries[-1]["grant"] == entries[-2]["grant"]

            found = await verify(cluster.store, settings.secret())
            assert found.fault is None
            for run in runs:
                assert (await kinds(cluster, run.run_id))[-2:] == ["decision", "grant_used"]

    run_async(played(), 280)


def test_a_call_at_work_is_ended_when_its_grant_is_taken_back(folder: Path) -> None:
    settings = settings_in(folder)

    async def played() -> None:
        async with connect(settings=settings, embedded=True) as cluster:
            run = await cluster.start(graphs.lasting, {"folder": str(folder)})

            async def at_work() -> bool:
                return (folder / "slow-began").exists()

            await wait_until_async(at_work, 90, "the call to begin")
            (grant,) = await grants_of(cluster.store, settings.secret(), run.run_id, time.time())
            assert (grant.tool, grant.at_work) == ("slow", True)
            await revoke(cluster.store, settings, run_id=run.run_id, key=grant.key[:6], by="ann", note="stop it")
            record = await run.wait(90)
            assert record.status == "failed"
            assert "killed" in record.error
            (receipt,) = await cluster.store.receipts(run.run_id)
            assert "its grant was revoked: ann took it back, 'stop it'" in receipt.outcome
            assert await kinds(cluster, run.run_id) == ["decision", "grant_used", "revoke", "grant_ended"]
            assert await grants_of(cluster.store, settings.secret(), run.run_id, time.time()) == []
            assert (await verify(cluster.store, settings.secret())).fault is None

    run_async(played(), 280)
