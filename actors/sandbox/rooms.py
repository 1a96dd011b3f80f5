"""Warm zygotes for calls that see files of the host, or have an environment: one for each set of these that is in use.

What a spare shows, its zygote has shown from its start on; so a zygote is good for the calls that see exactly that: its
room. The first calls of a room are made in tier `cold`. When it is in use (`uses.py`), a zygote is started beside, with
exactly these mounts, and the calls after that are as warm as others. It holds 25 MiB, with its two spares; four are the
most.

Laws:
- What a call sees is what was granted, as it is on the host when the call begins: each path still has to lead to what
  the zygote itself says that it shows there (`shown.py`). If not, it is ended, and the call made in tier `cold`.
- Fewer files are another room. A spare is used once, as everywhere; runs that are granted the same share a zygote only,
  which holds no secret and executes nothing of a tool, nor of an environment.
- Nothing here delays a call, and a room that cannot be had is no error: the call is made in tier `cold`.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable
from understudy.actors.sandbox.cell import Cells
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.environments import site_packages
from understudy.actors.sandbox.launch import refuse_unreachable
from understudy.actors.sandbox.runtime import Runtime, runtime_of
from understudy.actors.sandbox.shown import Shown
from understudy.actors.sandbox.uses import IDLE_S, Uses, gives_way, idle
from understudy.actors.sandbox.walls import NOTHING, refuse_bad_grants
from understudy.actors.sandbox.warm_call import made_in, message_of, refill_within
from understudy.actors.sandbox.zygote_process import CALLS_MOST, Zygote, start
from understudy.policies.profile import Profile

SPARES_MOST = 2
"""That wait in a room. Further calls at the same time get one that is made for them."""
LOOK_S = 2.0
"""A file system that does not answer by then is left to tier `cold`."""
PATHS_MOST, PATHS_BYTES_MOST = 64, 16384
"""Of what a room shows; with more it stays cold: they are looked at before each call."""


@dataclass(frozen=True)
class Key:
    """What a room shows. Of a path that may be written and read, it may be written."""

    read: frozenset[str]
    write: frozenset[str]
    environment: str
    beside: bool

    @property
    def profile(self) -> Profile:
        return replace(NOTHING, read=tuple(sorted(self.read)), write=tuple(sorted(self.write)))


def key_of(call: ToolCall, profile: Profile) -> Key:
    write = frozenset(profile.write)
    environment = call.environment
    return Key(frozenset(profile.read) - write, write, environment, bool(environment) and call.code.beside)


@dataclass
class Room:
    """One that is warm."""

    runtime: Runtime
    zygote: Zygote
    shown: Shown
    is_near: bool
    used_at: float


class NotWarm(IsolationUnavailable):
    """There is no zygote for such a call now."""


class Rooms:
    """`spares`: as many wait in a room as in the plain zygote, up to SPARES_MOST."""

    def __init__(self, spares: int, cells: Cells, wanted: Sequence[str] = ()) -> None:
        self._spares = min(spares, SPARES_MOST)
        self._cells = cells
        self._wanted = tuple(wanted)
        self._uses = Uses[Key]()
        self._warm: dict[Key, Room] = {}
        self._starting: asyncio.Task[None] | None = None
        self._leaving: dict[asyncio.Task[None], Zygote] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def warm(self) -> int:
        """How many there are."""
        return len(self._warm)

    @property
    def leaving(self) -> int:
        """Spares in which nothing executes any more, and zygotes that take no more calls, and that are not gone yet."""
        return sum(room.zygote.leaving for room in self._warm.values()) + len(self._leaving)

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call, where its room is warm. Cancelling ends everything it started. Raises IsolationUnavailable;
        the call was not made."""
        began, key = time.perf_counter(), key_of(call, profile)
        room = self._warm.get(key)
        if room is None or not room.zygote.is_open() or room.zygote.made >= CALLS_MOST:
            raise self._not_warm(key, call, profile, room)
        room.used_at = _now()
        if not await _is_same(room):
            if self._warm.get(key) is room:
                self._end(key, is_barred=True)
            raise NotWarm("what it is granted is not what it was when its sandbox was made", "")
        if self._warm.get(key) is not room:
            raise NotWarm("its sandbox was ended just now", "")
        return await made_in(room.zygote, self._spares, room.runtime, call, profile, way_out, began)

    async def close(self) -> None:
        """End them all, and return when nothing is left of any."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        for key in list(self._warm):
            self._end(key)
        for zygote in self._leaving.values():
            zygote.kill()
        while self._leaving:
            await asyncio.wait(set(self._leaving))
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._is_closed = False

    def _not_warm(self, key: Key, call: ToolCall, profile: Profile, room: Room | None) -> NotWarm:
        """Of a call that finds no zygote; the next one may."""
        if room is not None:  # killed by somebody, or worn
            self._end(key, is_barred=not room.zygote.is_open())
        again = _is_small(key) and self._uses.is_again(key, _now())
        if again and self._starting is None and not self._is_closed:
            there_is, going = gives_way({each: room.used_at for each, room in self._warm.items()}, _now())
            if going is not None:
                self._end(going)
            if there_is:
                self._starting = asyncio.ensure_future(self._start(key, runtime_of(call), profile))
        return NotWarm("no sandbox with what it is granted is warm", "")

    async def _start(self, key: Key, runtime: Runtime, profile: Profile) -> None:
        """Have a zygote for a room. One that cannot be had is not tried again for a while."""
        try:
            room = await self._made(key, runtime)
        except (IsolationUnavailable, BadGrant, OSError, RuntimeError):
            # Whoever makes such a call in another tier is told why.
            self._uses.bar(key, _now())
        else:
            self._warm[key] = room
            message = message_of(profile.limits, bool(profile.network))  # the next call's, most likely
            refill_within(0.0, room.zygote, self._spares, message, profile.limits)
            if self._sweeping is None:
                self._sweep_within(IDLE_S)
        finally:
            self._starting = None

    async def _made(self, key: Key, runtime: Runtime) -> Room:
        refuse_bad_grants(key.profile, runtime)
        environment = [place for _, place in runtime.folders if _is_in(place, key.environment)]
        listing = [site_packages(key.environment)] if key.environment else []
        looks_at = [*key.profile.read, *key.profile.write, *environment]
        shown = await _looked(key.profile, looks_at, listing)
        try:
            zygote = await start(runtime, self._cells, self._wanted, key.profile, looks_at)
        except BaseException:
            shown.close()
            raise
        room = Room(runtime, zygote, shown, shown.is_near, _now())
        try:
            if list(zygote.sees) != shown.identities or not await _is_same(room):
                raise IsolationUnavailable("what was granted has changed meanwhile", "")
        except BaseException:
            shown.close()
            await zygote.close()
            raise
        return room

    def _end(self, key: Key, is_barred: bool = False) -> None:
        """It takes no more calls, and ends with the last of its own."""
        room = self._warm.pop(key)
        if is_barred:
            self._uses.bar(key, _now())
        room.shown.close()
        room.zygote.retire()
        task = asyncio.ensure_future(_gone(room.zygote))
        self._leaving[task] = room.zygote
        task.add_done_callback(self._leaving.pop)

    def _sweep_within(self, delay_s: float) -> None:
        self._sweeping = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        used_at, now = {key: room.used_at for key, room in self._warm.items()}, _now()
        for key in idle(used_at, now):
            self._end(key)
        if self._warm:
            self._sweep_within(min(room.used_at for room in self._warm.values()) + IDLE_S - now + 0.1)


async def _looked(profile: Profile, paths: Sequence[str], listing: Sequence[str]) -> Shown:
    """How things are there. Raises BadGrant, OSError; TimeoutError, where a file system does not answer."""

    def look() -> Shown:
        refuse_unreachable(profile)
        return Shown(paths, listing)

    looking = asyncio.ensure_future(asyncio.to_thread(look))
    try:
        async with asyncio.timeout(LOOK_S):
            return await asyncio.shield(looking)
    except BaseException:
        looking.add_done_callback(_close_what_came)  # of a thread that nobody can end
        raise


def _close_what_came(looking: "asyncio.Task[Shown]") -> None:
    if not looking.cancelled() and looking.exception() is None:
        looking.result().close()


async def _is_same(room: Room) -> bool:
    """False, too, where that cannot be found out: there may be no descriptor left, no thread, or no answer."""
    try:
        if room.is_near:
            return room.shown.is_same()
        async with asyncio.timeout(LOOK_S):
            return await asyncio.to_thread(room.shown.is_same)
    except (OSError, RuntimeError):
        return False


async def _gone(zygote: Zygote) -> None:
    await asyncio.shield(zygote.dead)
    with suppress(asyncio.CancelledError):
        await zygote.close()


def _is_small(key: Key) -> bool:
    paths = [*key.read, *key.write]
    return len(paths) <= PATHS_MOST and sum(map(len, paths)) <= PATHS_BYTES_MOST


def _is_in(place: str, environment: str) -> bool:
    return bool(environment) and place.startswith(f"{environment}/")


def _now() -> float:
    return asyncio.get_running_loop().time()
