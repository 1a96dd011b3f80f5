"""Budgets on the command line: what is spent, what is left, and more of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, BudgetExceeded, Context, Graph, Paid, open_store
from understudy.actors.accounts import SHELF
from understudy.actors.inline import run_inline_async
from understudy.actors.inline_ports import RulesPolicy
from understudy.cluster.cli import audit, budgets, policy, reading, running  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.client import Run
from understudy.policies.policy_file import load_policy

Cli = Callable[..., Result]
RULES = """
policy: shop
version: 1
budgets:
  - {id: daily, scope: tenant, limits: {money: "0.45", calls: 9}}
  - {id: each, scope: run, limits: {tokens: 1000}, at_limit: ask}
rules: []
"""


class Note(BaseModel):
    said: str = ""


async def ask(state: Note, ctx: Context) -> dict[str, str]:
    try:
        await ctx.effect("ask", lambda: Paid(1, tokens=100, money="0.2"), cost={"tokens": 200, "money": "0.3"})
        return {"said": "paid"}
    except BudgetExceeded as error:
        return {"said": error.error}


GRAPH = Graph("asking", Note)
GRAPH.node(ask, name="ask")
GRAPH.edge(START, "ask").edge("ask", END)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/test.db")
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="understudy")


def asked(
    tmp_path: Path, tenant: str = "acme", rules: str = RULES, labels: dict[str, str] | None = None
) -> tuple[str, str]:
    """A run to its end: its id, and what it said."""

    async def played() -> tuple[str, str]:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        labelled = {"tenant": tenant} if labels is None else labels
        note = await run_inline_async(GRAPH, store=store, policy=rules, labels=labelled)
        run = (await store.runs())[0]
        await store.close()
        return run.run_id, note.said

    return run_async(played())


def test_runs_without_the_label_are_said_to_share_an_account(cli: Cli, tmp_path: Path) -> None:
    labelled = {"labels": {"customer": "acme"}}
    asked(tmp_path, **labelled)
    run_id, said = asked(tmp_path, **labelled)
    assert said.startswith("budget 'daily' of policy 'shop' (runs without a label 'tenant') is at its limit: 0.3 money")
    told = cli("budgets", run_id)
    assert "tenant//run/shop/daily is that of runs without a label 'tenant', all of them together" in told.stderr


def test_an_explanation_says_what_a_call_would_be_paid_from(cli: Cli, tmp_path: Path) -> None:
    rules = RULES.replace("rules: []", "rules: [{id: a, effect: allow, tool: pay, cost: {money: '0.3'}}]")
    (tmp_path / "shop.yaml").write_text(rules)
    explain = ("policy", "explain", "--tool", "pay", "--policy", str(tmp_path / "shop.yaml"))
    unknown = json.loads(cli(*explain, "--json").stdout)["budgets"]
    assert [(each["budget"], each["account"], each["left"]) for each in unknown] == [
        ("daily", None, None),
        ("each", None, None),
    ]
    assert not (tmp_path / "test.db").exists(), "nothing is made by being looked for"
    run_id, _ = asked(tmp_path, rules=rules)
    for words in (("--label", "tenant=acme"), ("--run", run_id)):
        daily, each = json.loads(cli(*explain, *words, "--json").stdout)["budgets"]
        assert daily["left"] == {"calls": "8", "money": "0.25"}
        assert (daily["most"], daily["short"]) == ({"calls": "1", "money": "0.3"}, ["money"])
    assert each["account"] == f"run/{run_id}/run/shop/each"
    assert (each["left"], each["most"], each["short"]) == ({"tokens": "900"}, {}, [])
    text = cli(*explain, "--run", run_id).stdout
    assert "is paid from budget daily: tenant 'acme', has 8 calls, 0.25 money left of 9 calls, 0.45 money;" in text
    assert "the call can cost 1 call, 0.3 money, too much of money: then stop" in text
    assert json.loads(cli(*explain[:3], "steal", *explain[4:], "--json").stdout)["budgets"] == [], "it is denied"


def test_an_account_that_is_too_small_for_its_first_call_can_be_raised(cli: Cli, tmp_path: Path) -> None:
    _, said = asked(tmp_path, rules=RULES.replace("0.45", "0.2"))
    assert said.startswith("budget 'daily'")
    name = said.split("`")[1].split()[-1]
    assert cli("budgets", "--raise", "money=1", name).exit_code == 0
    assert asked(tmp_path, rules=RULES.replace("0.45", "0.2"))[1] == "paid"


@pytest.mark.parametrize("how", [("--raise", "tokens=1000"), ("--raise", "tokens=1"), ("--reset",)])
def test_a_question_about_a_budget_goes_with_its_reason(cli: Cli, tmp_path: Path, how: tuple[str, ...]) -> None:
    rules = load_policy(RULES.replace("tokens: 1000", "tokens: 100"), source="shop")

    async def staged(run_id: str = "") -> tuple[str, Run]:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        stage = Stage(store, GRAPH, RulesPolicy([rules], store))  # type: ignore[arg-type]
        run = Run(store, run_id, GRAPH) if run_id else await stage.start({})
        status = await stage.drive(run)
        await store.close()
        return status, run

    status, run = run_async(staged())
    assert status == "waiting"
    assert "and the call goes on by itself" in cli("show", run.run_id).stdout
    result = cli("budgets", *how, f"run/{run.run_id}/run/shop/each", "--by", "ann")
    assert f"1 question about it withdrawn, and judged anew: {run.run_id}" in result.stderr
    status, _ = run_async(staged(run.run_id))
    if how == ("--raise", "tokens=1000"):
        assert status == "succeeded"
    else:
        assert status == "waiting", "there is still too little, so it is asked again"
        assert cli("deny", run.run_id).exit_code == 0
        assert cli("budgets", "--raise", "tokens=1000", f"run/{run.run_id}/run/shop/each").exit_code == 0
        assert run_async(staged(run.run_id))[0] == "succeeded"
        shown = json.loads(cli("show", run.run_id, "--json").stdout)
        assert "said no" in shown["state"]["said"], "though there is room by now"
        held = json.loads(cli("budgets", run.run_id, "--json").stdout)
        assert [each["calls_held"] for each in held] == [0, 0]
    assert cli("audit", "verify").exit_code == 0


def test_what_is_spent_held_and_left_is_told_and_a_limit_can_be_raised(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "test.db").touch()
    assert "nothing has been paid" in cli("budgets").stderr
    first, said = asked(tmp_path)
    assert said == "paid"
    _, said = asked(tmp_path)
    assert said.startswith("budget 'daily' of policy 'shop' (tenant 'acme') is at its limit: 0.3 money wanted")
    asked(tmp_path, "other")
    listed = {each["account"]: each for each in json.loads(cli("budgets", first, "--json").stdout)}
    assert set(listed) == {f"run/{first}/run/shop/each", "tenant/acme/run/shop/daily"}
    daily = listed["tenant/acme/run/shop/daily"]
    assert daily["units"]["money"] == {"limit": "0.45", "raised": "0", "spent": "0.2", "held": "0", "left": "0.25"}
    assert daily["units"]["calls"]["left"] == "8"
    assert daily["units"]["tokens"] == {"limit": None, "raised": "0", "spent": "100", "held": "0", "left": None}
    assert (daily["scope"], daily["of"], daily["at_limit"], daily["calls_held"]) == ("tenant", "acme", "stop", 0)
    text = cli("budgets", first).stdout
    assert "tenant/acme/run/shop/daily" in text
    assert "0.25" in text
    assert len(json.loads(cli("budgets", "--json").stdout)) == 5

    name = said.split("`")[1].split()[-1]  # as the refusal says it
    assert name == "tenant/acme/run/shop/daily"
    raised = cli("budgets", "--raise", "money=0.5", name, "--by", "ann", "--note", "month end", "--json")
    assert json.loads(raised.stdout)[0]["units"]["money"]["limit"] == "0.95"
    assert asked(tmp_path)[1] == "paid"
    assert cli("budgets", "--reset", name).exit_code == 0
    assert name not in cli("budgets").stdout
    entries = json.loads(cli("audit", "show", "--json").stdout)
    told: list[Any] = [(each["kind"], each["account"], each["by"]) for each in entries if "account" in each]
    assert told[0] == ("budget_raised", name, "ann")
    assert told[1][:2] == ("budget_reset", name)
    assert cli("audit", "verify").exit_code == 0


def test_what_cannot_be_meant_is_told(cli: Cli, tmp_path: Path) -> None:
    run_id, _ = asked(tmp_path)
    name = f"run/{run_id}/run/shop/each"
    for words, status, told in (
        (("--raise", "money=1"), 2, "name one account"),
        (("--raise", "money=1", run_id), 2, "name one account"),
        (("--raise", "euros=1", name), 2, "there is no 'euros'; there are calls, seconds, bytes, tokens, money"),
        (("--raise", "tokens=-1", name), 2, "-1' is no amount that can be counted"),
        (("--raise", "money=1", name), 1, "has no limit of money that could be raised; it limits tokens"),
        (("--raise", "money=1", "run/x/y"), 1, "there is no account 'run/x/y'"),
        (("--reset", "run/x/y"), 1, "there is no account 'run/x/y'"),
        (("run/x/y",), 1, "there is no account 'run/x/y'"),
        (("--reset", "--raise", "tokens=1", name), 2, "not both"),
        (("rff-nothing",), 1, "there is no run"),
    ):
        result = cli("budgets", *words)
        assert result.exit_code == status, result.stderr
        assert told in " ".join(result.stderr.split())


def test_an_account_that_somebody_broke_pays_for_nothing_until_it_is_reset(cli: Cli, tmp_path: Path) -> None:
    async def broken() -> None:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        await store.write_document(SHELF, "tenant/acme/run/shop/daily", b"{}", 0)
        await store.close()

    run_async(broken())
    with pytest.raises(Exception, match="so nothing is paid from it"):
        asked(tmp_path)
    assert cli("budgets", "--reset", "tenant/acme/run/shop/daily").exit_code == 0
    assert asked(tmp_path)[1] == "paid"


def test_a_policy_check_lists_the_budgets(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(RULES)
    text = cli("policy", "check", str(tmp_path / "shop.yaml")).stdout
    each = "each tenant (label 'tenant' of the run; those without it together)"
    assert f"budget daily: {each} 9 calls, 0.45 money, then stop" in text
    assert "budget each: each run 1000 tokens, then ask" in text
    document = json.loads(cli("policy", "check", str(tmp_path / "shop.yaml"), "--json").stdout)
    assert [each["id"] for each in document["budgets"]] == ["daily", "each"]
