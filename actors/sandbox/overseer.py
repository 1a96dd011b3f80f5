"""Oversees one call from the host: sends its request, reads what it says, counts what it uses, and says when to stop.

What goes in: the request, and only once the walls stand. What comes out: what the tool prints, and its reply, each with
a cap. Which processes there are to end, and how, is for the tier to know; this asks it to, with the cause on record.

What comes first counts: a limit that is reached once the call has answered changes nothing any more, and an answer does
not change what a limit has ended. All that was printed before the answer was printed in time, read or not.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from understudy.actors.outcome import OutcomeKind
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.cell import Cell
from understudy.actors.sandbox.inlet import Inlet
from understudy.actors.sandbox.limit import files_most, limit_of, size
from understudy.actors.sandbox.reply import ENVELOPE_BYTES
from understudy.actors.sandbox.runner import STARTED
from understudy.policies.profile import Limits

WATCH_EVERY_S = 0.02


@dataclass(frozen=True)
class CallRequest:
    """What a runner reads."""

    data: bytes
    room: int = 0
    """Bytes that its answer may have besides the result: the files that it changed."""


@dataclass(frozen=True)
class NearEnds:
    """The host's ends of a sandbox's three pipes; non-blocking. Whoever holds this owns them."""

    request: int
    printed: int
    reply: int


@dataclass(frozen=True)
class FarEnds:
    """The sandbox's ends."""

    request: int
    printed: int
    reply: int


def pipes() -> tuple[NearEnds, FarEnds]:
    """Three pipes. Raises OSError, with none left open, where descriptors have run out."""
    held: list[int] = []
    try:
        for _ in range(3):
            held += os.pipe2(os.O_CLOEXEC)
        near, far = NearEnds(held[1], held[2], held[4]), FarEnds(held[0], held[3], held[5])
        for fd in (near.request, near.printed, near.reply):
            os.set_blocking(fd, False)
        return near, far
    except BaseException:
        close(*held)
        raise


def close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Overseer:
    """Of one call. `end` is called when an end was decided here, `answered` (if given, in its place) when the call has
    answered; `finish` has to be called once all in it are dead."""

    def __init__(
        self,
        near: NearEnds,
        limits: Limits,
        end: Callable[[], None],
        answered: Callable[[], None] | None = None,
        cell: Cell | None = None,
        listen_after_s: float = 0.0,
    ) -> None:
        """
        Args:
            cell: in which the kernel bounds the call's memory, too.
            listen_after_s: until then, what comes out stays in the pipes. For who learns otherwise that a call is over:
                most are by then, and to be woken for every word of them takes longer than to read all at once.
        """
        self.cause: OutcomeKind | None = None
        """Why the call was ended from here; None while it was not."""
        self.sentence = ""
        self.peak_bytes = 0
        self.cpu_s = 0.0
        self._limits = limits
        self._end = end
        self._let_go = answered or end
        self._cell = cell
        self._loop = asyncio.get_running_loop()
        self._request_fd = near.request
        self._unsent = memoryview(b"")
        self._look: Callable[[], watch.Sample] | None = None
        self._decided = False
        """It has answered, or is over: no limit counts any more."""
        cap = limits.output_bytes
        self.printed = Inlet(near.printed, cap, lambda: self._full("printed"))
        self.reply = Inlet(near.reply, cap + ENVELOPE_BYTES, lambda: self._full("answered"), self._answered)
        late = f"the call was ended when its time was over; {limit_of('wall_s', limits.wall_s)}"
        self._deadline = self._loop.call_later(limits.wall_s, lambda: self.stop("timeout", late))
        self._next_look: asyncio.TimerHandle | None = None
        self._listening: asyncio.TimerHandle | None = None
        if listen_after_s:
            self._listening = self._loop.call_later(listen_after_s, self._listen)
        else:
            self._listen()

    def _listen(self) -> None:
        self.printed.listen()
        self.reply.listen()

    def stop(self, kind: OutcomeKind, sentence: str) -> None:
        """End it from here. The first cause counts."""
        if self.cause is None and not self._decided:
            self.cause, self.sentence = kind, sentence
            self._end()

    def begin(self, request: CallRequest, look: Callable[[], watch.Sample]) -> None:
        """The walls stand: send the request, and look, some fifty times a second, at what the call uses."""
        self._unsent = memoryview(request.data)
        self.reply.allow(request.room)
        self._look = look
        self._send()
        if self._request_fd >= 0:
            self._loop.add_writer(self._request_fd, self._send)
        self._next_look = self._loop.call_later(WATCH_EVERY_S, self._watch)

    def finish(self) -> None:
        """Close everything."""
        self._end = self._let_go = lambda: None
        self._look_into_the_cell()
        self._deadline.cancel()
        for later in (self._next_look, self._listening):
            if later is not None:
                later.cancel()
        self.printed.take_the_rest()
        self.reply.take_the_rest()
        self._decided = True
        self.printed.close()
        self.reply.close()
        self._close_request()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._request_fd, self._unsent[: 1 << 20]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it ended; how, others will see
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._close_request()

    def _watch(self) -> None:
        assert self._look is not None
        if self.cause is not None or self._decided:
            return
        seen = self._look()
        self.peak_bytes = max(self.peak_bytes, seen.memory_bytes)
        self.cpu_s = max(self.cpu_s, seen.cpu_s)
        limits = self._limits
        self._look_into_the_cell()
        if seen.memory_bytes > limits.memory_bytes:
            self.stop(
                "out_of_memory",
                f"the call held {size(seen.memory_bytes)} in {seen.processes} processes; "
                + limit_of("memory_bytes", limits.memory_bytes),
            )
        if seen.cpu_s > limits.cpu_s:
            used = f"the call used {seen.cpu_s:.3g} s of CPU time"
            self.stop("timeout", f"{used}; {limit_of('cpu_s', limits.cpu_s)}")
        most = files_most(limits)
        if seen.files > most:
            why = f"the call made more than {most} files in its working folder (one for each 4 KiB of disk_bytes)"
            self.stop("killed", f"{why}; {limit_of('disk_bytes', limits.disk_bytes)}")
        if seen.disk_bytes > limits.disk_bytes:
            why = f"the call wrote {size(seen.disk_bytes)} to its working folder"
            self.stop("killed", f"{why}; {limit_of('disk_bytes', limits.disk_bytes)}")
        self._next_look = self._loop.call_later(WATCH_EVERY_S, self._watch)

    def _look_into_the_cell(self) -> None:
        if self._cell is not None and not self._decided and self._cell.kills():
            limits = self._limits
            both = "the kernel ended a process of the call, whose memory and files together were too much"
            room = f"each folder may hold {size(limits.disk_bytes)} (disk_bytes); of memory,"
            self.stop("out_of_memory", f"{both}; {room} {limit_of('memory_bytes', limits.memory_bytes)}")

    def _answered(self) -> None:
        """The call is over when it has answered; what is left of it need not end by itself, and might not."""
        if len(self.reply.data) > len(STARTED):
            self.printed.take_what_is_there()
            self._look_into_the_cell()
            if self.cause is None and not self._decided:
                self._decided = True
                self._let_go()

    def _full(self, did: str) -> None:
        why = f"the tool {did} more than it may"
        self.stop("output_too_large", f"{why}; {limit_of('output_bytes', self._limits.output_bytes)}")

    def _close_request(self) -> None:
        if self._request_fd >= 0:
            self._loop.remove_writer(self._request_fd)
            os.close(self._request_fd)
            self._request_fd = -1
