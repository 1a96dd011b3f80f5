"""How a run actor reaches the policy actor and the sandbox actors: by name, through Ray, with their deaths made plain.

Names and not handles: an actor that died comes back under its name (Ray's own restarts are not relied on).
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from understudy.actors.by_value import tool_code
from understudy.actors.calls import Order, SandboxDied, Verdict
from understudy.actors.elsewhere import attend_elsewhere
from understudy.actors.errors import StoreUnavailable
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.packed import pack, unpack
from understudy.actors.records import Receipt
from understudy.actors.store import Store
from understudy.actors.tool import Tool
from understudy.policies.permission import Request

NAMESPACE = "understudy"
PATIENCE_S = 60.0
"""How long a call waits for an actor that is being replaced."""


SLICES = 10
T = TypeVar("T")

_FINDER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finds-actors")
"""Not the loop's own threads: `def` nodes sit in those while they wait for the very call that looks for an actor."""


async def find(name: str, patience_s: float = PATIENCE_S) -> Any:
    """The handle of a named actor; waits while it is being replaced. Raises StoreUnavailable after `patience_s`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while True:
        try:
            return await loop.run_in_executor(_FINDER, functools.partial(ray.get_actor, name, namespace=NAMESPACE))
        except ValueError:
            if loop.time() > until:
                raise StoreUnavailable(f"actor {name!r} did not come back within {patience_s:.0f} s") from None
            await asyncio.sleep(0.05)


async def in_time(call: Awaitable[T], within_s: float) -> T:
    """The answer to a call. Raises TimeoutError if the other process hangs (law 10: Ray never says so).

    The time is counted in slices, so that a pause of this very process is not taken for one of the other's.
    """
    asked = asyncio.ensure_future(call)
    try:
        for _ in range(SLICES):
            done, _pending = await asyncio.wait({asked}, timeout=within_s / SLICES)
            if done:
                return asked.result()
        raise TimeoutError(f"no answer within {within_s:.0f} s")
    finally:
        asked.cancel()


def cause_of(error: RayTaskError) -> BaseException:
    """What the remote method raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


class Heard:
    """Where the audit log ends, as the last actor that answered has said: the next one that writes to it is told."""

    def __init__(self) -> None:
        self.word = ""


class Policies:
    """`PolicyPort` over the policy actor. It may die or be replaced at any time: nothing runs without its word."""

    def __init__(self, name: str, heard: Heard) -> None:
        self._name = name
        self._heard = heard
        self._handle: Any = None

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        asked = pack((self._heard.word, request, key, epoch, policy, approved))
        while True:
            self._handle = self._handle or await find(self._name)
            try:
                verdict: Verdict
                self._heard.word, verdict = unpack(await self._handle.decide_packed.remote(asked))
                return verdict
            except RayTaskError as error:
                raise cause_of(error) from None
            except RayActorError:
                self._handle = None
                await asyncio.sleep(0.05)


def session_tag() -> str:
    """Tells this Ray cluster, as long as it lives, from every other."""
    return hashlib.sha256(ray.get_runtime_context().get_session_name().encode()).hexdigest()[:8]


class Sandboxes:
    """`SandboxPort` over the sandbox actors of this Ray cluster."""

    def __init__(self, names: Sequence[str], store: Store, heard: Heard) -> None:
        self._names = frozenset(names)
        self._heard = heard
        self._turn = itertools.cycle(names)
        self._store = store
        self._handles: dict[str, Any] = {}
        self._aborting: set[asyncio.Task[None]] = set()

    def pick(self) -> str:
        return next(self._turn)

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        code: ToolCode | None = tool.__dict__.get("_shipped")
        if code is None:
            code = tool.__dict__["_shipped"] = tool_code(tool)
        return code

    async def execute(self, order: Order) -> Outcome | Receipt:
        name = order.receipt.sandbox
        handle = await self._find(name)
        try:
            answer: Outcome | Receipt
            self._heard.word, answer = unpack(await handle.execute_packed.remote(pack((self._heard.word, order))))
            return answer
        except RayTaskError as error:
            raise cause_of(error) from None
        except RayActorError:
            self._handles.pop(name, None)
            raise SandboxDied(name) from None

    async def attend(self, receipt: Receipt) -> Outcome | None:
        if receipt.sandbox not in self._names:
            return await attend_elsewhere(self._store, receipt)
        try:
            handle = await self._find(receipt.sandbox)
            outcome: Outcome | None = await handle.attend.remote(receipt.key, receipt.token)
            return outcome
        except (RayActorError, StoreUnavailable):
            self._handles.pop(receipt.sandbox, None)
            return None

    def abort_nowait(self, receipt: Receipt) -> None:
        if receipt.sandbox in self._names:  # else it is an effect of a run's own, or another cluster's
            aborting = asyncio.ensure_future(self._abort(receipt))
            self._aborting.add(aborting)
            aborting.add_done_callback(self._aborting.discard)

    async def _abort(self, receipt: Receipt) -> None:
        with contextlib.suppress(RayActorError, RayTaskError, StoreUnavailable):  # it died: with its calls
            handle = await self._find(receipt.sandbox)
            await handle.abort.remote(receipt.key, receipt.token)

    async def _find(self, name: str) -> Any:
        if name not in self._handles:
            self._handles[name] = await find(name)
        return self._handles[name]
