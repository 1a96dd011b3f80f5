"""`understudy crashtest`: its report as text and as a document, and its exit status."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from understudy.cluster.cli import crashtest
from understudy.cluster.cli.command import app

Cli = Callable[..., Result]

CARELESS = """
from typing import Annotated, Any
from pydantic import BaseModel
from understudy import END, START, Context, Graph, append, tool

class State(BaseModel):
    told: Annotated[list[str], append] = []

@tool
def mail(to: str) -> str:
    return to

turns = []

def graph_of(told):
    graph = Graph("mailing", State)

    @graph.node
    async def send(state: State, ctx: Context) -> dict[str, Any]:
        return {"told": [await ctx.call(mail, to=told())]}

    return graph.edge(START, send).edge(send, END)

careful = graph_of(lambda: "Ada")

def once_in_a_while():
    turns.append(1)
    return "Ada" if len(turns) < 9 else "Eve"

careless = graph_of(once_in_a_while)
ever_new = graph_of(lambda: str(len(turns)) + str(turns.append(1)))
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mailing.py").write_text(CARELESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert crashtest.crashtest, "importing it makes it a command"
    return lambda *words: CliRunner().invoke(app, ["crashtest", *words], prog_name="understudy")


def test_a_sound_graph_ends_with_0(cli: Cli) -> None:
    said = cli("mailing:careful")
    assert said.exit_code == 0, said.output
    assert "graph 'mailing': 4 durable operations" in said.stdout
    assert "all ended as the undisturbed one" in said.stdout


def test_a_graph_that_is_no_function_of_its_state_ends_with_1(cli: Cli) -> None:
    said = cli("mailing:careless", "--json")
    document = json.loads(said.stdout)
    assert said.exit_code == 1
    assert not document["ok"]
    assert document["operations"] == ["load", "begin", "finish", "commit"]
    assert document["differences"]


def test_a_graph_that_ends_otherwise_undisturbed_is_no_bug_of_ours(cli: Cli) -> None:
    said = cli("mailing:ever_new")
    assert said.exit_code == 1
    assert "differs: " in said.stderr
    assert "have what answers with a time or by chance answer something fixed" in said.stderr
    assert "bug of ours" not in said.stderr


def test_real_kills_need_a_store_that_outlives_them(cli: Cli) -> None:
    said = cli("mailing:careful", "--kill")
    assert said.exit_code == 2
    assert "does not outlive a kill" in said.stderr
