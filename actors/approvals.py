"""What a person says to a call that the policy asks about: yes, no, yes with other arguments, or the answer itself.

Pure. Law 7: an approval belongs to the digest of the exact call. One with other arguments is about the call that the
person has written, which has a digest of its own and is judged by the policy again. It is used once, as its name
follows from the effect key, and so it means nothing in a fork, in another place, or in a later attempt.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.actors.effects import call_digest
from understudy.actors.errors import CallerError
from understudy.actors.tool import Tool


@dataclass(frozen=True)
class Approval:
    """A person's word. Anything that cannot be read as one is a no."""

    approve: bool = False
    args: Mapping[str, Any] | None = None
    """With `approve`: arguments that the person has changed; those that are not named stay."""
    answered: bool = False
    """The person gives the result, `value`; nothing is executed."""
    value: Any = None
    note: str = ""
    by: str = ""
    expired: bool = False
    """Nobody said anything in time."""

    @property
    def who(self) -> str:
        return f"a person ({self.by})" if self.by else "a person"

    @property
    def noted(self) -> str:
        return f": {self.note}" if self.note else ""


@dataclass(frozen=True)
class Submission:
    """A call as it is to be judged, after what people have said about it."""

    args: dict[str, Any]
    digest: str
    interrupt_id: str
    """Under which it is asked about, or was."""
    approval: Approval | None = None
    problem: str = ""
    """Why the answer before could not be used: shown when it is asked again."""
    expired: str = ""
    """The question before this one, to which nobody said anything in time."""


def approval_answer(approval: Approval) -> dict[str, Any]:
    """The answer to an approval's interrupt, as JSON values."""
    answer: dict[str, Any] = {"approve": approval.approve, "note": approval.note, "by": approval.by}
    if approval.args is not None:
        answer["args"] = dict(approval.args)
    if approval.answered:
        answer["value"] = approval.value
    return answer


def withdrawal(why: str, by: str) -> dict[str, Any]:
    """What answers a question that has lost its reason, as JSON values: neither yes nor no. The call is judged anew."""
    return {"withdrawn": why, "by": by}


def is_withdrawn(answer: Any) -> bool:
    return isinstance(answer, dict) and "withdrawn" in answer


def read_approval(answer: Any) -> Approval:
    """The inverse; whatever else it is, it is a no."""
    if not isinstance(answer, dict):
        return Approval()
    args = answer.get("args")
    return Approval(
        approve=answer.get("approve") is True and not (args is not None and not isinstance(args, dict)),
        args=args if isinstance(args, dict) else None,
        answered="value" in answer,
        value=answer.get("value"),
        note=str(answer.get("note", "")),
        by=str(answer.get("by", "")),
    )


def submission(
    tool: Tool[Any, Any],
    args: dict[str, Any],
    key: str,
    answers: Mapping[str, Any],
    is_expired: Callable[[str], bool] = lambda _: False,
) -> Submission:
    """The call that is to be judged: as the node asks for it, or as a person has changed it.

    An answer that does not fit the tool is not a no: it is asked again, with what is wrong about it. `args` are JSON
    values, as `tool.encode` gives them. `is_expired` tells whether it is on record that nobody answered a question in
    time: it may be asked once more, under another name; what is answered later does not count.
    """
    digest = call_digest(tool.name, tool.version, args)
    interrupt_id, problem, expired = "a" + call_digest(key, digest, {})[:15], "", ""
    while (late := is_expired(interrupt_id)) or interrupt_id in answers:
        if late:
            if expired:
                return Submission(args, digest, interrupt_id, Approval(expired=True))
            expired, interrupt_id = interrupt_id, "a" + call_digest(interrupt_id, "expired", {})[:15]
            continue
        approval = read_approval(answers[interrupt_id])
        try:
            if approval.answered:
                tool.decode(approval.value)
            elif approval.approve and approval.args is not None:
                changed = tool.encode({**args, **approval.args})
                return Submission(changed, call_digest(tool.name, tool.version, changed), interrupt_id, approval)
            return Submission(args, digest, interrupt_id, approval)
        except CallerError as error:
            problem = str(error)
            interrupt_id = "a" + call_digest(interrupt_id, json.dumps(answers[interrupt_id]), {})[:15]
    return Submission(args, digest, interrupt_id, None, problem, expired)
