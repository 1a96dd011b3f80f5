"""`understudy policy`: a file is checked with its examples, a call is explained rule by rule, and what is in force."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from support.waiting import run_async
from understudy.actors.process import name_of_this_process
from understudy.cluster.cli import machine, policy  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.stores import open_store
from understudy.policies import schema

Cli = Callable[..., Result]

POLICY = """
policy: shop
version: 1
rules:
  - id: small
    effect: allow
    tool: pay
    when: {amount: {le: 100}, folder: {under: "${home}"}}
    match: [{amount: 5, folder: "${home}/a"}]
  - id: large
    effect: ask
    tool: pay
    when: {amount: {gt: 100}}
    reason: a large amount
  - id: nights
    effect: deny
    tool: pay
    time: {from: "22:00", to: "06:00"}
  - id: leak
    effect: deny
    tool: pay
    after: {tool: [read_secret], mark: [secret]}
"""
DEPLOYMENT = """
policy: house
version: "2.0"
layer: organisation
rules:
  - {id: all, effect: allow, tool: "*"}
  - {id: closed, effect: deny, tool: "*", labels: {tenant: closed}, managed: true, reason: this tenant is closed}
"""
EXPLAIN = ("policy", "explain", "--tool", "pay", "--policy", "policy.yaml", "--var", "home=/srv")
NOON = ("--at", "2026-01-31T12:00:00+00:00")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/test.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="understudy")

    return call


def document(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_a_good_file_is_good(cli: Cli) -> None:
    words = ("policy", "check", "policy.yaml", "--var", "home=/srv")
    found = document(cli(*words, "--json"))
    assert (found["good"], found["policy"], found["version"], found["layer"]) == (True, "shop", "1", "deployment")
    assert [rule["id"] for rule in found["rules"]] == ["small", "large", "nights", "leak"]
    assert "good" in cli(*words).stdout


def test_a_failing_example_ends_with_status_one_and_names_the_rule_that_decides(cli: Cli, tmp_path: Path) -> None:
    broken = POLICY.replace("[{amount: 5,", "[{amount: 500,").replace('folder: "${home}/a"', "folder: /srv/a")
    (tmp_path / "broken.yaml").write_text(broken)
    result = cli("policy", "check", "broken.yaml", "--var", "home=/srv")
    assert result.exit_code == 1
    assert "broken.yaml:9: rule 'small': match.0: " in result.stderr
    found = document(cli("policy", "check", "broken.yaml", "--var", "home=/srv", "--json"), 1)
    (problem,) = found["problems"]
    assert (problem["line"], problem["field"]) == (9, "match.0")
    assert "should fit and does not" in problem["words"]
    assert "instead, rule 'nights' decides: deny" in problem["words"]  # nobody said what time it is


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["policy", "check", "policy.yaml"], "policy.yaml:8: rule 'small': when.folder.under: the variable '${home}'"),
        (["policy", "check", "nowhere.yaml"], "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(cli: Cli, words: list[str], told: str) -> None:
    result = cli(*words)
    assert result.exit_code == 1
    assert told in result.stderr


def explained(cli: Cli, args: dict[str, Any], *more: str) -> Any:
    words = (*EXPLAIN, *NOON, "--args", json.dumps(args), *more)
    assert cli(*words).exit_code == 0
    return document(cli(*words, "--json"))


def test_explain_says_which_rule_decides_and_why_the_others_do_not(cli: Cli) -> None:
    small = explained(cli, {"amount": 5, "folder": "/srv/a"})
    assert (small["decision"], small["rule"], small["policy"]) == ("allow", "small", "shop")
    assert small["profile"]["tier"] == "zygote"
    large = explained(cli, {"amount": 500, "folder": "/srv/a"})
    assert (large["decision"], large["reason"]) == ("ask", "a large amount")
    assert [(step["rule"], step["matched"], step["decided"]) for step in large["steps"]] == [
        ("small", False, False),
        ("large", True, True),
        ("nights", False, False),
        ("leak", False, False),
    ]
    assert large["steps"][0]["why"] == "'amount' should be le 100: it is 500"
    assert large["steps"][3]["why"] == "the run has not used tool 'read_secret' or mark 'secret' before"
    assert explained(cli, {"amount": 5, "folder": "/etc"})["decision"] == "deny"
    text = cli(*EXPLAIN, *NOON, "--args", '{"amount": 500}').stdout
    assert "decides ask   shop/large: " in text


def test_explain_asks_for_a_time_and_a_history(cli: Cli) -> None:
    args = {"amount": 5, "folder": "/srv/a"}
    night = explained(cli, args, "--at", "2026-01-31T23:00:00+00:00")
    assert (night["decision"], night["rule"]) == ("deny", "nights")
    for more in (("--after", "read_secret"), ("--mark", "secret")):
        assert explained(cli, args, *more)["rule"] == "leak"
    assert explained(cli, args, "--after", "other")["rule"] == "small"


def test_explain_puts_the_deployments_layers_first(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"amount": 5, "folder": "/srv/a"}
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "house.yaml").write_text(DEPLOYMENT)
    for place in ("layers", "layers/house.yaml"):
        monkeypatch.setenv("UNDERSTUDY_POLICY", place)
        found = explained(cli, args)
        assert [layer["policy"] for layer in found["policies"]] == ["house", "shop"]
        assert found["decision"] == "allow"
        closed = explained(cli, args, "--labels", "tenant=closed")
        assert (closed["decision"], closed["rule"], closed["managed"]) == ("deny", "closed", True)
        assert closed["reason"] == "this tenant is closed"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--at", "noon"), "--at 'noon' is no time; write e.g. 2026-01-31T10:00:00+01:00"),
        (("--at", "2026-01-31T10:00:00"), "has no offset"),
        (("--args", "[1]"), "--args has to be a JSON object"),
    ],
)
def test_what_explain_cannot_use_is_wrong_usage(cli: Cli, words: tuple[str, ...], told: str) -> None:
    result = cli(*EXPLAIN, *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_the_schema_is_printed_as_it_is_published(cli: Cli) -> None:
    result = cli("policy", "schema")
    assert result.exit_code == 0
    assert result.stdout == schema.FILE.read_text()


def test_doctor_checks_every_layer(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked() -> Any:
        checks = json.loads(cli("doctor", "--json").stdout)["checks"]
        return next(check for check in checks if check["name"] == "policy")

    file = tmp_path / "house.yaml"
    file.write_text(DEPLOYMENT)
    monkeypatch.setenv("UNDERSTUDY_POLICY", str(file))
    good = checked()
    assert good["state"] == "ok"
    assert "organisation 'house' version 2.0, 2 rules" in good["found"]
    file.write_text(DEPLOYMENT.replace("effect: allow", "effect: alow"))
    bad = checked()
    assert bad["state"] == "fail"
    assert f"{file}:6: rule 'all': effect: 'alow' is no effect" in bad["found"]
    assert "keeps what it had" in bad["remedy"]


def test_status_tells_what_is_in_force_and_what_is_not(cli: Cli, tmp_path: Path) -> None:
    policies = {
        "path": "/etc/house.yaml",
        "layers": [{"policy": "house", "version": "2.0", "layer": "organisation", "digest": "d"}],
        "problem": "/etc/house.yaml:6: rule 'all': effect: 'alow' is no effect\nthe policies from before are in force",
    }
    report = {"role": "supervisor", "actors": [], "policies": policies}

    async def beaten() -> None:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        await store.beat(name_of_this_process(), json.dumps(report), time.time())
        await store.close()

    run_async(beaten())
    text = cli("status").stdout
    assert "house version 2.0 (organisation)" in text
    assert "/etc/house.yaml:6: rule 'all': effect: 'alow' is no effect" in text
    assert document(cli("status", "--json"))["supervisors"][0]["policies"] == policies
