"""A sandbox executes nothing without a grant that is good for this very call, once; a refusal is on record."""

import asyncio
import dataclasses
import resource
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from support.scene import SECRET, Scene, kind, refused
from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, tool
from understudy.actors.calls import Granted
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.sandbox_actor import SandboxActor
from understudy.policies.grant import args_digest, sign
from understudy.policies.operators import show
from understudy.policies.profile import Profile


def test_a_good_grant_is_executed_and_the_same_order_again_is_not() -> None:
    async def played() -> None:
        scene = await Scene.made()
        order = scene.order(sign(scene.grant(), SECRET))
        assert kind(await scene.actor.execute(order)) == "ok"
        assert kind(await scene.actor.execute(order)) == "receipt: done"
        assert len(scene.walls.executed) == 1

    run_async(played())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"expires_at": 1.0}, "expired"),
        ({"run_id": "r00-other"}, "wrong run"),
        ({"key": "k2"}, "wrong call"),
        ({"tool": "refund"}, "wrong call"),
        ({"digest": "x"}, "wrong arguments"),
        ({"code": "x"}, "wrong code"),
    ],
)
def test_a_grant_for_something_else_is_refused_and_counted(changed: dict[str, Any], reason: str) -> None:
    async def played() -> None:
        scene = await Scene.made()
        await refused(scene, scene.order(sign(dataclasses.replace(scene.grant(), **changed), SECRET)), reason)

    run_async(played())


def test_whatever_it_dies_of_its_memory_is_not_written_to_a_file() -> None:
    async def played() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        await Scene.made()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0

    run_async(played())


def test_forged_and_altered_tokens_are_refused_and_counted() -> None:
    async def played() -> None:
        scene = await Scene.made()
        good = sign(scene.grant(), SECRET)
        body, _, mac = good.partition(".")
        wider = sign(scene.grant(profile=Profile(write=("/",))), b"a secret of the attacker's own").partition(".")[0]
        await refused(scene, scene.order("no token"), "forged")
        await refused(scene, scene.order(f"{wider}.{mac}", "k2"), "altered")
        assert body != wider

    run_async(played())


def test_other_code_than_that_which_was_judged_is_not_executed() -> None:
    async def played() -> None:
        scene = await Scene.made()
        token = sign(scene.grant(), SECRET)
        await refused(scene, scene.order(token, code=ToolCode(ref="shop:pay", blob=b"another")), "wrong code")

    run_async(played())


@pytest.mark.parametrize("where", ["here", "in another actor", "after a restart"])
def test_a_grant_is_used_up_for_good(where: str) -> None:
    """Also by a call whose end nobody knows, which may be begun again: under a grant of its own."""

    async def played() -> None:
        scene = await Scene.made()
        order = scene.order(sign(scene.grant(), SECRET))
        receipt = order.receipt
        assert kind(await scene.actor.execute(order)) == "ok"
        place = (receipt.checkpoint_id, receipt.key)
        lost = dataclasses.replace(receipt, state="unknown", at=1.0)
        scene.store._runs[scene.run_id].receipts[place] = lost
        if where != "here":
            scene.actor = SandboxActor("box 2" if where == "in another actor" else "box", scene.opened, SECRET, 2)
            scene.actor._tiers = scene.walls  # type: ignore[assignment]
        again = dataclasses.replace(order, receipt=dataclasses.replace(receipt, sandbox=scene.actor._name))
        assert kind(await scene.actor.execute(again)) == "receipt: unknown"
        another = dataclasses.replace(again, receipt=dataclasses.replace(again.receipt, token="another order"))
        await refused(scene, another, "replayed")
        assert len(scene.walls.executed) == 1

    run_async(played())


def test_an_order_that_comes_again_when_its_grant_has_ended_is_answered_by_what_is_on_record() -> None:
    async def played() -> None:
        scene = await Scene.made()
        order = scene.order(sign(scene.grant(), SECRET))
        assert kind(await scene.actor.execute(order)) == "ok"
        late = dataclasses.replace(order, token=sign(scene.grant(expires_at=1.0), SECRET))
        assert kind(await scene.actor.execute(late)) == "receipt: done"
        (receipt,) = await scene.store.receipts(scene.run_id)
        assert '"kind":"ok"' in receipt.outcome.replace(" ", "")

    run_async(played())


def test_a_run_orders_a_call_under_the_name_that_its_grant_is_good_for() -> None:
    @tool
    def pays() -> int:
        return 1

    class Empty(BaseModel):
        pass

    graph = Graph("shop", Empty)

    @graph.node
    async def work(state: Empty, ctx: Context) -> None:
        await ctx.call(pays)

    graph.edge(START, work).edge(work, END)

    async def played() -> None:
        stage = Stage(MemoryStore(), graph)
        stage.policy.verdicts["pays"] = lambda request, approved: Granted("t", "r", "p", order="id of the grant")
        run = await stage.start()
        assert await stage.drive(run) == "succeeded"
        (receipt,) = await stage.store.receipts(run.run_id)
        assert receipt.token == "id of the grant"

    run_async(played())


def test_other_arguments_than_those_that_were_judged_are_not_executed() -> None:
    """Whatever digest the one who orders it has told."""

    async def played() -> None:
        scene = await Scene.made()
        order = scene.order(sign(scene.grant(), SECRET))
        call = dataclasses.replace(order.call, args={"amount": 1_000_000})
        await refused(scene, dataclasses.replace(order, call=call), "wrong arguments")

    run_async(played())


def test_a_path_that_leads_where_rules_would_say_otherwise_is_refused(tmp_path: Path) -> None:
    """`deny ... under private` judges a name, on another machine; the link is here."""
    for name in ("private", "public", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "public" / "here").symlink_to(tmp_path / "public")
    (tmp_path / "public" / "there").symlink_to("../private/key")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "public")
    judged = (("it.0", (str(tmp_path / "private"), str(tmp_path / "other"))), ("to", ("/srv",)))

    async def said(name: str, profile: Profile) -> str:
        scene = await Scene.made()
        args: dict[str, Any] = {"it": [f"{tmp_path}/{name}"]}
        grant = scene.grant(paths=judged, profile=profile, args=args_digest(args))
        order = scene.order(sign(grant, SECRET))
        order = dataclasses.replace(order, call=dataclasses.replace(order.call, args=args))
        found = await scene.actor.execute(order)
        assert isinstance(found, Outcome)
        assert bool(scene.walls.executed) is (found.kind == "ok")
        return found.error

    seen = Profile(read=(str(tmp_path),))
    for name in ("public/a", "public/here", "public/here/a", "other", "private/key", "other/../public/a"):
        assert run_async(said(name, seen)) == ""
    leading = {"public/there": "private/key", "public/here/../private/a": "private/a", "other/back": "public"}
    for name, place in leading.items():
        assert f"a link there leads to {show(f'{tmp_path}/{place}')}; name that place" in run_async(said(name, seen))
    assert run_async(said("public/there", Profile())) == "", "it leads nowhere for a call that sees neither"


def test_one_order_in_two_sandbox_actors_at_once_is_executed_once() -> None:
    async def played() -> None:
        one, other = await Scene.made(), await Scene.made()
        second = SandboxActor("box 2", one.opened, SECRET, 2)
        second._tiers = other.walls
        order = one.order(sign(one.grant(), SECRET))
        astray = one.order(sign(one.grant("k2"), SECRET), "k2")
        found = await second.execute(astray)
        assert isinstance(found, Outcome)
        assert "wrong sandbox: it was ordered from 'box', not 'box 2'" in found.error
        moved = dataclasses.replace(order, receipt=dataclasses.replace(order.receipt, sandbox="box 2"))
        both = await asyncio.gather(one.actor.execute(order), second.execute(moved), second.execute(order))
        assert sorted(map(kind, both[:2])) == ["ok", "receipt: started"]
        assert kind(both[2]).startswith("receipt: "), "it was ordered from another one, and is on record"
        assert len(one.walls.executed) + len(other.walls.executed) == 1

    run_async(played())


def test_an_order_is_not_executed_again_by_the_actor_that_comes_after() -> None:
    """The actor died in the middle of the call; the new one of its name gets the very same order."""

    async def played() -> None:
        scene, after = await Scene.made(), await Scene.made()
        scene.walls.open.clear()
        order = scene.order(sign(scene.grant(), SECRET))
        dying = asyncio.ensure_future(scene.actor.execute(order))
        await scene.walls.began.wait()
        again = SandboxActor("box", scene.opened, SECRET, 2)
        again._tiers = after.walls
        assert kind(await again.execute(order)) == "receipt: started"
        assert after.walls.executed == []
        scene.walls.open.set()
        await dying

    run_async(played())
