"""Every effect has a name: derived from the thread, the checkpoint, the task and the call's place in it (law 4).

The name is the same whenever the node runs again from the same checkpoint, so the receipt under it answers. In a fork
the checkpoint is another one, so the names are others too, and no receipt or approval of the origin is good there.
"""

import hashlib
import json
from typing import Any

from understudy.actors.outcome import Outcome


def effect_key(thread_id: str, checkpoint_id: str, task_id: str, tool: str, place: int) -> str:
    """The name of one call. `place` counts the calls of this tool in this task, from 0."""
    name = "\0".join((thread_id, checkpoint_id, task_id, tool, str(place)))
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def call_digest(tool: str, version: str, args: dict[str, Any]) -> str:
    """What an approval is bound to: the tool, its version and its arguments (JSON values, keys in any order)."""
    text = json.dumps([tool, version, args], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_outcome(outcome: Outcome) -> str:
    """JSON of an outcome, as a receipt keeps it."""
    return json.dumps(
        {
            "kind": outcome.kind,
            "value": outcome.value,
            "error": outcome.error,
            "error_type": outcome.error_type,
            "printed": outcome.printed,
            "duration_s": outcome.duration_s,
            "peak_memory_bytes": outcome.peak_memory_bytes,
        }
    )  # in ASCII: what a tool answers may hold lone surrogates, which no store can


def read_outcome(text: str) -> Outcome:
    """The outcome in a receipt."""
    return Outcome(**json.loads(text))
