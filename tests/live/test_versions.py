"""A deployment changes under runs that wait: on a real Ray, with modules that are written anew between two answers."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import run_async, wait_until_async
from understudy import connect
from understudy.actors.code import MODES
from understudy.actors.records import RunRecord
from understudy.cluster.client import Run
from understudy.cluster.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

FLOW = """
from pydantic import BaseModel
from understudy import END, START, Context, Graph

class State(BaseModel):
    {field}: str = ""
    ended: str = ""

graph = Graph("flow", State, version="{version}")

@graph.node
def begin(state: State):
    return {{"{field}": "begun by {version}"}}

@graph.node
async def ask(state: State, ctx: Context):
    return {{"ended": str(await ctx.interrupt("go on?")) + " by {version}"}}

graph.edge(START, "begin").edge("begin", "ask").edge("ask", END)
"""
MIGRATION = """
@graph.migrate(from_="1")
def renamed(old):
    return {"spoken": old["said"], "ended": old["ended"]}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the module is deployed, on this process's import path."""
    with tempfile.TemporaryDirectory(prefix="understudy-test-") as name:
        sys.path.insert(0, name)
        yield Path(name)
        sys.path.remove(name)
        sys.modules.pop("deployed_of_test", None)


def test_runs_meet_a_new_version_as_they_were_started(folder: Path) -> None:
    """Pinned: the old code. Migrated: the new, once its migration is there; until then set aside and untouched."""
    module = folder / "deployed_of_test.py"

    runs: dict[str, Run] = {}

    async def played() -> None:
        settings = Settings(
            state_dir=folder / "state", store=f"sqlite://{folder}/test.db", run_actors=2, spare_actors=1
        )
        module.write_text(FLOW.format(version="1", field="said"))
        async with connect(settings=settings, embedded=True) as cluster:
            for code in MODES:
                started = await cluster.start("deployed_of_test:graph", code=code)
                runs[code] = await cluster.run(started.run_id)  # without the graph: the result as it is stored
            migrated, pinned, latest = runs["migrate"], runs["pin"], runs["latest"]
            for run in (migrated, pinned, latest):
                await run.wait(90, {"waiting"})
            module.write_text(FLOW.format(version="2", field="spoken"))
            for run in (migrated, pinned, latest):
                await run.resume("yes")
            assert await pinned.result(90) == {"said": "begun by 1", "ended": "yes by 1"}
            for run in (migrated, latest):
                record = await run.wait(90)
                assert record.status == "quarantined"
                assert "channel 'said' is no field of State any more" in record.error
                assert (await run.state())["said"] == "begun by 1"
            module.write_text(FLOW.format(version="2", field="spoken") + MIGRATION)
            for run in (migrated, latest):
                await run.retry()
            assert await migrated.result(90) == {"spoken": "begun by 1", "ended": "yes by 2"}
            assert "code='latest' is never migrated" in (await ended_again(latest)).error

    run_async(played(), 220)


async def ended_again(run: Run) -> RunRecord:
    async def is_final() -> bool:
        return (await run.record()).final

    await wait_until_async(is_final, 60, f"run {run.run_id} to be set aside again")
    return await run.record()
