"""One sandbox as the host sees it: a tree of processes, four pipes, and the certainty that it ends.

What goes in: the request, and only once the walls stand. What comes out: what the tool prints, and its reply, each with
a cap. The tree has ended when the first process of its pid namespace is dead; the kernel then has killed all others in
it. Processes are meant by pidfd, never by number.

Plain callbacks on the loop, and subprocess.Popen rather than asyncio's, where a start that is cancelled can leave its
process behind and every child costs a thread that waits for it.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from understudy.actors.outcome import OutcomeKind
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.reply import ENVELOPE_BYTES
from understudy.actors.sandbox.walls import Descriptors
from understudy.policies.profile import Limits

WATCH_EVERY_S = 0.02
CLEAN_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""bubblewrap stays as pid 1 inside, where a tool can read the environment that it was started with."""
_CHUNK = 65536
_OVERDUE_S = 2.0


class Child:
    """A sandbox that is being started. `end` has to be awaited, whatever happens before.

    Start it from a thread that lives as long as the call: the kernel ends the sandbox when that thread ends.
    """

    def __init__(self, command: Callable[[Descriptors], Sequence[str]], bpf: bytes, request: bytes, limits: Limits):
        self.cause: OutcomeKind | None = None
        """Why it was ended from here; None while it was not."""
        self.sentence = ""
        self.distrust = ""
        """Why the walls were not what they should be; the request was then never sent."""
        self.peak_bytes = 0
        self.cpu_s = 0.0
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._over = self._loop.create_future()
        self._first_pid = 0
        self._first: int | None = None  # pidfd of the first process inside
        self._ending = False
        self._status = b""
        self._unsent = memoryview(request)
        self._process, self._pidfd = self._spawn(command, bpf)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(self._status_fd, self._read_status)
        cap = limits.output_bytes
        self.printed = _Inlet(self._printed_fd, cap, lambda: self._stop_at("printed more than", cap))
        self.reply = _Inlet(self._reply_fd, cap + ENVELOPE_BYTES, lambda: self._stop_at("answered more than", cap))
        late = f"the call was ended after {limits.wall_s:g} s (wall_s)"
        self._after(limits.wall_s, lambda: self.stop("timeout", late))

    def _spawn(
        self, command: Callable[[Descriptors], Sequence[str]], bpf: bytes
    ) -> tuple[subprocess.Popen[bytes], int]:
        inner: list[int] = []  # the far ends, which are closed here as soon as the process has them
        try:
            request_in, self._request_fd = os.pipe2(os.O_CLOEXEC)
            self._printed_fd, printed_out = os.pipe2(os.O_CLOEXEC)
            self._status_fd, status_out = os.pipe2(os.O_CLOEXEC)
            self._reply_fd, reply_out = os.pipe2(os.O_CLOEXEC)
            filter_fd = os.memfd_create("seccomp")
            inner = [request_in, printed_out, status_out, reply_out, filter_fd]
            os.write(filter_fd, bpf)
            os.lseek(filter_fd, 0, os.SEEK_SET)
            for fd in (self._request_fd, self._printed_fd, self._status_fd, self._reply_fd):
                os.set_blocking(fd, False)
            process = subprocess.Popen(
                command(Descriptors(seccomp=filter_fd, status=status_out, reply=reply_out)),
                stdin=request_in,
                stdout=printed_out,
                stderr=printed_out,
                env=CLEAN_ENVIRONMENT,
                close_fds=True,
                # Also the near end of status: if we die early, bubblewrap must not die of writing to nobody, for that
                # is when the first process inside waits for a word from it, for ever.
                pass_fds=(filter_fd, status_out, reply_out, self._status_fd),
                start_new_session=True,  # a Ctrl-C for the worker is not for the tool
            )
            return process, os.pidfd_open(process.pid)
        except BaseException:
            inner += [self._request_fd, self._printed_fd, self._status_fd, self._reply_fd]
            raise
        finally:
            for fd in inner:
                os.close(fd)

    # --- its life ----------------------------------------------------------------------------------------------------

    async def over(self) -> None:
        """Returns when bubblewrap has ended, by itself or by `stop`."""
        await asyncio.shield(self._over)

    def stop(self, kind: OutcomeKind, sentence: str) -> None:
        """End it from here. The first cause counts."""
        if self.cause is None:
            self.cause, self.sentence = kind, sentence
            self._kill()

    async def end(self) -> int:
        """The exit status, once nothing of the tree is left and every descriptor is closed; even when cancelled."""
        self._kill()
        interrupted = await _insist(self._over)
        status = self._process.wait()
        if self._first is not None:
            dead = self._loop.create_future()
            self._loop.add_reader(self._first, _resolve, dead)
            interrupted |= await _insist(dead)
            self._close(self._first)
        for timer in self._timers:
            timer.cancel()
        self.printed.drain()
        self.reply.drain()
        self._close_request()
        for fd in (self._printed_fd, self._reply_fd, self._status_fd, self._pidfd):
            self._close(fd)
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
            _send_kill(self._first)
        if not self._ending:
            self._ending = True
            self._after(_OVERDUE_S, lambda: _send_kill(self._pidfd))

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._over.set_result(None)

    # --- the start ---------------------------------------------------------------------------------------------------

    def _read_status(self) -> None:
        """bubblewrap writes one JSON document a line; the first names the first process inside."""
        data = os.read(self._status_fd, _CHUNK)
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
            self._first_pid = pid
            self._loop.add_writer(self._request_fd, self._send)
            self._look()

    def _send(self) -> None:
        # Only now: bubblewrap is bound to our life by now, so there is nobody to do the work if we are gone.
        try:
            self._unsent = self._unsent[os.write(self._request_fd, self._unsent[: 1 << 20]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it ended; how, others will see
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._close_request()

    # --- limits ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._ending or self._over.done():
            return
        seen = watch.sample(self._first_pid, self._limits.memory_bytes, self._limits.disk_bytes)
        self.peak_bytes = max(self.peak_bytes, seen.memory_bytes)
        self.cpu_s = max(self.cpu_s, seen.cpu_s)
        if seen.memory_bytes > self._limits.memory_bytes:
            self.stop(
                "out_of_memory",
                f"the call held {_mib(seen.memory_bytes)} in {seen.processes} processes; the limit is "
                f"{_mib(self._limits.memory_bytes)} (memory_bytes)",
            )
        most = max(1024, self._limits.disk_bytes // 4096)
        if seen.files > most:
            self.stop("killed", f"the call made more than {most} files in its working folder (disk_bytes / 4096)")
        self._timers = [timer for timer in self._timers if not timer.cancelled() and timer.when() > self._loop.time()]
        self._after(WATCH_EVERY_S, self._look)

    def _stop_at(self, did: str, cap: int) -> None:
        self.stop("output_too_large", f"the tool {did} {cap} bytes (output_bytes)")

    # --- descriptors -------------------------------------------------------------------------------------------------

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(delay_s, act))

    def _close_request(self) -> None:
        if self._request_fd >= 0:
            self._loop.remove_writer(self._request_fd)
            os.close(self._request_fd)
            self._request_fd = -1

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)


class _Inlet:
    """Reads a pipe and keeps its tail up to a cap; calls `full` when there was more."""

    def __init__(self, fd: int, cap: int, full: Callable[[], None]) -> None:
        self.data = bytearray()
        self._fd = fd
        self._cap = cap
        self._full = full
        asyncio.get_running_loop().add_reader(fd, self._take)

    def _take(self) -> bool:
        """False when there is nothing more for now."""
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._fd)
            return False
        self.data += chunk
        if len(self.data) > self._cap:
            del self.data[: -self._cap]
            self._full()
        return True

    def drain(self) -> None:
        """What is still in the pipe: at most its capacity, for all who wrote to it are dead."""
        while self._take():
            pass


async def _insist(future: "asyncio.Future[None]") -> bool:
    """Wait for it even when cancelled. True if that happened: whoever asked to stop has to be told then."""
    interrupted = False
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            interrupted = True
    return interrupted


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _send_kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
