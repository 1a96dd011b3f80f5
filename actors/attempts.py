"""The tries of a task: how many there were, when the next is due, and what one that is given up says to its fallback.

An `Attempt` is kept where the task's writes would be, as a pending write, so that a crash in a wait or in the third try
does not start the count anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.actors.plan import Node
from understudy.policies.retry import next_delay

FINAL_TYPES = frozenset({"CallerError", "ToolDenied", "BudgetExceeded"})
"""Errors that the same try would only meet again: the caller has to change something; somebody said no."""


END = "#end"
"""Beside the tasks, and no id of one: that a run has failed is kept as a pending write, too, while its children are
told (law 3). Whoever takes it up then goes on with its end, and not with the node that failed."""


def of_tasks(writes: Mapping[str, str]) -> dict[str, str]:
    """Pending writes by task id."""
    return {task_id: body for task_id, body in writes.items() if task_id != END}


def ending(error: str | None) -> dict[str, str]:
    """The pending write that says so; None: it has ended, and says nothing to whoever has it retried."""
    return {END: json.dumps({"error": error})}


def ending_in(writes: Mapping[str, str]) -> str | None:
    """The error that a run ends with."""
    error: str | None = json.loads(writes[END])["error"] if END in writes else None
    return error


@dataclass(frozen=True)
class Attempt:
    """A task that is to be tried again."""

    number: int
    """Of the next try; 0 is the first. Calls that went well in earlier ones are answered by their receipts."""
    since: int = 0
    """The number at which the node's retries are counted from: `Store.retry` gives a run all of them again."""
    due: float = 0.0
    """Not before this time."""

    def body(self) -> str:
        """JSON, as pending writes keep it."""
        return json.dumps({"attempt": self.number, "since": self.since, "due": self.due})

    @staticmethod
    def read(body: str) -> "Attempt | None":
        """None if the body is the result of a finished task."""
        raw = json.loads(body)
        return Attempt(raw["attempt"], raw["since"], raw["due"]) if "attempt" in raw else None


@dataclass(frozen=True)
class Failure:
    """Why a node was given up. Its fallback is given one if its first parameter is annotated so."""

    node: str
    error: str
    """Type, message and place, as `show` tells them."""
    error_type: str
    """Class name of the exception."""
    attempts: int
    """How often it was tried."""


def next_attempt(node: Node, attempt: Attempt, at: float, types: Sequence[str], task_id: str) -> Attempt | None:
    """The try after this one, which failed with an error of these types (class names of its MRO); None: no more."""
    if node.retry is None or not FINAL_TYPES.isdisjoint(types):
        return None
    wait_s = next_delay(node.retry, attempt.number - attempt.since + 1, types, f"{task_id} {attempt.number}")
    return None if wait_s is None else Attempt(attempt.number + 1, attempt.since, at + wait_s)
