"""Real servers for tests: Redis, Postgres and Prometheus, each in a folder of its own, on a free port of loopback.

Each can be killed as a crash would kill it (SIGKILL) and started again on the same data and port. None survives pytest.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psycopg
import redis
import yaml

from support.processes import find_program, free_port, is_alive, start_program
from support.waiting import wait_until


class Server(ABC):
    """A server program, its folder and its port. As a context manager it is stopped and its data removed at the end."""

    user: str | None = None
    start_timeout_s = 20.0

    def __init__(self) -> None:
        # Not under pytest's tmp_path, which only root may enter when root runs the tests; Postgres runs as another.
        self.directory = Path(tempfile.mkdtemp(prefix=f"understudy-{type(self).__name__.lower()}-"))
        self.port = free_port()
        self.log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]: ...

    @abstractmethod
    def is_ready(self) -> bool: ...

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{type(self).__name__} was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, if it is not running, and wait until it serves."""
        if not self.is_running:
            with self.log.open("ab") as log:
                self._process = start_program(self.command(), self.directory, log, self.user)
        wait_until(self._is_ready_or_dead, self.start_timeout_s, f"{type(self).__name__} to serve")
        return self

    def kill(self) -> None:
        """Crash it: SIGKILL, nothing flushed, no goodbye. The data stays for the next start."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop it for good and remove its data, which nobody will read again: so SIGKILL will do."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _is_ready_or_dead(self) -> bool:
        if not self.is_running:
            raise RuntimeError(f"{type(self).__name__} ended while starting:\n{self.log.read_text(errors='replace')}")
        return self.is_ready()


class RedisServer(Server):
    """Redis as production should run it: append-only file, nothing evicted, each write on disk before its answer."""

    program = "redis-server"

    def __init__(self, appendfsync: str = "always") -> None:
        super().__init__()
        self.appendfsync = appendfsync
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        # fmt: off
        return [
            find_program(self.program, self.program),
            "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory),
            "--appendonly", "yes", "--appendfsync", self.appendfsync, "--save", "", "--maxmemory-policy", "noeviction",
        ]
        # fmt: on

    def is_ready(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:  # not listening yet, or still reading its file
            return False

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True)

    def flush(self) -> None:
        self.client().flushall()


class ValkeyServer(RedisServer):
    program = "valkey-server"


EMPTY = """
DO $$
DECLARE filled text; found boolean; names text[] := '{}';
BEGIN
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR filled IN SELECT tablename FROM pg_tables WHERE schemaname = 'understudy' AND tablename <> 'meta' LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM understudy.%I)', filled) INTO found;
        IF found THEN names := names || format('understudy.%I', filled); END IF;
    END LOOP;
    IF names <> '{}' THEN EXECUTE 'TRUNCATE ' || array_to_string(names, ', ') || ' RESTART IDENTITY CASCADE'; END IF;
END $$
"""


class PostgresServer(Server):
    """Postgres with its defaults of durability. It refuses to run as root, so root starts it as the user `postgres`."""

    def __init__(self) -> None:
        super().__init__()
        self.url = self.url_of("postgres")
        if os.geteuid() == 0:
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                raise RuntimeError("there is no user 'postgres'; apt-get install postgresql makes it") from None
            self.user = account.pw_name
            os.chown(self.directory, account.pw_uid, account.pw_gid)

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def command(self) -> Sequence[str]:
        # fmt: off
        return [
            self._program("postgres"), "-D", str(self._data), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.directory}",
            "-c", "fsync=on", "-c", "max_connections=200",
        ]
        # fmt: on

    def start(self) -> Self:
        if not self._data.exists():
            self._initdb()
        return super().start()

    def kill(self) -> None:
        """SIGKILL for the postmaster and for those it forked, which would otherwise hold its shared memory a while."""
        children: list[str] = []
        if self.is_running:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        super().kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        wait_until(lambda: not any(is_alive(int(pid)) for pid in children), 5, "Postgres's processes to end")

    def is_ready(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> str:
        """A database of one's own; its URL."""
        name = f"test_{uuid4().hex}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def drop_database(self, url: str) -> None:
        self._execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def empty_database(self, url: str) -> None:
        """As it was when a store had been made in it, and nothing written. Costs a tenth of a new one."""
        self._execute(EMPTY, url)

    def _execute(self, statement: str, url: str = "") -> None:
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _initdb(self) -> None:
        # --no-sync: an empty database that a power cut takes is no loss; what is written afterwards is synced.
        # fmt: off
        command = [
            self._program("initdb"), "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8",
            "--locale=C", "--no-sync",
        ]
        # fmt: on
        with self.log.open("ab") as log:
            status = start_program(command, self.directory, log, self.user).wait()
        if status != 0:
            raise RuntimeError(f"initdb failed:\n{self.log.read_text(errors='replace')}")

    @staticmethod
    def _program(name: str) -> str:
        newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
        return find_program(name, "postgresql", *newest_first)


class PrometheusServer(Server):
    """Prometheus, scraping `targets` ("host:port") every second, with the given rule files."""

    def __init__(self, targets: Sequence[str], rules: Sequence[Path] = ()) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = self.directory / "prometheus.yml"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule.resolve()) for rule in rules],
            "scrape_configs": [{"job_name": "understudy", "static_configs": [{"targets": list(targets)}]}],
        }
        self._config.write_text(yaml.safe_dump(config))

    def command(self) -> Sequence[str]:
        return [
            find_program("prometheus", "prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The result vector of an instant query: [{"metric": {...}, "value": [time, "1"]}, ...]."""
        return list(self.get("query", query=promql)["result"])

    def get(self, endpoint: str, **parameters: str) -> dict[str, Any]:
        """The `data` of one call to Prometheus's HTTP API, e.g. get("targets") or get("rules")."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{endpoint}?{query}", timeout=10) as answer:
                return dict(json.load(answer)["data"])
        except urllib.error.HTTPError as error:
            raise AssertionError(f"Prometheus refused {parameters}: {error.read().decode()}") from None


def promtool_check_metrics(text: str) -> None:
    """Raise AssertionError unless promtool finds the exposition valid and its names well chosen."""
    tool = find_program("promtool", "prometheus")
    done = subprocess.run([tool, "check", "metrics"], input=text.encode(), capture_output=True, timeout=30, check=False)
    if done.returncode != 0:
        raise AssertionError(f"promtool check metrics:\n{(done.stdout + done.stderr).decode()}")
