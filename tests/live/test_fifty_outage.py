"""It must show, 3: the store's server is killed under fifty running runs, and comes back ten seconds later.

All finish, nothing is lost, nothing is doubled: not in the event logs, not among the receipts, not in the world. An
outage is no crash: no run is restarted for it.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from live.test_runs import agree, cluster_on, lines

from support import graphs
from support.servers import PostgresServer, RedisServer
from support.waiting import run_async, wait_until_async
from understudy.cluster.client import Cluster

pytestmark = [pytest.mark.live, pytest.mark.timeout(300), pytest.mark.xdist_group("runs")]

RUNS = 50
DOWN_S = 10.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose names a sandbox may be given."""
    with TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> RedisServer | PostgresServer:
    found: RedisServer | PostgresServer = request.getfixturevalue(f"{request.param}_server")
    return found


def test_fifty_runs_outlive_their_store(
    server: RedisServer | PostgresServer, folder: Path, request: pytest.FixtureRequest
) -> None:
    name = "redis" if isinstance(server, RedisServer) else "postgres"
    url = str(request.getfixturevalue(f"{name}_url"))

    async def played() -> None:
        async with cluster_on(url, folder, runs_per_actor=RUNS, calls_per_sandbox=4, lease_s=5.0) as cluster:
            runs = [
                await cluster.start(graphs.errands, {"folder": str(folder), "name": f"run-{i}"}) for i in range(RUNS)
            ]

            async def under_way() -> bool:
                return len(lines(folder / "ledger")) >= RUNS

            await wait_until_async(under_way, 120, "the runs to be under way")
            assert (await cluster.store.counts())["running"] == RUNS
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(DOWN_S)  # the outage itself: it has to last
            await asyncio.to_thread(server.start)
            for run in runs:
                assert (await run.result(120)).seen == graphs.ERRANDS
            assert Counter(lines(folder / "ledger")) == {
                f"run-{i} {errand}": 1 for i in range(RUNS) for errand in graphs.ERRANDS[::2]
            }
            await _check(cluster, [run.run_id for run in runs])

    run_async(played(), 280)


async def _check(cluster: Cluster, ids: list[str]) -> None:
    for run_id in ids:
        record = await cluster.store.run(run_id)
        assert (record.status, record.restarts) == ("succeeded", 0)
        log = await cluster.store.events(run_id)
        assert [event.n for event in log] == list(range(1, len(log) + 1))
        kinds = Counter(event.kind for event in log)
        assert kinds == {
            "created": 1,
            "claimed": 1,
            "finished": 1,
            **dict.fromkeys(("decided", "tool_started", "tool_finished"), 4),
            **dict.fromkeys(("node_finished", "checkpoint"), 8),
        }
        assert [receipt.state for receipt in await cluster.store.receipts(run_id)] == ["done"] * 4
        assert sorted(row.step for row in await cluster.store.history(record.thread_id)) == list(range(1, 9))
    await agree(cluster)
