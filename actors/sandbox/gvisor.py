"""The tier `gvisor`: a kernel of its own in user space for each call, by runsc, where that is installed.

What a tool asks of the kernel, runsc answers; of the host's kernel little is left to attack. It takes 550 ms a call.
The container has no network, no capability, and a root made of what every sandbox shows; the bundle is removed after.
Any runsc will do that knows `run`: what Debian has of 2022, and newer ones.

- It is never started as root: nobody starts it, `--rootless`, where the worker is root, and the launcher shows it what
  it needs. To runsc, who has started it is user 0 in there, and so is the tool, or its own files were another's; user 0
  of that kernel, without a capability, is nobody in particular.
- An attached container ends with the runsc that started it; that one is bound to the worker's life here.
- Its memory, some 50 MiB with its kernel's, is the call's.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import seccomp, watch
from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable, Preflight
from understudy.actors.sandbox.cell import NO_CELLS, Cell, Cells
from understudy.actors.sandbox.child import CLEAN_ENVIRONMENT
from understudy.actors.sandbox.diagnosis import KILLED, LOOK_FOR_MEMORY
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.folders import dead_worker, worker
from understudy.actors.sandbox.insist import insist, readable, send_kill
from understudy.actors.sandbox.launch import host_id, line_here, refuse_unreachable
from understudy.actors.sandbox.left_over import LeftOver
from understudy.actors.sandbox.overseer import FarEnds, Overseer, close, pipes
from understudy.actors.sandbox.preflight import try_out
from understudy.actors.sandbox.runtime import Runtime, runtime_of
from understudy.actors.sandbox.verdict import bad_grant, judge, request_of, said, telling
from understudy.actors.sandbox.walls import (
    SHOWN_OF_ETC,
    WORKING_FOLDER,
    environment,
    grants_of,
    host_root,
    refuse_bad_grants,
)
from understudy.policies.profile import Profile, Tier

INSTALL = (
    "install runsc (apt-get install runsc, or https://gvisor.dev/docs/user_guide/install/) on the PATH of the workers; "
    "in Kubernetes rather give them the RuntimeClass gvisor, and name tier: landlock"
)
DELETE_S = 10.0
"""Seconds that runsc may take to remove a container whose processes have been killed."""
BOUND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes a program that the kernel kills when the worker dies (PR_SET_PDEATHSIG); not if it is dead already."""
_PREFIX = "understudy-runsc-"


class GvisorBackend:
    """Needs runsc, and user namespaces."""

    name = "gVisor (runsc)"
    tier: Tier = "gvisor"

    def __init__(self, cells: Cells = NO_CELLS) -> None:
        self._cells = cells

    def fits(self, profile: Profile) -> bool:
        """Any call without network: sockets of runsc's own network stack cannot be handed out to a proxy."""
        return not profile.network

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""
        program = shutil.which("runsc")
        if program is None:
            raise IsolationUnavailable("gVisor's runsc is not installed on this machine", INSTALL)
        began = time.perf_counter()
        runtime = runtime_of(call)
        try:
            refuse_bad_grants(profile, runtime)
            refuse_unreachable(profile)
            if profile.network:
                raise BadGrant("tier 'gvisor' has a network stack that no proxy can listen in; name tier: cold")
        except BadGrant as error:
            return Outcome("error", error=str(error), error_type="BadGrant")
        known = await asyncio.to_thread(flags_of, program)
        with self._cells.one(profile.limits) as cell:
            container = Container(program, known, profile, runtime, cell)
            with telling(lambda: container.overseer):
                try:
                    await container.enter()
                    container.overseer.begin(request_of(call, profile, runtime, way_out), container.look)
                    await container.over()
                finally:
                    status = await container.end()
        outcome = judge(container.overseer, status, profile.limits, time.perf_counter() - began)
        outcome = outcome or bad_grant(container.overseer, status)
        if outcome is None:
            words = said(container.overseer).strip().splitlines()
            if status in KILLED and not words:
                raise IsolationUnavailable("runsc was killed before the call began", LOOK_FOR_MEMORY)
            raise IsolationUnavailable(
                f"runsc did not come up: {words[-1][:300] if words else f'it ended with {status}'}", INSTALL
            )
        return outcome

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises."""
        return await try_out(self)

    async def close(self) -> None:
        """Nothing waits for calls."""


def sweep() -> LeftOver:
    """Remove the bundles of workers that are dead; what ran in them has died with its runsc."""
    found = LeftOver()
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if dead_worker(path.name, _PREFIX) is not None:
            shutil.rmtree(path, ignore_errors=True)
            found += LeftOver(folders=1)
    return found


class Container:
    """One call in runsc, as the host sees it. `end` has to be awaited, whatever happens before."""

    def __init__(
        self, program: str, known: Collection[str], profile: Profile, runtime: Runtime, cell: Cell | None
    ) -> None:
        """`known`: the flags that the program knows."""
        self._cell = cell
        self._limits = profile.limits
        self._runtime = runtime
        uid = host_id()
        self._bundle = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{worker(os.getpid())}-"))
        self._name = f"understudy-{secrets.token_hex(8)}"
        self._program = [program, f"--root={self._bundle}/state", "--network=none", "--rootless"]
        self._program += ["--ignore-cgroups", *(["--directfs=false"] if "-directfs" in known else [])]
        near, far = pipes()
        try:
            (self._bundle / "root").mkdir()
            (self._bundle / "config.json").write_text(json.dumps(config(profile, runtime)))
            for path in (self._bundle, self._bundle / "root", self._bundle / "config.json"):
                os.chown(path, uid, -1)
            self._process = self._spawn(profile, far)
        except BaseException:
            close(near.request, near.printed, near.reply)
            shutil.rmtree(self._bundle)
            raise
        finally:
            close(far.request, far.printed, far.reply)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._dead = readable(self._pidfd)
        self.overseer = Overseer(near, profile.limits, lambda: send_kill(self._pidfd), cell=cell)

    def _spawn(self, profile: Profile, far: FarEnds) -> "subprocess.Popen[bytes]":
        bound = [os.path.realpath(self._runtime.python), "-I", "-S", "-c", BOUND, str(os.getpid())]
        run = [*bound, *self._program, "run", f"--bundle={self._bundle}", self._name]
        return subprocess.Popen(
            line_here(self._runtime, profile, run, [self._program[0]]),
            stdin=far.request,
            stdout=far.reply,
            stderr=far.printed,
            env=CLEAN_ENVIRONMENT,
            close_fds=True,
            start_new_session=True,
        )

    async def enter(self) -> None:
        """All there is by now, and so all that comes of it: of a request, there is none yet."""
        if self._cell is not None:
            await self._cell.enter(lambda: watch.tree(self._process.pid))

    def look(self) -> watch.Sample:
        return watch.sample(self._process.pid, self._limits.memory_bytes)

    async def over(self) -> None:
        await asyncio.shield(self._dead)

    async def end(self) -> int:
        """The exit status, once runsc says that nothing of the container is left; even when cancelled."""
        send_kill(self._pidfd)
        interrupted = await insist(self._dead)
        status = self._process.wait()
        interrupted |= await insist(asyncio.ensure_future(self._delete()))
        self.overseer.finish()
        os.close(self._pidfd)
        shutil.rmtree(self._bundle, ignore_errors=True)
        if interrupted:
            raise asyncio.CancelledError
        return status

    async def _delete(self) -> None:
        """Of an attached container the kernel ends runsc's processes with the first; this waits until they are gone."""
        try:
            process = self._deleting()
            pidfd = os.pidfd_open(process.pid)
        except OSError:  # no process or descriptor to be had just now: they end all the same
            return
        late = asyncio.get_running_loop().call_later(DELETE_S, send_kill, pidfd)
        await readable(pidfd)
        late.cancel()
        process.wait()
        os.close(pidfd)

    def _deleting(self) -> "subprocess.Popen[bytes]":
        nothing = subprocess.DEVNULL
        delete = [*self._program, "delete", "--force", self._name]
        return subprocess.Popen(
            line_here(self._runtime, Profile(), delete, [self._program[0]]),
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env=CLEAN_ENVIRONMENT,
        )


def config(profile: Profile, runtime: Runtime) -> dict[str, Any]:
    """The OCI bundle's config.json."""
    limits = profile.limits
    links = {f"/{name}": f"/{link}" for name, link in host_root() if link is not None}
    shown = ["/usr", *(f"/{name}" for name, link in host_root() if link is None)]
    mounts = [_bound(path, path, "ro") for path in [*shown, *filter(os.path.exists, SHOWN_OF_ETC)]]
    mounts += [_bound(source, place, "ro") for place, source in links.items()]
    mounts += [{"destination": "/proc", "type": "proc", "source": "proc"}]
    mounts += [_tmpfs(place, limits.disk_bytes) for place in (WORKING_FOLDER, "/dev/shm")]
    mounts += [{"destination": "/sys", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}]
    mounts += [_bound(path, path, "rw" if how == "write" else "ro") for path, how in grants_of(profile)]
    mounts += [_bound(real, place, "ro") for real, place in runtime.folders]
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": "root", "readonly": True},
        "mounts": mounts,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [os.path.realpath(runtime.python), "-I", "-S", "-B", runtime.inside, orders(runtime)],
            "env": [f"{name}={value}" for name, value in environment(runtime).items()],
            "cwd": WORKING_FOLDER,
            "noNewPrivileges": True,
            "rlimits": [{"type": f"RLIMIT_{name}", "soft": 0, "hard": 0} for name in ("MSGQUEUE", "RTPRIO", "NICE")],
            "capabilities": {name: [] for name in ("bounding", "effective", "inheritable", "permitted", "ambient")},
        },
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def orders(runtime: Runtime) -> str:
    """What `gvisor_inside.py` reads."""
    bpf = seccomp.program(os.uname().machine)
    return json.dumps({"import_paths": runtime.import_paths, "filter": bpf.hex()})


def flags_of(program: str) -> frozenset[str]:
    """The flags that this runsc knows, as `-name`: each year has others. Raises IsolationUnavailable."""
    return _flags_of(program, os.stat(program).st_mtime_ns)


@cache
def _flags_of(program: str, _written_ns: int) -> frozenset[str]:
    try:
        told = subprocess.run(
            [program, "flags"], capture_output=True, text=True, env=CLEAN_ENVIRONMENT, timeout=DELETE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IsolationUnavailable(f"{program} does not tell its flags: {error}", INSTALL) from None
    words = (row.split() for row in (told.stdout + told.stderr).splitlines())
    return frozenset(row[0] for row in words if row and row[0].startswith("-"))


def _bound(source: str, place: str, mode: str) -> dict[str, Any]:
    return {"destination": place, "type": "bind", "source": source, "options": ["rbind", mode, "nosuid", "nodev"]}


def _tmpfs(place: str, size: int) -> dict[str, Any]:
    return {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": [f"size={size}", "mode=1777"]}
