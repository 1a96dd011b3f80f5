"""Policies that change while a deployment serves: on a real Ray, through the policy actor's death too."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import graphs
from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.cluster.client import Cluster, Run
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

HOUSE = """
policy: house
version: %d
rules:
  - {id: write, effect: allow, tool: write_down, files: {write: ["%s"]}, limits: {wall: 20s, memory: 256MiB}}
"""
AND_NO = '  - {id: closed, effect: deny, tool: "*"}\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        yield Path(name)


async def in_force(cluster: Cluster) -> dict[str, Any]:
    """What the supervisor tells of the deployment's policies."""
    assert cluster.host is not None
    report: dict[str, Any] = await cluster.host.report()
    return dict(report["policies"]) | {"pid": next((p for n, p in report["services"].items() if "policy" in n), 0)}


async def decided(run: Run) -> dict[str, Any]:
    """The decision on the run's one call."""
    await run.wait(60)
    (event,) = [event async for event in run.events(follow=False) if event.kind == "decided"]
    return dict(event.data)


def test_a_changed_policy_is_taken_up_and_a_broken_one_is_not_whatever_dies(folder: Path) -> None:
    file = folder / "house.yaml"
    file.write_text(HOUSE % (1, folder))
    settings = Settings(
        state_dir=folder / "state", store=f"sqlite://{folder}/test.db", policy=file, run_actors=1, spare_actors=1
    )

    async def played() -> None:
        async with connect(settings=settings, embedded=True) as cluster:

            async def call() -> dict[str, Any]:
                return await decided(await cluster.start(graphs.short, {"folder": str(folder)}))

            first = await call()
            assert (first["decision"], first["policies"][0]["version"]) == ("allow", "1")

            async def version_two() -> bool:
                layers = (await in_force(cluster)).get("layers", [])
                return [layer["version"] for layer in layers] == ["2"]

            file.write_text(HOUSE % (2, folder) + AND_NO)
            await wait_until_async(version_two, 30, "the change to be taken up and told")
            second = await call()
            assert (second["decision"], second["policies"][0]["version"]) == ("deny", "2")
            assert second["policies"][0]["digest"] != first["policies"][0]["digest"]

            file.write_text("rules: [")
            before = (await in_force(cluster))["pid"]

            async def told() -> bool:
                return "it is no YAML" in (await in_force(cluster))["problem"]

            await wait_until_async(told, 30, "the problem to be told")
            os.kill(before, signal.SIGKILL)

            async def replaced() -> bool:
                return (await in_force(cluster))["pid"] not in (0, before)

            await wait_until_async(replaced, 60, "another policy actor to be up")
            third = await call()
            assert (third["decision"], third["policies"]) == ("deny", second["policies"])  # and not version 1
            await wait_until_async(told, 30, "the problem to be told by the next one")

    run_async(played(), 280)
    assert (folder / "ledger").read_text().splitlines() == ["run"]
