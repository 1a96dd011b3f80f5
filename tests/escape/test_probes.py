"""Each probe of the study is made, and at least twenty of our own; that it is contained, its attempt says itself."""

import importlib

from escape.grid import Grid
from escape.probes import ALL, OF_THE_STUDY, OUR_OWN

STUDIED = {"f": 18, "p": 10, "n": 12, "i": 4, "k": 23, "r": 18}
ROOMS = ("escape", "beyond", "network", "workspace", "grants")


def test_every_probe_of_the_study_is_made_and_more() -> None:
    assert set(OF_THE_STUDY) == {f"{kind}{n:02}" for kind, count in STUDIED.items() for n in range(1, count + 1)}
    assert len(OF_THE_STUDY) == 85
    assert len(OUR_OWN) >= 20


def test_every_attempt_that_a_probe_names_is_a_test() -> None:
    modules = [importlib.import_module(f"escape.test_{room}") for room in ROOMS]
    for _what, attempt in ALL.values():
        name = "test_" + attempt.partition(" (")[0].replace(" ", "_")
        assert any(hasattr(module, name) for module in modules), name


def test_the_table_has_a_row_for_each_probe() -> None:
    grid = Grid()
    grid.add("devices are harmless", "cold-root", True)
    grid.add("forks are bounded (r01 fork without end)", "cold-root", True)
    grid.add("forks are bounded (r01 fork without end)", "zygote-root", False)
    rows = {line.split(" | ")[0].strip("| "): line for line in grid.by_probe().splitlines()}
    assert rows["f12"] == "| f12 | open devices | contained |  |"
    assert rows["r01"] == "| r01 | fork without end | contained | **NOT** |"
    assert rows["r02"] == "| r02 | threads without end |  |  |"
