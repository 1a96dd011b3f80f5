"""`understudy run --files` and `understudy files`: what goes in can be looked at and fetched."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from understudy import END, START, Graph, open_store
from understudy.cluster.cli import files, running  # noqa: F401  the commands that are called here
from understudy.cluster.cli.command import app

FLOW = """
from pydantic import BaseModel
from understudy import END, START, Graph

class State(BaseModel):
    n: int = 1

graph = Graph("with-files", State, version="1")

@graph.node
def work(state: State) -> None: ...

graph.edge(START, "work").edge("work", END)
"""


class State(BaseModel):
    n: int = 1


def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in a folder that has a graph and a store."""
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{folder}/runs.db")
    monkeypatch.chdir(folder)
    (folder / "flow_with_files.py").write_text(FLOW)

    def cli(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="understudy")

    return cli


def test_files_go_in_are_listed_and_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = at(tmp_path, monkeypatch)
    (tmp_path / "first/deep").mkdir(parents=True)
    (tmp_path / "first/a.txt").write_text("one")
    (tmp_path / "first/deep/b").write_bytes(b"\x00\xff")
    (tmp_path / "first/run.sh").write_text("exit")
    (tmp_path / "first/run.sh").chmod(0o755)
    (tmp_path / "first/empty").mkdir()
    (tmp_path / "first/deep/link").symlink_to("../a.txt")

    started = cli("run", "flow_with_files:graph", "--files", "first", "--detach", "--json")
    assert started.exit_code == 0, started.output
    run_id = json.loads(started.stdout)["run_id"]
    listed = json.loads(cli("files", run_id, "--json").stdout)
    assert listed == [
        {"path": "a.txt", "kind": "file", "bytes": 3, "executable": False},
        {"path": "deep/b", "kind": "file", "bytes": 2, "executable": False},
        {"path": "deep/link", "kind": "link", "target": "../a.txt"},
        {"path": "empty", "kind": "folder"},
        {"path": "run.sh", "kind": "file", "bytes": 4, "executable": True},
    ]
    table = cli("files", run_id).stdout
    assert all(row in table for row in ("deep/link -> ../a.txt", "empty/", "run.sh*"))
    assert cli("files", run_id, "--get", "a.txt").stdout_bytes == b"one"
    assert cli("files", run_id, "--get", "c").exit_code != 0
    assert cli("files", run_id, "--to", "out").exit_code == 0
    nowhere = cli("files", run_id, "--to", "first/a.txt/out")
    assert nowhere.exit_code == 1
    assert "--to 'first/a.txt/out' cannot be written" in nowhere.stderr
    assert (tmp_path / "out/deep/b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "out/deep/link").read_text() == "one"
    assert (tmp_path / "out/empty").is_dir()
    assert os.access(tmp_path / "out/run.sh", os.X_OK)
    assert cli("files", run_id, "--to", "out").exit_code == 2


def test_a_link_that_leads_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = at(tmp_path, monkeypatch)
    (tmp_path / "first").mkdir()
    (tmp_path / "first/link").symlink_to("/etc/passwd")
    refused = cli("run", "flow_with_files:graph", "--files", "first", "--detach")
    assert refused.exit_code != 0
    assert "the link 'link' leads out of the workspace, to '/etc/passwd'" in " ".join(refused.output.split())


def test_files_as_of_a_checkpoint_are_found_by_the_beginning_of_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = at(tmp_path, monkeypatch)
    graph = Graph("growing", State)
    graph.node(lambda ctx: ctx.write_file("run", "first", executable=True), name="first")
    graph.node(lambda ctx: ctx.write_file("later", "second"), name="second")
    graph.edge(START, "first").edge("first", "second").edge("second", END)
    graph.run_inline(store=lambda: open_store(f"sqlite://{tmp_path}/runs.db"))
    run_id = json.loads(cli("ps", "--json").stdout)[0]["run_id"]
    oldest = min(json.loads(cli("history", run_id, "--json").stdout), key=lambda row: row["step"])["checkpoint_id"]
    then = json.loads(cli("files", run_id, "--at", oldest[:9], "--json").stdout)
    assert then == [{"path": "run", "kind": "file", "bytes": 5, "executable": True}]
    assert len(json.loads(cli("files", run_id, "--json").stdout)) == 2
    unknown = cli("files", run_id, "--at", "nowhere")
    assert unknown.exit_code == 1
    assert "no checkpoint begins with 'nowhere'" in unknown.output
