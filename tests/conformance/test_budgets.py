"""Budgets on every store: many draw at the same time, from several processes' clients, and never more than there is."""

import asyncio
from decimal import Decimal
from typing import Any

from conformance.conftest import MakeWorld

from support.waiting import run_async
from understudy.actors.accounts import SHELF, Accounts, account_in
from understudy.actors.budgets import Budgets, Judged
from understudy.actors.store import Store
from understudy.policies.budget import amounts_in
from understudy.policies.permission import Allow, Deny, Request
from understudy.policies.policy_file import load_policy
from understudy.policies.profile import Profile

POLICY = load_policy(
    "{policy: shop, version: 1, rules: [], budgets: [{id: all, scope: tenant, limits: {calls: 20, money: 10}},"
    " {id: own, scope: run, limits: {calls: 8}}]}",
    source="shop.yaml",
)
CLIENTS, RUNS, CALLS = 3, 3, 10


def of(store: Store) -> Any:
    async def opened() -> Store:
        return store

    return opened


def test_draws_at_the_same_time_stay_within_the_limits(make_world: MakeWorld) -> None:
    world = make_world()

    async def played() -> None:
        stores = [await world.open() for _ in range(CLIENTS)]
        drawing = [Budgets(of(store)) for store in stores]
        allow = Allow("any", "shop", Profile())

        async def draws(run: int, call: int) -> tuple[str, Judged]:
            request = Request("pay", {}, f"r00-{run}", "shop", "d", {"tenant": "acme"}, thread_id=f"t{run}")
            key = f"{run:08d}{call:024d}"
            by = drawing[(run + call) % CLIENTS]
            return key, await by.judge([("deployment", POLICY)], request, allow, key, 1, False, 10.0)

        drawn = await asyncio.gather(*(draws(run, call) for run in range(RUNS) for call in range(CALLS)))
        granted = {key: judged.bill for key, judged in drawn if judged.bill}
        assert all(isinstance(judged.decision, Deny) for _, judged in drawn if not judged.bill)
        accounts = {a.title.of: a for a in map(account_in, await stores[0].documents(SHELF))}
        assert accounts["acme"].held.keys() == granted.keys()
        assert len(granted) <= 20
        for run in range(RUNS):
            own = {key for key in granted if key.startswith(f"{run:08d}")}
            assert accounts[f"r00-{run}"].held.keys() == own
            assert len(own) <= 8
        # Whoever was refused may have stood in the way of another for a moment; now that all is quiet, nobody does.
        again = [await draws(run, call) for run in range(RUNS) for call in range(CALLS)]
        granted |= {key: judged.bill for key, judged in again if judged.bill}
        assert len(granted) == 20

        paying = [Accounts(of(store)) for store in stores]
        settling = [
            paying[n % CLIENTS].settle(bill.accounts, key, amounts_in({"calls": "1", "money": "0.01"}))
            for n, (key, bill) in enumerate([*granted.items()] * 2)  # each of them twice, by others
        ]
        await asyncio.gather(*settling)
        accounts = {a.title.of: a for a in map(account_in, await stores[1].documents(SHELF))}
        assert not any(account.held for account in accounts.values())
        assert accounts["acme"].settled == {"calls": 20, "money": Decimal("0.2")}
        assert sum(a.settled["calls"] for of, a in accounts.items() if of != "acme") == 20
        for store in stores:
            await store.close()

    run_async(played(), 60)
