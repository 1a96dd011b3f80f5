"""One zygote as the host sees it: a bubblewrap that stays, and the spares that it has made."""

import asyncio
import json
import os
import socket
import subprocess
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from understudy.actors.sandbox import seccomp, watch
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.cell import Cells
from understudy.actors.sandbox.child import CLEAN_ENVIRONMENT
from understudy.actors.sandbox.diagnosis import not_started
from understudy.actors.sandbox.environments import LENT_NAMES, site_packages
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.launch import find_bubblewrap, line
from understudy.actors.sandbox.runtime import Runtime
from understudy.actors.sandbox.shown import Identity
from understudy.actors.sandbox.spare import Spare, order
from understudy.actors.sandbox.walls import NOTHING, WORKING_FOLDER, host_root, zygote_command
from understudy.policies.profile import Limits, Profile, covers

PRELOAD = ("cloudpickle", "pydantic", "asyncio", "typing", "traceback", "understudy.actors.tool")
"""What tools import most. It costs each zygote 12 MiB, and each call nothing that shows (see `settle.py`); to import it
would cost one 30 to 90 ms."""
CALLS_MOST = 2000
"""Calls of one zygote; then another takes over. Spares share the layout of its memory, so that should not last."""
START_S = 20.0
"""Seconds that a zygote or a spare may take until it says that it is ready."""
LEAVING_MOST = 8
"""Spares whose calls are over, and whose memory the kernel takes down; with more of them, a call waits (law 8)."""
_WORDS_BYTES = 8192
_WORD_BYTES = 65536


class Zygote:
    """One that is ready. Whoever takes a spare from it has to await `end` for it."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket, cells: Cells) -> None:
        self.refused: Mapping[str, str] = {}
        """Modules that were wanted at hand and are not, and why."""
        self.sees: Sequence[Identity] = ()
        """What it has found at the paths that it was asked to look at."""
        self.made = 0
        """Spares, over its life."""
        self._process = process
        self._control = control
        self._cells = cells
        self._pidfd = os.pidfd_open(process.pid)
        self.dead = readable(self._pidfd)
        self._open = 0
        """Spares that wait or are at work."""
        self._waiting: deque[tuple[bytes, Spare]] = deque()
        self._retired = False
        self._is_starting = True
        self._tasks: set[asyncio.Task[Any]] = set()
        self.dead.add_done_callback(lambda _: self._let_waiting_go())

    @property
    def waiting(self) -> int:
        """Spares that are ready, and wait for a call."""
        return sum(1 for _, spare in self._waiting if spare.is_ready)

    @property
    def leaving(self) -> int:
        """Spares in which nothing executes any more, and that are not gone yet."""
        return len(self._tasks)

    def started(self) -> None:
        """It is ready; until now, whoever waits for that has its control socket in use."""
        self._is_starting = False
        self._close_if_done()

    def is_open(self) -> bool:
        """Whether it takes calls."""
        return not self._retired and not self.dead.done()

    def take(self, message: bytes, limits: Limits) -> Spare:
        """A spare made to these terms: one that waits, or else a new one. Raises IsolationUnavailable."""
        for place, (made_to, spare) in enumerate(self._waiting):
            if made_to == message:
                del self._waiting[place]
                return spare
        return self._make(message, limits)

    def refill(self, message: bytes, wanted: int, limits: Limits) -> None:
        """Have so many spares waiting, and one at least made to these terms. `limits`: that are the likeliest."""
        if wanted and len(self._waiting) >= wanted and all(made_to != message for made_to, _ in self._waiting):
            self._spawn(self.end(self._waiting.popleft()[1]))
        while len(self._waiting) < wanted and self.is_open():
            self._waiting.append((message, self._make(message, limits)))

    async def end(self, spare: Spare) -> int:
        """The exit status, once nothing in it executes any more; even when cancelled."""
        try:
            return await spare.end()
        finally:
            self._spawn(self._bury_spare(spare))
            if self.leaving > LEAVING_MOST:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def retire(self) -> None:
        """No more calls; it ends with the last of its own."""
        self._retired = True
        self._let_waiting_go()
        self._close_if_done()

    def kill(self) -> None:
        """End it and all that is in it, now."""
        if self._pidfd >= 0:
            send_kill(self._pidfd)

    async def close(self) -> None:
        """`kill`, and return when nothing of it is left."""
        self.kill()
        interrupted = await insist(self.dead)
        self.retire()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._bury()
        if interrupted:
            raise asyncio.CancelledError

    def _make(self, message: bytes, limits: Limits) -> Spare:
        cell = self._cells.make(limits)
        try:
            spare = order(self._control, message, cell)
        except (BrokenPipeError, ConnectionResetError):
            self._cells.give_back(cell)
            raise IsolationUnavailable("the zygote is gone", "it is started again with the next call") from None
        except BaseException:
            self._cells.give_back(cell)
            raise
        self.made += 1
        self._open += 1
        return spare

    def _let_waiting_go(self) -> None:
        while self._waiting:
            self._spawn(self.end(self._waiting.popleft()[1]))
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._open > 0 or self._is_starting:
            return
        if self.dead.done():
            self._bury()
        elif self._retired:
            self.kill()  # and `dead` buries it

    async def _bury_spare(self, spare: Spare) -> None:
        try:
            await spare.buried()
        finally:
            self._cells.give_back(spare.cell)
        self._open -= 1
        self._close_if_done()

    def _bury(self) -> None:
        if self._pidfd >= 0:
            self._process.wait()
            self._control.close()
            os.close(self._pidfd)
            self._pidfd = -1

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def start(
    runtime: Runtime,
    cells: Cells,
    wanted: Sequence[str] = (),
    profile: Profile = NOTHING,
    looks_at: Sequence[str] = (),
) -> Zygote:
    """A zygote that is ready. Raises IsolationUnavailable; then nothing of it is left.

    Args:
        wanted: modules that it is to have loaded, for every call.
        profile: files of the host that it shows, and all its calls see.
        looks_at: paths of which it says what it sees there.
    """
    machine = os.uname().machine
    filters = {"alone": seccomp.program(machine), "network": seccomp.program(machine, network=True)}
    zygote, pid, control, said = _spawn(runtime, cells, profile)
    try:
        within_s = START_S * (1 + len(wanted))
        first = prepare(runtime, filters, wanted, profile, looks_at)
        told = await _until_ready(pid, zygote.dead, control, first, within_s)
        zygote.refused = told["refused"]
        zygote.sees = [(device, inode) for device, inode in told["sees"]]
        zygote.started()
    except _NotReady:
        await zygote.close()
        raise not_started(_words(said)) from None
    except BaseException:
        await zygote.close()
        raise
    finally:
        os.close(said)
    return zygote


def _spawn(runtime: Runtime, cells: Cells, profile: Profile) -> tuple[Zygote, int, socket.socket, int]:
    """One that starts, its pid, its control socket, and the end of the pipe where it says what is wrong."""
    program = find_bubblewrap()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said_in, said_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        process = subprocess.Popen(
            line(runtime, zygote_command(program, host_root(), runtime, theirs.fileno(), profile)),
            stdin=subprocess.DEVNULL,
            stdout=said_out,
            stderr=said_out,
            env=CLEAN_ENVIRONMENT,
            close_fds=True,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # a Ctrl-C for the worker is not for the tools
        )
    except BaseException:
        ours.close()
        os.close(said_in)
        raise
    finally:
        theirs.close()
        os.close(said_out)
    return Zygote(process, ours, cells), process.pid, ours, said_in


class _NotReady(Exception):
    """It ended, or did not answer in time. Why is in what it said."""


async def _until_ready(
    pid: int, dead: "asyncio.Future[None]", control: socket.socket, said_first: bytes, within_s: float
) -> dict[str, Any]:
    """What it says of itself."""
    control.setblocking(False)
    try:
        control.send(said_first)
        heard = readable(control.fileno())
        await asyncio.wait({heard, dead}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        word = control.recv(_WORD_BYTES)
    except OSError:
        word = b""
    finally:
        # Now, and not with the next turn of the loop (as sock_recv does): it may be closed by then, and whoever got its
        # number would never be woken.
        asyncio.get_running_loop().remove_reader(control.fileno())
    if not word.startswith(b"ready"):
        raise _NotReady
    if any("0" in watch.status(each).get("Uid", "0").split() for each in watch.tree(pid)):
        raise IsolationUnavailable(
            "the zygote runs as root on the host, where its walls do not hold",
            "run workers as a user other than root, or report this",
        )
    told: dict[str, Any] = json.loads(word.removeprefix(b"ready"))
    return told


def prepare(
    runtime: Runtime,
    filters: Mapping[str, bytes],
    wanted: Sequence[str] = (),
    profile: Profile = NOTHING,
    looks_at: Sequence[str] = (),
) -> bytes:
    """The first message to a zygote; see `zygote_inside.py`."""
    shown = [*(place for _, place in runtime.folders), *profile.read, *profile.write]
    below = sorted({place for place in shown if covers((WORKING_FOLDER, "/dev/shm"), place)})
    # What lies in another one of these comes with that.
    topmost = [place for place in below if not covers([each for each in below if each != place], place)]
    packages = site_packages(runtime.environment) if runtime.environment else ""
    first = {
        "import_paths": [path for path in runtime.import_paths if path != packages],
        "packages": packages,
        "lent": {"names": LENT_NAMES, "paths": runtime.lent_paths},
        "looks_at": list(looks_at),
        "python": runtime.python,
        "runner": runtime.runner,
        "preload": PRELOAD,
        "wanted": [] if packages else list(wanted),
        "filters": {name: bpf.hex() for name, bpf in filters.items()},
        "keep": topmost,
    }
    return json.dumps(first).encode()


def _words(fd: int) -> str:
    try:
        return os.read(fd, _WORDS_BYTES).decode(errors="replace")
    except BlockingIOError:
        return ""
