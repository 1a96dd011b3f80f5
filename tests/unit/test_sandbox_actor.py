"""The sandbox actor without Ray and without walls: what is on record when, and what an aborted call leaves."""

import asyncio
import dataclasses
import time
import venv
from pathlib import Path
from typing import Any

import pytest

from support.waiting import run_async, wait_until_async
from understudy.actors import sandbox_actor
from understudy.actors.calls import Order
from understudy.actors.effects import read_outcome, stands
from understudy.actors.environment import Environment
from understudy.actors.errors import Fenced
from understudy.actors.events import counters_of
from understudy.actors.lost_calls import mark_lost
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.records import Commit, Event, NewRun, Receipt, RunRecord, run_id_on
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.verdict import Seen
from understudy.actors.sandbox_actor import SandboxActor
from understudy.policies.grant import Grant, args_digest, sign
from understudy.policies.profile import Limits, Profile, Tier, Workspace

SECRET = b"0123456789abcdef"
CODE = ToolCode(ref="x:y")
PAD = Environment(packages=["left-pad==1.0"])
RUN = run_id_on("t", "run")
PROFILE = Profile(limits=Limits(wall_s=7))


class HeldBackend:
    """Stands for the walls: a call is at work until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = asyncio.Event()

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        self.begun.append(call.key)
        await self.go.wait()
        return Outcome("ok", value=call.key)


def order(
    run: RunRecord,
    key: str,
    code: ToolCode = CODE,
    token: str = "",
    profile: Profile = PROFILE,
) -> Order:
    token = token or f"token of {key}"
    ends = (code.digest, token, args_digest({}))
    grant = Grant(RUN, key, "pay", "d", run.epoch, profile, "", "r", "allow", 0.0, 2e10, *ends)
    receipt = Receipt(key, RUN, "", "task", "pay", "d", "started", "sandbox-0", token, at=time.time())
    decided = Event("decided", 0.0, {"tool": "pay", "decision": "allow"})
    return Order(ToolCall(key, "pay", code, {}), sign(grant, SECRET), receipt, run.epoch, "g", decided)


async def actor_with(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> tuple[SandboxActor, HeldBackend, RunRecord]:
    """With room for one call, and a run that calls it."""
    backend = HeldBackend()
    monkeypatch.setattr(sandbox_actor, "Tiers", lambda _: backend)

    async def opened() -> Any:
        return store

    await store.create(NewRun(RUN, "t", "g", "1", "{}", "{}", "d"), [], {}, 1.0)
    run = await store.claim(RUN, "owner", 60.0, 2.0)
    return SandboxActor("sandbox-0", opened, SECRET, at_once=1), backend, run


async def keys_on_record(store: MemoryStore) -> dict[str, str]:
    return {receipt.key: receipt.state for receipt in await store.receipts(RUN)}


async def at_work(actor: SandboxActor, backend: HeldBackend, orders: list[Order]) -> list[asyncio.Task[Any]]:
    """All of them ordered, one after the other; the first one has begun."""
    work = []
    for one in orders:
        work.append(asyncio.ensure_future(actor.execute(one)))
        for _ in range(20):
            await asyncio.sleep(0)

    async def begun() -> bool:
        return bool(backend.begun)

    await wait_until_async(begun, 10, "the first call to begin")
    return work


def test_a_call_is_on_record_once_there_is_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that died made every call in its queue unknown, though none of them had started."""

    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        work = await at_work(actor, backend, [order(run, "k1"), order(run, "k2"), order(run, "k3")])
        assert await keys_on_record(store) == {"k1": "started"}, "the queue would start anew if this process died now"
        assert backend.begun == ["k1"]
        backend.go.set()
        assert [outcome.value for outcome in await asyncio.gather(*work)] == ["k1", "k2", "k3"]
        assert await keys_on_record(store) == {"k1": "done", "k2": "done", "k3": "done"}
        started = [event.data for event in await store.events(RUN) if event.kind == "tool_started"]
        assert [(data["key"], data["wall_s"]) for data in started] == [("k1", 7), ("k2", 7), ("k3", 7)]

    run_async(played())


def test_a_queued_call_of_an_owner_that_lost_the_run_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        first, queued = await at_work(actor, backend, [order(run, "k1"), order(run, "k2")])
        events = [Event("crashed", 3.0, {"cause": "actor_died", "epoch": run.epoch, "attempt": 1})]
        await store.requeue(RUN, run.epoch, 3.0, 0.0, events, counters_of("g", events))
        again = await store.claim(RUN, "next owner", 60.0, 4.0)
        anew = order(again, "k2", token="of the next owner")
        next_one = asyncio.ensure_future(actor.execute(anew))
        backend.go.set()
        assert (await first).value == "k1", "one that has started is finished, whoever owns the run (law 5)"
        with pytest.raises(Fenced):
            await queued
        assert (await next_one).value == "k2"
        assert backend.begun == ["k1", "k2"]

    run_async(played())


def test_a_queued_call_that_nobody_wants_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        first, queued, third = await at_work(actor, backend, [order(run, key) for key in ("k1", "k2", "k3")])
        await actor.abort("k2", "token of k2")
        assert (await queued).kind == "killed"
        await actor.abort("k1", "token of k1")
        assert (await first).kind == "killed"
        backend.go.set()
        assert (await third).value == "k3"
        assert await keys_on_record(store) == {"k1": "done", "k3": "done"}

    run_async(played())


def test_of_a_call_that_nobody_wants_any_more_it_is_on_record_what_it_had_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)

        async def executed(*_: Any) -> Outcome:
            backend.begun.append("k1")
            try:
                await backend.go.wait()
            except asyncio.CancelledError:
                raise asyncio.CancelledError(Seen("half done", 7)) from None
            raise AssertionError

        monkeypatch.setattr(backend, "execute", executed)
        (work,) = await at_work(actor, backend, [order(run, "k1")])
        await actor.abort("k1", "token of k1")
        outcome = await work
        assert (outcome.kind, outcome.printed, outcome.peak_memory_bytes) == ("killed", "half done", 7)
        (receipt,) = await store.receipts(RUN)
        assert read_outcome(receipt.outcome) == outcome

    run_async(played())


def test_calls_of_a_sandbox_that_died_are_unknown_where_their_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled run attends nothing any more: they were `started` for ever. Others are for their runs to find."""

    async def played() -> None:
        store = MemoryStore()
        actor, _backend, run = await actor_with(store, monkeypatch)
        long_ago = time.time() - 60
        ordered = [order(run, key).receipt for key in ("of this name", "elsewhere", "of one that lives", "young")]
        names = ("sandbox-0", "gone-sandbox-0", "other-sandbox-0", "sandbox-0")
        for receipt, sandbox in zip(ordered, names, strict=True):
            at = time.time() if receipt.key == "young" else long_ago
            await store.begin(dataclasses.replace(receipt, sandbox=sandbox, at=at), run.epoch, [], {}, at)
        await store.beat("other", '{"sandboxes": ["other-sandbox-0"]}', time.time())
        assert await mark_lost(store, actor._is_at_work, time.time()) == 0, "its run goes on"
        await store.cancel(RUN, time.time())
        await store.commit(Commit(RUN, run.epoch, run.seq + 1, time.time(), "cancelled", run.step))
        assert await mark_lost(store, actor._is_at_work, time.time()) == 2
        told = {receipt.key: receipt.standing for receipt in await store.receipts(RUN)}
        assert told == {
            "of this name": "unknown",
            "elsewhere": "unknown",
            "of one that lives": "started",
            "young": "started",
        }
        lost = [event.data for event in await store.events(RUN) if event.kind == "tool_finished"]
        assert [(each["outcome"], each["error"]) for each in lost] == [("unknown", "its sandbox died")] * 2

    run_async(played())


def test_a_refusal_for_want_of_isolation_does_not_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later attempt of the node may find the machine mended, or another one."""

    async def played() -> None:
        actor, backend, run = await actor_with(MemoryStore(), monkeypatch)

        async def refused(*_: Any) -> Outcome:
            raise IsolationUnavailable("no bwrap", "install it")

        monkeypatch.setattr(backend, "execute", refused)
        outcome = await actor.execute(order(run, "k1"))
        assert isinstance(outcome, Outcome)
        assert (outcome.kind, outcome.error_type, stands(outcome)) == ("denied", "IsolationUnavailable", False)
        assert "no bwrap; remedy: install it" in outcome.error
        assert stands(Outcome("denied"))

    run_async(played())


def test_a_call_that_is_ended_while_it_is_put_on_record_does_not_stay_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(MemoryStore):
        go = asyncio.Event()

        async def begin(self, *args: Any) -> Any:
            begun = await super().begin(*args)
            await self.go.wait()
            return begun

    async def played() -> None:
        store = Slow()
        store.go = asyncio.Event()
        actor, backend, run = await actor_with(store, monkeypatch)
        work = asyncio.ensure_future(actor.execute(order(run, "k1")))

        async def on_record() -> bool:
            return bool(await store.receipts(RUN))

        await wait_until_async(on_record, 10, "the call to be on record")
        await actor.abort("k1", "token of k1")
        await asyncio.sleep(0)
        store.go.set()
        assert (await work).kind == "killed"
        (receipt,) = await store.receipts(RUN)
        assert (receipt.state, receipt.standing) == ("done", "failed")
        assert '"killed"' in receipt.outcome
        assert backend.begun == []

    run_async(played())


def test_the_same_order_again_is_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        one = order(run, "k1")
        work = await at_work(actor, backend, [one, one])
        attending = asyncio.ensure_future(actor.attend("k1", "token of k1"))
        await asyncio.sleep(0)
        backend.go.set()
        assert [outcome.value for outcome in await asyncio.gather(*work, attending)] == ["k1"] * 3
        assert backend.begun == ["k1"]
        assert await actor.attend("k1", "token of k1") is None, "not at work any more: the receipt answers"

    run_async(played())


def test_a_call_whose_end_the_tool_does_not_know_is_unknown_as_if_its_sandbox_had_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def played() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        lost = Outcome("unknown", error="no answer", error_type="ServerLost", printed="sent 3 of 5\n")

        async def executed(*_: Any) -> Outcome:
            return lost

        monkeypatch.setattr(backend, "execute", executed)
        assert await actor.execute(order(run, "k1")) == lost
        (receipt,) = await store.receipts(RUN)
        assert (receipt.state, receipt.outcome) == ("unknown", "")
        told = [event.data for event in await store.events(RUN) if event.kind == "tool_finished"]
        assert [(each["outcome"], each["error"]) for each in told] == [("unknown", "ServerLost: no answer")]
        assert [each["printed"] for each in told] == ["sent 3 of 5\n"], "its receipt has no outcome"

    run_async(played())


def test_a_call_has_the_environment_that_is_built_here_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = Environment(venv=str(tmp_path / "v"))
    seen: list[str] = []

    async def scene() -> list[Outcome]:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)

        async def executed(call: ToolCall, profile: Profile, *_: Any) -> Outcome:
            seen.append(call.environment)
            return Outcome("ok")

        monkeypatch.setattr(backend, "execute", executed)
        ended = []
        for key, said in (("k1", ""), ("k2", wanted.text), ("k3", PAD.text), ("k4", "nonsense")):
            ordered = order(run, key, ToolCode(ref="x:y", environment=said))
            smuggled = dataclasses.replace(ordered.call, environment="/etc")
            outcome = await actor.execute(dataclasses.replace(ordered, call=smuggled))
            assert isinstance(outcome, Outcome)
            ended.append(outcome)
        return ended

    venv.create(tmp_path / "v", symlinks=True)
    plain, own, missing, nonsense = run_async(scene())
    assert (plain.kind, own.kind) == ("ok", "ok")
    assert seen == ["", str(tmp_path / "v")]
    assert (missing.kind, missing.error_type) == ("error", "EnvironmentUnusable")
    assert "the environment of the tool (left-pad==1.0) is not built on this machine" in missing.error
    assert "understudy environments build" in missing.error
    assert (nonsense.kind, nonsense.error_type) == ("error", "EnvironmentUnusable")


@pytest.mark.parametrize(
    ("granted", "gets", "keeps"), [("none", None, None), ("read", "[]", None), ("write", "[]", [["a"]])]
)
@pytest.mark.parametrize(("tiers", "tier"), [(("zygote", "cold"), "cold"), (("gvisor", "cold"), "gvisor")])
def test_a_tool_may_want_a_stronger_tier_than_its_grant_and_has_the_workspace_that_it_grants(
    granted: Workspace,
    gets: str | None,
    keeps: Any,
    tiers: tuple[Tier, Tier],
    tier: Tier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        store = MemoryStore()
        actor, backend, run = await actor_with(store, monkeypatch)
        seen: list[tuple[ToolCall, Profile]] = []

        async def executed(call: ToolCall, profile: Profile, *_: Any) -> Outcome:
            seen.append((call, profile))
            return Outcome("ok", files=[["a"]])

        monkeypatch.setattr(backend, "execute", executed)
        ordered = order(run, "k", profile=Profile(workspace=granted, tier=tiers[0]))
        call = dataclasses.replace(ordered.call, files="[]", keeps=True, tier=tiers[1])
        outcome = await actor.execute(dataclasses.replace(ordered, call=call))
        assert isinstance(outcome, Outcome)
        assert outcome.files == keeps
        assert [(each.files, each.keeps, profile.tier) for each, profile in seen] == [(gets, keeps is not None, tier)]

    run_async(scene())
