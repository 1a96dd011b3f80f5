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
from escape.host import look, mark_of_calls
from escape.places import Place, is_on_demand, places_of
from escape.probes import GRANTING, TIERS
from escape.workers import FOLDER, Worker, Workers, forget_packages, hand_over

from support.waiting import wait_until

GRID = pytest.StashKey[Grid]()
WORKERS = pytest.StashKey[Workers]()


@pytest.fixture(scope="session")
def workers(pytestconfig: pytest.Config) -> Iterator[Workers]:
    """One worker for each user, in real actors of Ray's; ended with the last test of this folder."""
    started = pytestconfig.stash[WORKERS] = Workers()
    yield started
    started.close()
    forget_packages()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The memory of two clusters is for the tests of other folders that this process has still to do."""
    try:
        yield
    finally:
        if nextitem is None or not _is_ours(nextitem):
            if WORKERS in item.config.stash:
                item.config.stash[WORKERS].close()
            forget_packages()


@pytest.fixture
def owned() -> Iterator[Path]:
    """A folder that anybody can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    yield folder
    shutil.rmtree(folder)


def _place(
    request: pytest.FixtureRequest,
    workers: Workers,
    owned: Path,
    settle: Callable[[Place], None] | None = None,
) -> Iterator[Place]:
    """In the end the host is as it was before. `settle`: has the worker do what it did last before that."""
    tier, user = request.param
    hand_over(owned, user)
    place = Place(tier, workers(user), owned)
    before = look(place).or_more(look(place))
    yield place
    if settle is not None:
        settle(place)
    try:
        wait_until(lambda: not look(place).more_than(before), 10, "the host to be as it was")
    except AssertionError:
        pytest.fail(f"left on the host: {look(place).more_than(before)}")


def folders_of(worker: Worker) -> list[str]:
    """Working folders on the host of a worker's calls."""
    mark = mark_of_calls(worker.pid)
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith(mark)]


def _name(place: Any) -> str:
    return "-".join(place)


@pytest.fixture(params=places_of(TIERS), ids=_name)
def sandbox(request: pytest.FixtureRequest, workers: Workers, owned: Path) -> Iterator[Place]:
    """Every tier."""
    yield from _place(request, workers, owned)


@pytest.fixture(params=places_of(GRANTING), ids=_name)
def granting(request: pytest.FixtureRequest, workers: Workers, owned: Path) -> Iterator[Place]:
    """Every tier that can bring files of the host in."""
    yield from _place(request, workers, owned)


@pytest.fixture(params=[place for place in places_of(GRANTING) if "root" in place], ids=_name)
def as_root(request: pytest.FixtureRequest, workers: Workers, owned: Path) -> Iterator[Place]:
    """The same, where the worker is root: only root can grant files that are not its sandboxes' user's."""
    yield from _place(request, workers, owned)


@pytest.fixture
def token() -> str:
    """An argument for /usr/bin/sleep that nobody else uses."""
    return f"{1_000_000 + uuid.uuid4().int % 1_000_000_000}"


def _is_ours(item: pytest.Item) -> bool:
    return item.path.is_relative_to(Path(__file__).parent)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the tests are spread over processes, these stay in one: the grid is one, and so are the workers."""
    for item in items:
        if _is_ours(item):
            item.add_marker(pytest.mark.xdist_group("escape"))
            if (made := attempt_of(item)) is not None and is_on_demand(*made[1].split("-"), item.path.stem):
                item.add_marker(pytest.mark.soak)


def attempt_of(item: pytest.Item) -> tuple[str, str] | None:
    """The row and the column in the table of a test that is made in a place."""
    parameters = getattr(item, "callspec", None)
    place = next((value for name, value in parameters.params.items() if name in WALLED), None) if parameters else None
    if place is None:
        return None
    rest = item.name.partition("[")[2].rstrip("]").removeprefix(_name(place)).strip("-")
    attempt = getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    return f"{attempt} ({rest})" if rest else attempt, _name(place)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Each test of a place is a cell of the grid; a test that fails in its set-up or afterwards, too."""
    outcome: Any = yield
    report, attempt = outcome.get_result(), attempt_of(item)
    if attempt is not None and not report.skipped:
        item.config.stash.setdefault(GRID, Grid()).add(*attempt, report.passed)


def pytest_sessionfinish(session: pytest.Session) -> None:
    grid = session.config.stash.get(GRID, None)
    if grid is not None:
        grid.write(Path(os.environ.get("UNDERSTUDY_BENCH_OUT", Path(__file__).parents[2] / "build")))
