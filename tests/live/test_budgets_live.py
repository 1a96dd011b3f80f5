"""Budgets on a real Ray, over the deaths of the actors that hold and charge."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import graphs
from support.waiting import run_async
from understudy import connect
from understudy.actors.accounts import SHELF, account_in
from understudy.cluster.auditing import entries_of, verify
from understudy.cluster.client import Cluster
from understudy.cluster.settings import Settings
from understudy.policies.budget import Account

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

RULES = """
policy: house
version: 1
budgets:
  - {id: customer, scope: tenant, limits: {calls: 5, tokens: 500}}
rules:
  - id: look
    effect: allow
    tool: counted
    limits: {wall: 20s, memory: 256MiB}
    cost: {tokens: {most: 90, told: tokens}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


async def account(cluster: Cluster) -> Account:
    (document,) = await cluster.store.documents(SHELF)
    return account_in(document)


async def kill(cluster: Cluster, what: str) -> None:
    assert cluster.host is not None
    services: dict[str, Any] = (await cluster.host.report())["services"]
    os.kill(next(pid for name, pid in services.items() if what in name), signal.SIGKILL)


def test_what_is_spent_stays_spent_whoever_dies(folder: Path) -> None:
    (folder / "house.yaml").write_text(RULES)
    settings = Settings(
        state_dir=folder / "state",
        store=f"sqlite://{folder}/test.db",
        policy=folder / "house.yaml",
        run_actors=2,
        spare_actors=1,
        sandbox_actors=1,
    )

    async def played() -> None:
        async with connect(settings=settings, embedded=True) as cluster:
            first = await cluster.start(graphs.spending, {"calls": 2}, labels={"tenant": "acme"})
            assert await first.result(90) == graphs.Spent(calls=2, seen=["thought", "0", "1"])
            found = await account(cluster)
            assert (found.settled["calls"], found.settled["tokens"], found.held) == (3, 40, {})
            assert 0 < found.settled["seconds"] < 20
            for actor in ("policy", "sandbox"):
                await kill(cluster, actor)
            other = await cluster.start(graphs.spending, {"calls": 2}, labels={"tenant": "acme"})
            record = await other.wait(120)
            assert record.status == "failed"
            assert "budget 'customer' of policy 'house' (tenant 'acme') is at its limit: 1 call wanted" in record.error
            assert (await account(cluster)).settled["calls"] == 5
            *_, entry = [entry async for _, entry in entries_of(cluster.store, other.run_id)]
            assert (entry["decision"], entry["tool"], entry["budgets"][0]["budget"]) == ("deny", "counted", "customer")
            assert (await verify(cluster.store, settings.secret())).fault is None

    run_async(played(), 280)
