"""How a call ended, judged from outside: what was done from here counts before anything that came out."""

import asyncio
import base64
import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from understudy.actors.files import BYTES_MAX, FILES_MAX
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox.egress.listener import ENVIRONMENT
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.environments import LENT_NAMES
from understudy.actors.sandbox.launcher import EXIT_BAD_GRANT
from understudy.actors.sandbox.limit import limit_of, refused
from understudy.actors.sandbox.overseer import CallRequest, Overseer
from understudy.actors.sandbox.reply import REPLY_BYTES, Reply, decode
from understudy.actors.sandbox.runner import LONGEST_MESSAGE
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
            "limits": vars(profile.limits),
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
        printed=_tail(said(overseer), outcome.printed, limits.output_bytes),
        duration_s=duration_s,
        peak_memory_bytes=max(outcome.peak_memory_bytes, overseer.peak_bytes),
    )


def _tail(printed: str, trace: str, most: int) -> str:
    """What was printed, and the traceback of how it ended; of both together, the tail."""
    if not trace:
        return printed
    return (printed + trace).encode()[-most:].decode(errors="replace")


@dataclass(frozen=True)
class Seen:
    """Of a call that somebody has ended who does not want it any more."""

    printed: str = ""
    peak_memory_bytes: int = 0


@contextmanager
def telling(of: Callable[[], Overseer | None]) -> Iterator[None]:
    """Around a call and its end: when it is cancelled, the error has what was seen of it by then, see `seen_by`."""
    try:
        yield
    except asyncio.CancelledError:
        overseer = of()
        if overseer is None:
            raise
        raise asyncio.CancelledError(Seen(said(overseer), overseer.peak_bytes)) from None


def seen_by(error: asyncio.CancelledError) -> Seen:
    """Nothing, if it had not begun."""
    return next((each for each in error.args if isinstance(each, Seen)), Seen())


def said(overseer: Overseer) -> str:
    """What was printed: by the tool, or, when it was never begun, by whoever was to begin it."""
    return overseer.printed.data.decode(errors="replace")


def bad_grant(overseer: Overseer, status: int) -> Outcome | None:
    """Of a call that was never begun: what the launcher says of a granted path, if that was the trouble."""
    if status != EXIT_BAD_GRANT:
        return None
    words = said(overseer)
    return Outcome("error", error=words.strip(), error_type="BadGrant", printed=words)


def _judge(overseer: Overseer, status: int, limits: Limits) -> Outcome | None:
    if overseer.cause is not None:
        return Outcome(overseer.cause, error=overseer.sentence)
    reply = decode(bytes(overseer.reply.data), limits.output_bytes)
    if not reply.started:
        return None
    return _with_limits(reply, limits) if reply.outcome else _without_answer(overseer, status, limits)


def _with_limits(reply: Reply, limits: Limits) -> Outcome | None:
    outcome = reply.outcome
    if outcome is not None and outcome.kind == "out_of_memory":
        why = limit_of("memory_bytes", limits.memory_bytes)
    elif outcome is not None and outcome.kind == "error" and len(outcome.error) < LONGEST_MESSAGE:
        why = refused(reply.errno, limits)  # after a text that was cut nothing may follow: see `secret_traces.py`
    else:
        return outcome
    return dataclasses.replace(outcome, error="; ".join(filter(None, (outcome.error, why))))


def _without_answer(overseer: Overseer, status: int, limits: Limits) -> Outcome:
    number = status - 128 if status > 128 else -status  # passed on from inside, or the outer process's own death
    if number == signal.SIGXCPU or (number == signal.SIGKILL and overseer.cpu_s >= limits.cpu_s - 0.1):
        used = f"the call used {max(overseer.cpu_s, limits.cpu_s):.3g} s of CPU time"
        return Outcome("timeout", error=f"{used}; {limit_of('cpu_s', limits.cpu_s)}")
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return Outcome("killed", error=f"the tool's process was ended by {name}, by itself or by the kernel")
    return Outcome("error", error=f"the tool's process ended with exit status {status} and without a result")
