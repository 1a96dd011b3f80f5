"""What calls cost is charged once and in full, whoever dies at whatever operation; and nothing stays held for ever."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Graph, Paid, append, tool
from understudy.actors.accounts import SHELF, Accounts, account_in, name_of
from understudy.actors.budget_sweep import KEPT_S, PAGE, GivenBack, Settled, fate_of, sweep_all
from understudy.actors.budgets import Budgets
from understudy.actors.effects import write_outcome
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.actors.records import NewRun, Receipt, RunRecord
from understudy.actors.refusals import new_record
from understudy.actors.start import create
from understudy.actors.store import Store
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points
from understudy.policies.budget import Account, Hold, Title
from understudy.policies.permission import Allow, Request
from understudy.policies.policy_file import load_policy
from understudy.policies.profile import Profile

RULES = """
policy: shop
version: 1
budgets:
  - {id: run, scope: run, limits: {calls: 6, tokens: 60, money: 100}}
  - {id: thread, scope: thread, limits: {tokens: 60}}
rules:
  - {id: look, effect: allow, tool: look, cost: {tokens: {most: 10, told: tokens}}}
  - {id: pay, effect: allow, tool: pay, cost: {tokens: 10}}
"""


class Note(BaseModel):
    seen: Annotated[list[Any], append] = []


@tool(idempotent=True)
def look(what: str) -> dict[str, Any]:
    return {"found": what, "tokens": 10}


@tool
def pay(amount: int) -> int:
    return amount


async def inner(state: Note, ctx: Context) -> dict[str, Any]:
    return {"seen": [(await ctx.call(look, what="inner"))["found"]]}


async def first(state: Note, ctx: Context) -> dict[str, Any]:
    found, paid = await asyncio.gather(ctx.call(look, what="a"), ctx.call(pay, amount=3))
    return {"seen": [found["found"], paid]}


async def second(state: Note, ctx: Context) -> dict[str, Any]:
    thought = await ctx.effect("think", lambda: Paid("deep", tokens=10), cost={"tokens": 10})
    answer = await ctx.interrupt("go on?")
    child = await ctx.run(CHILD, {})
    return {"seen": [thought, answer, *child.seen, await ctx.call(pay, amount=4)]}


CHILD = Graph("inner", Note)
CHILD.node(inner, name="inner")
CHILD.edge(START, "inner").edge("inner", END)
SHOP = Graph("shop", Note)
SHOP.node(first, name="first")
SHOP.node(second, name="second")
SHOP.edge(START, "first").edge("first", "second").edge("second", END)


@pytest.mark.parametrize("victim", VICTIMS)
def test_every_call_is_charged_once_whoever_dies_wherever(victim: Victim) -> None:
    """The limits are what the undisturbed play costs: one charge more, or one held for ever, and a call is refused."""
    store = MemoryStore()

    def charged() -> Iterator[Any]:
        for document in store._shelves.pop(SHELF, {}).values():
            account = account_in(document)
            settled = account.settled
            yield account.title.budget, settled["calls"], settled["tokens"], len(account.held)

    async def opened() -> Store:
        return store

    how: dict[str, Any] = {"policy": RULES, "answers": {"second": "yes"}, "world": charged}
    report = crash_points(SHOP, {}, store=opened, victims=[victim], sample=14, **how)
    assert report.ok, report
    assert "write_document" in report.operations


def test_accounts_of_what_is_gone_are_erased_and_others_stay() -> None:
    now = 1_795_608_000.0

    async def played() -> None:
        store = MemoryStore()

        async def opened() -> Store:
            return store

        accounts = Accounts(opened)
        await create(store, NewRun("r00-here", "here", "shop", "1", "{}", "{}", "d"), now)
        long_ago = ("2026-11-01", now - KEPT_S)
        titles = [Title("run", f"r00-{n:04d}", "run", "shop", "few") for n in range(2 * PAGE + 1)]
        titles += [Title("run", "r00-here", "run", "shop", "few"), Title("thread", "here", "run", "shop", "few")]
        titles += [Title("thread", "gone", "run", "shop", "few"), Title("tenant", "acme", "run", "shop", "few")]
        titles += [
            Title("tenant", "acme", "run", "shop", "daily", *long_ago),
            Title("run", "r00-here", "run", "s", "d", *long_ago),
        ]
        titles += [Title("tenant", "acme", "run", "shop", "daily", "2026-11-25", now + 1)]
        for title in titles:
            opening = opened_with(Account(title, {"calls": Decimal(1)}))
            await accounts.change(name_of(title), opening)
        await sweep_all(store, accounts, now)
        left = {document.name for document in await store.documents(SHELF, limit=1000)}
        assert left == {
            "run/r00-here/run/shop/few",
            "thread/here/run/shop/few",
            "tenant/acme/run/shop/few",
            "tenant/acme/run/shop/daily/2026-11-25",
        }

    asyncio.run(played())


def test_a_child_whose_parent_was_deleted_pays_for_itself() -> None:
    async def played() -> None:
        store = MemoryStore()

        async def opened() -> Store:
            return store

        policy, allow = load_policy(RULES, source="shop.yaml"), Allow("pay", "shop", Profile())
        orphan = replace(RUN, parent="r00-gone")
        judged = await Budgets(opened).judge([("run", policy)], orphan, allow, "k", 1, False, 10.0)
        assert judged.bill.accounts == ("run/r00-1/run/shop/run", "thread/t/run/shop/thread")

    asyncio.run(played())


def opened_with(account: Account) -> Any:
    return lambda found: (found or account, None)


RUN = Request("pay", {}, "r00-1", "shop", "d", thread_id="t", checkpoint_id="c1")
HELD = Hold({"calls": Decimal(1)}, "r00-1", 3, "c1", 10.0)


def run_that(**more: Any) -> RunRecord:
    new = NewRun("r00-1", "t", "shop", "1", "{}", "{}", "d")
    return replace(new_record(new, 0.0), **{"status": "running", "epoch": 3, "head": "c1", **more})


def receipt_that(state: Any, outcome: Outcome | None = None) -> Receipt:
    said = write_outcome(outcome) if outcome else ""
    return Receipt("k", "r00-1", "c1", "task", "pay", "d", state, "s", "token", said, 11.0)


DONE = receipt_that("done", Outcome("ok", cost={"calls": "1", "tokens": "7"}))


@pytest.mark.parametrize(
    ("hold", "run", "receipt", "fate"),
    [
        (HELD, run_that(), None, None),  # its owner may be about to begin it
        (HELD, run_that(epoch=4), None, GivenBack()),  # that owner is gone, and begins nothing any more
        (HELD, run_that(status="waiting"), None, GivenBack()),
        (HELD, run_that(status="failed"), None, GivenBack()),
        (HELD, run_that(epoch=4, head="c2"), None, Settled(None)),  # a receipt may have been pruned since
        (HELD, run_that(), receipt_that("started"), None),
        (HELD, run_that(status="failed"), receipt_that("started"), Settled(None)),
        (HELD, run_that(), receipt_that("unknown"), None),  # it may be made again under its name
        (HELD, run_that(status="cancelled"), receipt_that("unknown"), Settled(None)),
        (HELD, run_that(), DONE, Settled({"calls": Decimal(1), "tokens": Decimal(7)})),
        (HELD, run_that(), receipt_that("done", Outcome("denied", error="no")), GivenBack()),
        (HELD, run_that(), receipt_that("done", Outcome("ok", note="answered by a person")), Settled(None)),
        (replace(HELD, again=True), run_that(), DONE, GivenBack()),  # an old owner asked late; it is paid already
        (HELD, None, None, Settled(None)),
    ],
)
def test_what_becomes_of_what_is_held(hold: Hold, run: RunRecord | None, receipt: Receipt | None, fate: Any) -> None:
    assert fate_of(hold, run, receipt) == fate


def test_what_a_policy_actor_held_that_died_before_it_granted_is_taken_up_by_the_next_or_given_back() -> None:
    policy = load_policy(RULES, source="shop.yaml")

    async def played() -> None:
        store = MemoryStore()

        async def opened() -> Store:
            return store

        async def hold(epoch: int) -> Any:
            allow = Allow("pay", "shop", Profile(), cost=policy.rules[1].cost)
            return await Budgets(opened).judge([("run", policy)], RUN, allow, "k", epoch, False, 10.0)

        async def held() -> list[int]:
            accounts = [account_in(document) for document in await store.documents(SHELF)]
            return [len(account.held) for account in accounts]

        await create(store, NewRun("r00-1", "t", "shop", "1", "{}", "{}", "d"), 0.0)
        assert (await hold(1)).bill
        assert (await hold(2)).bill  # by another actor: the first told nobody
        assert await held() == [1, 1]
        await sweep_all(store, Accounts(opened), 20.0)
        assert await held() == [1, 1]  # too young
        await sweep_all(store, Accounts(opened), 50.0)
        assert await held() == [0, 0]
        await store.delete_thread("t") if (await store.cancel("r00-1", 51.0)).final else None
        await sweep_all(store, Accounts(opened), 60.0)
        assert await store.documents(SHELF) == []

    asyncio.run(played())
