"""What a user gets from `pip install`: a wheel that is whole, and works in an empty environment, far from this tree."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(600), pytest.mark.xdist_group("servers")]

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "policies", "cluster")


def run(*command: str | Path, cwd: Path) -> str:
    """Its standard output, run as by a user who has never seen this tree."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: setuptools builds inside the tree, and packs what an earlier build left in build/.
    copy = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", *ROOMS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    wheels = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, copy, cwd=copy)
    (built,) = wheels.glob("understudy-*.whl")
    return built


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {
        f"understudy/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"understudy/__init__.py", "understudy/py.typed"}
    assert not wanted - packed, "missing in the wheel"
    strangers = {name for name in packed if not name.startswith(("understudy/", "understudy-"))}
    assert not strangers, "the wheel would install these beside understudy"


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin_ = tmp_path / "venv/bin"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")  # it is used once
    run(bin_ / "python", "-m", "pip", "install", *quiet, wheel, cwd=tmp_path)
    foreign = tmp_path / "elsewhere"
    foreign.mkdir()

    where = run(bin_ / "python", "-c", "import understudy; print(understudy.__file__)", cwd=foreign)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv"), "it took the tree, not the wheel"
    assert "doctor" in run(bin_ / "understudy", "--help", cwd=foreign)
    assert isinstance(json.loads(run(bin_ / "understudy", "doctor", "--json", cwd=foreign)), dict)
