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
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from understudy.actors.sandbox import watch
from understudy.actors.sandbox.inlet import CHUNK_BYTES
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.overseer import FarEnds, Overseer, close, pipes
from understudy.actors.sandbox.walls import Descriptors
from understudy.policies.profile import Limits

CLEAN_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""bubblewrap stays as pid 1 inside, where a tool can read the environment that it was started with."""
_OVERDUE_S = 2.0


class Child:
    """A sandbox that is being started. `end` has to be awaited, whatever happens before.

    Start it from a thread that lives as long as the call: the kernel ends the sandbox when that thread ends.
    """

    def __init__(self, command: Callable[[Descriptors], Sequence[str]], bpf: bytes, request: bytes, limits: Limits):
        self.distrust = ""
        """Why the walls were not what they should be; the request was then never sent."""
        self._request = request
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._first: int | None = None  # pidfd of the first process inside
        self._ending = False
        self._overdue: asyncio.TimerHandle | None = None
        self._status = b""
        near, far = pipes()
        try:
            self._process, self._pidfd, self._status_fd = _spawn(command, bpf, far)
        except BaseException:
            close(near.request, near.printed, near.reply)
            raise
        finally:
            close(far.request, far.printed, far.reply)
        self.overseer = Overseer(near, limits, self._kill)
        self._over = readable(self._pidfd)
        self._loop.add_reader(self._status_fd, self._read_status)

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
        self.overseer.finish()
        self._loop.remove_reader(self._status_fd)
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
            self.distrust = "bubblewrap ended while it was setting up"
            self._kill()
        elif "0" in facts["Uid"].split():
            self.distrust = "bubblewrap ran as root on the host, where its walls do not hold"
            self._kill()
        elif self._ending:
            self._kill()
        else:
            # Only now: bubblewrap is bound to our life by now, so there is nobody to do the work if we are gone.
            self.overseer.begin(self._request, lambda: self._look(pid))

    def _look(self, pid: int) -> watch.Sample:
        seen = watch.sample(pid, self._limits.memory_bytes)
        return dataclasses.replace(seen, files=watch.files(pid, self._limits.disk_bytes))


def _spawn(
    command: Callable[[Descriptors], Sequence[str]], bpf: bytes, far: FarEnds
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, a pidfd of it, and the end of the pipe where it tells of itself."""
    status_in, status_out = os.pipe2(os.O_CLOEXEC)
    held = [status_out]
    try:
        filter_fd = os.memfd_create("seccomp")
        held.append(filter_fd)
        os.write(filter_fd, bpf)
        os.lseek(filter_fd, 0, os.SEEK_SET)
        process = subprocess.Popen(
            command(Descriptors(seccomp=filter_fd, status=status_out, reply=far.reply)),
            stdin=far.request,
            stdout=far.printed,
            stderr=far.printed,
            env=CLEAN_ENVIRONMENT,
            close_fds=True,
            # Also the near end of status: if we die early, bubblewrap must not die of writing to nobody, for that
            # is when the first process inside waits for a word from it, for ever.
            pass_fds=(filter_fd, status_out, far.reply, status_in),
            start_new_session=True,  # a Ctrl-C for the worker is not for the tool
        )
        return process, os.pidfd_open(process.pid), status_in
    except BaseException:
        held.append(status_in)
        raise
    finally:
        close(*held)
