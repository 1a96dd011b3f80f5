"""The audit log on the command line: what people say to runs is in it, and what is wrong with it has a number."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from support.stage import Stage, YesPolicy
from understudy import END, START, Context, Graph, tool
from understudy.actors.calls import Asked, Granted, Verdict
from understudy.actors.process import user_name
from understudy.cluster.cli import audit, grants, reading, running  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import app
from understudy.cluster.stores import open_store
from understudy.policies.permission import Request

Cli = Callable[..., Result]


class Bill(BaseModel):
    said: str = ""


@tool
def pay(order: str) -> str:
    return f"paid {order}"


async def charge(state: Bill, ctx: Context) -> dict[str, str]:
    return {"said": await ctx.call(pay, order="A1")}


def ask_first(request: Request, approved: bool) -> Verdict:
    return Granted("token", "ask", "p", "approved") if approved else Asked("ask", "p", "money leaves")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/test.db")
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="understudy")


@pytest.fixture
def asks(tmp_path: Path) -> str:
    """A run that waits for a person to allow a call; its id."""
    graph = Graph("paying", Bill)
    graph.node(charge, name="charge")
    graph.edge(START, "charge").edge("charge", END)

    async def played() -> str:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        stage = Stage(store, graph, YesPolicy({"pay": ask_first})).tools(pay)
        run = await stage.start({})
        assert await stage.drive(run) == "waiting"
        await store.close()
        return run.run_id

    return asyncio.run(played())


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def change(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "test.db") as db:
        db.execute(statement)
    db.close()


def test_an_approval_is_in_the_log_with_who_gave_it(cli: Cli, asks: str) -> None:
    assert document(cli("approve", asks, "--by", "ann", "--note", "looked", "--json"))["status"] == "queued"
    assert cli("deny", asks).exit_code == 1  # nothing is open any more
    (entry,) = document(cli("audit", "show", "--run", asks[:10], "--json"))
    told = (entry["kind"], entry["run"], entry["said"], entry["tool"], entry["by"], entry["user"])
    assert told == ("answer", asks, "approve", "pay", "ann", user_name())
    assert "approve" in cli("audit", "show").stdout
    assert document(cli("audit", "verify", "--json"))["good"] is True
    assert "good: segments 1 to 1, 1 entry" in cli("audit", "verify").stdout


def test_an_answer_that_came_too_late_is_noted_as_such(cli: Cli, asks: str, tmp_path: Path) -> None:
    from understudy.actors.errors import Conflict
    from understudy.cluster.auditing import entries_of, pen
    from understudy.cluster.client import Run
    from understudy.cluster.settings import read_settings

    async def played() -> None:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        run = Run(store, asks, audit=pen(store, read_settings()))
        (question,) = await run.questions()
        record = await run.record()

        async def seen_before() -> Any:
            return record

        run.record = seen_before  # type: ignore[method-assign]
        await run.approve(question.interrupt_id)
        with pytest.raises(Conflict):
            await run.deny(question.interrupt_id)
        found = [(entry["kind"], entry["said"]) async for _, entry in entries_of(store)]
        assert found == [("answer", "approve"), ("answer", "deny"), ("answer_refused", "deny")]
        await store.close()

    asyncio.run(played())


def test_what_was_changed_is_named_with_its_number_and_exit_status_1(cli: Cli, asks: str, tmp_path: Path) -> None:
    cli("approve", asks)
    head = cli("audit", "head").stdout.strip()
    assert head.startswith("1:")
    assert cli("audit", "verify", "--head", head).exit_code == 0
    change(tmp_path, "UPDATE documents SET data = replace(data, 'approve', 'denied!') WHERE shelf = 'audit'")
    found = cli("audit", "verify")
    assert found.exit_code == 1
    assert "segment 1 is changed" in found.stderr
    assert "under another secret" in found.stderr  # as it is after a move that left the secret behind
    change(tmp_path, "DELETE FROM documents WHERE shelf = 'audit'")
    assert cli("audit", "verify").exit_code == 0  # nobody remembers: which is why a head is noted
    found = cli("audit", "verify", "--head", head, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["bad"]["what"] == "truncated"


def test_what_cannot_be_meant(cli: Cli, asks: str) -> None:
    assert cli("audit", "verify", "--head", "seven").exit_code == 2
    assert cli("audit", "prune", "--before", "yesterday").exit_code == 2
    assert cli("audit", "prune", "--before", time.strftime("%Y-%m-%dT%H:%M:%S")).exit_code == 1
    assert document(cli("audit", "prune", "--before", "2020-01-01", "--json")) == {"pruned": 0}
    assert cli("audit", "head").stdout.strip() == "0:"


def test_an_approval_that_is_no_grant_yet_is_told_of_by_who_would_take_it_back(cli: Cli, asks: str) -> None:
    assert "has no grant in force; `understudy grants" in " ".join(cli("revoke", asks).stderr.split())
    cli("approve", asks)
    said = " ".join(cli("revoke", asks).stderr.split())
    assert "no grant in force yet, but the word of a person that stands: a" in said
    assert "(pay). It becomes a grant when the run takes it up, and cannot be taken back before; cancel the run" in said


def test_grants_in_force_are_listed_and_taken_back(cli: Cli, asks: str, tmp_path: Path) -> None:
    from understudy.actors.records import Receipt
    from understudy.cluster.auditing import pen
    from understudy.cluster.settings import read_settings

    async def grant() -> None:
        """Three grants: not used, at work, and over."""
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        run = await store.claim(
            (await store.resume(asks, (await store.run(asks)).interrupts[0].interrupt_id, "{}", 1.0)).run_id,
            "o",
            30.0,
            2.0,
        )
        for key, state in (("aa1", ""), ("bb2", "started"), ("cc3", "done")):
            told = {"key": key, "tool": "pay", "call": f"pay({key})", "policy": "p", "rule": "r", "decision": "allow"}
            await pen(store, read_settings()).append("decision", run=asks, grant=f"grant of {key}", **told)
            if state:
                receipt = Receipt(
                    key, asks, run.head, "t", "pay", "d", "started" if state == "started" else "done", "s", key
                )
                await store.begin(receipt, run.epoch, [], {}, 3.0)
        await store.close()

    asyncio.run(grant())
    listed = document(cli("grants", asks, "--json"))
    assert [(each["key"], each["at_work"]) for each in listed] == [("aa1", False), ("bb2", True)]
    assert "at work" in cli("grants", asks).stdout
    assert cli("revoke", asks, "cc").exit_code == 1
    assert cli("revoke").exit_code == cli("revoke", asks, "--grant", "x").exit_code == 2
    assert document(cli("revoke", asks, "bb", "--by", "ann", "--json"))["calls"] == ["bb2"]
    assert [each["key"] for each in document(cli("grants", asks, "--json"))] == ["aa1"]
    nothing = cli("revoke", "--grant", "grant of zz")
    assert (nothing.exit_code, "there is no grant 'grant of zz'" in nothing.stderr) == (1, True)
    several = cli("revoke", "--grant", "grant of")
    assert (several.exit_code, "3 grants begin with 'grant of'" in several.stderr) == (1, True)
    assert "revoked: pay(aa1) does not begin" in cli("revoke", "--grant", "grant of aa").stdout, "as `grants` shows it"
    assert "no call is at work under it" in cli("revoke", "--grant", "grant of cc3").stdout
    assert document(cli("grants", asks, "--json")) == []
    found = [entry for entry in document(cli("audit", "show", "--json")) if entry["kind"] == "revoke"]
    assert next((entry["key"], entry["grant"], entry["by"]) for entry in found) == ("bb2", "", "ann")
    assert document(cli("audit", "verify", "--json"))["good"] is True
