"""The servers and helpers that other tests lean on, tried on themselves."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from support.processes import MARK, find_program, is_alive, leftovers
from support.servers import PostgresServer, PrometheusServer, RedisServer, promtool_check_metrics
from support.waiting import run_async, wait_until, wait_until_async

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("servers")]


def test_redis_keeps_what_it_acknowledged_when_killed(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.client().set("k", "v")
    redis_server.kill()
    assert not redis_server.is_running
    redis_server.start()
    assert redis_server.url == redis_url
    assert redis_server.client().get("k") == "v"


def test_redis_comes_back_empty_for_the_next_test(redis_server: RedisServer, redis_url: str) -> None:
    assert redis_server.client().dbsize() == 0


def test_redis_runs_as_production_should(redis_server: RedisServer, redis_url: str) -> None:
    settings = redis_server.client().config_get("append*", "maxmemory-policy", "save")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""


def test_postgres_keeps_what_it_committed_when_killed(postgres_server: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS n")
    postgres_server.kill()
    postgres_server.start()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(7,)]
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


def test_postgres_gives_each_test_its_own_database(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


GOOD_METRICS = (
    "# HELP understudy_runs_total Runs that ended.\n# TYPE understudy_runs_total counter\nunderstudy_runs_total 3\n"
)


def test_prometheus_scrapes_and_answers(prometheus_server: Callable[..., PrometheusServer]) -> None:
    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(GOOD_METRICS.encode())

        def log_message(self, *_args: object) -> None: ...

    exposition = HTTPServer(("127.0.0.1", 0), Exposition)
    threading.Thread(target=exposition.serve_forever, daemon=True).start()
    try:
        prometheus = prometheus_server([f"127.0.0.1:{exposition.server_port}"])
        found = wait_until(lambda: prometheus.query("understudy_runs_total"), 15, "the metric to be scraped")
        assert found[0]["value"][1] == "3"
        with pytest.raises(AssertionError, match="parse error"):
            prometheus.query("sum(")
    finally:
        exposition.shutdown()
        exposition.server_close()


def test_promtool_accepts_good_metrics_and_refuses_bad_ones() -> None:
    promtool_check_metrics(GOOD_METRICS)
    with pytest.raises(AssertionError, match="no help text"):
        promtool_check_metrics("# TYPE runs counter\nruns 3\n")
    with pytest.raises(AssertionError):
        promtool_check_metrics("not a metric at all\n")


@pytest.mark.parametrize("server", ["RedisServer", "PostgresServer"])
def test_a_server_dies_with_the_pytest_that_started_it(server: str, tmp_path: Path) -> None:
    # From a thread that ends, and with the whole process killed: the two ways in which a server could be lost.
    code = textwrap.dedent(f"""
        import asyncio, time
        from support.servers import {server}
        server = {server}()
        asyncio.run(asyncio.to_thread(server.start))
        assert server.is_running
        print(server.pid, server.directory, flush=True)
        time.sleep(600)
    """)
    tests = Path(__file__).parents[1]
    environ = os.environ | {"PYTHONPATH": str(tests)}
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ)
    assert starter.stdout is not None
    with starter.stdout:
        pid, _, directory = starter.stdout.readline().strip().partition(" ")
    assert Path("/proc", pid, "comm").read_text().strip() in ("redis-server", "postgres")
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    wait_until(lambda: not is_alive(int(pid)), 10, f"{server} to die with its starter")
    wait_until(
        lambda: not any(directory in command for command in leftovers(os.environ[MARK]).values()), 10, "the rest"
    )
    subprocess.run(["rm", "-rf", directory], check=True)


def test_leftovers_are_found_by_parent_and_by_mark() -> None:
    # One without our mark but with us as a parent; one with the mark that was given away by its parent.
    child = subprocess.Popen(["sleep", "600"], env={})
    mark = uuid4().hex
    orphan = subprocess.check_output(
        ["sh", "-c", "sleep 601 >/dev/null & echo $!"], env=os.environ | {MARK: mark}, text=True
    )
    try:
        assert leftovers("of another run")[child.pid] == "sleep 600"
        assert leftovers(mark)[int(orphan)] == "sleep 601"
    finally:
        child.kill()
        child.wait()
        os.kill(int(orphan), signal.SIGKILL)
    wait_until(lambda: not {child.pid, int(orphan)} & leftovers(mark).keys(), 5, "both to be gone")


def test_a_missing_program_is_named_with_its_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"no-such-server is not installed.*apt-get install its-package"):
        find_program("no-such-server", "its-package")


def test_waiting_in_vain_names_what_for() -> None:
    with pytest.raises(AssertionError, match=r"in vain for: Godot"):
        wait_until(lambda: False, 0.05, "Godot")

    async def never() -> bool:
        await asyncio.sleep(600)
        return True

    with pytest.raises(AssertionError, match=r"in vain for: Godot"):
        run_async(wait_until_async(never, 0.05, "Godot"))
    with pytest.raises(TimeoutError):
        run_async(never(), timeout_s=0.05)
