"""The default tier: a bubblewrap that stays, in it a warm Python, from it a fresh sandbox for each call.

A cold bubblewrap costs 40 ms, nearly all of it the start of Python. Here Python is started once; what is made for each
call are namespaces, mounts and a process, and those before the call comes. Nothing is used twice.

Laws:
- The zygote is started as any sandbox is (`bubblewrap.py`): never as root, with an empty environment, and bound to the
  life of the thread that started it. It dies with the worker, and all sandboxes in it die with it.
- A call that needs what a spare cannot give (files of the host) is not for this tier: `fits` says so.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.backend import NOT_LOADED, IsolationUnavailable, Preflight
from understudy.actors.sandbox.cgroup import NO_CELLS, Cells
from understudy.actors.sandbox.egress.way_out import WayOut, proxy_of
from understudy.actors.sandbox.preflight import try_out
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.spare import Spare, terms
from understudy.actors.sandbox.verdict import judge, request_of, telling
from understudy.actors.sandbox.zygote_process import START_S, Zygote, start
from understudy.policies.profile import Limits, Profile, Tier

CALLS_MOST = 2000
"""Calls of one zygote; then another takes over. Spares share the layout of its memory, so that should not last."""
REFILL_WITHIN_S, REFILL_AFTER_S = 0.02, 0.001
"""From the beginning of a call, and from its end, whichever comes first: to make a spare takes a core a few
milliseconds, which the call and whoever waits for its outcome can use better. (A loop's timers count whole
milliseconds, and uvloop's round: half of one is none.)"""


class ZygoteBackend:
    """Needs bubblewrap 0.8 and user namespaces that may be nested. `spares`: how many wait, ready, for a call;
    `wanted`: modules that are loaded for all of them."""

    name = "bubblewrap zygote"
    tier: Tier = "zygote"

    def __init__(self, spares: int = 2, cells: Cells = NO_CELLS, wanted: Sequence[str] = ()) -> None:
        self._spares = spares
        self._wanted = wanted
        self._cells = cells
        self._zygote: Zygote | None = None
        self._starting: asyncio.Task[Zygote] | None = None

    @property
    def waiting(self) -> int:
        """Spares that wait for a call."""
        return self._zygote.waiting if self._zygote is not None else 0

    @property
    def leaving(self) -> int:
        """Spares in which nothing executes any more, and that the kernel has not taken down yet."""
        return self._zygote.leaving if self._zygote is not None else 0

    def fits(self, profile: Profile) -> bool:
        """Files of the host cannot be brought into a spare."""
        return not profile.read and not profile.write

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made.

        When it returns or raises, nothing that the call has started executes any more; a millisecond later, nothing of
        it is there any more (`leaving`).
        """
        began = time.perf_counter()
        proxy = proxy_of(call, profile, way_out)
        message = json.dumps(terms(profile.limits, proxy is not None)).encode()
        request = request_of(call, profile, this_runtime(), way_out)
        zygote = await self._running()
        spare = zygote.take(message, profile.limits)
        refilling = self._refill_within(REFILL_WITHIN_S if zygote.waiting else 0.0, zygote, message, profile.limits)
        with telling(lambda: spare.overseer):
            try:
                await _in_time(zygote, spare)
                if proxy is not None:
                    listener, spare.listener = spare.listener, None
                    assert listener is not None
                    await proxy.open(listener)
                overseer = spare.begin(request, profile.limits)
                await spare.over()
            finally:
                try:
                    status = await zygote.end(spare)
                finally:
                    refilling.cancel()
                    self._refill_within(REFILL_AFTER_S, zygote, message, profile.limits)
                    if proxy is not None:
                        await proxy.close()
        outcome = judge(overseer, status, profile.limits, time.perf_counter() - began)
        if outcome is None:
            raise IsolationUnavailable("a spare ended before the call began", "it is tried again; look for memory")
        return outcome

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises."""
        first = await try_out(self)
        if not first.available:
            return first
        # Another call tells what a warm one takes, and leaves a spare for one without network, as most are.
        second = await try_out(self, network=False)
        refused = self._zygote.refused if self._zygote is not None else {}
        loaded = {"loaded": ", ".join(name for name in self._wanted if name not in refused)} if self._wanted else {}
        not_loaded = {NOT_LOADED + name: why for name, why in refused.items()}
        return dataclasses.replace(second, details={**first.details, **second.details, **loaded, **not_loaded})

    async def close(self) -> None:
        """End the zygote and all that is in it."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()

    def _refill_within(self, delay_s: float, zygote: Zygote, message: bytes, limits: Limits) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, self._refill, zygote, message, limits)

    def _refill(self, zygote: Zygote, message: bytes, limits: Limits) -> None:
        """As many spares as there should be. The terms of the last call are the likeliest of the next."""
        if zygote.is_open():
            zygote.refill(message, self._spares, limits)
        if zygote.made >= CALLS_MOST and self._starting is None:
            self._starting = asyncio.ensure_future(self._start())

    async def _running(self) -> Zygote:
        zygote = self._zygote
        if zygote is not None and zygote.is_open():
            return zygote
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Zygote:
        """Another zygote takes over; the one before ends with the last of its calls."""
        try:
            before, self._zygote = self._zygote, await start(this_runtime(), self._cells, self._wanted)
            if before is not None:
                before.retire()
            return self._zygote
        finally:
            self._starting = None


async def _in_time(zygote: Zygote, spare: Spare) -> None:
    if spare.is_ready:
        return
    try:
        async with asyncio.timeout(START_S):
            await spare.ready()
    except TimeoutError:
        zygote.kill()  # it hangs, or is stopped; and so do all that it should still make
        reason = f"a spare was not ready within {START_S:g} s"
        raise IsolationUnavailable(reason, "is the machine overloaded?") from None
