"""`understudy environments`: what the tools of a module want is built, listed, verified, told before, and removed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from support.wheels import left_pad
from understudy.actors.sandbox.environments import Environments, site_packages
from understudy.cluster.cli import environments, preflight  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.doctor import check_environments
from understudy.cluster.settings import Settings

Cli = Callable[..., Result]
MODULE = """
from pydantic import BaseModel
from understudy import Environment, Graph, START, END, mcp_server, tool

PAD = Environment(packages=["left-pad==1.0"])

@tool(environment=PAD)
def pads(text: str) -> str:
    import left_pad
    return left_pad.pad(text)

@tool(environment=PAD)
def pads_too(text: str) -> str:
    return text

server = mcp_server("tiny", command=["python", "-m", "left_pad"], environment=PAD)

@tool
def plain(text: str) -> str:
    return text

class State(BaseModel):
    "No state."

graph = Graph("padding", State)

@graph.node
def work(state: State) -> None:
    pass

graph.edge(START, "work").edge("work", END)
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/test.db")
    (tmp_path / "test.db").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "padding_flow", raising=False)
    (tmp_path / "padding_flow.py").write_text(MODULE)
    left_pad(tmp_path)
    return lambda *words: CliRunner().invoke(app, words)


def read(result: Result) -> Any:
    return json.loads(result.stdout)


def test_an_environment_from_its_building_to_its_removal(cli: Cli, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    before = cli("preflight", "padding_flow:graph", "--json")
    assert before.exit_code == 1
    assert set(read(before)["unequipped"]) == {"pads", "pads_too", "mcp:tiny"}
    assert "understudy environments build" in read(before)["unequipped"]["pads"]
    assert check_environments(settings).found.startswith("none is built")
    assert "no environment is built here" in cli("environments", "list").stdout

    build = ("environments", "build", "padding_flow", "--no-index", "--find-links", str(tmp_path), "--json")
    built = cli(*build)
    assert built.exit_code == 0, built.output
    ((told),) = read(built)
    assert (told["of"], told["tools"], told["built"]) == ("left-pad==1.0", ["pads", "pads_too", "mcp:tiny"], True)
    assert [each["built"] for each in read(cli(*build))] == [False]
    assert cli("preflight", "padding_flow:graph").exit_code == 0
    (listed,) = read(cli("environments", "list", "--json"))
    assert (listed["installed"], listed["problem"]) == (["left_pad 1.0"], "")
    assert check_environments(settings).state == "ok"

    held = Path(site_packages(listed["folder"]), "left_pad.py")
    held.chmod(0o644)
    held.write_text("")
    assert check_environments(settings).state == "fail"
    assert cli("environments", "list").exit_code == 1
    assert "is broken" in read(cli("preflight", "padding_flow:graph", "--json"))["unequipped"]["pads"]
    assert len(read(cli("environments", "clean", "--unused-for", "0", "--json"))) == 1
    assert Environments(str(settings.environments)).all() == []


def test_what_cannot_be_built_is_told(cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = cli("environments", "build", "padding_flow:pads", "--no-index", "--find-links", str(empty))
    assert result.exit_code == 1
    assert "left-pad==1.0" in result.output
    assert "cannot be built" in result.output
    assert Environments(str(tmp_path / "state" / "environments")).all() == [], "nothing of it is left"
    assert "cannot be imported" in cli("environments", "build", "no_such_module").output
    bare = cli("environments", "build", "padding_flow:plain")
    assert bare.exit_code == 2
    assert "tool 'padding_flow:plain' declares no environment" in bare.stderr
    typo = cli("environments", "build", "padding_flow:padz")
    assert typo.exit_code == 1
    assert "module 'padding_flow' has no 'padz'; its tools are: pads, pads_too, server, plain" in typo.stderr
    (tmp_path / "bare_flow.py").write_text("")
    nothing = cli("environments", "build", "bare_flow")
    assert (nothing.exit_code, "no tool of bare_flow declares an environment" in nothing.stderr) == (0, True)
