"""Every effect has a name: derived from the thread, the checkpoint, the task and the call's place in it (law 4).

The name is the same whenever the node runs again from the same checkpoint, so the receipt under it answers. In a fork
the checkpoint is another one, so the names are others too, and no receipt or approval of the origin is good there.

A later attempt of a node has names of its own. It looks at those of the attempts before it as well: what went well, or
was refused, answers; what failed is made again, under the name of this attempt.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from understudy.actors.outcome import Outcome
from understudy.actors.step import Task

OWN = "effect:"
"""Begins the names of effects that a node performs itself (`ctx.effect`), so that a tool may have the same name."""
START = "ctx.start"
"""Begins the names under which a node has started its children. No tool has a dot in its name."""
RECEIVE = "ctx.receive"
"""The name under which a node has received messages."""
DEADLINE = "ctx.interrupt"
"""Begins the names of what is on record and is no effect: that a question's deadline has passed."""
SEEN = "#seen"
"""Ends the name under which it is on record that a run told what tools an MCP server has."""
SAID_CHARS_MAX = 300
BUDGET = "BudgetExceeded"
"""Error type of a refusal that budgets have given."""
NO_ISOLATION = "IsolationUnavailable"
"""Error type of a refusal by a machine on which no isolation stands that is strong enough."""

# --- names ---------------------------------------------------------------------------------------------------------


def effect_key(thread_id: str, checkpoint_id: str, task_id: str, tool: str, place: int, attempt: int = 0) -> str:
    """The name of one call. `place` counts the calls of this tool in this task, from 0; `attempt` the task's tries."""
    parts = [thread_id, checkpoint_id, task_id, tool, str(place)]
    if attempt:
        parts.append(f"attempt {attempt}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def place_of(task: Task, name: str, index: int) -> str:
    """Where a call stands, in words that mean the same in a fork: step/task/node/name/index."""
    return f"{task.step}/{task.index}/{task.node}/{name}/{index}"


def step_of(place: str) -> int:
    """The superstep of a place; 0 for a receipt that was written without one."""
    step = place.partition("/")[0]
    return int(step) if step.isdigit() else 0


def call_digest(tool: str, version: str, args: Mapping[str, Any]) -> str:
    """What an approval is bound to: the tool, its version and its arguments (JSON values, keys in any order)."""
    text = json.dumps([tool, version, args], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def call_text(name: str, args: Mapping[str, Any]) -> str:
    """A call for people and for the event log: `pay(order="A1", amount=3)`, cut where it is long."""
    parts: list[str] = []
    left = SAID_CHARS_MAX
    for key, value in args.items():
        text = f"{key}={json.dumps(value)}"  # in ASCII: what is asked for may hold what no store can
        if len(text) > left:
            parts.append(text[: max(0, left)] + "...")
            break
        parts.append(text)
        left -= len(text)
    return f"{name}({', '.join(parts)})"


def is_effect(name: str) -> bool:
    """Whether something on record under this name is an effect: not that time has passed or a message was received, and
    not a look at another effect."""
    return not (name.startswith(f"{DEADLINE}:") or name == RECEIVE or name.endswith(("#reconcile", SEEN)))


# --- outcomes ------------------------------------------------------------------------------------------------------


def write_outcome(outcome: Outcome) -> str:
    """JSON of an outcome, as a receipt keeps it."""
    fields: dict[str, Any] = {
        "kind": outcome.kind,
        "value": outcome.value,
        "error": outcome.error,
        "error_type": outcome.error_type,
        "printed": outcome.printed,
        "duration_s": outcome.duration_s,
        "peak_memory_bytes": outcome.peak_memory_bytes,
    }
    if outcome.note:
        fields["note"] = outcome.note
    if outcome.files:
        fields["files"] = outcome.files
    if outcome.cost is not None:
        fields["cost"] = dict(outcome.cost)
    return json.dumps(fields)  # in ASCII: what a tool answers may hold lone surrogates, which no store can


def read_outcome(text: str) -> Outcome:
    """The outcome in a receipt."""
    return Outcome(**json.loads(text))


def stands(outcome: Outcome) -> bool:
    """Whether a later attempt of the node takes this outcome: it went well, or was refused. What could not be paid for,
    or not be isolated, is asked for again: there may be more by then, or another machine, as when a run that failed of
    it is retried."""
    return outcome.kind == "ok" or (outcome.kind == "denied" and outcome.error_type not in (BUDGET, NO_ISOLATION))
