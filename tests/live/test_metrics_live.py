"""A real Prometheus scrapes the exporter, and its counters agree with the event logs exactly, crashes included."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from prometheus_client.core import Metric

from support import graphs
from support.servers import PrometheusServer, RedisServer, promtool_check_metrics
from support.waiting import run_async, wait_until, wait_until_async
from understudy import connect
from understudy.actors.events import counters_of
from understudy.actors.store import Store
from understudy.cluster.client import Cluster
from understudy.cluster.exporter import Exporter
from understudy.cluster.host import store_opener
from understudy.cluster.metrics import metrics_of
from understudy.cluster.settings import Settings
from understudy.policies.policy_file import load_policy

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

NOT_IN_EVENTS = ("checkpoint_", "fence_", "runs", "store_up", "build_info", "run_actors", "supervisor_")
"""Families that are not made from events (`runs` is the gauge; runs_started and the like stay)."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, folder: Path) -> Settings:
    redis = request.param == "redis"
    store = str(request.getfixturevalue("redis_url")) if redis else f"sqlite://{folder}/state/test.db"
    return Settings(state_dir=folder / "state", store=store, run_actors=3, spare_actors=1, lease_s=3.0)


async def workload(cluster: Cluster, folder: Path) -> None:
    """Runs that succeed, fail, are refused, wait, are cancelled, and one whose actor is killed in the middle."""
    given = {"folder": str(folder)}
    shorts = [await cluster.start(graphs.short, {**given, "name": f"s{n}"}) for n in range(8)]
    refused = await cluster.start(graphs.short, {"folder": "/elsewhere"})
    waiting = await cluster.start(graphs.asking, given)
    held = await cluster.start(graphs.paused, given)
    record = await held.wait(60, until=frozenset({"running"}))
    ran = folder / "ran"
    await wait_until_async(lambda: asyncio.to_thread(lambda: ran.exists() and "hold" in ran.read_text()), 60, "hold")
    os.kill(int(record.owner.rpartition("/")[2]), signal.SIGKILL)
    (folder / "go").touch()
    for run in (*shorts, refused, held):
        await run.wait(120)
    await waiting.wait(60, until=frozenset({"waiting"}))
    await waiting.cancel()
    assert (await held.record()).restarts == 1
    assert (await refused.record()).status == "failed"


async def expected(store: Store) -> list[Metric]:
    """What the event logs of all runs add up to."""
    total: dict[str, float] = {}
    for run in await store.runs(limit=1000):
        for name, amount in counters_of(run.graph, await store.events(run.run_id)).items():
            total[name] = total.get(name, 0.0) + amount
    return [m for m in metrics_of(total, {}, {}, 0.0) if not _is_other(m.name.removeprefix("understudy_"))]


def _is_other(family: str) -> bool:
    return family == "runs" or any(family.startswith(name) for name in NOT_IN_EVENTS if name != "runs")


def selector(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inner}}}"


def test_counters_agree_with_the_event_logs(
    settings: Settings, folder: Path, prometheus_server: Callable[..., PrometheusServer]
) -> None:
    """It must show, 7."""
    exporter = Exporter(store_opener(settings))
    url = exporter.start()
    prometheus = prometheus_server([urlsplit(url).netloc])

    async def played() -> list[Metric]:
        policy = load_policy(graphs.POLICY, source="test", variables={"folder": str(folder)})
        async with connect(settings=settings, policy=policy, embedded=True) as cluster:
            await workload(cluster, folder)
            return await expected(cluster.store)

    try:
        families = run_async(played(), 240)
        with urlopen(url, timeout=10) as answer:
            promtool_check_metrics(answer.read().decode())
        names = {family.name for family in families}
        assert names >= {
            "understudy_runs_started",
            "understudy_runs_finished",
            "understudy_run_restarts",
            "understudy_run_recovery_seconds",
            "understudy_tool_calls",
            "understudy_tool_call_seconds",
            "understudy_policy_decisions",
            "understudy_node_executions",
        }
        for family in families:
            for sample in family.samples:
                compare(prometheus, sample.name, dict(sample.labels), sample.value)
        commits, timed = "understudy_checkpoint_commits_total", "understudy_checkpoint_commit_seconds_count"
        # Those that travel together are timed once, and the last of a residence are not: they cannot count themselves.
        assert value_of(prometheus, f"sum({commits})") > value_of(prometheus, timed) >= 5
        assert prometheus.query("understudy_runs")
    finally:
        exporter.stop()


def value_of(prometheus: PrometheusServer, query: str) -> float:
    [found] = prometheus.query(query)
    return float(found["value"][1])


def compare(prometheus: PrometheusServer, name: str, labels: dict[str, str], value: float) -> None:
    """Exactly; sums of seconds to a microsecond, as they are added up in another order."""
    tolerance = 1e-6 if name.endswith("_sum") else 0.0
    query = selector(name, labels)

    def agrees() -> bool:
        found = prometheus.query(query)
        return bool(found) and abs(float(found[0]["value"][1]) - value) <= tolerance

    try:
        wait_until(agrees, 10, "it")
    except AssertionError:
        pytest.fail(f"{query} is {prometheus.query(query)}, and the event logs say {value}")


def test_a_store_that_goes_away_and_comes_back(
    redis_server: RedisServer,
    redis_url: str,
    folder: Path,
    prometheus_server: Callable[..., PrometheusServer],
) -> None:
    exporter = Exporter(store_opener(Settings(state_dir=folder, store=redis_url)))
    prometheus = prometheus_server([urlsplit(exporter.start()).netloc])

    def up() -> str:
        found = prometheus.query("understudy_store_up")
        return str(found[0]["value"][1]) if found else ""

    try:
        wait_until(lambda: up() == "1", 20, "the store to be seen")
        assert prometheus.query("understudy_runs")
        redis_server.kill()
        wait_until(lambda: up() == "0", 20, "the store to be missed")
        assert not prometheus.query("understudy_runs")
        redis_server.start()
        wait_until(lambda: up() == "1", 20, "the store to be seen again")
    finally:
        exporter.stop()
