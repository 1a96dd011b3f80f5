"""A server that is killed under runs at work and comes back: a wait, not a crash."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from support import graphs
from support.servers import RedisServer
from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(300), pytest.mark.xdist_group("runs")]

RUNS = 20
STEPS = 40
LEASE_S = 3.0
OUTAGE_S = 12.0
"""Four leases long, so that every lease passes in it."""


def test_an_outage_of_redis_is_no_crash(redis_server: RedisServer, redis_url: str) -> None:
    async def played(folder: Path) -> None:
        ran = folder / "ran"

        def lines() -> list[str]:
            return [line.split()[0] for line in ran.read_text().splitlines()] if ran.exists() else []

        settings = Settings(
            state_dir=folder / "state", store=redis_url, run_actors=2, spare_actors=1, runs_per_actor=RUNS // 2,
            lease_s=LEASE_S,
        )  # fmt: skip
        async with connect(settings=settings, embedded=True) as cluster:
            runs = [
                await cluster.start(graphs.walk, {"folder": str(folder), "name": f"w{n}", "steps": STEPS})
                for n in range(RUNS)
            ]

            async def under_way() -> bool:
                records = await cluster.runs()
                failed = [record.error for record in records if record.status in ("failed", "quarantined")]
                assert not failed, failed[0]
                return len(lines()) > RUNS * STEPS // 5

            await wait_until_async(under_way, 90, "the runs to be under way")
            assert (await cluster.store.counts())["succeeded"] < RUNS
            await asyncio.to_thread(redis_server.kill)
            await asyncio.sleep(OUTAGE_S)
            await asyncio.to_thread(redis_server.start)
            results = await asyncio.gather(*(run.result(90) for run in runs))
            assert [result.at for result in results] == [STEPS] * RUNS
            for run in runs:
                record = await run.record()
                kinds = Counter([event.kind async for event in run.events(follow=False)])
                assert (record.status, record.restarts, record.epoch) == ("succeeded", 0, 1), kinds
                assert (kinds["claimed"], kinds["crashed"]) == (1, 0)
            assert Counter(lines()) == {f"w{n}-{at}": 1 for n in range(RUNS) for at in range(STEPS)}

    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        run_async(played(Path(name)), 240)
