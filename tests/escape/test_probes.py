"""Each probe of the study is made, and at least twenty of our own; whether it is contained, its attempts say."""

import pytest
from escape.conftest import attempt_of
from escape.grid import Grid, applies
from escape.places import is_on_demand, places_of
from escape.probes import ALL, OF_THE_STUDY, OUR_OWN, TIERS

STUDIED = {"f": 18, "p": 10, "n": 12, "i": 4, "k": 23, "r": 18}
ROOMS = ("escape", "beyond", "network", "workspace", "grants", "ray")


def test_every_probe_of_the_study_is_made_and_more() -> None:
    assert set(OF_THE_STUDY) == {f"{kind}{n:02}" for kind, count in STUDIED.items() for n in range(1, count + 1)}
    assert len(OF_THE_STUDY) == 85
    assert len(OUR_OWN) >= 20


def test_every_attempt_that_a_probe_names_is_made_in_every_place(request: pytest.FixtureRequest) -> None:
    """Where the whole of these tests is collected: then each row of the table is full."""
    collected = {item.path.stem for item in request.session.items}
    if not {f"test_{room}" for room in ROOMS} <= collected:
        return
    made = [(*found, item.path.stem) for item in request.session.items if (found := attempt_of(item)) is not None]
    for probe, (_what, *attempts) in ALL.items():
        for attempt in attempts:
            there = {place for name, place, _ in made if name.startswith(attempt)}
            file = next((file for name, _, file in made if name.startswith(attempt)), "test_escape")
            places = {"-".join(place) for place in places_of(TIERS) if not is_on_demand(*place, file)}
            assert {place for place in places if applies(probe, place)} <= there, (probe, attempt)


def test_the_table_has_a_row_for_each_probe_that_was_made() -> None:
    grid = Grid()
    grid.add("devices are harmless", "cold-root", True)
    grid.add("forks are bounded (r01 fork without end)", "cold-root", True)
    grid.add("forks are bounded (r01 fork without end)", "zygote-root", False)
    grid.add("a crash is told", "cold-root", True)
    grid.add("a link in a granted folder leads nowhere new", "cold-root", True)
    rows = {line.split(" | ")[0].strip("| "): line for line in grid.by_probe().splitlines()}
    assert rows["f12"] == "| f12 | open devices | contained | not run |"
    assert rows["r01"] == "| r01 | fork without end | contained | **NOT** |"
    assert rows["o29"] == "| o29 | a link in a granted folder | contained | - |"
    assert "r02" not in rows
    assert "r15" not in rows, "it has another attempt, which was not made"
    assert "- zygote-root (the default tier): 1 of" in grid.summary()
    assert "got through: r01" in grid.summary()


def test_all_are_made_in_one_process(request: pytest.FixtureRequest) -> None:
    """Else each of several has a part of the table, and the last one's is what is left."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@escape")
