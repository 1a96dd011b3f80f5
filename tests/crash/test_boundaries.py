"""A process may die at any line, and a second owner come at any line: the kit, on our own story and on every store.

The story (tests/support/stories.py) has parallel nodes, a loop, tools, an effect of a node, a question, a timer, a
child that asks, too, and messages. That the kit finds what it is there to find is shown in test_kit.py.
"""

from pathlib import Path
from typing import Any

import pytest

from support.stories import PLAYED, story
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points
from understudy.cluster.testing.killed import kill_points


@pytest.fixture(params=["memory", "sqlite", "redis", "redis_cluster", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite://{tmp_path}/crash.db"
        case name:
            return str(request.getfixturevalue(f"{name}_url"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_at_every_boundary_changes_nothing(url: str, victim: Victim) -> None:
    """Every boundary on every store; where only a part of the machine dies, all of them in memory, else a sample."""
    sample = 8 if victim in ("run", "sandbox") and url != "memory://" else None
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
