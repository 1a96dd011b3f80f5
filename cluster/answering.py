"""Which question, or which call, people mean when they answer."""

from typing import Any

from understudy.actors.errors import CallerError, Conflict, NotFound
from understudy.actors.records import Interrupt, RunRecord, open_questions

ANSWERABLE = ("question", "unknown", "repeat")
"""Kinds of questions that `resume` answers; a call is approved or denied."""


def question_to_answer(record: RunRecord, interrupt_id: str) -> tuple[str, Interrupt | None]:
    """Which question is meant: the one that is named (None if it is not known), or the only open one.

    Raises Conflict: there is none, there are several, or it is not answered this way.
    """
    if not interrupt_id:
        questions = [i for i in open_questions(record) if i.kind in ANSWERABLE]
        if len(questions) != 1:
            listed = ", ".join(f"{i.interrupt_id} (node {i.node!r})" for i in questions)
            calls = [i.interrupt_id for i in open_questions(record) if i.kind == "approval"]
            raise Conflict(
                f"run {record.run_id} is {record.status} and has {len(questions)} open questions: {listed}; name the "
                f"one that you answer"
                if questions
                else f"run {record.run_id} waits for a person to approve or deny a call, not for an answer: "
                f"`understudy approve {record.run_id} {calls[0]}`, or deny"
                if calls
                else f"run {record.run_id} is {record.status} and asks nothing that could be answered"
            )
        return questions[0].interrupt_id, questions[0]
    found = next((i for i in record.interrupts if i.interrupt_id == interrupt_id), None)
    if found is not None and found.kind == "approval":
        raise Conflict(f"{interrupt_id} is a call to be approved, not a question: approve or deny it")
    if found is not None and found.kind not in ANSWERABLE:
        raise Conflict(f"{interrupt_id} is a {found.kind}: nobody answers it, it comes by itself")
    return interrupt_id, found


def call_to_decide(record: RunRecord, call_id: str) -> Interrupt:
    """The call that waits for a person under this id. Raises NotFound."""
    calls = [i for i in open_questions(record) if i.kind == "approval"]
    found = next((i for i in calls if i.interrupt_id == call_id), None)
    if found is None:
        listed = ", ".join(f"{i.interrupt_id} ({i.payload['tool']})" for i in calls) or "none"
        raise NotFound(f"run {record.run_id} has no call {call_id!r} to be approved; waiting calls: {listed}")
    return found


def changed_args(call: Interrupt, args: Any) -> dict[str, Any]:
    """Arguments that a person has changed. Raises CallerError: a name that the call does not have."""
    asked = call.payload["args"]
    if not isinstance(args, dict):
        raise CallerError(f"the changed arguments of a call are an object by name, not {args!r:.80}")
    strange = sorted(set(args) - set(asked))
    if strange:
        raise CallerError(
            f"call {call.interrupt_id} of tool {call.payload['tool']!r} has no argument {strange[0]!r}; it has "
            f"{', '.join(asked) or 'none'}"
        )
    return args
