"""Budgets in runs: what is held before a call, what it is charged after, and what happens at the limit."""

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stage import Stage
from understudy import (
    END,
    START,
    AnswerNeeded,
    BudgetExceeded,
    CallerError,
    Context,
    Graph,
    Paid,
    Retry,
    RunFailed,
    SteppedClock,
    ToolDenied,
    UnderstudyError,
    append,
    open_store,
    tool,
)
from understudy.actors.accounts import SHELF, account_in
from understudy.actors.budgets import Budgets
from understudy.actors.inline_ports import RulesPolicy
from understudy.actors.memory import MemoryStore
from understudy.actors.reconciled import EndUnknown
from understudy.actors.store import Store
from understudy.policies.budget import Account, lift, to_data
from understudy.policies.permission import Allow, Request
from understudy.policies.policy_file import load_policy
from understudy.policies.profile import Limits, Profile

NOON = 1_795_608_000.0  # 2026-11-25T12:00:00Z


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []
    n: int = 0


@tool
def search(words: str) -> dict[str, Any]:
    return {"found": words, "usage": {"total": 7, "price": "0.002"}}


@tool
def pay(amount: int) -> int:
    return amount


@tool
def vanishes(n: int) -> Any:
    raise EndUnknown("its server was lost")


@tool
def fails(why: str) -> int:
    raise ValueError(why)


def graph_of(work: Callable[..., Any], name: str = "shop") -> Graph:
    graph = Graph(name, Note)
    graph.node(work, name="work")
    graph.edge(START, "work").edge("work", END)
    return graph


def policy(budgets: str, *rules: str, extra: str = "") -> str:
    listed = ", ".join(rules) or "{id: all, effect: allow, tool: '*'}"
    return f"{{policy: shop, version: 1, {extra} budgets: [{budgets}], rules: [{listed}]}}"


def calls(count: int) -> Callable[..., Any]:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        seen = []
        for n in range(count):
            try:
                seen.append((await ctx.call(search, words=str(n)))["found"])
            except ToolDenied as denied:
                seen.append(denied.outcome.said.removeprefix("BudgetExceeded: "))
        return {"seen": seen}

    return work


async def accounts(store: Store) -> dict[str, Account]:
    return {document.name: account_in(document) for document in await store.documents(SHELF)}


def play(
    work: Callable[..., Any], rules: str, store: Store | None = None, **how: Any
) -> tuple[Note, dict[str, Account]]:
    store = store or MemoryStore()
    note = graph_of(work).run_inline({}, store=store, policy=rules, **how)
    return note, asyncio.run(accounts(store))


def test_at_the_limit_a_call_is_refused_with_budget_limit_spent_held_and_remedy() -> None:
    note, found = play(calls(4), policy("{id: few, scope: run, limits: {calls: 2}}"))
    assert note.seen[:2] == ["0", "1"]
    assert note.seen[2] == note.seen[3]
    (name,) = found
    assert note.seen[2] == (
        f"budget 'few' of policy 'shop' (run {found[name].title.of!r}) is at its limit: 1 call wanted, the limit is "
        f"2, spent are 2 and held 0; raise it with `understudy budgets --raise calls=AMOUNT {name}`, or in the policy"
    )
    assert found[name].settled["calls"] == 2
    assert found[name].held == {}


def test_the_limits_of_the_call_are_what_is_held_of_seconds_and_bytes() -> None:
    rule = "{id: all, effect: allow, tool: search, limits: {wall: 9s, output: 1KiB}}"
    note, _ = play(calls(2), policy("{id: b, scope: run, limits: {seconds: 9}}", rule))
    assert note.seen[0] == "0"
    assert "9 seconds wanted, the limit is 9, spent are 0.0" in note.seen[1]
    note, _ = play(calls(2), policy("{id: b, scope: run, limits: {bytes: 2KiB}}", rule))
    assert "2048 bytes wanted, the limit is 2048, spent are 55 and held 0" in note.seen[1]


def test_the_worst_case_is_held_and_what_it_was_is_settled() -> None:
    rule = "{id: all, effect: allow, tool: search, cost: {tokens: {most: 50, told: usage.total}, money: 1}}"
    note, found = play(calls(4), policy("{id: b, scope: run, limits: {tokens: 64, money: 9}}", rule))
    (account,) = found.values()
    assert note.seen[:3] == ["0", "1", "2"]
    assert "50 tokens wanted, the limit is 64, spent are 21 and held 0" in note.seen[3]
    assert (account.settled["tokens"], account.settled["money"], account.settled["calls"]) == (21, 3, 3)
    assert 0 < account.settled["seconds"] < 30
    size = len(json.dumps(search.fn("0"), ensure_ascii=False).encode())
    assert account.settled["bytes"] == 3 * size


def test_a_call_that_raises_is_charged_what_it_may_have_cost() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [(await ctx.outcome(fails, why="no")).kind]}

    rule = "{id: all, effect: allow, tool: fails, cost: {tokens: {most: 50, told: usage}}}"
    note, found = play(work, policy("{id: b, scope: run, limits: {tokens: 64}}", rule))
    (account,) = found.values()
    assert (note.seen, account.settled["tokens"], account.settled["calls"]) == (["error"], 50, 1)


def test_no_answer_of_a_tool_costs_more_than_was_held_or_less_than_nothing() -> None:
    answers = iter([10**9, -5, "a", True, "7.5", {"a": 1}, None, "1e400", "nan"])

    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        for n in range(9):
            await ctx.call(search, words=str(n))
        return {}

    rule = "{id: all, effect: allow, tool: search, cost: {tokens: {most: 50, told: usage.total}}}"
    store = MemoryStore()
    stand_ins = {"search": lambda words: {"usage": {"total": next(answers)}}}
    _, found = play(work, policy("{id: b, scope: run, limits: {tokens: 10000}}", rule), store, tools=stand_ins)
    (account,) = found.values()
    assert account.settled["tokens"] == 8 * 50 + Decimal("7.5")


def test_without_budgets_no_account_is_read_or_written() -> None:
    shelves_read: list[str] = []

    class Watched(MemoryStore):
        async def read_document(self, shelf: str, name: str) -> Any:
            shelves_read.append(shelf)
            return await super().read_document(shelf, name)

    store = Watched()

    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await ctx.call(search, words="a")
        await ctx.effect("think", lambda: 1, cost={"tokens": 3})
        return {}

    play(work, "{policy: p, version: 1, rules: [{id: a, effect: allow, tool: search, cost: {tokens: 5}}]}", store)
    assert shelves_read == []
    receipts = asyncio.run(all_receipts(store))
    assert not any("cost" in json.loads(receipt.outcome) for receipt in receipts)


async def all_receipts(store: Store) -> list[Any]:
    return [receipt for run in await store.runs() for receipt in await store.receipts(run.run_id)]


# --- effects of nodes ---


def test_an_effect_that_says_what_it_may_cost_is_counted_and_says_what_it_did() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        seen: list[Any] = []
        for n in range(9):
            cost = {"tokens": 100, "money": "0.5"}
            answer = Paid(f"answer {n}", tokens=20, money="0.01") if n else f"answer {n}"
            try:
                seen.append(await ctx.effect("ask", lambda answer=answer: answer, cost=cost))
            except BudgetExceeded as error:
                return {"seen": [*seen, error.error]}
        return {"seen": seen}

    note, found = play(work, policy("{id: b, scope: run, limits: {tokens: 250}}"))
    (account,) = found.values()
    assert note.seen[:3] == [
        "answer 0",
        "answer 1",
        "answer 2",
    ]  # 100, 120, 140 tokens; and there 100 more would be 240
    assert "100 tokens wanted, the limit is 250, spent are 160 and held 0" in note.seen[-1]
    assert (account.settled["tokens"], account.settled["money"]) == (160, Decimal("0.53"))
    assert account.settled["calls"] == 4


def test_an_effect_that_cost_more_than_it_said_is_charged_that_and_then_nothing_goes() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await ctx.effect("ask", lambda: Paid(1, tokens=900), cost={"tokens": 100})
        with pytest.raises(ToolDenied, match="0 tokens wanted, the limit is 500, spent are 900"):
            await ctx.call(search, words="free")
        return {}

    play(work, policy("{id: b, scope: run, limits: {tokens: 500}}"))


def test_an_effect_that_raises_has_cost_all_and_one_that_says_nothing_beforehand_is_not_counted() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        def breaks() -> None:
            raise ConnectionError

        with pytest.raises(Exception, match="ConnectionError"):
            await ctx.effect("ask", breaks, cost={"tokens": 100})
        assert await ctx.effect("other", lambda: Paid([1], tokens=10**6)) == [1]
        await ctx.effect("third", lambda: 1, cost={})
        return {}

    _, found = play(work, policy("{id: b, scope: run, limits: {tokens: 500}}"))
    (account,) = found.values()
    assert (account.settled["tokens"], account.settled["calls"]) == (100, 2)


@pytest.mark.parametrize(
    "cost", [{"euros": 1}, {"tokens": -1}, {"tokens": "many"}, {"tokens": True}, 5, {"money": "nan"}]
)
def test_a_cost_that_is_none_is_refused(cost: Any) -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        with pytest.raises(CallerError, match="cost"):
            ctx.effect("ask", lambda: 1, cost=cost)
        return {}

    play(work, policy("{id: b, scope: run, limits: {tokens: 500}}"))


# --- whose budget ---


def test_children_pay_from_the_budget_of_the_run_that_they_come_from_whatever_labels_they_get() -> None:
    grandchild = graph_of(calls(2), "grandchild")

    async def middle(state: Note, ctx: Context) -> dict[str, Any]:
        result = await ctx.run(grandchild, {}, labels={"tenant": "somebody else"})
        return {"seen": [*(await calls(1)(state, ctx))["seen"], *result.seen]}

    child = graph_of(middle, "child")

    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        first = await calls(1)(state, ctx)
        result = await ctx.run(child, {})
        return {"seen": [*first["seen"], *result.seen, *(await calls(1)(state, ctx))["seen"]]}

    budgets = "{id: r, scope: run, limits: {calls: 4}}, {id: t, scope: thread, limits: {calls: 9}}"
    rules = policy(budgets + ", {id: c, scope: tenant, limits: {calls: 9}}")
    note, found = play(work, rules, labels={"tenant": "acme"})
    assert len(found) == 3
    assert {account.settled["calls"] for account in found.values()} == {4}
    assert sum(len(each) < 3 for each in note.seen) == 4
    assert {account.title.of for account in found.values() if account.title.scope == "tenant"} == {"acme"}


def test_runs_on_a_thread_and_runs_of_a_tenant_share_what_is_theirs() -> None:
    store, clock = MemoryStore(), SteppedClock(NOON)
    budgets = "{id: r, scope: run, limits: {calls: 2}}, {id: t, scope: thread, limits: {calls: 3}}, "
    rules = policy(budgets + "{id: c, scope: tenant, label: customer, per: day, limits: {calls: 4}}")

    def granted(thread: str, customer: str) -> int:
        how: dict[str, Any] = {"thread": thread, "labels": {"customer": customer}, "clock": clock}
        note, _ = play(calls(3), rules, store, **how)
        return sum(len(each) < 3 for each in note.seen[-3:])

    assert granted("one", "acme") == 2  # the run's
    assert granted("one", "acme") == 1  # the thread's
    assert granted("two", "acme") == 1  # the customer's
    assert granted("two", "other") == 2
    clock.now += 86_400
    assert granted("two", "acme") == 0  # the thread's
    assert granted("three", "acme") == 2
    found = asyncio.run(accounts(store))
    windows = {
        (a.title.of, a.title.window): a.settled.get("calls", 0) for a in found.values() if a.title.scope == "tenant"
    }
    assert windows == {("acme", "2026-11-25"): 4, ("other", "2026-11-25"): 2, ("acme", "2026-11-26"): 2}


def test_a_key_that_is_used_again_charges_nothing_twice() -> None:
    store = MemoryStore()
    rules = policy("{id: few, scope: tenant, limits: {calls: 2}}")
    for _ in range(3):
        note, found = play(calls(1), rules, store, key="once")
        assert note.seen == ["0"]
    assert [account.settled["calls"] for account in found.values()] == [1]


def test_a_budget_survives_a_restart_of_everything(tmp_path: Path) -> None:
    """Nothing of it is in any process: each of these opens the file anew."""
    rules = policy("{id: few, scope: tenant, limits: {calls: 3}}")

    async def opened() -> Store:
        return await open_store(f"sqlite://{tmp_path}/one.db")

    for granted in (2, 1, 0):
        note = graph_of(calls(2)).run_inline({}, store=opened, policy=rules)
        assert sum(len(each) < 3 for each in note.seen) == granted


def test_a_node_that_runs_again_pays_once_and_a_second_attempt_pays_again() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await ctx.call(search, words="before")
        answer = await ctx.interrupt("go on?")  # here it leaves, and runs again
        await ctx.outcome(fails, why="x")
        return {"seen": [answer]}

    _, found = play(work, policy("{id: few, scope: run, limits: {calls: 2}}"), answers={"work": "yes"})
    assert [account.settled["calls"] for account in found.values()] == [2]


def test_a_call_whose_end_nobody_knows_stays_held_until_somebody_knows_and_is_never_free() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [(await ctx.outcome(vanishes, n=1)).kind]}

    rule = "{id: all, effect: allow, tool: vanishes, cost: {tokens: {most: 50, told: usage}}}"
    store, rules = MemoryStore(), policy("{id: b, scope: run, limits: {tokens: 99}}", rule)
    with pytest.raises(AnswerNeeded):
        play(work, rules, store, key="one")
    (account,) = asyncio.run(accounts(store)).values()
    assert (len(account.held), account.settled) == (1, {})
    note, found = play(work, rules, store, key="one", answers={"vanishes": {"value": 7}})
    (account,) = found.values()
    assert (note.seen, account.held, account.settled["tokens"]) == (["ok"], {}, 50)


def test_one_that_is_made_again_under_its_name_is_held_and_charged_once() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [await ctx.call(vanishes, n=2)]}

    answers = iter([EndUnknown("gone"), {"usage": 7}])

    def stand_in(n: int) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    rule = "{id: all, effect: allow, tool: vanishes, cost: {tokens: {most: 50, told: usage}}}"
    rules = policy("{id: b, scope: run, limits: {tokens: 60, calls: 1}}", rule)
    _, found = play(work, rules, tools={"vanishes": stand_in}, answers={"vanishes": "retry"})
    (account,) = found.values()
    assert (account.held, account.settled["tokens"], account.settled["calls"]) == ({}, 7, 1)


def test_a_fork_has_a_budget_of_its_own() -> None:
    store = MemoryStore()
    rules = policy("{id: few, scope: run, limits: {calls: 2}}, {id: all, scope: tenant, limits: {calls: 3}}")

    async def played() -> dict[str, Account]:
        graph = Graph("shop", Note)
        graph.node(lambda state: None, name="begin")
        graph.node(calls(2), name="work")
        graph.edge(START, "begin").edge("begin", "work").edge("work", END)
        stage = Stage(store, graph, RulesPolicy([load_policy(rules, source="shop")], store))  # type: ignore[arg-type]
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        first = (await run.history())[-1]
        fork = await run.fork(first.checkpoint_id, effects="repeat")
        assert await stage.drive(fork) == "succeeded"
        granted, refused = (await fork.result()).seen
        assert granted == "0"
        assert "budget 'all'" in refused
        return await accounts(store)

    found = asyncio.run(played())
    assert sorted(a.settled["calls"] for a in found.values()) == [1, 2, 3]


# --- at the limit ---


def test_a_run_that_failed_of_it_goes_on_when_it_is_retried_with_more() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await ctx.effect("ask", lambda: 1, cost={})
        return {"seen": [await ctx.call(search, words=str(n)) for n in range(2)]}

    store, rules = MemoryStore(), policy("{id: few, scope: run, limits: {calls: 2}}")
    for more in (0, 1):
        with pytest.raises(RunFailed, match="1 call wanted"):
            play(work, rules, store, key="one")
        asyncio.run(again(store, Decimal(more)))
    note, found = play(work, rules, store, key="one")
    assert len(note.seen) == 2
    assert [account.settled["calls"] for account in found.values()] == [3]


async def again(store: Store, more: Decimal) -> None:
    """Raise the limits, and have the run retried."""
    for document in await store.documents(SHELF):
        account = lift(account_in(document), {"calls": more})
        await store.write_document(SHELF, document.name, json.dumps(to_data(account)).encode(), document.version)
    (run,) = await store.runs()
    await store.retry(run.run_id, 0.0)


@pytest.mark.parametrize("effect", [True, False])
def test_a_retry_of_the_node_does_not_ask_a_budget_again(effect: bool) -> None:
    tries: list[int] = []

    async def work(state: Note, ctx: Context) -> None:
        tries.append(1)
        for n in range(2):
            await (ctx.effect("ask", lambda: 1, cost={}) if effect else ctx.call(search, words=str(n)))

    graph = Graph("shop", Note)
    graph.node(work, name="work", retry=Retry(attempts=3, on=(UnderstudyError,)))
    graph.edge(START, "work").edge("work", END)
    with pytest.raises(RunFailed):
        graph.run_inline({}, policy=policy("{id: few, scope: run, limits: {calls: 1}}"))
    assert tries == [1]


def test_a_person_is_asked_call_by_call_and_what_they_agree_to_goes_beyond() -> None:
    asked: list[Any] = []

    def answer(question: Any) -> Any:
        asked.append(question.payload)
        return len(asked) == 1

    store, rules = MemoryStore(), policy("{id: few, scope: run, limits: {calls: 1}, at_limit: ask}")
    note, found = play(calls(3), rules, store, answers=answer)
    assert note.seen[:2] == ["0", "1"]
    assert note.seen[2].startswith("a person said no; budget 'few'")
    counted = asyncio.run(store.counters())
    reached = {name: n for name, n in counted.items() if name.startswith("budget_limits_reached_total")}
    assert reached == {
        f'budget_limits_reached_total{{budget="few",decision="{decision}",policy="shop"}}': 1.0
        for decision in ("allow", "deny")
    }
    assert [each["tool"] for each in asked] == ["search", "search"]
    (told,) = asked[0]["budgets"]
    assert (told["budget"], told["limit"], told["spent"], told["wanted"]) == ("few", "1", "1", "1")
    assert "approve it to go beyond that with this one call" in asked[0]["reason"]
    assert [account.settled["calls"] for account in found.values()] == [2]


def test_the_question_waits_in_the_store_and_who_agreed_is_on_record() -> None:
    async def played() -> None:
        store = MemoryStore()
        rules = load_policy(policy("{id: few, scope: run, limits: {calls: 1}, at_limit: ask}"), source="shop")
        stage = Stage(store, graph_of(calls(2)), RulesPolicy([rules], store))  # type: ignore[arg-type]
        run = await stage.start()
        assert await stage.drive(run) == "waiting"
        (question,) = await run.questions()
        assert question.kind == "approval"
        stage.policy = RulesPolicy([rules], store)  # type: ignore[assignment]  # another process
        await run.approve(question.interrupt_id, by="ann", note="just this once")
        assert await stage.drive(run) == "succeeded"
        assert (await run.result()).seen == ["0", "1"]
        *_, last = [event.data for event in await store.events(run.run_id) if event.kind == "decided"]
        assert last["by"] == "a person (ann)"
        assert last["reason"] == "a person (ann) lets it go beyond its budget: just this once"
        assert last["beyond"][0]["budget"] == "few"

    asyncio.run(played())


def test_an_approval_of_the_call_is_none_of_what_it_costs() -> None:
    asked: list[str] = []

    def answer(question: Any) -> bool:
        asked.append("budget" if "budgets" in question.payload else question.payload["rule"])
        return "budgets" not in question.payload

    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        return {"seen": [(await ctx.outcome(pay, amount=n)).kind for n in range(2)]}

    rules = policy("{id: few, scope: run, limits: {calls: 1}, at_limit: ask}", "{id: p, effect: ask, tool: pay}")
    note, _ = play(work, rules, answers=answer)
    assert note.seen == ["ok", "denied"]
    assert asked == ["p", "p", "budget"]


def test_nobody_is_asked_about_a_call_that_cannot_be_paid_for_anyway() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await ctx.call(search, words="a")
        return {"seen": [(await ctx.outcome(pay, amount=1)).error]}

    rules = ("{id: p, effect: ask, tool: pay}", "{id: s, effect: allow, tool: search}")
    note, _ = play(work, policy("{id: few, scope: run, limits: {calls: 1}}", *rules))
    assert "budget 'few'" in note.seen[0]


def test_an_effect_asks_too_and_a_no_is_told_to_the_node() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        seen: list[Any] = []
        for n in range(3):
            try:
                seen.append(await ctx.effect("ask", lambda n=n: n, cost={}))
            except BudgetExceeded as error:
                seen.append(error.error.partition(";")[0])
        return {"seen": seen}

    answers = iter([True, False])
    rules = policy("{id: few, scope: run, limits: {calls: 1}, at_limit: ask}")
    note, found = play(work, rules, answers=lambda _: next(answers))
    assert note.seen == [0, 1, "a person said no"]
    assert [account.settled["calls"] for account in found.values()] == [2]


def test_degraded_some_tools_stop_and_others_go_on() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        searched = (await calls(2)(state, ctx))["seen"]
        paid = [await ctx.call(pay, amount=n) for n in range(2)]
        with pytest.raises(BudgetExceeded, match="and then tool 'effect:ask-large' stops"):
            await ctx.effect("ask-large", lambda: 1, cost={})
        return {"seen": [*searched, *paid, await ctx.effect("ask-small", lambda: 7, cost={})]}

    store = MemoryStore()
    degrade = "{deny: [search, 'effect:*-large'], limits: {wall: 2s}}"
    rules = policy(f"{{id: few, scope: run, limits: {{calls: 1}}, at_limit: degrade, degrade: {degrade}}}")
    note, found = play(work, rules, store)
    assert note.seen[0] == "0"
    assert "and then tool 'search' stops" in note.seen[1]
    assert note.seen[2:] == [0, 1, 7]
    (account,) = found.values()
    assert account.settled["calls"] == 4
    decided = asyncio.run(events(store, "decided"))
    assert ["beyond" in event.data for event in decided if event.data["tool"] == "pay"] == [True, True]


def test_degraded_a_call_gets_the_lower_limits_and_is_still_held_in_full() -> None:
    degrade = "at_limit: degrade, degrade: {limits: {wall: 2s, memory: 10GiB}}"
    rules = load_policy(policy(f"{{id: few, scope: run, limits: {{calls: 1}}, {degrade}}}"), source="shop")

    async def played() -> None:
        store = MemoryStore()

        async def opened() -> Store:
            return store

        allow = Allow("a", "shop", Profile(limits=Limits(wall_s=9.0)))
        request = Request("pay", {}, "r00-1", "shop", "d", thread_id="t")
        for key, wall_s in (("k", 9.0), ("l", 2.0)):
            judged = await Budgets(opened).judge([("run", rules)], request, allow, key, 1, False, NOON)
            assert isinstance(judged.decision, Allow)
            assert judged.decision.profile.limits == Limits(wall_s=wall_s)
            assert judged.bill.amounts["seconds"] == 9

    asyncio.run(played())


async def events(store: Store, kind: str) -> list[Any]:
    (run,) = await store.runs()
    return [event for event in await store.events(run.run_id) if event.kind == kind]


def test_the_strictest_of_several_budgets_decides_and_nothing_stays_held_in_the_others() -> None:
    budgets = "{id: a, scope: run, limits: {calls: 1}, at_limit: ask}, {id: b, scope: tenant, limits: {calls: 1}}"
    note, found = play(calls(2), policy(budgets + ", {id: c, scope: thread, limits: {calls: 5}}"))
    assert "budget 'b'" in note.seen[1]
    assert all(not account.held and account.settled["calls"] == 1 for account in found.values())


@pytest.mark.parametrize("at_limit", ["stop", "ask"])
def test_what_is_held_in_some_accounts_is_given_back_at_once_where_another_is_short(at_limit: str) -> None:
    few = f"{{id: few, scope: thread, limits: {{calls: 1}}, at_limit: {at_limit}}}"
    rules = load_policy(policy(f"{{id: enough, scope: run, limits: {{calls: 5}}}}, {few}"), source="p")

    async def played() -> None:
        store = MemoryStore()

        async def opened() -> Store:
            return store

        shop = Budgets(opened)
        for key, allowed in (("k", True), ("l", False)):
            request = Request("pay", {}, f"r00-{key}", "shop", "d", thread_id="t")
            judged = await shop.judge([("run", rules)], request, Allow("a", "shop", Profile()), key, 1, False, NOON)
            assert isinstance(judged.decision, Allow) is allowed
        assert [sorted(account.held) for account in (await accounts(store)).values()] == [["k"], [], ["k"]]

    asyncio.run(played())


def test_a_failed_run_says_why() -> None:
    async def work(state: Note, ctx: Context) -> dict[str, Any]:
        await asyncio.gather(*(ctx.call(search, words=str(n)) for n in range(4)))
        return {}

    store = MemoryStore()
    with pytest.raises(RunFailed, match="is at its limit"):
        play(work, policy("{id: few, scope: run, limits: {calls: 3}}"), store)
    (account,) = asyncio.run(accounts(store)).values()
    assert account.settled["calls"] == 3
    assert not account.held
