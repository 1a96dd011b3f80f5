"""The default backend: every call gets a bubblewrap of its own, with nothing in it but Python and what was granted.

Laws:
- bubblewrap never runs as root on the host; that is checked from outside on each call, before anything is sent in.
- It starts with an empty environment and only the descriptors it needs.
- Whatever ends the call, nothing of it is left when `execute` returns or raises: no process, no descriptor.
"""

import base64
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from typing import Any

from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox import seccomp
from understudy.actors.sandbox.backend import BadGrant, IsolationUnavailable, Preflight
from understudy.actors.sandbox.child import Child
from understudy.actors.sandbox.diagnosis import INSTALL, not_started
from understudy.actors.sandbox.launcher import EXIT_BAD_GRANT
from understudy.actors.sandbox.reply import decode
from understudy.actors.sandbox.runtime import Runtime, this_runtime
from understudy.actors.sandbox.strays import end_strays
from understudy.actors.sandbox.walls import Descriptors, Source, command, environment, host_root, refuse_bad_grants
from understudy.policies.profile import Limits, Profile

HOST_ID = 65530
"""The uid and gid on the host of sandboxes that root starts: nobody's. In Debian's reserved range, outside systemd's
dynamic users, and below 65536, so that containers with one range of ids have it."""

_PROBE = ToolCall("preflight", "preflight", ToolCode(ref="understudy.actors.sandbox.probe:look"), {})


class BubblewrapBackend:
    """Needs bubblewrap 0.8 and user namespaces. As root: gives root up first, see `launcher.py`."""

    name = "bubblewrap"

    async def execute(self, call: ToolCall, profile: Profile) -> Outcome:
        """Make the call. Cancelling ends everything it started. Raises IsolationUnavailable; the call was not made."""
        began = time.perf_counter()
        runtime = this_runtime()
        program = _find_bubblewrap()
        bpf = seccomp.program(os.uname().machine)
        try:
            refuse_bad_grants(profile, runtime)
            if os.geteuid() != 0:
                _refuse_unreachable(profile)
        except BadGrant as error:
            return Outcome("error", error=str(error), error_type="BadGrant")

        def line(fds: Descriptors) -> list[str]:
            parts = command(program, host_root(), runtime, profile, fds)
            return _through_launcher(runtime, parts) if os.geteuid() == 0 else [_path(part) for part in parts]

        child = Child(line, bpf, _request(call, profile.limits, runtime), profile.limits)
        try:
            await child.over()
        finally:
            status = await child.end()
        outcome = _judge(child, status, profile.limits)
        return dataclasses.replace(
            outcome,
            printed=child.printed.data.decode(errors="replace"),
            duration_s=time.perf_counter() - began,
            peak_memory_bytes=max(outcome.peak_memory_bytes, child.peak_bytes),
        )

    async def preflight(self) -> Preflight:
        """Make a call that looks around, and judge what it saw. Never raises. First, what others left is ended."""
        end_strays()
        try:
            outcome = await self.execute(_PROBE, Profile(limits=Limits(wall_s=30)))
        except IsolationUnavailable as error:
            return Preflight(False, error.reason, error.remedy)
        except OSError as error:
            return Preflight(False, f"the sandbox could not be started: {error}", "see the words above")
        details = {"backend": self.name, "duration_ms": f"{outcome.duration_s * 1000:.0f}"}
        if outcome.kind != "ok":
            return Preflight(
                False,
                f"a call to look around ended with {outcome.kind}: {outcome.error}",
                "see the words above",
                details,
            )
        details |= {name: str(value) for name, value in outcome.value.items()}
        holes = _holes(outcome.value, this_runtime())
        if holes:
            remedy = "do not run untrusted tools here; report this with the details"
            return Preflight(False, f"the sandbox came up, but {'; '.join(holes)}", remedy, details)
        return Preflight(True, details=details)


def _find_bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise IsolationUnavailable("bubblewrap (bwrap) is not installed on this machine", INSTALL)
    return found


def _through_launcher(runtime: Runtime, parts: Sequence[str | Source]) -> list[str]:
    sources = [part for part in parts if isinstance(part, Source)]
    wanted = [f"{source.how}:{source.path}" for source in sources]
    numbers = iter(range(len(sources)))
    line = [f"stage:{next(numbers)}" if isinstance(part, Source) else part for part in parts]
    return [runtime.python, "-I", "-S", runtime.launcher, str(HOST_ID), *wanted, "--", *line]


def _path(part: str | Source) -> str:
    return part.path if isinstance(part, Source) else part


def _refuse_unreachable(profile: Profile) -> None:
    """Not root: no launcher, so what it would find is looked for here."""
    for path in (*profile.read, *profile.write):
        if not os.path.exists(path):
            raise BadGrant(f"the granted path {path!r} does not exist on this node, or cannot be reached")
        if os.path.realpath(path) != path:
            raise BadGrant(f"the granted path {path!r} goes through a symbolic link; grant {os.path.realpath(path)!r}")
        if not os.access(path, os.W_OK if path in profile.write else os.R_OK):
            raise BadGrant(f"the granted path {path!r} is closed to this process itself (uid {os.geteuid()})")


def _request(call: ToolCall, limits: Limits, runtime: Runtime) -> bytes:
    return json.dumps(
        {
            "key": call.key,
            "ref": call.code.ref,
            "blob": base64.b64encode(call.code.blob).decode(),
            "args": call.args,
            "limits": dataclasses.asdict(limits),
            "import_paths": runtime.import_paths,
            "python": runtime.python,
        }
    ).encode()


def _judge(child: Child, status: int, limits: Limits) -> Outcome:
    """How the call ended. What was done from here counts before anything that came out."""
    if child.cause is not None:
        return Outcome(child.cause, error=child.sentence)
    said = child.printed.data.decode(errors="replace")
    reply = decode(bytes(child.reply.data), limits.output_bytes)
    if not reply.started:
        return _never_started(child, status, said)
    return _with_limits(reply.outcome, limits) if reply.outcome else _without_answer(child, status, limits)


def _never_started(child: Child, status: int, said: str) -> Outcome:
    if status == EXIT_BAD_GRANT:
        return Outcome("error", error=said.strip(), error_type="BadGrant")
    if child.distrust and not said:
        raise IsolationUnavailable(child.distrust, "run workers as a user other than root, or report this")
    raise not_started(said)


def _with_limits(outcome: Outcome, limits: Limits) -> Outcome:
    if outcome.kind == "out_of_memory":
        sentence = f"{outcome.error}; the limit is {limits.memory_bytes // (1 << 20)} MiB (memory_bytes)"
        return dataclasses.replace(outcome, error=sentence)
    return outcome


def _without_answer(child: Child, status: int, limits: Limits) -> Outcome:
    number = status - 128 if status > 128 else -status  # bubblewrap's way of passing a signal on, or its own death
    if number == signal.SIGXCPU or (number == signal.SIGKILL and child.cpu_s >= limits.cpu_s - 0.1):
        return Outcome("timeout", error=f"a process of the tool used {limits.cpu_s:g} s of CPU time (cpu_s)")
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return Outcome("killed", error=f"the tool's process was ended by {name}, by itself or by the kernel")
    return Outcome("error", error=f"the tool's process ended with exit status {status} and without a result")


def _holes(seen: dict[str, Any], runtime: Runtime) -> list[str]:
    """What a tool can see or do here that it must not."""
    expected = {*environment(runtime), "PWD", "LC_CTYPE", "UNDERSTUDY_EFFECT_KEY"}
    checks = [
        (seen["capabilities"] == 0, "a tool has capabilities"),
        (seen["no_new_privileges"] == 1, "a tool can gain privileges through setuid programs"),
        (seen["seccomp"] == 2, "system calls are not filtered"),
        (seen["processes"] <= 3, "other processes can be seen"),
        (set(seen["interfaces"]) <= {"lo"}, "there are network interfaces"),
        (not seen["sockets"], "sockets can be opened"),
        (set(seen["environment"]) <= expected, "the environment is not clean"),
        (all(row.startswith("PATH=") for row in seen["first_environment"]), "the launcher's environment can be read"),
    ]
    return [hole for fine, hole in checks if not fine]
