"""The tier `landlock`: no namespaces, so it works in any pod; rules, a filter and limits around an ordinary process.

What other tiers do not have, this one has and keeps away: the process table (nothing of /proc can be opened), the
network (no socket opens), the disk (rules), other processes of the same user (rules, where the kernel has them, else
the filter). What it cannot do:

- Names, sizes and times of files anywhere can be asked for (`stat`), though no folder can be listed.
- The working folder is on the node's disk: looked at some times a second, and not bounded by the kernel.
- File modes and owners do not change, though the calls are told yes; times do not, and the calls are told no. There is
  no /dev/shm and no /proc, so multiprocessing's locks do not work.
- A rule can only add: within a folder that may be written nothing can be kept from that, so such a call does not fit.

Laws: it never runs as root on the host; nothing of the call is left when `execute` returns, or, if the worker is
killed, soon after; what even that leaves (the keeper was killed as well) is found by `sweep` at the next start.
"""

import asyncio
import dataclasses
import json
import os
import secrets
import subprocess
import time
from contextlib import suppress

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import folders, marks, rules, seccomp, watch
from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable, Preflight
from understudy.actors.sandbox.cell import NO_CELLS, Cell, Cells
from understudy.actors.sandbox.child import CLEAN_ENVIRONMENT
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.folders import Owner
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.launch import host_id, line_here, refuse_unreachable
from understudy.actors.sandbox.left_over import LeftOver
from understudy.actors.sandbox.limit import limit_of
from understudy.actors.sandbox.overseer import CallRequest, FarEnds, Overseer, close, pipes
from understudy.actors.sandbox.preflight import try_out
from understudy.actors.sandbox.runtime import Runtime, this_runtime
from understudy.actors.sandbox.syscalls import CHANGING_FILES, REACHING_OUT, SIGNALLING
from understudy.actors.sandbox.verdict import bad_grant, judge, request_of, said, telling
from understudy.actors.sandbox.walls import SHOWN_OF_ETC, environment, host_root, refuse_bad_grants
from understudy.policies.profile import Limits, Profile, Tier, covers

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
MEASURED_EVERY = 5
"""Looks of the watchdog for one at the disk, which costs more."""
OVERDUE_S = 5.0
"""Seconds that a keeper may take to end a call; then it is killed, and the call's processes are ended from here."""
MEANWHILE = 256
"""Processes and threads that other calls of the same user may start during one, without a fork failing in this one."""
OLD_KERNEL = "Linux 6.12 or newer tells apart whom a tool may signal"


class LandlockBackend:
    """Needs Linux 5.13 with Landlock, and an interpreter that the sandbox's user can reach."""

    name = "landlock"
    tier: Tier = "landlock"

    def __init__(self, version: int | None = None, cells: Cells = NO_CELLS) -> None:
        """`version`: of Landlock's ABI, where not all that the kernel offers is to be used."""
        self._cells = cells
        self._version = rules.abi() if version is None else version

    def fits(self, profile: Profile) -> bool:
        """Whether nothing lies in its writable folders that must not be written, and it has no network: there is no
        network of its own here for a proxy to listen in, and on the pod's a socket leads everywhere."""
        if profile.network:
            return False
        kept = [*profile.read, *(place for both in this_runtime().folders for place in both)]
        return not any(covers(profile.write, path) for path in kept)

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""
        began = time.perf_counter()
        runtime = this_runtime()
        if self._version < 1:
            raise IsolationUnavailable(
                "this kernel has no Landlock, or has it switched off",
                "Linux 5.13 or newer, with landlock in the boot parameter lsm=",
            )
        try:
            refuse_bad_grants(profile, runtime)
            refuse_unreachable(profile)
            if profile.network:
                raise BadGrant("tier 'landlock' has no network of its own to bound; name tier: zygote, or cold")
            if not self.fits(profile):
                raise BadGrant(
                    "a granted writable folder holds what must not be written, and tier 'landlock' can keep nothing in "
                    f"it from that; grant less than {', '.join(profile.write)}, or name tier: cold"
                )
        except BadGrant as error:
            return Outcome("error", error=str(error), error_type="BadGrant")
        within = dataclasses.replace(profile, limits=_in_this_table(profile.limits))
        with self._cells.one(profile.limits) as cell:
            kept = Kept(profile, runtime, self._version, cell)
            with telling(lambda: kept.overseer):
                try:
                    await kept.here()
                    kept.begin(request_of(call, within, runtime, way_out))
                    await kept.over()
                finally:
                    status = await kept.end()
        outcome = judge(kept.overseer, status, profile.limits, time.perf_counter() - began)
        return _never_started(kept, status) if outcome is None else outcome

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises. First, what others left is ended."""
        sweep()
        found = await try_out(self)
        lacking = "" if self._version >= 6 else f"; no tool may signal even its own processes: {OLD_KERNEL}"
        return dataclasses.replace(found, details={**found.details, "abi": f"Landlock ABI {self._version}{lacking}"})

    async def close(self) -> None:
        """Nothing waits for calls."""


class Kept:
    """One call and its keeper, as the host sees them. `end` has to be awaited, whatever happens before."""

    def __init__(self, profile: Profile, runtime: Runtime, version: int, cell: Cell | None) -> None:
        self._cell = cell
        self._limits = profile.limits
        self._mark = secrets.randbelow(marks.MARKS)
        owner = Owner(os.getpid(), folders.started_at(os.getpid()), self._mark)
        self._folder = folders.make(owner, host_id())
        self._overdue: asyncio.TimerHandle | None = None
        self._own_cpu_s = 0.0
        """What the keeper itself has used for its start."""
        self._looks = 0
        self._files = (0, 0)
        self._told = b""
        near, far = pipes()
        try:
            first = orders(profile, runtime, version, self._folder, self._mark)
            self._process, self._lifeline, self._status = _spawn(runtime, profile, first, far)
        except BaseException:
            close(near.request, near.printed, near.reply)
            folders.remove(self._folder)
            raise
        finally:
            close(far.request, far.printed, far.reply)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._dead = readable(self._pidfd)
        self._here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._status, self._read_status)
        self.overseer = Overseer(near, profile.limits, self._let_go, cell=cell)

    async def here(self) -> None:
        """Returns when the rules stand and all of the call is in its cell, or when it will never come to that."""
        await self._enter()  # what is started from now on is in it, too
        await asyncio.wait([self._here, self._dead], return_when=asyncio.FIRST_COMPLETED)
        await self._enter()

    async def _enter(self) -> None:
        if self._cell is not None:
            await self._cell.enter(lambda: watch.tree(self._process.pid))

    def begin(self, request: CallRequest) -> None:
        """Send the request, if the rules stand. What is seen from outside has to agree."""
        if self._told.startswith(b"here\n") and not self._distrusted():
            self._own_cpu_s = watch.cpu_s(self._process.pid)
            self.overseer.begin(request, self._look)
        else:
            self._let_go()

    async def over(self) -> None:
        await asyncio.shield(self._dead)

    async def end(self) -> int:
        """The exit status, once nothing of the call is left on this machine; even when cancelled."""
        self._let_go()
        loop = asyncio.get_running_loop()
        interrupted = await insist(self._dead)
        if self._overdue is not None:
            self._overdue.cancel()
        self._process.wait()
        loop.remove_reader(self._status)
        self._read_status()
        words = self._told.split()
        if words[-1:] in ([], [b"here"]):  # killed, so it has not ended the others
            interrupted |= await insist(asyncio.ensure_future(_end_marked(self._mark)))
        self.overseer.finish()
        close(self._status, self._pidfd)
        with suppress(OSError):  # what cannot be removed now, `sweep` tries again
            folders.remove(self._folder)
        if interrupted:
            raise asyncio.CancelledError
        return int(words[-1]) if words and words[-1].isdigit() else self._process.returncode

    def _let_go(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self._overdue = asyncio.get_running_loop().call_later(OVERDUE_S, send_kill, self._pidfd)

    def _read_status(self) -> None:
        try:
            data = os.read(self._status, 64)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._status)
        self._told += data
        if not self._here.done():
            self._here.set_result(None)

    def _distrusted(self) -> bool:
        tools = [pid for pid in watch.tree(self._process.pid) if pid != self._process.pid]
        facts = [watch.status(pid) for pid in tools]
        return not facts or any(
            "0" in each.get("Uid", "0").split() or each.get("Seccomp") != "2" or each.get("NoNewPrivs") != "1"
            for each in facts
        )

    def _look(self) -> watch.Sample:
        keeper = self._process.pid
        seen = watch.sample(keeper, self._limits.memory_bytes + watch.resident(keeper))
        self._looks += 1
        if self._looks % MEASURED_EVERY == 1:
            self._files = folders.measure(self._folder)
        if seen.threads - 1 > self._limits.processes:
            why = f"the call had {seen.threads - 1} processes and threads"
            self.overseer.stop("killed", f"{why}; {limit_of('processes', self._limits.processes)}")
        return dataclasses.replace(
            seen,
            memory_bytes=max(0, seen.memory_bytes - watch.resident(keeper)),
            cpu_s=max(0.0, seen.cpu_s - self._own_cpu_s),
            files=self._files[0],
            disk_bytes=self._files[1],
        )


def orders(profile: Profile, runtime: Runtime, version: int, folder: str, mark: int) -> bytes:
    """What a keeper reads."""
    pretended = CHANGING_FILES
    refused = REACHING_OUT
    if version < 3:
        refused |= {"truncate"}
    if version < 6:
        refused |= SIGNALLING
    shown = ["/usr", *(f"/{name}" for name, link in host_root() if link is None), *SHOWN_OF_ETC]
    places = [place for _, place in runtime.folders] + [real for real, _ in runtime.folders]
    return json.dumps(
        {
            "import_paths": runtime.import_paths,
            "mark": mark,
            "abi": version,
            "folder": folder,
            # git gives up where it may not look for /etc/gitconfig
            "environment": {**environment(runtime), "HOME": folder, "TMPDIR": folder, "GIT_CONFIG_NOSYSTEM": "1"},
            "read": [*shown, *places, *profile.read, *DEVICES],
            "write": [folder, "/dev/null", *profile.write],
            "filter": seccomp.program(os.uname().machine, refused, pretended).hex(),
        }
    ).encode()


def sweep() -> LeftOver:
    """End the calls of workers that are dead, and remove their folders.

    Safe at any time, beside other workers: a call belongs to the worker that is named in its folder.
    """
    found = LeftOver()
    for path, owner in folders.left_over():
        ended = marks.end_all(lambda mark, wanted=owner.mark: mark == wanted)  # type: ignore[misc]
        with suppress(OSError):  # another worker removes it at the same time
            folders.remove(path)
            found += LeftOver(folders=1)
        found += LeftOver(ended)
    return found


def _spawn(
    runtime: Runtime, profile: Profile, first: bytes, far: FarEnds
) -> tuple["subprocess.Popen[bytes]", int, int]:
    """The keeper, the lifeline, and the end of the pipe where it tells how the call is."""
    lifeline_in, lifeline = os.pipe2(os.O_CLOEXEC)
    status, status_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    orders_fd = os.memfd_create("orders")
    keeper = [os.path.realpath(runtime.python), "-I", "-S", "-B", runtime.keeper]
    try:
        os.write(orders_fd, first)
        os.lseek(orders_fd, 0, os.SEEK_SET)
        inherited = (orders_fd, lifeline_in, status_out, far.reply)
        process = subprocess.Popen(
            line_here(runtime, profile, [*keeper, *map(str, inherited)]),
            stdin=far.request,
            stdout=far.printed,
            stderr=far.printed,
            env=CLEAN_ENVIRONMENT,
            close_fds=True,
            pass_fds=inherited,
            start_new_session=True,
        )
    except BaseException:
        close(lifeline, status)
        raise
    finally:
        close(lifeline_in, status_out, orders_fd)
    return process, lifeline, status


def _never_started(kept: Kept, status: int) -> Outcome:
    if (refused := bad_grant(kept.overseer, status)) is not None:
        return refused
    words = said(kept.overseer)
    last = words.strip().splitlines()[-1][:300] if words.strip() else f"its keeper ended with {status}"
    raise IsolationUnavailable(
        f"the rules did not come to stand: {last}",
        "run workers as a user other than root, whose interpreter it can read; or see the words above",
    )


def _in_this_table(limits: Limits) -> Limits:
    """The kernel counts processes by user, over the whole node: those that are there already are added, and room for
    those that others start meanwhile. The watchdog counts this call's alone; here is only what it may get to before
    the watchdog looks."""
    uid = str(host_id())
    there = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            facts = watch.status(int(name))
            if facts.get("Uid", "").split()[:1] == [uid]:
                there += int(facts.get("Threads", 1))
    return dataclasses.replace(limits, processes=limits.processes + there + MEANWHILE)


async def _end_marked(mark: int) -> None:
    await asyncio.to_thread(marks.end_all, lambda worn: worn == mark)
