"""A file that was not written to need not be read, and no write is ever missed."""

import os
import time
from pathlib import Path

import pytest

from understudy.cluster.stores import stillness
from understudy.cluster.stores.stillness import Stillness


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time, in ticks of ten milliseconds, for `stillness`."""
    ticks = [1000]
    monkeypatch.setattr(stillness.time, "time_ns", lambda: ticks[0] * 10_000_000)
    return ticks


def write(path: Path, tick: int, data: bytes = b"x", *, more_ns: int = 1) -> None:
    path.write_bytes(data)
    at = tick * 10_000_000 + more_ns
    os.utime(path, ns=(at, at))


def test_a_file_that_is_still_is_read_once(tmp_path: Path, now: list[int]) -> None:
    path = tmp_path / "log"
    still = Stillness(path)
    assert still.may_have_changed(), "it is not there yet"
    write(path, 900)
    assert [still.may_have_changed() for _ in range(3)] == [True, False, False]
    write(path, 901)
    assert [still.may_have_changed() for _ in range(3)] == [True, False, False]
    write(path, 901, b"longer")
    assert still.may_have_changed()
    path.unlink()
    assert [still.may_have_changed() for _ in range(2)] == [True, True]


def test_two_writes_in_one_tick_are_two(tmp_path: Path, now: list[int]) -> None:
    path = tmp_path / "log"
    still = Stillness(path)
    write(path, 1000)
    assert still.may_have_changed()
    write(path, 1000)  # just after that: nothing of it can be seen
    now[0] += 500  # and this reader slept
    assert [still.may_have_changed() for _ in range(2)] == [True, False]


def test_a_clock_that_was_set_back_makes_it_read_more_and_miss_nothing(tmp_path: Path, now: list[int]) -> None:
    path = tmp_path / "log"
    still = Stillness(path)
    write(path, 2000)
    assert [still.may_have_changed() for _ in range(3)] == [True, True, True]


def test_times_in_whole_seconds_are_believed_later(tmp_path: Path, now: list[int]) -> None:
    """As some filesystems keep them: a second write in that second looks like the first."""
    path = tmp_path / "log"
    still = Stillness(path)
    now[0] = 1090
    write(path, 1000, more_ns=0)
    assert [still.may_have_changed() for _ in range(2)] == [True, True]
    now[0] = 1300
    assert [still.may_have_changed() for _ in range(2)] == [True, False]
    still.was_not_read()
    assert [still.may_have_changed() for _ in range(2)] == [True, False]


def test_real_writes_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a")
    still = Stillness(path)
    deadline = time.monotonic() + 20
    while still.may_have_changed():
        assert time.monotonic() < deadline
    with path.open("r+b") as file:
        for _ in range(3):
            file.seek(0)
            file.write(b"b")
            file.flush()
            assert still.may_have_changed()
