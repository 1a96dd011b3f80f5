"""A store is served under one secret: a cluster under another one would fail its runs, one after the other."""

import asyncio
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from understudy import connect
from understudy.actors.errors import CallerError
from understudy.cluster.belonging import take_into_service
from understudy.cluster.cli import store as store_commands  # noqa: F401 (it registers commands)
from understudy.cluster.cli.command import app
from understudy.cluster.daemon import serve
from understudy.cluster.settings import Settings
from understudy.cluster.stores import open_store


def test_a_cluster_under_another_secret_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite://{tmp_path}/test.db"
    ours = Settings(state_dir=tmp_path / "ours", store=url)
    other = Settings(state_dir=tmp_path / "other", store=url)
    wanted = r"served under another secret than .*/other/secret, .*UNDERSTUDY_SECRET_FILE"

    async def embedded() -> None:
        async with connect(settings=other, embedded=True):
            raise AssertionError("it is served twice")

    async def served() -> None:
        store = await open_store(url)
        for _ in range(2):  # each time that it starts
            await take_into_service(store, ours)
        for begin in (lambda: take_into_service(store, other), lambda: serve(other), embedded):
            with pytest.raises(CallerError, match=wanted):
                await begin()
        await store.beat("somebody", '{"role": "supervisor"}', time.time())
        assert await claimed() == 1, "it is served"
        await store.beat("somebody", '{"role": "supervisor"}', 1.0)
        assert await claimed() == 0
        await take_into_service(store, other)
        with pytest.raises(CallerError, match="another secret"):
            await take_into_service(store, ours)
        await store.close()

    async def claimed() -> int:
        return (await asyncio.to_thread(CliRunner().invoke, app, ["store", "claim"])).exit_code

    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("UNDERSTUDY_STORE", url)
    asyncio.run(served())
