"""Fixtures for every folder: real servers, started when a test first asks for one, and a check that none is left."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from support.processes import MARK, leftovers
from support.redis_cluster import RedisCluster
from support.servers import PostgresServer, PrometheusServer, RedisServer, ValkeyServer
from support.waiting import wait_until
from understudy.actors.sandbox import cgroup

# Set before anything is started, so that every process of this test run inherits it.
RUN = os.environ[MARK] = uuid4().hex
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray on loopback, whoever imports it first

# How long an example takes on a busy machine says nothing; tests have a bound of their own.
settings.register_profile("understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("understudy")

GRACE_S = 10


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Where the tests are spread over processes, those on real Ray stay in two: they mostly wait, each for its cluster.

    The longer ones name the group "runs", those of servers without Ray "servers"; the others are the group "live".
    Those of tests/escape are a group of their own, with a Ray for each user.
    """
    for item in items:
        if item.get_closest_marker("live") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("live"))
    yield
    if getattr(config.option, "loadgroup", False):
        for item in items:
            _name_group(item)


def _name_group(item: pytest.Item) -> None:
    """In the test's id, where xdist looks for it.

    xdist 3.8 writes it to `_nodeid`, which pytest 9.2 does not read: every group would be spread over all processes.
    """
    groups = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
    suffix = f"@{'_'.join(groups)}"
    if groups and not item.nodeid.endswith(suffix):
        item._nodeid = named = item.nodeid + suffix  # type: ignore[attr-defined]
        if item.nodeid != named:
            from _pytest.nodeid import NodeId

            item._id = NodeId.parse(named)


@pytest.fixture(scope="session", autouse=True)
def _nobody_left_behind() -> Iterator[None]:
    """Law 9 leaves no room for shutdown hooks, but a test run still ends every process that it caused.

    Autouse and session-wide: set up first, so torn down last, after all servers and Ray.
    """
    yield
    try:
        cgroup.sweep()  # as the next worker would
        wait_until(lambda: not leftovers(RUN), GRACE_S, "all processes of this test run to end")
    except AssertionError:
        named = "\n".join(f"  {pid}  {command[:200]}" for pid, command in leftovers(RUN).items())
        if named:
            pytest.fail(f"left behind by this test run:\n{named}", pytrace=False)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the whole session. A test may kill it; it is started again for the next that asks for its URL."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a Redis that serves and is empty."""
    redis_server.start().flush()
    return redis_server.url


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """One Valkey for the whole session, on the same terms."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server: ValkeyServer) -> str:
    """The URL of a Valkey that serves and is empty."""
    valkey_server.start().flush()
    return valkey_server.url.replace("redis://", "valkey://")


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """One Redis Cluster of three masters for the whole session, on the same terms."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of one node of a cluster that serves and is empty."""
    redis_cluster.start().flush()
    return redis_cluster.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One Postgres for the whole session, on the same terms."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    url = postgres_server.start().create_database()
    yield url
    postgres_server.start().drop_database(url)


@pytest.fixture(scope="session")
def _made_postgres(postgres_server: PostgresServer) -> str:
    return postgres_server.start().create_database()


@pytest.fixture
def made_postgres_url(postgres_server: PostgresServer, _made_postgres: str) -> str:
    """The URL of a database whose store may have been made, and is empty: making one takes longest of a short test."""
    postgres_server.start().empty_database(_made_postgres)
    return _made_postgres


@pytest.fixture
def prometheus_server() -> Iterator[Callable[..., PrometheusServer]]:
    """Call it with targets, and rule files if any, for a Prometheus that scrapes them every second."""
    with ExitStack() as servers:

        def start(targets: list[str], rules: tuple[Path, ...] = ()) -> PrometheusServer:
            return servers.enter_context(PrometheusServer(targets, rules))

        yield start
