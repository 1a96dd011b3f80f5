"""What ends a call: a grant that is taken back, a run that is over; and what is on record before anybody is told."""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import cast

import pytest

from support.scene import SECRET, Scene, Walls, kind, refused, take_back
from support.waiting import run_async
from understudy.actors.audit_log import SHELF, AuditLog
from understudy.actors.errors import NotFound
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.records import RunRecord
from understudy.actors.revocations import KEPT_S, read_revocations
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.egress.log import Connection, ConnectionLog
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox_actor import SandboxActor
from understudy.cluster.auditing import entries_of
from understudy.cluster.grants import revoke
from understudy.cluster.settings import Settings
from understudy.policies.grant import GRANT_TTL_S, sign
from understudy.policies.profile import Profile


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
        said = {"error": "no s3cret-of-theirs", "error_type": "E_s3cret-of-theirs", "printed": "s3cret-of-theirs\n"}
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
