"""How a call ended, judged from outside: what was done from here counts before anything that came out."""

import base64
import dataclasses
import json
import signal
from typing import Any

from understudy.actors.files import BYTES_MAX, FILES_MAX
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.egress.listener import ENVIRONMENT
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.environments import LENT_NAMES
from understudy.actors.sandbox.overseer import CallRequest, Overseer
from understudy.actors.sandbox.reply import REPLY_BYTES, decode
from understudy.actors.sandbox.runtime import Runtime
from understudy.policies.profile import Limits, Profile


def request_of(call: ToolCall, profile: Profile, runtime: Runtime, way_out: WayOut | None = None) -> CallRequest:
    """What `runner.py` reads."""
    body = json.dumps(
        {
            "key": call.key,
            "ref": call.code.ref,
            "blob": base64.b64encode(call.code.blob).decode(),
            "args": call.args,
            "limits": dataclasses.asdict(profile.limits),
            "environment": dict(ENVIRONMENT) if profile.network else {},
            "secrets": [way_out.given, way_out.kept_back] if way_out and profile.secrets else [],
            "import_paths": runtime.import_paths,
            "python": runtime.seen_python,
            "environment_of": _environment_of(call, runtime),
            "workspace": _workspace_of(call, profile.limits),
        }
    )
    return CallRequest(body.encode(), REPLY_BYTES if call.files is not None and call.keeps else 0)


def _environment_of(call: ToolCall, runtime: Runtime) -> dict[str, Any] | None:
    """What a tool with an environment of its own is lent; also the package that it is itself in, by reference."""
    if not runtime.environment:
        return None
    names = [*LENT_NAMES, *filter(None, [call.code.ref.partition(":")[0].partition(".")[0]])]
    return {"prefix": runtime.environment, "names": names, "paths": runtime.lent_paths}


def _workspace_of(call: ToolCall, limits: Limits) -> dict[str, Any] | None:
    if call.files is None:
        return None
    most = min(BYTES_MAX, limits.disk_bytes)
    return {"files": json.loads(call.files), "keeps": call.keeps, "files_max": FILES_MAX, "bytes_max": most}


def judge(overseer: Overseer, status: int, limits: Limits, duration_s: float) -> Outcome | None:
    """The outcome; None if the tool was never begun. `status`: exit status, or 128 and the signal's number."""
    outcome = _judge(overseer, status, limits)
    if outcome is None:
        return None
    return dataclasses.replace(
        outcome,
        printed=said(overseer),
        duration_s=duration_s,
        peak_memory_bytes=max(outcome.peak_memory_bytes, overseer.peak_bytes),
    )


def said(overseer: Overseer) -> str:
    """What was printed: by the tool, or, when it was never begun, by whoever was to begin it."""
    return overseer.printed.data.decode(errors="replace")


def _judge(overseer: Overseer, status: int, limits: Limits) -> Outcome | None:
    if overseer.cause is not None:
        return Outcome(overseer.cause, error=overseer.sentence)
    reply = decode(bytes(overseer.reply.data), limits.output_bytes)
    if not reply.started:
        return None
    return _with_limits(reply.outcome, limits) if reply.outcome else _without_answer(overseer, status, limits)


def _with_limits(outcome: Outcome, limits: Limits) -> Outcome:
    if outcome.kind == "out_of_memory":
        sentence = f"{outcome.error}; the limit is {limits.memory_bytes // (1 << 20)} MiB (memory_bytes)"
        return dataclasses.replace(outcome, error=sentence)
    return outcome


def _without_answer(overseer: Overseer, status: int, limits: Limits) -> Outcome:
    number = status - 128 if status > 128 else -status  # passed on from inside, or the outer process's own death
    if number == signal.SIGXCPU or (number == signal.SIGKILL and overseer.cpu_s >= limits.cpu_s - 0.1):
        return Outcome("timeout", error=f"a process of the tool used {limits.cpu_s:g} s of CPU time (cpu_s)")
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return Outcome("killed", error=f"the tool's process was ended by {name}, by itself or by the kernel")
    return Outcome("error", error=f"the tool's process ended with exit status {status} and without a result")
