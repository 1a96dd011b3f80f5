"""A sandbox actor over a run that is claimed, and walls that note what they were asked to execute."""

import asyncio
import dataclasses
import time
from typing import Any

from pydantic import BaseModel

from support.stage import Stage
from understudy import END, START, Graph
from understudy.actors.calls import Order
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.records import Event, Receipt
from understudy.actors.revocations import write_revocation
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox_actor import SandboxActor
from understudy.policies.grant import GRANT_TTL_S, Grant, args_digest
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
        scene.actor._tiers = scene.walls  # type: ignore[assignment]
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


async def take_back(scene: Scene, secret: bytes = SECRET, **about: str) -> None:
    await write_revocation(scene.store, secret, Revocation(time.time() + 1, **about), by="ann", note="wrong customer")
