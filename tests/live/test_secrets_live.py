"""A planted secret, used both ways, printed, returned and raised by its tools: it is then found nowhere."""

import asyncio
import base64
import contextlib
import functools
import os
import sqlite3
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from support import secretive
from support.upstream import upstream
from support.waiting import run_async
from understudy import connect
from understudy.cluster.auditing import entries_of
from understudy.cluster.exporter import Exporter
from understudy.cluster.settings import Settings
from understudy.cluster.stores import open_store

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]
READ_MAX = 64 * 1024 * 1024


def forms(value: str) -> list[bytes]:
    encoded = base64.b64encode(value.encode())
    return [
        value.encode(),
        encoded[:-4],
        base64.b64encode(f"user:{value}".encode())[8:-4],
        value.encode().hex().encode(),
    ]


def shows(data: bytes, values: list[str]) -> bool:
    return any(form in data for value in values for form in forms(value))


def files_that_show(folders: list[Path], values: list[str], but: Path) -> list[str]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                plain = path.is_file() and not path.is_symlink() and path != but
                if plain and path.stat().st_size < READ_MAX and shows(path.read_bytes(), values):
                    found.append(str(path))
    return found


def processes_that_show(values: list[str]) -> list[str]:
    """In their environment or their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                if shows((process / name).read_bytes(), values):
                    found.append(f"{process.name}/{name}")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


def dump_of_redis(url: str) -> bytes:
    import redis

    client = redis.Redis.from_url(url)
    with contextlib.closing(client):
        return b"\n".join(client.dump(key) or b"" for key in client.scan_iter()) + b"\n".join(_texts(client))


def _texts(client: Any) -> Iterator[bytes]:
    """Unpacked, for a dump may be compressed."""
    for key in client.scan_iter():
        match client.type(key):
            case b"string":
                yield client.get(key) or b""
            case b"hash":
                yield b"\n".join(part for pair in client.hgetall(key).items() for part in pair)
            case b"list":
                yield b"\n".join(client.lrange(key, 0, -1))
            case b"zset":
                yield b"\n".join(client.zrange(key, 0, -1))
            case b"set":
                yield b"\n".join(client.smembers(key))
            case b"stream":
                yield b"\n".join(part for _, row in client.xrange(key) for pair in row.items() for part in pair)


def dump_of_sqlite(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump()).encode(errors="surrogateescape")


@pytest.mark.parametrize(("store", "tier"), [("sqlite", "zygote"), ("redis", "cold")])
def test_a_planted_secret_is_found_nowhere(store: str, tier: str, folder: Path, request: pytest.FixtureRequest) -> None:
    web, own = f"planted-web-{uuid.uuid4().hex}", f"planted-own-{uuid.uuid4().hex}"
    values = [web, own]
    secrets = folder / "secrets.yaml"
    url = f"sqlite://{folder}/test.db" if store == "sqlite" else str(request.getfixturevalue("redis_url"))
    settings = Settings(state_dir=folder / "state", store=url, secrets=secrets, run_actors=1, spare_actors=1)

    async def played(port: int) -> None:
        async with connect(settings=settings, embedded=True, policy=secretive.POLICY % (port, tier, tier)) as cluster:
            run = await cluster.start(secretive.secretive, {"port": port})
            state = await run.result()
            asked, returned, raised, missed = state.said
            assert f"Authorization: Bearer {'*' * len(web)}\r\n" in asked, "blotted out by the proxy already"
            assert returned["plain"] == returned["quoted"] == "[secret planted_own]"
            assert returned["[secret planted_own]"] == ["Bearer [secret planted_own]"]
            assert "not accepted: [secret planted_own]" in raised
            assert "names the secret 'nobody_has_it', which this deployment does not have" in missed
            assert "planted_own, planted_web" in missed
            events = [event async for event in run.events(follow=False)]
            connected = [event.data for event in events if event.kind == "connected"]
            connected.sort(key=lambda each: str(each["decision"]))  # which of two is recorded first, nobody promises
            assert [(each["decision"], each["port"], each["secrets"]) for each in connected] == [
                ("allow", port, ["planted_web"]),
                ("deny", 1, []),
            ]
            assert connected[0]["reason"].endswith("its answer held the secret, which was blotted out")
            assert connected[0]["host"] == connected[0]["address"] == "127.0.0.1"
            counters = await cluster.store.counters()
            assert counters['egress_connections_total{decision="allow"}'] == 1.0
            assert counters['egress_connections_total{decision="deny"}'] == 1.0

            entries = [entry async for _, entry in entries_of(cluster.store, run.run_id)]
            audited = sorted((entry["decision"], entry["port"]) for entry in entries if entry["kind"] == "connection")
            assert audited == [("allow", port), ("deny", 1)]
            assert not shows(repr((entries, events, state, await run.history())).encode(), values)
            assert processes_that_show(values) == []
            session = Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[union-attr]
            assert files_that_show([session, folder], values, but=secrets) == []
            exporter = Exporter(functools.partial(open_store, url))
            try:
                page = await asyncio.to_thread(_page, exporter.start())
                assert b"understudy_egress_connections_total" in page
                assert not shows(page, values)
            finally:
                exporter.stop()

    with upstream(echo=True) as served:
        text = (
            f"planted_web: {{value: {web}, hosts: ['http://127.0.0.1:{served.port}']}}\nplanted_own: {{value: {own}}}\n"
        )
        secrets.touch(mode=0o600)
        secrets.write_text(text)
        run_async(played(served.port), 200)
        assert any(web.encode() in heard for heard in served.heard), "the server did get it"
    dump = dump_of_sqlite(folder / "test.db") if store == "sqlite" else dump_of_redis(url)
    assert b"[secret planted_own]" in dump, "it is looked for where the run is"
    assert not shows(dump, values)
    temporary = [path for path in Path(tempfile.gettempdir()).glob("understudy-*") if path != folder]
    assert files_that_show([*temporary, folder], values, but=secrets) == []
    assert not any(value in os.environ.get(name, "") for name in os.environ for value in values)


def _page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        found: bytes = answer.read()
    return found
