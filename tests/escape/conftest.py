"""Each probe runs in every tier, from a worker that is root and from one that is not, and leaves nothing behind."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from escape.grid import WALLED, Grid
from escape.places import Place, Worker, places_of

from support.waiting import wait_until
from understudy.actors.sandbox.folders import table
from understudy.actors.sandbox.launch import HOST_ID

TIERS = ("landlock", "zygote", "cold")
GRID = pytest.StashKey[Grid]()
GRANTING = ("landlock", "cold")
"""Tiers that can bring files of the host in."""


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[str], Worker]]:
    """One worker for each user, started when it is first asked for."""
    started: dict[str, Worker] = {}

    def worker(user: str) -> Worker:
        if user not in started:
            started[user] = Worker(user)
        return started[user]

    yield worker
    for each in started.values():
        each.close()


@pytest.fixture
def owned() -> Iterator[Path]:
    """A folder that anybody can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def _place(
    request: pytest.FixtureRequest,
    workers: Callable[[str], Worker],
    owned: Path,
    settle: Callable[[Place], None] | None = None,
) -> Iterator[Place]:
    tier, user = request.param
    if user == "unprivileged" and os.geteuid() == 0:
        os.chown(owned, HOST_ID, HOST_ID)
    place = Place(tier, workers(user), owned)
    before = place.descriptors()
    yield place
    if settle is None:
        assert place.descriptors() == before
    else:
        settle(place)
        wait_until(lambda: place.descriptors() == before, 10, f"as many descriptors as before, {before}")
    assert folders_of(place.worker) == []


def folders_of(worker: Worker) -> list[str]:
    """Working folders on the host of a worker's calls."""
    mark = f"understudy-call-{table()}-{worker.process.pid}-"
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith(mark)]


def _name(place: Any) -> str:
    return "-".join(place)


@pytest.fixture(params=places_of(TIERS), ids=_name)
def sandbox(request: pytest.FixtureRequest, workers: Callable[[str], Worker], owned: Path) -> Iterator[Place]:
    """Every tier. In the end the worker has as many descriptors open as before."""
    yield from _place(request, workers, owned)


@pytest.fixture(params=places_of(GRANTING), ids=_name)
def granting(request: pytest.FixtureRequest, workers: Callable[[str], Worker], owned: Path) -> Iterator[Place]:
    """Every tier that can bring files of the host in."""
    yield from _place(request, workers, owned)


@pytest.fixture(params=[place for place in places_of(GRANTING) if "root" in place], ids=_name)
def as_root(request: pytest.FixtureRequest, workers: Callable[[str], Worker], owned: Path) -> Iterator[Place]:
    """The same, where the worker is root: only root can grant files that are not its sandboxes' user's."""
    yield from _place(request, workers, owned)


@pytest.fixture
def token() -> str:
    """An argument for /usr/bin/sleep that nobody else uses."""
    return f"{1_000_000 + uuid.uuid4().int % 1_000_000_000}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the tests are spread over processes, these stay in one: the grid is one, and so are the workers."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("escape"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Each test of a place is a cell of the grid; a test that fails in its set-up or afterwards, too."""
    outcome: Any = yield
    report = outcome.get_result()
    parameters = getattr(item, "callspec", None)
    place = next((value for name, value in parameters.params.items() if name in WALLED), None) if parameters else None
    if place is not None and not report.skipped:
        grid = item.config.stash.setdefault(GRID, Grid())
        rest = item.name.partition("[")[2].rstrip("]").removeprefix(_name(place)).strip("-")
        attempt = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
        grid.add(f"{attempt} ({rest})" if rest else attempt, _name(place), report.passed)


def pytest_sessionfinish(session: pytest.Session) -> None:
    grid = session.config.stash.get(GRID, None)
    if grid is not None:
        grid.write(Path(os.environ.get("UNDERSTUDY_BENCH_OUT", Path(__file__).parents[2] / "build")))
