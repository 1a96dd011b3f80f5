"""One call in a spare of a zygote, and the spares that wait for the next one."""

import asyncio
import json
import time
from contextlib import suppress
from functools import lru_cache

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.egress.way_out import WayOut, proxy_of
from understudy.actors.sandbox.runtime import Runtime
from understudy.actors.sandbox.spare import Spare, terms
from understudy.actors.sandbox.verdict import judge, request_of, telling
from understudy.actors.sandbox.zygote_process import START_S, Zygote
from understudy.policies.profile import Limits, Profile

REFILL_WITHIN_S, REFILL_AFTER_S = 0.02, 0.001
"""From the beginning of a call, and from its end, whichever comes first: to make a spare takes a core a few
milliseconds, which the call and whoever waits for its outcome can use better. (A loop's timers count whole
milliseconds, and uvloop's round: half of one is none.)"""


async def made_in(
    zygote: Zygote,
    spares: int,
    runtime: Runtime,
    call: ToolCall,
    profile: Profile,
    way_out: WayOut | None,
    began: float,
) -> Outcome:
    """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made.

    When it returns or raises, nothing that the call has started executes any more; a millisecond later, nothing of
    it is there any more (`Zygote.leaving`).

    Args:
        spares: how many are to wait afterwards.
        began: what `time.perf_counter` said when the call came.
    """
    proxy = proxy_of(call, profile, way_out)
    message = message_of(profile.limits, proxy is not None)
    request = request_of(call, profile, runtime, way_out)
    spare = zygote.take(message, profile.limits)
    refilling = refill_within(REFILL_WITHIN_S if zygote.waiting else 0.0, zygote, spares, message, profile.limits)
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
                refill_within(REFILL_AFTER_S, zygote, spares, message, profile.limits)
                if proxy is not None:
                    await proxy.close()
    outcome = judge(overseer, status, profile.limits, time.perf_counter() - began)
    if outcome is None:
        raise IsolationUnavailable("a spare ended before the call began", "it is tried again; look for memory")
    return outcome


@lru_cache(maxsize=64)  # limits may differ with what is left of a budget
def message_of(limits: Limits, network: bool) -> bytes:
    """That has a zygote make a spare."""
    return json.dumps(terms(limits, network)).encode()


def refill_within(delay_s: float, zygote: Zygote, spares: int, message: bytes, limits: Limits) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, _refill, zygote, spares, message, limits)


def _refill(zygote: Zygote, spares: int, message: bytes, limits: Limits) -> None:
    """As many spares as there should be. The terms of the last call are the likeliest of the next."""
    if zygote.is_open():
        with suppress(IsolationUnavailable, OSError):  # it was killed just now; the next call finds out
            zygote.refill(message, spares, limits)


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
