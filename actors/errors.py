"""Every error of the runtime, sorted by who must act.

Caller's: change something and try again (`CallerError`). World's: it is being retried (`StoreUnavailable`).
A lost lease: stop quietly (`Fenced`). Ours: an assertion, a crash, a restart. A message names the thing, the value
and the remedy.
"""

import json
from typing import Any


class UnderstudyError(Exception):
    """Base of all of them. Never raised itself."""


class CallerError(UnderstudyError):
    """The caller has to change something; trying the same again gives the same."""


class GraphError(CallerError):
    """A graph that cannot be run, found when its plan is built or when a node returns something impossible."""


class InvalidWrite(CallerError):
    """A node wrote what the state cannot hold: unknown channel, wrong type, or two writers without a reducer."""


class StepLimitReached(CallerError):
    """A run took more supersteps than its graph allows; raise `step_limit`, or look for a loop that never ends."""


class NotFound(CallerError):
    """There is no run, thread or checkpoint of this name in this store."""


class Conflict(CallerError):
    """The thing exists already with other contents, or is in a state that does not allow the request."""


class UnsafeStore(CallerError):
    """The store would lose data as it is set up (no append-only file, an evicting policy)."""


class CodeError(CallerError):
    """The code of a graph or tool cannot be found, or its signature does not verify."""


class EffectMismatch(CallerError):
    """A node that runs again asked for a different call in the place of one that is on record."""


class StoreUnavailable(UnderstudyError):
    """The store does not answer. Whoever sees it waits and tries again; nothing is lost by waiting."""


class Fenced(UnderstudyError):
    """A newer owner has the run; this one changes nothing any more and stops quietly (law 1)."""


class ToolError(UnderstudyError):
    """A tool call did not end well. `outcome` says how (see `understudy.actors.outcome.Outcome`)."""

    def __init__(self, tool: str, outcome: Any) -> None:
        super().__init__(f"tool {tool!r}: {outcome.kind}: {outcome.said}")
        self.tool = tool
        self.outcome = outcome

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tool, self.outcome)


class ToolDenied(ToolError):
    """The policy, or a person, refused the call; nothing was executed."""


class RunFailed(UnderstudyError):
    """A run ended without a result. `record` has its status and error."""

    def __init__(self, record: Any) -> None:
        super().__init__(f"run {record.run_id} of graph {record.graph!r} is {record.status}: {record.error or '-'}")
        self.record = record


class AnswerNeeded(CallerError):
    """A run inline asks a person something, and no answer was given. `questions`: (run record, interrupt) of each."""

    def __init__(self, questions: Any) -> None:
        self.asked = "; ".join(
            f"node {i.node!r} of graph {record.graph!r} asks ({i.kind}) {json.dumps(i.payload)[:500]}"
            for record, i in questions
        )
        self.by = questions[0][1].node
        super().__init__(
            f"{self.asked}. Give answers={{{self.by!r}: <answer>}} (by node, tool or interrupt id) or "
            f"answers=lambda question: <answer>; with the same store and key the run goes on from here"
        )
        self.questions = tuple(questions)


class EffectFailed(UnderstudyError):
    """An effect of a node (`ctx.effect`) did not end well: its function raised, or its result cannot be kept.

    `error_type` and `error` are what it raised; `outcome` is what is on record, and what the node gets again when it
    runs again.
    """

    def __init__(self, name: str, outcome: Any) -> None:
        super().__init__(f"effect {name!r}: {outcome.said or outcome.kind}")
        self.name = name
        self.outcome = outcome
        self.error_type: str = outcome.error_type
        self.error: str = outcome.error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.outcome)


class BudgetExceeded(EffectFailed):
    """An effect of a node would go beyond a budget, so it was not performed. `error` names the budget and the remedy.

    A tool call in its place raises ToolDenied, whose outcome has the `error_type` BudgetExceeded.
    """


class InterruptExpired(UnderstudyError):
    """Nobody answered an interrupt before its deadline."""


class ChildFailed(UnderstudyError):
    """A child run ended without a result. `status` is failed, cancelled or quarantined; `error` says why."""

    def __init__(self, run_id: str, graph: str, status: str, error: str) -> None:
        super().__init__(f"child run {run_id} of graph {graph!r} is {status}: {error or '-'}")
        self.run_id = run_id
        self.graph = graph
        self.status = status
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_id, self.graph, self.status, self.error)


class Suspended(BaseException):
    """Ends a node that has to wait for an answer or a timer. Do not catch it.

    It is a BaseException so that `except Exception` in a node lets it through. If a bare `except:` of yours catches
    it, raise it again.
    """


ERROR_CHARS_MAX = 8000


def tellable(text: str, chars_max: int = ERROR_CHARS_MAX) -> str:
    """An error's text as every store can hold it: bounded (law 8), and without what is no text, as lone surrogates and
    NUL. A run that fails must not fail to say so."""
    clean = text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
    if len(clean) <= chars_max:
        return clean
    return f"{clean[:chars_max]}... ({len(clean) - chars_max} characters more)"
