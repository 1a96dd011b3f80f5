"""What a tool call costs a node, all in all: decision, grant, audit log, ledger, sandbox, receipt.

In turns with the same program in a bare subprocess, started from the same node.
"""

import statistics
from pathlib import Path

import pytest
from bench.settled import run_as_actor
from bench.table import Table

from support.calling import Spent, calling
from understudy import connect
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
POLICY = "{policy: bench, version: 1, rules: [{id: sum, effect: allow, tool: total}]}"


def test_a_tool_call_in_a_node(table: Table, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)

    async def measured(url: str) -> Spent:
        settings = Settings(
            state_dir=tmp_path / url.partition(":")[0],
            store=url,
            policy=tmp_path / "policy.yaml",
            run_actors=1,
            spare_actors=0,
            sandbox_actors=1,
        )
        async with connect(settings=settings, embedded=True) as cluster:
            run = await cluster.start(calling, {})
            spent: Spent = await run.result(200)
            return spent

    for where, url in (
        ("SQLite, FULL", f"sqlite://{tmp_path}/bench.db"),
        ("Postgres", postgres_url),
        ("Redis, always", redis_url),
    ):
        spent = run_as_actor(measured(url), 300)
        ours, bare = statistics.median(spent.calls_ms), statistics.median(spent.bare_ms)
        table.add("tool call in a node, all in all, tier zygote", where, ours, bare, "ms", aim="ratio < 1")
