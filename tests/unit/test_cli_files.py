"""`understudy run --files` and `understudy files`: what goes in can be looked at and fetched."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


def test_files_go_in_are_listed_and_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/runs.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow_with_files.py").write_text(FLOW)
    (tmp_path / "first/deep").mkdir(parents=True)
    (tmp_path / "first/a.txt").write_text("one")
    (tmp_path / "first/deep/b").write_bytes(b"\x00\xff")
    (tmp_path / "first/link").symlink_to("/etc/passwd")

    def cli(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="understudy")

    started = cli("run", "flow_with_files:graph", "--files", "first", "--detach", "--json")
    assert started.exit_code == 0, started.output
    run_id = json.loads(started.stdout)["run_id"]
    listed = json.loads(cli("files", run_id, "--json").stdout)
    assert listed == [{"path": "a.txt", "bytes": 3}, {"path": "deep/b", "bytes": 2}]
    assert cli("files", run_id, "--get", "a.txt").stdout_bytes == b"one"
    assert cli("files", run_id, "--get", "c").exit_code != 0
    assert cli("files", run_id, "--to", "out").exit_code == 0
    assert (tmp_path / "out/deep/b").read_bytes() == b"\x00\xff"
    assert cli("files", run_id, "--to", "out").exit_code == 2
