"""The command line about effects, approvals and forks: what a person sees, types, and gets."""

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from support.stage import Stage, YesPolicy
from understudy import END, START, Context, Graph, append, open_store, tool
from understudy.actors.calls import Asked, Granted, Verdict
from understudy.actors.outcome import Outcome
from understudy.actors.records import Receipt
from understudy.cluster.cli import forking, reading, running  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.client import Run
from understudy.policies.permission import Request

Cli = Callable[..., Result]


class Bill(BaseModel):
    order: str = "A1"
    notes: Annotated[list[Any], append] = []


class Fine(BaseModel):
    ok: bool


@tool
def pay(order: str, amount: int = 100) -> str:
    """Pays."""
    return f"paid {amount} for {order}"


async def charge(state: Bill, ctx: Context) -> dict[str, Any]:
    price = await ctx.effect("price", lambda: 7)
    return {"notes": [price, await ctx.call(pay, order=state.order)]}


async def ask(state: Bill, ctx: Context) -> dict[str, Any]:
    verdict = await ctx.interrupt("fine?", schema=Fine)
    return {"notes": [verdict.ok]}


def graph_of(*nodes: Callable[..., Any]) -> Graph:
    graph = Graph("paying", Bill)
    graph.node(lambda state: {"notes": ["begun"]}, name="begin")
    graph.edge(START, "begin")
    before = "begin"
    for node in nodes:
        graph.node(node)
        graph.edge(before, node.__name__)
        before = node.__name__
    return graph.edge(before, END)


def ask_first(request: Request, approved: bool) -> Verdict:
    return Granted("token", "ask", "p") if approved else Asked("ask", "p", "money leaves")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/test.db"


@pytest.fixture
def cli(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call `understudy` with these words, on the test's own store."""
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", url)
    monkeypatch.setenv("LOGNAME", "ann")

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="understudy")

    return call


def drive(url: str, graph: Graph, run_id: str = "", policy: YesPolicy | None = None) -> str:
    """Start a run, or take one up; play it to its end, or to its next wait."""

    async def played() -> str:
        store = await open_store(url)
        stage = Stage(store, graph, policy=policy or YesPolicy())
        run = Run(store, run_id, graph) if run_id else await stage.start({})
        await stage.drive(run)
        await store.close()
        return run.run_id

    return asyncio.run(played())


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def notes(cli: Cli, run_id: str) -> Any:
    return document(cli("show", run_id, "--json"))["state"]["notes"]


ASKING = YesPolicy({"pay": ask_first})


def test_a_call_is_approved_with_other_arguments(cli: Cli, url: str) -> None:
    graph = graph_of(charge)
    run_id = drive(url, graph, policy=ASKING)
    wrong = cli("approve", run_id, "--args", '{"amuont": 1}')
    assert (wrong.exit_code, "has no argument 'amuont'; it has order, amount" in wrong.stderr) == (1, True)
    assert cli("approve", run_id, "--args", "[1]").exit_code == 2
    assert cli("approve", run_id, "--args", "{}", "--answer", "1").exit_code == 2
    done = cli("approve", run_id, "--args", '{"amount": 40}', "--note", "less")
    assert "approved with other arguments" in done.stderr
    drive(url, graph, run_id, ASKING)
    assert notes(cli, run_id) == ["begun", 7, "paid 40 for A1"]
    told = cli("events", run_id).stdout
    assert "allow pay  by a person (ann)" in told
    assert "approved by a person (ann), with other arguments: less" in told


def test_a_call_is_answered_in_its_place(cli: Cli, url: str) -> None:
    graph = graph_of(charge)
    run_id = drive(url, graph, policy=ASKING)
    assert "answered" in cli("approve", run_id, "--answer", '"by hand"', "--by", "bob").stderr
    drive(url, graph, run_id, ASKING)
    assert notes(cli, run_id) == ["begun", 7, "by hand"]
    assert "answer pay  by a person (bob)" in cli("events", run_id).stdout


def test_an_answer_has_to_fit_its_schema(cli: Cli, url: str) -> None:
    graph = graph_of(ask)
    run_id = drive(url, graph)
    shown = cli("show", run_id).stdout
    assert "an answer has to fit" in shown
    asked = document(cli("show", run_id, "--json"))["questions"][0]
    assert asked["schema"]["required"] == ["ok"]
    wrong = cli("resume", run_id, '{"ok": "maybe"}')
    assert wrong.exit_code == 1
    assert "at $.ok: 'maybe' is not of type 'boolean'" in wrong.stderr
    assert cli("resume", run_id, '{"ok": true}').exit_code == 0
    drive(url, graph, run_id)
    assert notes(cli, run_id) == ["begun", True]


def test_effects_are_listed(cli: Cli, url: str) -> None:
    run_id = drive(url, graph_of(charge))
    rows = document(cli("effects", run_id, "--json"))
    assert [(row["place"], row["standing"], row["call"]) for row in rows] == [
        ("2/0/charge/effect:price/0", "done", "price()"),
        ("2/0/charge/pay/0", "done", 'pay(order="A1", amount=100)'),
    ]
    assert 'pay(order="A1", amount=100)' in cli("effects", run_id).stdout
    assert "it has no effects on record" in cli("effects", drive(url, graph_of())).stderr


def test_a_fork_is_looked_at_first_and_asks_what_can_be_typed(cli: Cli, url: str) -> None:
    graph = graph_of(charge)
    run_id = drive(url, graph)
    at = document(cli("history", run_id, "--json"))[-1]["checkpoint_id"]
    found = document(cli("fork", run_id, "--at", at, "--dry-run", "--json"))
    assert [effect["name"] for effect in found["effects"]] == ["effect:price", "pay"]
    assert set(found["effects"][0]["would"]) == {"ask", "reuse", "repeat", "refuse"}
    listed = cli("fork", run_id, "--at", at, "--dry-run", "--effects", "reuse")
    assert (listed.exit_code, listed.stdout.count("is not done again")) == (0, 2)
    assert len(document(cli("ps", "--json"))) == 1, "a dry run starts nothing"
    assert cli("fork", run_id, "--at", at, "--effects", "maybe").exit_code == 2

    forked = cli("fork", run_id, "--at", at)
    fork_id = forked.stdout.strip()
    assert "effects beyond it: 2; it asks before it repeats any of them" in forked.stderr
    for _ in range(2):
        drive(url, graph, fork_id)
        assert "comes to what the run that it was forked from has done" in cli("show", fork_id).stdout
        (asked,) = document(cli("show", fork_id, "--json"))["questions"]
        words = [shlex.split(command) for command in asked["commands"]]
        assert [word[3] for word in words] == ['"repeat"', '"reuse"', '"refuse"']
        assert cli(*words[1][1:]).exit_code == 0
    drive(url, graph, fork_id)
    assert notes(cli, fork_id) == notes(cli, run_id)
    assert "reuse pay  by a person" in cli("events", fork_id).stdout

    quick = document(cli("fork", run_id, "--at", at, "--effects", "reuse", "--json"))["run_id"]
    drive(url, graph, quick)
    assert notes(cli, quick) == notes(cli, run_id)


async def fail(state: Bill, ctx: Context) -> dict[str, Any]:
    outcome = await ctx.outcome(broke, order=state.order)
    return {"notes": [outcome.kind]}


@tool
def broke(order: str) -> str:
    raise ValueError("no money")


def test_the_ledger_says_how_what_did_not_go_well_has_ended(cli: Cli, url: str) -> None:
    run_id = drive(url, graph_of(fail))
    assert notes(cli, run_id) == ["begun", "error"]
    (told,) = document(cli("effects", run_id, "--json"))
    assert (told["standing"], told["outcome"]["kind"]) == ("failed", "error")
    assert told["outcome"]["error"] == "ValueError: no money"
    shown = cli("effects", run_id).stdout
    assert "error: ValueError: no money" in shown
    printed = Outcome("killed", error="by a\nsignal", printed="".join(f"line {n}\n" for n in range(20)))
    receipt = Receipt("k", run_id, "", "task", "broke", "d", "done", "sandbox-0", "t", place="1/0/fail/broke/0")
    lines = forking._how_it_ended(receipt, printed).plain.strip().splitlines()
    assert lines[0] == "1/0/fail/broke/0  killed: by a signal"
    assert lines[1:] == [f"  | line {n}" for n in range(20 - forking.PRINTED_LINES, 20)]
