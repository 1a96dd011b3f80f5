"""A sandbox executes nothing without a grant that is good for this very call, once; a refusal is on record."""

import asyncio
import dataclasses
import resource
import time
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from support.stage import Stage
from support.waiting import run_async
from understudy import END, START, Context, Graph, tool
from understudy.actors.audit_log import SHELF, AuditLog
from understudy.actors.calls import Granted, Order
from understudy.actors.errors import NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.records import Event, Receipt, RunRecord
from understudy.actors.revocations import KEPT_S, read_revocations, write_revocation
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.egress.log import Connection, ConnectionLog
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox_actor import SandboxActor
from understudy.cluster.auditing import entries_of
from understudy.cluster.grants import revoke
from understudy.cluster.settings import Settings
from understudy.policies.grant import GRANT_TTL_S, Grant, args_digest, sign
from understudy.policies.profile import Profile
from understudy.policies.revocation import Revocation

SECRET = b"0123456789abcdef0123456789abcdef"
CODE = ToolCode(ref="shop:pay")


class Walls:
    """A backend that notes what it was asked to execute, and waits if it is told to."""

    name = "noted"

    def __init__(self) -> None:
        self.executed: list[ToolCall] = []
        self.open = asyncio.Event()
        self.open.set()
        self.began = asyncio.Event()

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        self.executed.append(call)
        self.began.set()
        await self.open.wait()
        return Outcome("ok", value=len(self.executed))


class Scene:
    """A sandbox actor over a run that is claimed."""

    @classmethod
    async def made(cls, at_once: int = 2, store: MemoryStore | None = None) -> "Scene":
        scene = cls()
        scene.store = store or MemoryStore()
        run = await Stage(scene.store, _graph()).start()
        claimed = await scene.store.claim(run.run_id, "owner", 60.0, time.time())
        scene.run_id, scene.epoch = claimed.run_id, claimed.epoch

        scene.actor = SandboxActor("box", scene.opened, SECRET, at_once)
        scene.walls = Walls()
        scene.actor._tiers = scene.walls
        return scene

    async def opened(self) -> MemoryStore:
        return self.store

    store: MemoryStore
    actor: SandboxActor
    walls: Walls
    run_id: str
    epoch: int

    def grant(self, key: str = "k1", **other: Any) -> Grant:
        now = time.time()
        grant = Grant(
            run_id=self.run_id,
            key=key,
            tool="pay",
            digest="d",
            code=CODE.digest,
            epoch=self.epoch,
            profile=Profile(),
            policy_digest="p",
            rule="r",
            decision="allow",
            issued_at=now,
            expires_at=now + GRANT_TTL_S,
            id=f"grant of {key}",
            args=args_digest({}),
        )
        return dataclasses.replace(grant, **other)

    def order(self, token: str, key: str = "k1", order: str = "", code: ToolCode = CODE, digest: str = "d") -> Order:
        order = order or f"grant of {key}"
        receipt = Receipt(key, self.run_id, "", "t", "pay", digest, "started", "box", order)
        decided = Event("decided", time.time(), {"tool": "pay", "decision": "allow", "reason": ""})
        return Order(ToolCall(key, "pay", code, {}), token, receipt, self.epoch, "shop", decided)


def _graph() -> Graph:
    class Empty(BaseModel):
        pass

    graph = Graph("shop", Empty)

    @graph.node
    def nothing(state: Empty) -> None:
        """A run needs a node."""

    return graph.edge(START, nothing).edge(nothing, END)


def kind(found: Outcome | Receipt) -> str:
    return found.kind if isinstance(found, Outcome) else f"receipt: {found.state}"


async def refused(scene: Scene, order: Order, reason: str) -> None:
    before = len(scene.walls.executed)
    found = await scene.actor.execute(order)
    assert isinstance(found, Outcome)
    assert found.kind == "denied"
    assert f"the sandbox refused the grant: {reason}: " in found.error
    assert len(scene.walls.executed) == before
    event = [event for event in await scene.store.events(scene.run_id) if event.kind == "decided"][-1]
    assert (event.data["decision"], event.data["refused"]) == ("deny", reason)
    assert (await scene.store.counters())[f'grants_refused_total{{reason="{reason}"}}'] == 1.0


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
        assert f"a link there leads to '{tmp_path}/{place}'; name that place" in run_async(said(name, seen))
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


def test_a_grant_is_revoked_before_it_is_used_also_while_it_waits_for_room() -> None:
    async def played() -> None:
        scene = await Scene.made(at_once=1)
        await take_back(scene, tool="refund")
        scene.walls.open.clear()
        first = asyncio.ensure_future(scene.actor.execute(scene.order(sign(scene.grant(), SECRET))))
        await scene.walls.began.wait()
        second = scene.order(sign(scene.grant("k2"), SECRET), "k2")
        waiting = asyncio.ensure_future(refused(scene, second, "revoked"))
        await asyncio.sleep(0)
        await take_back(scene, key="k2")
        scene.walls.open.set()
        assert kind(await first) == "ok"
        await waiting

    run_async(played())


async def take_back(scene: Scene, secret: bytes = SECRET, **about: str) -> None:
    await write_revocation(scene.store, secret, Revocation(time.time() + 1, **about), by="ann", note="wrong customer")


def test_a_revocation_in_the_store_is_seen_before_a_grant_is_used() -> None:
    async def played() -> None:
        scene = await Scene.made()
        await take_back(scene, key="another call")
        await take_back(scene, grant_id="grant of another")
        await take_back(scene, b"another deployment's", run_id=scene.run_id)
        await scene.store.write_document("revocations", "junk", b"{", 0)
        assert kind(await scene.actor.execute(scene.order(sign(scene.grant(), SECRET)))) == "ok"
        await take_back(scene, key="k2", run_id=scene.run_id)
        await refused(scene, scene.order(sign(scene.grant("k2"), SECRET), "k2"), "revoked")
        entries = [entry async for _, entry in entries_of(scene.store)]
        assert [(entry["kind"], entry["key"]) for entry in entries] == [("grant_used", "k1"), ("grant_refused", "k2")]
        assert "ann took it back, 'wrong customer'" in entries[-1]["reason"]
        assert kind(await scene.actor.execute(scene.order(sign(scene.grant("k3"), SECRET), "k3"))) == "ok"

    run_async(played())


def test_a_call_at_work_is_ended_when_its_grant_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.actors.sandbox_actor.LOOK_S", 0.01)

    async def played() -> None:
        scene = await Scene.made()
        scene.walls.open.clear()
        work = asyncio.ensure_future(scene.actor.execute(scene.order(sign(scene.grant(), SECRET))))
        await scene.walls.began.wait()
        await take_back(scene, run_id=scene.run_id)
        outcome = await work
        assert isinstance(outcome, Outcome)
        assert (outcome.kind, "its grant was revoked: ann took it back, 'wrong customer'" in outcome.error) == (
            "killed",
            True,
        )
        kinds = [entry["kind"] async for _, entry in entries_of(scene.store)]
        assert kinds == ["grant_used", "grant_ended"]
        (receipt,) = await scene.store.receipts(scene.run_id)
        assert receipt.state == "done"
        assert not scene.actor._taken_back

    run_async(played())


@pytest.mark.parametrize("gone", [False, True])
def test_a_call_at_work_is_ended_when_its_run_has_ended_or_is_gone(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.actors.sandbox_actor.LOOK_S", 0.01)

    async def played() -> None:
        scene = await Scene.made()
        scene.walls.open.clear()
        work = asyncio.ensure_future(scene.actor.execute(scene.order(sign(scene.grant(), SECRET))))
        await scene.walls.began.wait()
        record = await scene.store.run(scene.run_id)

        async def ended(run_id: str) -> RunRecord:
            if gone:
                raise NotFound("there is no such run")
            return dataclasses.replace(record, status="cancelled")

        monkeypatch.setattr(scene.store, "run", ended)
        assert kind(await work) == "killed"

    run_async(played())


class Secretly:
    """Settings, as far as they are asked."""

    def secret(self) -> bytes:
        return SECRET


@pytest.mark.parametrize("named", ["run", "call", "grant"])
def test_who_revokes_may_have_a_clock_that_is_behind(named: str) -> None:
    async def played() -> None:
        scene, settings = await Scene.made(), cast(Settings, Secretly())
        late = scene.grant(issued_at=time.time() + 30.0, expires_at=time.time() + 60.0)
        ahead = AuditLog(scene.opened, SECRET, lambda: time.time() + 30.0)
        told = {"key": "k1", "tool": "pay", "call": "pay()", "policy": "p", "rule": "r", "decision": "allow"}
        await ahead.append("decision", run=scene.run_id, grant="grant of k1", **told)
        about = {"run": {"run_id": scene.run_id}, "call": {"run_id": scene.run_id, "key": "k1"}}
        await revoke(scene.store, settings, **about.get(named, {"grant": "grant of k1"}))
        await refused(scene, scene.order(sign(late, SECRET)), "revoked")

    run_async(played())


def test_a_revocation_goes_when_no_grant_is_left_that_it_could_be_about() -> None:
    async def played() -> None:
        scene = await Scene.made()
        await take_back(scene, run_id=scene.run_id)
        assert len(await read_revocations(scene.store, SECRET, time.time())) == 1
        assert await read_revocations(scene.store, SECRET, time.time() + KEPT_S + GRANT_TTL_S + 2) == []
        assert await scene.store.shelves() == {}

    run_async(played())


class Telling(Walls):
    """A call that lets its secret out, in all that it says; from when on no audit log is written for a while."""

    def __init__(self, store: "Slow") -> None:
        super().__init__()
        self.store = store

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        assert way_out is not None
        assert way_out.given == {"key": "s3cret-of-theirs"}
        self.store.gate.clear()
        where = ("GET", "s3cret-of-theirs.example", 80, "", "deny", "")
        way_out.log = ConnectionLog(way_out.seen)
        way_out.log.add(Connection(call.key, way_out.run_id, time.time(), *where, 0, 0, 0.0))  # type: ignore[arg-type]
        self.began.set()
        said = {"error": "no s3cret-of-theirs", "error_type": "NoS3", "printed": "s3cret-of-theirs\n"}
        return Outcome("error", **said)


class Slow(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        if shelf == SHELF:
            await self.gate.wait()
        return await super().write_document(shelf, name, data, over)


def test_what_is_recorded_shows_no_secret_and_a_connection_is_in_the_audit_log_before_the_end(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.yaml"
    secrets.touch(mode=0o600)
    secrets.write_text("key: {value: s3cret-of-theirs}")

    async def played() -> None:
        store = Slow()
        scene = await Scene.made(store=store)
        scene.actor = SandboxActor("box", scene.opened, SECRET, 1, str(secrets))
        walls = Telling(store)
        scene.actor._tiers = walls  # type: ignore[assignment]
        profile = Profile(network=("*.example:80",), secrets=("key",))
        work = asyncio.ensure_future(scene.actor.execute(scene.order(sign(scene.grant(profile=profile), SECRET))))
        await walls.began.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert [receipt.state for receipt in await store.receipts(scene.run_id)] == ["started"]
        store.gate.set()
        outcome = await work
        entries = [entry async for _, entry in entries_of(store)]
        assert [(entry["kind"], entry.get("host", "")) for entry in entries] == [
            ("grant_used", ""),
            ("connection", "[secret key].example"),
        ]
        recorded = (outcome, entries, await store.receipts(scene.run_id), await store.events(scene.run_id))
        assert "[secret key]" in repr(outcome)
        assert "s3cret" not in repr(recorded)

    run_async(played())


def test_where_no_wall_stands_nothing_is_executed() -> None:
    async def played() -> None:
        scene = await Scene.made()

        async def nowhere(*given: object) -> Outcome:
            raise IsolationUnavailable("no tier stands", "mend it")

        scene.walls.execute = nowhere  # type: ignore[method-assign, assignment]
        found = await scene.actor.execute(scene.order(sign(scene.grant(), SECRET)))
        assert isinstance(found, Outcome)
        assert found.kind == "denied"
        assert "it runs no untrusted tool: no tier stands; remedy: mend it" in found.error

    run_async(played())
