"""Chooses, for each call, the cheapest tier that stands on this machine and is as strong as the policy wants, or more.

None stands: the call is refused, with the reason of each. What stands is not assumed but tried, by a real call in each
tier, before the first call of others (`preflight`).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import cgroup, gvisor
from understudy.actors.sandbox.backend import NOT_LOADED, Backend, IsolationUnavailable, Preflight
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.gvisor import GvisorBackend
from understudy.actors.sandbox.landlock import LandlockBackend, sweep
from understudy.actors.sandbox.left_over import LeftOver
from understudy.actors.sandbox.strays import end_strays
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import DEFAULT_TIER, TIERS, Profile, Tier

BY_COST: Final[tuple[Tier, ...]] = ("zygote", "landlock", "cold", "gvisor")
"""Measured: 1 to 3 ms a call (with files or an environment: once it is in use, see `rooms.py`), 40, 40, and 550."""
NETWORK_REMEDY: Final = "name tier: zygote or cold, on a machine where one of these stands, or grant no network"
BARE_REMEDY: Final = "run it on a machine where tier zygote, cold or gvisor stands, or give the tool no environment"
TRY_AGAIN_S = 10.0
"""A tier that did not stand is tried again no sooner than this, when a call would need it."""


def all_tiers(spares: int, wanted: Sequence[str] = ()) -> tuple[Backend, ...]:
    """One backend for each tier that there is.

    Args:
        spares: sandboxes that wait, ready, for a call.
        wanted: modules that tools import, which these have loaded.
    """
    cells, _told = cgroup.cells_here()
    zygotes = ZygoteBackend(spares, cells, wanted)
    return LandlockBackend(cells=cells), zygotes, BubblewrapBackend(cells), GvisorBackend(cells)


class Tiers:
    """A backend made of several. `preflights` says of each whether it stands."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = sorted(backends, key=lambda backend: BY_COST.index(backend.tier))
        self._found: dict[Tier, Preflight] = {}
        self._tried_at = 0.0
        self._left_over = LeftOver()
        self._told = LeftOver()
        self._trying: asyncio.Task[None] | None = None
        self._tried: dict[Tier, asyncio.Event] = {}

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""
        least = TIERS.index(profile.tier)
        strong = [backend for backend in self._backends if TIERS.index(backend.tier) >= least]
        fitting = [backend for backend in strong if backend.fits(profile) and _equips(backend, call)]
        for backend in fitting:
            if (await self._known(backend)).available:
                break
        else:
            if time.monotonic() - self._tried_at > TRY_AGAIN_S:
                await self.preflights()
        refusals: list[tuple[Tier, IsolationUnavailable]] = []
        for backend in fitting:
            found = await self._known(backend)
            if not found.available:
                refusals.append((backend.tier, IsolationUnavailable(found.reason, found.remedy)))
                continue
            try:
                return await backend.execute(call, profile, way_out)
            except IsolationUnavailable as error:  # its walls did not stand, so nothing was executed
                refusals.append((backend.tier, error))
        unfit = [backend.tier for backend in strong if profile.network and backend not in fitting]
        refusals += [(tier, IsolationUnavailable("it can give no network", NETWORK_REMEDY)) for tier in unfit]
        bare = [backend.tier for backend in strong if not _equips(backend, call)]
        refusals += [(tier, IsolationUnavailable("it can show no environment of a tool", BARE_REMEDY)) for tier in bare]
        raise _refused(profile.tier, refusals)

    def fits(self, profile: Profile) -> bool:
        """Whether there is a tier for it, stand it or not."""
        least = TIERS.index(profile.tier)
        return any(TIERS.index(backend.tier) >= least and backend.fits(profile) for backend in self._backends)

    async def preflights(self) -> Mapping[Tier, Preflight]:
        """Try every tier that has not been found to stand; from the weakest. First, what others left is ended."""
        await asyncio.shield(self._begin())
        return {tier: self._found[tier] for tier in TIERS if tier in self._found}

    async def preflight(self) -> Preflight:
        """Whether calls are isolated of which no rule says more, or less. `details`: by tier. Never raises."""
        found = await self.preflights()
        details: dict[str, str] = {tier: _sentence(each) for tier, each in found.items()}
        if self._left_over:
            details["left over"] = f"{self._left_over} of dead workers, ended and removed"
        details["memory"] = f"bounded by {cgroup.cells_here()[1]}"
        default = [each for tier, each in found.items() if TIERS.index(tier) >= TIERS.index(DEFAULT_TIER)]
        if any(each.available for each in default):
            return Preflight(True, details=details)
        reason = "; ".join(f"{tier}: {each.reason}" for tier, each in found.items() if not each.available)
        remedy = next((each.remedy for each in default if each.remedy), "")
        weaker = [tier for tier, each in found.items() if each.available]
        if weaker:
            remedy += f"; or, for tools for which that is enough, a policy that names tier: {weaker[-1]}"
        return Preflight(False, reason, remedy, details)

    def left_over(self) -> LeftOver:
        """What dead workers had left here and is gone now, since this was asked last."""
        told, self._told = self._told, LeftOver()
        return told

    async def close(self) -> None:
        """End what waits for calls, and what is still tried."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait([self._trying])
        for backend in self._backends:
            await backend.close()
        cgroup.cells_here()[0].remove_free()

    def _stands(self, backend: Backend) -> bool:
        return self._found[backend.tier].available

    async def _known(self, backend: Backend) -> Preflight:
        """Whether it stands. A call waits for no tier that is dearer than the one that it gets."""
        while backend.tier not in self._found:
            trying, tried = self._begin(), asyncio.ensure_future(self._tried[backend.tier].wait())
            try:
                await asyncio.wait({trying, tried}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                tried.cancel()
            if trying.done():
                trying.result()
        return self._found[backend.tier]

    def _begin(self) -> "asyncio.Task[None]":
        if self._trying is None:
            self._tried = {backend.tier: asyncio.Event() for backend in self._backends}
            self._trying = asyncio.ensure_future(self._try())
        return self._trying

    async def _try(self) -> None:
        try:
            found = await asyncio.to_thread(end_leftovers)
            self._left_over += found
            self._told += found
            missing = [each for each in self._backends if each.tier not in self._found or not self._stands(each)]
            await asyncio.gather(*map(self._try_one, missing))
        finally:
            self._tried_at = time.monotonic()
            self._trying = None

    async def _try_one(self, backend: Backend) -> None:
        self._found[backend.tier] = await backend.preflight()
        self._tried[backend.tier].set()


def _equips(backend: Backend, call: ToolCall) -> bool:
    """landlock shows a tool what the worker's user may read."""
    return not call.environment or backend.tier != "landlock"


def end_leftovers() -> LeftOver:
    """End and remove what the calls of dead workers have left on this machine, in any tier. Safe at any time."""
    return LeftOver(end_strays()) + sweep() + gvisor.sweep() + cgroup.sweep()


def _sentence(found: Preflight) -> str:
    if not found.available:
        return found.reason
    missing = [key for key in found.details if key.startswith(NOT_LOADED)]
    told = f"; {', '.join(missing)}, see `understudy doctor`" if missing else ""
    return f"stands, a call takes {found.details['duration_ms']} ms{told}"


def _refused(least: Tier, refusals: Sequence[tuple[Tier, IsolationUnavailable]]) -> IsolationUnavailable:
    reason = "; ".join(f"{tier}: {error.reason}" for tier, error in refusals) or "there is no such tier"
    remedy = next((error.remedy for _, error in refusals if error.remedy), "")
    return IsolationUnavailable(f"no isolation of tier {least!r} or stronger stands on this machine: {reason}", remedy)
