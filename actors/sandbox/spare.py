"""A sandbox that a zygote has made before there was a call for it, as the host sees it. Used once, and thrown away.

When a call has answered, its first process kills all others in it, and says so: none of them executes another
instruction. What is left is memory and mounts that the kernel takes down, for a millisecond; `buried` waits for that.

It is believed only after a look from outside, while nothing but our own code runs in it: its first process is the first
of a pid namespace, nobody's on the host, without a capability, and under a filter.
"""

import asyncio
import os
import signal
import socket
from contextlib import suppress

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.cell import Cell
from understudy.actors.sandbox.egress.listener import PORT, distrusted
from understudy.actors.sandbox.first import HALTED
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.limit import files_most
from understudy.actors.sandbox.overseer import CallRequest, NearEnds, Overseer, close, pipes
from understudy.policies.profile import Limits

_KILLED = 128 + 9
ASK_AFTER_S = 0.002
"""A runner that has answered asks its first process itself to halt all; a tool may have answered in its place."""
LISTEN_AFTER_S = 0.002
"""The first process says that a call is over; what it has answered is read then, if not before."""
HALT_WITHIN_S = 0.02
"""A first process that has not halted the others by then is killed, and they with it."""
BURIED_AFTER_S = 0.003
"""To take a process down keeps a core busy: until then, the outcome is told to whoever waits for it."""


class Spare:
    """One that is being made: await `ready`, then `begin` a call, then `over`; `end` has to be awaited in any case."""

    def __init__(self, near: NearEnds, status: socket.socket, cell: Cell | None = None) -> None:
        """`cell`: for all that will be in it."""
        self.cell = cell
        self._near: NearEnds | None = near
        self._status = status
        self._first = -1  # pidfd
        self._pid = 0
        self._dead: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told = b""
        self._is_halted = False
        self._overdue: asyncio.TimerHandle | None = None
        self.overseer: Overseer | None = None
        self.listener: socket.socket | None = None
        """Made in its network, where it was made to such terms. Whoever takes it sets None here, and closes it."""
        self._ready = asyncio.ensure_future(self._meet())
        self._ready.add_done_callback(_look_at)

    @property
    def is_ready(self) -> bool:
        return self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    async def ready(self) -> None:
        """Returns once it waits for a request. Raises IsolationUnavailable; it then has ended by itself."""
        await asyncio.shield(self._ready)

    def begin(self, request: CallRequest, limits: Limits) -> Overseer:
        """Start the call. Only when `ready`."""
        assert self._near is not None
        if self.cell is not None:
            self.cell.bound(limits)
        self.overseer = Overseer(self._near, limits, self._kill, self._halt_soon, self.cell, LISTEN_AFTER_S)
        self._near = None
        self.overseer.begin(request, lambda: watch.sample(self._pid, limits.memory_bytes))
        return self.overseer

    async def over(self) -> None:
        """Returns when nothing in it executes any more."""
        await asyncio.shield(self._over)

    async def end(self) -> int:
        """The runner's exit status (128 and the signal's number), once nothing in it executes any more; even when
        cancelled. `buried` has to be awaited after it."""
        interrupted = await _settled(self._ready)
        if self._dead is not None and not self._is_halted:
            self._kill()
            interrupted |= await insist(self._dead)
        status = self._status_told()
        if self._overdue is not None:
            self._overdue.cancel()
        if self.overseer is not None:
            self.overseer.finish()
        if self._near is not None:
            close(self._near.request, self._near.printed, self._near.reply)
            self._near = None
        asyncio.get_running_loop().remove_reader(self._status.fileno())
        self._status.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if interrupted:
            raise asyncio.CancelledError
        return status

    async def buried(self) -> None:
        """Returns when nothing of it is left at all; even when cancelled. After `end`."""
        interrupted = False
        if self._is_halted:
            try:
                await asyncio.sleep(BURIED_AFTER_S)
            except asyncio.CancelledError:
                interrupted = True
        if self._dead is not None:
            self._kill()
            interrupted |= await insist(self._dead)
        if self._first >= 0:
            os.close(self._first)
            self._first = -1
        if interrupted:
            raise asyncio.CancelledError

    def _kill(self) -> None:
        send_kill(self._first)

    def _halt_soon(self) -> None:
        self._overdue = asyncio.get_running_loop().call_later(ASK_AFTER_S, self._halt)

    def _halt(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first, signal.SIGTERM)
        self._overdue = asyncio.get_running_loop().call_later(HALT_WITHIN_S, self._kill)

    async def _meet(self) -> None:
        await readable(self._status.fileno())
        try:
            word, fds, _flags, _address = socket.recv_fds(self._status, 64, 2)
        except OSError:
            word, fds = b"", []
        if word != b"here" or len(fds) not in (1, 2):
            close(*fds)
            remedy = "see the words above; is the machine, or the workers' part of it, out of processes or memory?"
            raise IsolationUnavailable(f"a spare did not come up: {self._last_words()}", remedy)
        self._first = fds[0]
        self._dead = readable(self._first)
        self._dead.add_done_callback(lambda _: self._end_wait())
        asyncio.get_running_loop().add_reader(self._status.fileno(), self._hear)
        self._pid = _pid_of(self._first)
        wrong = _distrust(watch.status(self._pid))
        if len(fds) == 2:
            self.listener = socket.socket(fileno=fds[1])
            wrong = wrong or distrusted(self.listener)
        if self.cell is not None and not self.cell.has(self._pid):
            wrong = wrong or f"it is not in its cgroup {self.cell.path}"
        if wrong:
            send_kill(self._first)
            raise IsolationUnavailable(f"a spare came up, but {wrong}", "do not run untrusted tools here; report this")

    def _last_words(self) -> str:
        assert self._near is not None
        try:
            words = os.read(self._near.printed, 4096).decode(errors="replace").strip()
        except BlockingIOError:
            words = ""
        return words.splitlines()[-1][:300] if words else "it said nothing"

    def _hear(self) -> None:
        """Its first process says how the runner has ended, or that it has halted all."""
        asyncio.get_running_loop().remove_reader(self._status.fileno())
        with suppress(OSError):
            self._told = self._status.recv(64, socket.MSG_DONTWAIT)
        if self._told == HALTED:
            self._is_halted = True
            self._end_wait()

    def _end_wait(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _status_told(self) -> int:
        """Killed, if its first process could not say it any more."""
        if not self._told and self._first >= 0:
            self._hear()
        return int(self._told) if self._told.isdigit() else _KILLED


def order(zygote: socket.socket, message: bytes, cell: Cell | None = None) -> Spare:
    """Have a zygote make a spare. Raises OSError if there are no descriptors left or the zygote is gone."""
    near, far = pipes()
    try:
        doors = [] if cell is None else [cell.door()]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        close(near.request, near.printed, near.reply, far.request, far.printed, far.reply)
        raise
    try:
        socket.send_fds(zygote, [message], [far.request, far.printed, far.reply, theirs.fileno(), *doors])
    except OSError:
        close(near.request, near.printed, near.reply)
        ours.close()
        raise
    finally:
        close(far.request, far.printed, far.reply)
        theirs.close()
    return Spare(near, ours, cell)


def terms(limits: Limits, network: bool) -> dict[str, int]:
    """What of a call's limits a spare is made with, and where a proxy listens in it. All else is set with the call."""
    return {"disk_bytes": limits.disk_bytes, "files": files_most(limits), "port": PORT if network else 0}


def _pid_of(pidfd: int) -> int:
    rows = watch.read(f"/proc/self/fdinfo/{pidfd}").splitlines()
    return next((int(row.partition(":")[2]) for row in rows if row.startswith("Pid:")), 0)


def _distrust(facts: dict[str, str]) -> str:
    if not facts:
        return "ended at once"
    checks = [
        ("0" not in facts["Uid"].split(), "it runs as root on the host"),
        (facts["NSpid"].split()[-1] == "1", "it has no pid namespace of its own"),
        (int(facts["CapEff"], 16) | int(facts["CapBnd"], 16) == 0, "it has capabilities"),
        (facts["NoNewPrivs"] == "1", "it can gain privileges through setuid programs"),
        (facts["Seccomp"] == "2", "its system calls are not filtered"),
    ]
    return "; ".join(hole for fine, hole in checks if not fine)


async def _settled(task: "asyncio.Task[None]") -> bool:
    """Wait for its end, whatever that is, even when cancelled. True if that happened."""
    interrupted = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            interrupted = True
    return interrupted


def _look_at(task: "asyncio.Task[None]") -> None:
    """Whoever awaits it is told of its error; and where nobody does, asyncio need not complain."""
    if not task.cancelled():
        task.exception()
