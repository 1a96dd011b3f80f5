"""A process may die at any line, and a second owner come at any line: the kit, on our own story and on every store.

The story (tests/support/stories.py) has parallel nodes, a loop, tools, an effect of a node, a question, a timer, a
child that asks, too, and messages. That the kit finds what it is there to find is shown in test_kit.py.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from support.stories import PLAYED, diary, story
from understudy.actors.files import CHANNEL
from understudy.actors.records import Commit, Committed, Loaded
from understudy.actors.store import Store
from understudy.actors.values import compact
from understudy.cluster.stores import open_store
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points
from understudy.cluster.testing.killed import kill_points


@pytest.fixture(params=["memory", "sqlite", "redis", "redis_cluster", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite://{tmp_path}/crash.db"
        case "postgres":
            return str(request.getfixturevalue("made_postgres_url"))
        case name:
            return str(request.getfixturevalue(f"{name}_url"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_at_every_boundary_changes_nothing(url: str, victim: Victim, request: pytest.FixtureRequest) -> None:
    """Every boundary on every store; where only a part of the machine dies, all of them in memory, else a sample. A
    cluster of Redis, which has the same scripts, is sampled too."""
    part = victim in ("run", "sandbox") and url != "memory://"
    sample = 8 if part or request.node.callspec.params["url"] == "redis_cluster" else None
    report = crash_points(story, **PLAYED, store=url, victims=[victim], sample=sample)
    assert report.ok, report
    assert len(report.operations) > 50, report.operations
    assert report.plays >= 2 * (sample or 18)


def test_nor_does_one_between_commits_that_travel_together() -> None:
    report = crash_points(story, **PLAYED, slow_commits=True, victims=["run", "owner"])
    assert report.ok, report
    assert any(operation.startswith("commit x") for operation in report.operations), report.operations


@pytest.mark.parametrize("name", ["sqlite", "redis", "postgres"])
def test_nor_does_a_real_kill(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/killed.db" if name == "sqlite" else str(request.getfixturevalue(f"{name}_url"))
    report = kill_points("support.stories:story", **PLAYED, store=url, folder=tmp_path, sample=2)
    assert report.ok, report
    assert report.plays == 4


class Losing:
    """A store that drops files of a run that crashed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class OfCheckpoints(Losing):
    async def commit(self, *commits: Commit) -> Committed:
        return await self._store.commit(*(self._kept(c) if c.epoch > 1 else c for c in commits))

    def _kept(self, commit: Commit) -> Commit:
        made = commit.checkpoint
        return replace(commit, checkpoint=made and replace(made, body=without(made.body, CHANNEL)))


class OfFinishedTasks(Losing):
    async def load(self, run_id: str) -> Loaded:
        loaded = await self._store.load(run_id)
        return replace(loaded, writes={task: without(body, CHANNEL) for task, body in loaded.writes.items()})


class OfFinishedCalls(Losing):
    async def load(self, run_id: str) -> Loaded:
        loaded = await self._store.load(run_id)
        kept = {key: replace(r, outcome=without(r.outcome, "files")) for key, r in loaded.receipts.items() if r.outcome}
        return replace(loaded, receipts={**loaded.receipts, **kept})


def without(body: str, name: str) -> str:
    def cut(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key != name}

    return compact(json.loads(body, object_pairs_hook=cut))


@pytest.mark.parametrize(
    ("losing", "victim"),
    [
        (OfCheckpoints, "run"),
        (OfFinishedTasks, "run"),
        (OfFinishedCalls, "machine"),  # after the receipt, and not, as a run alone, after whatever comes just then
    ],
)
def test_files_that_a_store_loses_are_missed(url: str, losing: type[Losing], victim: Victim) -> None:
    async def opened() -> Store:
        return cast(Store, losing(await open_store(url)))

    report = crash_points(diary, store=opened, victims=[victim], sides=["after"])
    assert not report.ok
    assert "the files of its workspace are" in str(report)
