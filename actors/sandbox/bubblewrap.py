"""The tier `cold`: each call gets a bubblewrap and a Python of its own, and in it nothing but what was granted.

Laws:
- bubblewrap never runs as root on the host; that is checked from outside on each call, before anything is sent in.
- It starts with an empty environment and only the descriptors it needs.
- Whatever ends the call, nothing of it is left when `execute` returns or raises: no process, no descriptor.
"""

import asyncio
import os
import socket
import time

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import seccomp
from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable, Preflight
from understudy.actors.sandbox.cell import NO_CELLS, Cells
from understudy.actors.sandbox.child import SETTING_UP, Child
from understudy.actors.sandbox.diagnosis import KILLED, LOOK_FOR_MEMORY, moved, not_started
from understudy.actors.sandbox.egress.way_out import WayOut, proxy_of
from understudy.actors.sandbox.launch import HOST_ID as HOST_ID
from understudy.actors.sandbox.launch import find_bubblewrap, line, refuse_unreachable
from understudy.actors.sandbox.preflight import try_out
from understudy.actors.sandbox.runtime import runtime_of
from understudy.actors.sandbox.strays import end_strays
from understudy.actors.sandbox.verdict import bad_grant, judge, request_of, said, telling
from understudy.actors.sandbox.walls import Descriptors, command, host_root, refuse_bad_grants
from understudy.policies.profile import Profile, Tier

BEGINS_MOST = 3
"""How often a call is begun of which nothing was executed, and that may succeed: its granted path was replaced just
while bubblewrap bound it (a file that is written beside and renamed, say), or somebody killed what was to begin it."""


class _Again(Exception):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path
        """The one that was replaced; empty: it was killed."""


class BubblewrapBackend:
    """Needs bubblewrap 0.8 and user namespaces. As root: gives root up first, see `launcher.py`."""

    name = "bubblewrap"
    tier: Tier = "cold"

    def __init__(self, cells: Cells = NO_CELLS) -> None:
        self._cells = cells

    def fits(self, profile: Profile) -> bool:
        """Any call."""
        return True

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""
        path = ""
        for _ in range(BEGINS_MOST):
            try:
                return await self._execute(call, profile, way_out)
            except _Again as error:
                path = error.path
        if not path:
            raise IsolationUnavailable(f"what begins a call was killed, {BEGINS_MOST} times", LOOK_FOR_MEMORY)
        told = f"the granted path {path!r} is replaced or removed all the time, and cannot be shown; grant its folder"
        return Outcome("error", error=told, error_type="BadGrant")

    async def _execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None) -> Outcome:
        began = time.perf_counter()
        runtime = runtime_of(call)
        program = find_bubblewrap()
        proxy = proxy_of(call, profile, way_out)
        bpf = seccomp.program(os.uname().machine, network=proxy is not None)
        try:
            refuse_bad_grants(profile, runtime)
            refuse_unreachable(profile)
        except BadGrant as error:
            return Outcome("error", error=str(error), error_type="BadGrant")

        def started_by(fds: Descriptors) -> list[str]:
            return line(runtime, command(program, host_root(), runtime, profile, fds))

        opening: list[asyncio.Future[None]] = []

        def listen(listener: socket.socket) -> None:
            assert proxy is not None
            opening.append(asyncio.ensure_future(proxy.open(listener)))

        request = request_of(call, profile, runtime, way_out)
        with self._cells.one(profile.limits) as cell:
            child = Child(started_by, bpf, request, profile.limits, None if proxy is None else listen, cell)
            with telling(lambda: child.overseer):
                try:
                    await child.over()
                finally:
                    try:
                        status = await child.end()
                    finally:
                        await asyncio.gather(*opening, return_exceptions=True)
                        if proxy is not None:
                            await proxy.close()
        outcome = judge(child.overseer, status, profile.limits, time.perf_counter() - began)
        return _never_started(child, status, profile) if outcome is None else outcome

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises. First, what others left is ended."""
        end_strays()
        return await try_out(self)

    async def close(self) -> None:
        """Nothing waits for calls."""


def _never_started(child: Child, status: int, profile: Profile) -> Outcome:
    if (refused := bad_grant(child.overseer, status)) is not None:
        return refused
    words = said(child.overseer)
    if status in KILLED and not words and child.distrust in ("", SETTING_UP):
        raise _Again("")
    if child.distrust and not words:
        raise IsolationUnavailable(child.distrust, "run workers as a user other than root, or report this")
    if path := moved(words, status, (*profile.read, *profile.write)):
        raise _Again(path)
    raise not_started(words)
