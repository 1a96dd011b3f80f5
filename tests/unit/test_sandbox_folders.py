"""Working folders that a tool has filled: measured and removed, whatever is in them, and nothing beside them."""

import os
import subprocess
from pathlib import Path

import pytest

from understudy.actors.sandbox import folders
from understudy.actors.sandbox.folders import Owner


@pytest.fixture
def owner() -> Owner:
    return Owner(os.getpid(), folders.started_at(os.getpid()), 7)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_is_its_users_alone(owner: Owner) -> None:
    path = folders.make(owner, os.geteuid())
    assert os.stat(path).st_mode & 0o777 == 0o700
    folders.remove(path)
    assert not os.path.exists(path)
    folders.remove(path)  # gone is gone


def test_what_is_in_it_is_measured_and_links_are_not_followed(owner: Owner, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "large").write_bytes(b"x" * 100_000)
    path = Path(folders.make(owner, os.geteuid()))
    (path / "link").symlink_to(tmp_path / "outside")
    (path / "below").mkdir()
    (path / "below" / "file").write_bytes(b"x" * 8192)
    files, size = folders.measure(str(path))
    assert files == 3
    assert 8192 <= size < 100_000
    folders.remove(str(path))
    assert (tmp_path / "outside" / "large").exists()


def test_what_cannot_be_measured_is_too_large(owner: Owner) -> None:
    path = folders.make(owner, os.geteuid())
    nest(path, "d" * 200, 30)  # longer than a path may be
    assert folders.measure(path)[1] == folders.TOO_LARGE
    folders.remove(path)
    assert not os.path.exists(path)


def nest(path: str, name: str, depth: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT, dir_fd=fd))
    os.close(fd)


def test_depth_is_no_hindrance_to_removing(owner: Owner) -> None:
    """Python's own way, a call for each level, ends at a thousand of them."""
    path = folders.make(owner, os.geteuid())
    nest(path, "d", 3000)
    before = len(os.listdir("/proc/self/fd"))
    folders.remove(path)
    assert not os.path.exists(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folders_of_dead_workers_are_found_and_no_others(owner: Owner) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:  # alive when it is asked for its birth: the dead have none
        dead = Owner(process.pid, folders.started_at(process.pid), 8)
        process.kill()
    again = Owner(os.getpid(), owner.started - 1, 9)  # the pid came back
    made = {each.mark: folders.make(each, os.geteuid()) for each in (owner, dead, again)}
    os.mkdir(made[7].replace("understudy-call-", "understudy-call-x"))
    os.mkdir(made[8].replace(folders.table(), "1"))  # of a container that has the same /tmp, and its own processes
    found = folders.left_over()
    assert {(path, each.mark) for path, each in found} == {(made[8], 8), (made[9], 9)}
