"""A bubblewrap of one call as the host sees it: a tree of processes, and the certainty that it ends.

The tree has ended when the first process of its pid namespace is dead; the kernel then has killed all others in it.
Processes are meant by pidfd, never by number.

Plain callbacks on the loop, and subprocess.Popen rather than asyncio's, where a start that is cancelled can leave its
process behind and every child costs a thread that waits for it.
"""

import asyncio
import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.cell import Cell
from understudy.actors.sandbox.egress.listener import distrusted
from understudy.actors.sandbox.inlet import CHUNK_BYTES
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.overseer import CallRequest, FarEnds, Overseer, close, pipes
from understudy.actors.sandbox.walls import Descriptors
from understudy.policies.profile import Limits

CLEAN_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""bubblewrap stays as pid 1 inside, where a tool can read the environment that it was started with."""
SETTING_UP = "bubblewrap ended while it was setting up"
_OVERDUE_S = 2.0


class Child:
    """A sandbox that is being started. `end` has to be awaited, whatever happens before.

    Start it from a thread that lives as long as the call: the kernel ends the sandbox when that thread ends.
    """

    def __init__(
        self,
        command: Callable[[Descriptors], Sequence[str]],
        bpf: bytes,
        request: CallRequest,
        limits: Limits,
        listen: Callable[[socket.socket], None] | None = None,
        cell: Cell | None = None,
    ):
        """`listen`: for a call with network, gets the listening socket that the runner has made in there."""
        self.distrust = ""
        """Why the walls were not what they should be; the request was then never sent."""
        self._request = request
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._first: int | None = None  # pidfd of the first process inside
        self._ending = False
        self._overdue: asyncio.TimerHandle | None = None
        self._status = b""
        self._listen = listen
        self._pid = 0
        self._cell = cell
        self._entering: asyncio.Task[None] | None = None
        near, far = pipes()
        outlet: socket.socket | None = None
        self._inlet: socket.socket | None = None
        try:
            if listen is not None:
                self._inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process, self._pidfd, self._status_fd = _spawn(command, bpf, far, outlet)
        except BaseException:
            close(near.request, near.printed, near.reply)
            self._close_inlet()
            raise
        finally:
            close(far.request, far.printed, far.reply)
            if outlet is not None:
                outlet.close()
        self.overseer = Overseer(near, limits, self._kill, cell=cell)
        self._over = readable(self._pidfd)
        self._loop.add_reader(self._status_fd, self._read_status)
        if self._inlet is not None:
            self._loop.add_reader(self._inlet.fileno(), self._take_listener, self._inlet)

    async def over(self) -> None:
        """Returns when bubblewrap has ended, by itself or by `overseer.stop`."""
        await asyncio.shield(self._over)

    async def end(self) -> int:
        """The exit status, once nothing of the tree is left and every descriptor is closed; even when cancelled."""
        self._kill()
        interrupted = await insist(self._over)
        status = self._process.wait()
        if self._first is not None:
            interrupted |= await insist(readable(self._first))
            os.close(self._first)
        if self._overdue is not None:
            self._overdue.cancel()
        if self._entering is not None:
            interrupted |= await insist(self._entering)
        self.overseer.finish()
        self._loop.remove_reader(self._status_fd)
        self._close_inlet()
        close(self._status_fd, self._pidfd)
        if interrupted:
            raise asyncio.CancelledError
        return status

    def _kill(self) -> None:
        """The first process inside; with it the kernel ends all others there, and bubblewrap outside reaps it.

        While it is not known yet, only its parent could be killed; but if that dies in the moment between its birth and
        its being bound to the parent's life, it stays for ever. So its name, some milliseconds away, is waited for.
        """
        if self._over.done():
            return
        if self._first is not None:
            send_kill(self._first)
        if not self._ending:
            self._ending = True
            self._overdue = self._loop.call_later(_OVERDUE_S, lambda: send_kill(self._pidfd))

    def _read_status(self) -> None:
        """bubblewrap writes one JSON document a line; the first names the first process inside."""
        data = os.read(self._status_fd, CHUNK_BYTES)
        if not data:
            self._loop.remove_reader(self._status_fd)
        self._status += data
        first, newline, _ = self._status.partition(b"\n")
        if newline and self._first is None and not self.distrust:
            self._meet(json.loads(first)["child-pid"])

    def _meet(self, pid: int) -> None:
        with suppress(ProcessLookupError):  # the set-up failed; bubblewrap says why on stderr
            self._first = os.pidfd_open(pid)
        facts = watch.status(pid)
        if self._first is None or facts.get("PPid") != str(self._process.pid):
            self.distrust = SETTING_UP
            self._kill()
        elif "0" in facts["Uid"].split():
            self.distrust = "bubblewrap ran as root on the host, where its walls do not hold"
            self._kill()
        elif self._ending:
            self._kill()
        else:
            self._entering = asyncio.ensure_future(self._enter(pid))

    async def _enter(self, pid: int) -> None:
        """What is there yet is put into the cell, and all that comes will be in it."""
        try:
            if self._cell is not None:
                await self._cell.enter(lambda: watch.tree(self._process.pid))
        except OSError as error:
            self.distrust = f"the call could not enter its cgroup: {error}"
            self._kill()
            return
        self._pid = pid
        self._begin()

    def _begin(self) -> None:
        """Only now: bubblewrap is bound to our life by now, so there is nobody to do the work if we are gone. And a
        call with network begins only when the listening socket is here, so that no tool can hand out another."""
        if self._pid and self._inlet is None and not self.distrust and not self._ending:
            self.overseer.begin(self._request, lambda: self._look(self._pid))

    def _take_listener(self, inlet: socket.socket) -> None:
        try:
            _word, fds, _flags, _address = socket.recv_fds(inlet, 64, 1)
        except OSError:
            fds = []
        self._close_inlet()
        if not fds:  # it ended before; how, others will see
            return
        listener = socket.socket(fileno=fds[0])
        self.distrust = self.distrust or distrusted(listener)
        if self.distrust or self._listen is None:
            listener.close()
            self._kill()
            return
        self._listen(listener)
        self._begin()

    def _close_inlet(self) -> None:
        if self._inlet is not None:
            self._loop.remove_reader(self._inlet.fileno())
            self._inlet.close()
            self._inlet = None

    def _look(self, pid: int) -> watch.Sample:
        seen = watch.sample(pid, self._limits.memory_bytes)
        return dataclasses.replace(seen, files=watch.files(pid, self._limits.disk_bytes))


def _spawn(
    command: Callable[[Descriptors], Sequence[str]], bpf: bytes, far: FarEnds, outlet: socket.socket | None
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, a pidfd of it, and the end of the pipe where it tells of itself."""
    status_in, status_out = os.pipe2(os.O_CLOEXEC)
    held = [status_out]
    outlet_fd = -1 if outlet is None else outlet.fileno()
    try:
        filter_fd = os.memfd_create("seccomp")
        held.append(filter_fd)
        os.write(filter_fd, bpf)
        os.lseek(filter_fd, 0, os.SEEK_SET)
        process = subprocess.Popen(
            command(Descriptors(seccomp=filter_fd, status=status_out, reply=far.reply, outlet=outlet_fd)),
            stdin=far.request,
            stdout=far.printed,
            stderr=far.printed,
            env=CLEAN_ENVIRONMENT,
            close_fds=True,
            # Also the near end of status: if we die early, bubblewrap must not die of writing to nobody, for that
            # is when the first process inside waits for a word from it, for ever.
            pass_fds=(filter_fd, status_out, far.reply, status_in, *([] if outlet is None else [outlet_fd])),
            start_new_session=True,  # a Ctrl-C for the worker is not for the tool
        )
        return process, os.pidfd_open(process.pid), status_in
    except BaseException:
        held.append(status_in)
        raise
    finally:
        close(*held)
