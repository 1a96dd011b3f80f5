"""Reads what came out of a sandbox: bytes from untrusted code, of which nothing is believed but that they are data.

Whatever the bytes are, the answer is an Outcome or None (nothing was answered); nothing is ever unpickled or executed,
and nothing gets through that would later break whoever stores it (NaN, infinity, lone surrogates, a thousand levels).
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from understudy.actors.files import BYTES_MAX, FILES_MAX, PATH_BYTES_MAX, BadFiles, checked
from understudy.actors.outcome import Outcome, OutcomeKind
from understudy.actors.sandbox.limit import limit_of
from understudy.actors.sandbox.runner import LONGEST_MESSAGE, LONGEST_TRACE, STARTED

DEEPEST = 100
"""Levels of lists and objects in a result. Python's own JSON writer gives up near 1,000, other readers far earlier."""
ENVELOPE_BYTES = 256 * 1024
"""Room for what surrounds a result: kind, figures, an error's message and its traceback in escaped form."""

REPLY_BYTES = BYTES_MAX * 4 // 3 + FILES_MAX * (PATH_BYTES_MAX + 100)
"""Room for the files that a call changed."""


@dataclass(frozen=True)
class Reply:
    """`started`: the walls stood and the tool's process was about to load it. `outcome`: None if it never answered; of
    what was printed it has the traceback of an error."""

    started: bool
    outcome: Outcome | None = None
    errno: int = 0
    """Of an error that the system gave; 0: it did not."""


class _Malformed(Exception):
    """The sentence that says how."""


def decode(data: bytes, output_bytes: int) -> Reply:
    """The reply in these bytes, whatever they are."""
    if not data.startswith(STARTED):
        return Reply(started=False)
    body = data[len(STARTED) :]
    if not body:
        return Reply(started=True)
    try:
        answer = _parse(body)
        number = answer.get("errno") if isinstance(answer, dict) else 0
        return Reply(True, _outcome(answer, output_bytes, len(body)), number if isinstance(number, int) else 0)
    except _Malformed as error:
        return Reply(started=True, outcome=Outcome("error", error=f"the tool's result {error}", error_type="BadResult"))


def _parse(body: bytes) -> Any:
    try:
        answer = _decoder.decode(body.decode("utf-8"))
        _check(answer)
    except UnicodeDecodeError as error:
        raise _Malformed(f"is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise _Malformed(f"is nested deeper than {DEEPEST} levels") from None
    except MemoryError:
        raise _Malformed("does not fit into memory here") from None
    except json.JSONDecodeError as error:
        raise _Malformed(f"is not JSON, or was cut off ({error.msg}, at character {error.pos})") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise _Malformed(f"is not JSON that can be read ({error})") from None
    return answer


def _outcome(answer: Any, output_bytes: int, room: int) -> Outcome:
    """`room`: bytes that all of it took."""
    match answer:
        case {"kind": "ok", "value": value, "peak": int(peak), **more}:
            # There was room for files, and who wrote this need not have asked the runner.
            size = 0 if room <= output_bytes else len(json.dumps(value, separators=(",", ":")))
            if size > output_bytes:
                return _outcome({"kind": "output_too_large", "size": size, "peak": peak}, output_bytes, 0)
            try:
                files = checked(more["files"]) if "files" in more else None
                return Outcome("ok", value, peak_memory_bytes=max(0, peak), files=files or None)
            except BadFiles as error:
                return Outcome("error", error=f"the workspace was left as it was: {error}", error_type="BadFiles")
        case {"kind": "error" | "unknown" as how, "error": str(error), "error_type": str(kind), "peak": int(peak)}:
            ended: OutcomeKind = "unknown" if how == "unknown" else "error"
            message, printed = error[:LONGEST_MESSAGE], _trace_in(answer)
            return Outcome(ended, None, message, kind[:200], printed, peak_memory_bytes=max(0, peak))
        case {"kind": "out_of_memory", "peak": int(peak)}:
            sentence = "the tool was refused more memory"
            return Outcome("out_of_memory", None, sentence, "", _trace_in(answer), peak_memory_bytes=max(0, peak))
        case {"kind": "output_too_large", "size": int(size), "peak": int(peak)}:
            sentence = f"the tool's result has {size} bytes; {limit_of('output_bytes', output_bytes)}"
            return Outcome("output_too_large", error=sentence, peak_memory_bytes=max(0, peak))
    raise _Malformed("is none of the answers that a sandbox gives")


def _trace_in(answer: dict[str, Any]) -> str:
    trace = answer.get("trace")
    return trace[: 2 * LONGEST_TRACE] if isinstance(trace, str) else ""


def _refuse_constant(name: str) -> Any:
    raise _Malformed(f"holds {name}, which is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Malformed(f"holds a number too large for a float ({text[:40]})")
    return number


_decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _check(answer: Any) -> None:
    """Depth and text, without recursion: it is the depth that is in question."""
    level: list[Any] = [answer]
    for depth in itertools.count():  # the envelope is depth 0
        for item in level:
            if isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise _Malformed("holds half of a character (a lone surrogate), which no store can keep") from None
        holders = [item for item in level if isinstance(item, dict | list)]
        if not holders:
            return
        if depth > DEEPEST:
            raise _Malformed(f"is nested deeper than {DEEPEST} levels")
        level = list(_inside(holders))


def _inside(holders: list[Any]) -> Iterator[Any]:
    for holder in holders:
        yield from holder  # of an object, its keys
        if isinstance(holder, dict):
            yield from holder.values()
