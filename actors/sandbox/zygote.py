"""The default tier: a bubblewrap that stays, in it a warm Python, from it a fresh sandbox for each call.

A cold bubblewrap costs 40 ms, nearly all of it the start of Python. Here Python is started once; what is made for each
call are namespaces, mounts and a process, and those before the call comes. Nothing is used twice.

Laws:
- The zygote is started as any sandbox is (`bubblewrap.py`): never as root, with an empty environment, and bound to the
  life of the thread that started it. It dies with the worker, and all sandboxes in it die with it.
- A call sees what all see, or else has a zygote of its kind (`rooms.py`); until there is one, it is not for this tier.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.backend import NOT_LOADED, Preflight
from understudy.actors.sandbox.cell import NO_CELLS, Cells
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.preflight import try_out
from understudy.actors.sandbox.rooms import Rooms
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.warm_call import made_in
from understudy.actors.sandbox.zygote_process import CALLS_MOST, Zygote, start
from understudy.policies.profile import Profile, Tier


class ZygoteBackend:
    """Needs bubblewrap 0.8 and user namespaces that may be nested. `spares`: how many wait, ready, for a call;
    `wanted`: modules that are loaded for all of them."""

    name = "bubblewrap zygote"
    tier: Tier = "zygote"

    def __init__(self, spares: int = 2, cells: Cells = NO_CELLS, wanted: Sequence[str] = ()) -> None:
        self._spares = spares
        self._wanted = wanted
        self._cells = cells
        self._rooms = Rooms(spares, cells, wanted)
        self._zygote: Zygote | None = None
        self._starting: asyncio.Task[Zygote] | None = None

    @property
    def waiting(self) -> int:
        """Spares that wait for a call."""
        return self._zygote.waiting if self._zygote is not None else 0

    @property
    def leaving(self) -> int:
        """Spares in which nothing executes any more, and that the kernel has not taken down yet."""
        return (self._zygote.leaving if self._zygote is not None else 0) + self._rooms.leaving

    @property
    def rooms(self) -> int:
        """Zygotes besides, for calls that see files of the host or have an environment."""
        return self._rooms.warm

    def fits(self, profile: Profile) -> bool:
        """Any call; one that sees files of the host, once its room is warm."""
        return True

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made.

        When it returns or raises, nothing that the call has started executes any more; a millisecond later, nothing of
        it is there any more (`leaving`).
        """
        began = time.perf_counter()
        if profile.read or profile.write or call.environment:
            return await self._rooms.execute(call, profile, way_out)
        zygote = await self._running()
        try:
            return await made_in(zygote, self._spares, this_runtime(), call, profile, way_out, began)
        finally:
            if zygote.made >= CALLS_MOST and self._starting is None:
                self._starting = asyncio.ensure_future(self._start())

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
        """End all zygotes and all that is in them."""
        await self._rooms.close()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()

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
