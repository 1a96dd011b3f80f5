"""What a sandbox charges: the calls that it made, from the accounts that their grants name; and no others."""

import asyncio
import json
import time
from decimal import Decimal

from support.scene import SECRET, Scene, kind, take_back
from support.waiting import run_async
from understudy.actors.accounts import SHELF, account_in
from understudy.actors.outcome import Outcome
from understudy.policies.bill import Bill
from understudy.policies.budget import Account, Hold, Title, to_data
from understudy.policies.grant import sign

WORST = {"calls": Decimal(1), "seconds": Decimal(30), "tokens": Decimal(50)}
BILL = Bill(("a", "b"), (("calls", "1"), ("seconds", "30"), ("tokens", "50")))


class Shop(Scene):
    """With two accounts, in which calls are held."""

    async def hold(self, *keys: str) -> None:
        held = {key: Hold(WORST, self.run_id, self.epoch, "", time.time()) for key in keys}  # type: ignore[arg-type]
        for name in BILL.accounts:
            account = Account(Title("tenant", name, "run", "shop", "few"), {"calls": Decimal(9)}, held=held)
            await self.store.write_document(SHELF, name, json.dumps(to_data(account)).encode(), 0)

    def token(self, key: str) -> str:
        return sign(self.grant(key, bill=BILL), SECRET)

    async def account(self) -> Account:
        one, other = [account_in(document) for document in await self.store.documents(SHELF)]
        assert (one.held, one.settled, one.recent) == (other.held, other.settled, other.recent)
        return one


def test_a_call_is_charged_once_and_its_receipt_says_what() -> None:
    async def played() -> None:
        scene = await Shop.made()
        await scene.hold("k1", "k2")
        order = scene.order(scene.token("k1"))
        found = await scene.actor.execute(order)
        assert isinstance(found, Outcome)
        assert (await scene.actor.execute(order)) != found  # the same order again: its receipt
        account = await scene.account()
        assert set(account.held) == {"k2"}
        assert (account.settled["calls"], account.settled["tokens"]) == (1, 50)
        assert account.settled.get("seconds", 0) < 30
        (receipt,) = await scene.store.receipts(scene.run_id)
        assert json.loads(receipt.outcome)["cost"]["tokens"] == "50"

    run_async(played())


def test_a_call_that_never_begins_gives_back_what_was_held_for_it() -> None:
    async def played() -> None:
        scene = await Shop.made(at_once=1)
        await scene.hold("k1", "k2", "k3")
        scene.walls.open.clear()
        at_work = asyncio.ensure_future(scene.actor.execute(scene.order(scene.token("k1"))))
        await scene.walls.began.wait()
        revoked = asyncio.ensure_future(scene.actor.execute(scene.order(scene.token("k2"), "k2")))
        unwanted = asyncio.ensure_future(scene.actor.execute(scene.order(scene.token("k3"), "k3")))
        await asyncio.sleep(0)  # both begin
        await asyncio.sleep(0)  # and wait for room
        await take_back(scene, key="k2")
        await scene.actor.abort("k3", "grant of k3")
        assert kind(await unwanted) == "killed"
        assert set((await scene.account()).held) == {"k1", "k2"}
        scene.walls.open.set()
        assert (kind(await at_work), kind(await revoked)) == ("ok", "denied")
        account = await scene.account()
        assert (account.held, account.settled["calls"], account.settled["tokens"]) == ({}, 1, 50)

    run_async(played())


def test_a_grant_that_is_used_twice_gives_back_nothing_of_the_call_at_work() -> None:
    async def played() -> None:
        scene = await Shop.made()
        await scene.hold("k1")
        scene.walls.open.clear()
        at_work = asyncio.ensure_future(scene.actor.execute(scene.order(scene.token("k1"))))
        await scene.walls.began.wait()
        assert kind(await scene.actor.execute(scene.order(scene.token("k1"), order="o2"))) == "receipt: started"
        assert set((await scene.account()).held) == {"k1"}
        scene.walls.open.set()
        assert kind(await at_work) == "ok"
        assert (await scene.account()).settled["calls"] == 1

    run_async(played())


def test_a_call_whose_end_the_tool_does_not_know_stays_held() -> None:
    async def played() -> None:
        scene = await Shop.made()
        await scene.hold("k1")

        async def lost(*given: object) -> Outcome:
            return Outcome("unknown", error="its server was lost", error_type="EndUnknown")

        scene.walls.execute = lost  # type: ignore[method-assign, assignment]
        assert kind(await scene.actor.execute(scene.order(scene.token("k1")))) == "unknown"
        account = await scene.account()
        assert (set(account.held), account.settled) == ({"k1"}, {})

    run_async(played())
