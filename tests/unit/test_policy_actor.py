"""The policy actor: what a grant is bound to, whose word counts, and what is on record before anybody is told."""

import asyncio
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.stage import Stage, YesPolicy
from support.waiting import run_async, wait_until_async
from understudy import END, START, Context, Graph, tool
from understudy.actors.audit_log import AuditLog
from understudy.actors.calls import Asked, Granted, Refused, Verdict
from understudy.actors.code import digest_of, sign_blob
from understudy.actors.errors import CodeError
from understudy.actors.memory import MemoryStore
from understudy.actors.outdated import withdraw_outdated
from understudy.actors.policy_actor import PolicyActor
from understudy.actors.policy_source import source_of
from understudy.actors.records import Event, NewRun, Receipt, run_id_on
from understudy.cluster.auditing import entries_of, verify
from understudy.policies.budget import Short, Title
from understudy.policies.grant import GRANT_TTL_S, Grant, GrantRefused, check
from understudy.policies.permission import Request
from understudy.policies.policy_file import canonical, from_canonical, load_policy

SECRET = b"0123456789abcdef0123456789abcdef"


class Bill(BaseModel):
    paid: bool = False


@tool
def pay() -> bool:
    return True


def text(effect: str, name: str = "shop", more: str = "", version: str = "1") -> str:
    return f"{{policy: {name}, version: {version}, {more} rules: [{{id: r, effect: {effect}, tool: pay}}]}}"


def request(tool: str = "pay") -> Request:
    return Request(tool, {}, "r00-a", "refund", "d", code="c")


def grant_in(found: Granted, card: str = "") -> Grant:
    about: Any = {"run_id": "r00-a", "key": "key", "tool": "pay", "digest": "d", "args": {"card": card} if card else {}}
    return check(found.token, SECRET, **about, code="c", order=found.order, now=time.time())


async def asked(actor: PolicyActor) -> Verdict:
    return await actor.decide(request(), "key", 1, "", False)


async def opened() -> MemoryStore:
    return MemoryStore()


def test_the_policy_actor_takes_up_a_change_and_records_which_text_decided(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))

    async def played() -> None:
        actor = PolicyActor(opened, SECRET, source_of(file))
        await actor.ready()
        first = await asked(actor)
        assert isinstance(first, Granted)
        grant = grant_in(first)
        assert grant.rule == "r"
        known = source_of(file)
        report, newer = await actor.report(known)
        assert first.noted["policies"] == report["layers"]
        assert newer is None

        file.write_text(text("deny", version="2"))

        async def denied() -> bool:
            return isinstance(await asked(actor), Refused)

        await wait_until_async(denied, 20, "the change to be taken up")
        second = await asked(actor)
        assert [layer["version"] for layer in second.noted["policies"]] == ["2"]
        assert second.noted["policies"][0]["digest"] != first.noted["policies"][0]["digest"]
        report, newer = await actor.report(known)
        assert newer == source_of(file)

        file.write_text("broken: [")

        async def told() -> bool:
            return "it is no YAML" in (await actor.report(known))[0]["problem"]

        await wait_until_async(told, 20, "the problem to be told")
        assert isinstance(await asked(actor), Refused)

    run_async(played())


def test_a_grant_names_all_the_policies_that_decided(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"

    async def digest(version: str) -> str:
        file.write_text(text("allow", version=version))
        verdict = await asked(PolicyActor(opened, SECRET, source_of(file)))
        assert isinstance(verdict, Granted)
        found = grant_in(verdict)
        return found.policy_digest

    async def played() -> None:
        assert await digest("1") == await digest("1") != await digest("2")

    run_async(played())


def test_each_grant_is_another_one_for_this_code_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))

    async def played() -> None:
        actor = PolicyActor(opened, SECRET, source_of(file))
        found = [await actor.decide(replace(request(), code=code), "key", 1, "", False) for code in ("c", "c", "d")]
        one, other, third = (each for each in found if isinstance(each, Granted))
        assert len({one.order, other.order, third.order}) == 3
        grant = grant_in(one)
        assert grant.id == one.order
        assert grant.expires_at - grant.issued_at == GRANT_TTL_S
        assert abs(grant.issued_at - time.time()) < GRANT_TTL_S
        with pytest.raises(GrantRefused, match="wrong code"):
            grant_in(third)

    run_async(played())


def test_a_grant_says_of_which_folders_rules_have_asked(tmp_path: Path) -> None:
    """So that whoever has the files sees where a path leads."""
    file = tmp_path / "policy.yaml"
    deny = "{id: d, effect: deny, tool: '*', when: {to: {under: [/srv/b, /srv/a]}, x: {eq: 1}}}"
    more = "{id: o, effect: deny, tool: other, when: {to: {under: /etc}}}"
    file.write_text(f"{{policy: p, version: 1, rules: [{{id: r, effect: allow, tool: pay}}, {deny}, {more}]}}")

    async def played() -> None:
        found = await asked(PolicyActor(opened, SECRET, source_of(file)))
        assert isinstance(found, Granted)
        assert grant_in(found).paths == (("to", ("/srv/b", "/srv/a")),)

    run_async(played())


def test_the_policy_actor_looks_at_what_the_run_has_done(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    leak = "{id: leak, effect: deny, tool: pay, after: {tool: read_secret}}"
    file.write_text(f"{{policy: p, version: 1, rules: [{{id: r, effect: allow, tool: pay}}, {leak}]}}")
    run, store = run_id_on("t", "run"), MemoryStore()

    async def same() -> MemoryStore:
        return store

    async def played() -> None:
        await store.create(NewRun(run, "t", "g", "1", "{}", "{}", "d"), [], {}, 1.0)
        await store.claim(run, "one", 60.0, 2.0)
        actor, asks = PolicyActor(same, SECRET, source_of(file)), replace(request(), run_id=run)
        assert isinstance(await actor.decide(asks, "key", 1, "", False), Granted)
        receipt = Receipt("k", run, "", "task", "read_secret", "d", "started", "s", "t1")
        await store.begin(receipt, 1, [Event("decided", 3.0, {"tool": "read_secret", "decision": "allow"})], {}, 3.0)
        assert isinstance(await actor.decide(asks, "key", 1, "", False), Refused)

    run_async(played())


@pytest.mark.parametrize("effect", ["allow", "ask", "deny"])
def test_what_is_redacted_is_not_in_the_audit_log(tmp_path: Path, effect: str) -> None:
    file = tmp_path / "policy.yaml"
    rule = f"{{id: r, effect: {effect}, tool: pay, redact: [card.number], when: {{card.number: {{ne: x}}}}}}"
    file.write_text(f"{{policy: p, version: 1, rules: [{rule}]}}")
    store = MemoryStore()

    async def same() -> MemoryStore:
        return store

    async def played() -> None:
        actor = PolicyActor(same, SECRET, source_of(file))
        for card in ({"number": "4111-1111", "name": "ann"}, {"name": "4111-1111"}, "4111-1111"):
            await actor.decide(replace(request(), args={"card": card}), "key", 1, "", False)
        one, other, odd = [entry async for _, entry in entries_of(store)]
        assert "4111" not in repr(one)
        assert "ann" in repr(one), "and no more is hidden than that"
        assert "4111" in repr(other)
        assert "4111" not in repr(odd)

    run_async(played())


def test_every_decision_is_in_the_audit_log_before_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))
    secretive = Request("pay", {"card": "4111-1111"}, "r00-a", "refund", "d", {"tenant": "a"}, code="c")

    async def played() -> None:
        store = MemoryStore()

        async def same() -> MemoryStore:
            return store

        actor = PolicyActor(same, SECRET, source_of(file))
        granted = await actor.decide(secretive, "key", 1, "", False)
        assert isinstance(granted, Granted)
        grant = grant_in(granted, "4111-1111")
        ((place, entry),) = [found async for found in entries_of(store)]
        assert granted.noted["audit"] == place == "1.0"
        assert (entry["run"], entry["key"], entry["tool"], entry["digest"]) == ("r00-a", "key", "pay", "d")
        assert (entry["decision"], entry["grant"], entry["labels"]) == ("allow", grant.id, {"tenant": "a"})
        assert [layer["digest"] for layer in entry["policies"]] == [granted.noted["policies"][0]["digest"]]

        verdicts = await asyncio.gather(*(asked(PolicyActor(same, SECRET, source_of(None))) for _ in range(3)))
        assert all(isinstance(verdict, Refused) for verdict in verdicts)
        found = [entry async for _, entry in entries_of(store)]
        assert [entry["decision"] for entry in found] == ["allow", "deny", "deny", "deny"]
        assert sorted(verdict.noted["audit"] for verdict in verdicts) == ["2.0", "3.0", "4.0"]
        assert (await verify(store, SECRET)).fault is None

    run_async(played())


def test_a_runs_own_policy_is_the_one_that_was_signed_under_its_name() -> None:
    """Whoever can write to the store exchanges it for another one of this deployment's, or writes one himself."""
    strict, lax = (canonical(load_policy(text(effect), source="own")).encode() for effect in ("deny", "allow"))

    async def said(stored: bytes) -> str:
        store = MemoryStore()
        await store.put_blob(digest_of(strict), stored, 1.0)

        async def same() -> MemoryStore:
            return store

        try:
            verdict = await PolicyActor(same, SECRET, source_of(None)).decide(
                request(), "k", 1, digest_of(strict), False
            )
        except CodeError as error:
            return str(error)
        return type(verdict).__name__

    assert run_async(said(sign_blob(strict, SECRET))) == "Refused"
    assert "has other contents than its name says" in run_async(said(sign_blob(lax, SECRET)))
    for forged in (sign_blob(strict, b"another secret, of somebody else"), strict, lax):
        assert "not signed with this deployment's key" in run_async(said(forged))


@pytest.mark.parametrize("approved", [False, True])
def test_a_runs_own_policy_tightens_the_deployments_and_a_word_of_a_person_is_no_more_than_that(
    tmp_path: Path, approved: bool
) -> None:
    """Also once the deployment's was exchanged, while the question was open."""
    strictness = ["allow", "ask", "deny"]
    kinds = {"allow": Granted, "ask": Granted if approved else Asked, "deny": Refused}
    store = MemoryStore()

    async def same() -> MemoryStore:
        return store

    async def played() -> None:
        for theirs in strictness:
            file = tmp_path / f"{theirs}.yaml"
            file.write_text(text(theirs))
            actor = PolicyActor(same, SECRET, source_of(file))
            for mine in strictness:
                own = canonical(load_policy(text(mine, "own"), source="own")).encode()
                await store.put_blob(digest_of(own), sign_blob(own, SECRET), 1.0)
                found = await actor.decide(request(), "k", 1, digest_of(own), approved)
                assert type(found) is kinds[max(theirs, mine, key=strictness.index)], (theirs, mine)
                assert [layer["policy"] for layer in found.noted["policies"]] == ["shop", "own"]
                nothing = await actor.decide(request("refund"), "k", 1, digest_of(own), approved)
                assert isinstance(nothing, Refused)

    run_async(played())


def test_a_budget_that_has_another_limit_in_the_policy_withdraws_the_questions_about_it(tmp_path: Path) -> None:
    """Of the deployment; a run's own policy stays what it was."""
    file = tmp_path / "policy.yaml"

    def write(limit: int) -> None:
        budget = f"budgets: [{{id: few, scope: run, limits: {{calls: {limit}}}, at_limit: ask}}],"
        file.write_text(text("allow", more=budget, version=str(limit)))

    def says(layer: str) -> Any:
        title = Title("run", "r", layer, "shop", "few")
        told = Short(title, "ask", "calls", Decimal(1), Decimal(2), Decimal(2)).told()
        return lambda request, approved: Asked("", "shop", "it is dear", {"budgets": [told]})

    async def node(state: Bill, ctx: Context) -> None:
        await ctx.call(pay)

    async def played() -> None:
        async def open_it() -> MemoryStore:
            return store

        write(2)
        store = MemoryStore()
        graph = Graph("refund", Bill)
        graph.node(node, name="work")
        graph.edge(START, "work").edge("work", END)
        runs = []
        for layer in ("deployment", "run"):
            stage = Stage(store, graph, YesPolicy({"pay": says(layer)}))
            runs.append(await stage.start())
            assert await stage.drive(runs[-1]) == "waiting"
        layers = [from_canonical(layer) for layer in source_of(file).texts]
        assert await withdraw_outdated(store, AuditLog(open_it, SECRET), layers) == []

        actor = PolicyActor(open_it, SECRET, source_of(file))
        await actor.ready()
        write(3)

        async def withdrawn() -> bool:
            return (await runs[0].record()).status == "queued"

        await wait_until_async(withdrawn, 20, "the question to be withdrawn")
        assert (await runs[1].record()).status == "waiting"
        entries = [entry async for _, entry in entries_of(store)]
        assert [(entry["said"], entry["run"]) for entry in entries] == [("withdrawn", runs[0].run_id)]
        write(2)  # it is asked anew, and has the old number again
        assert await Stage(store, graph, YesPolicy({"pay": says("deployment")})).drive(runs[0]) == "waiting"

    run_async(played())
