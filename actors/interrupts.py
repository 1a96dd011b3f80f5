"""Questions of a node to a person (`ctx.interrupt`), and its durable sleep: what is asked, and what answers.

Pure but for the ledger of answers that it is handed: whether a question is answered, expired or open is decided here,
from what is stored. That a deadline has passed is put on record (`Ledger.expire`) before the node goes on: else an
answer that comes just then would, after a crash, lead the node another way than the effects that it has had already.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter

from understudy.actors.errors import CallerError
from understudy.actors.records import Interrupt

LONGEST = timedelta(days=100 * 365)
"""A wait that ends beyond the year 9999 could be told to nobody: no date is written for it."""


@dataclass(frozen=True)
class Continue:
    """`on_timeout`: the node goes on with this answer."""

    value: Any = None


@dataclass(frozen=True)
class Escalate:
    """`on_timeout`: it is asked again, as another question, for somebody else to see; with a deadline of its own.

    Args:
        payload: JSON values that are shown.
        deadline: how long that answer may take; None: for ever.
        on_timeout: what happens then: the same choices again.
    """

    payload: Any
    deadline: timedelta | None = None
    on_timeout: "Continue | Escalate | None" = None


OnTimeout = Continue | Escalate | None


@dataclass(frozen=True)
class Question:
    """What a node asks with `ctx.interrupt`."""

    payload: Any
    deadline: timedelta | None
    on_timeout: OnTimeout
    adapter: TypeAdapter[Any] | None
    schema: Any


def question(node: str, payload: Any, deadline: Any, on_timeout: Any, schema: Any) -> Question:
    """Raises CallerError: what was given cannot be meant."""
    adapter: TypeAdapter[Any] | None = None
    shape: Any = None
    if schema is not None:
        try:
            adapter = TypeAdapter(schema)
            shape = adapter.json_schema()
        except Exception as error:  # pydantic's own, of several families
            raise CallerError(
                f"ctx.interrupt in node {node!r}: schema is a pydantic model or a type, not {schema!r:.80} "
                f"({type(error).__name__}: {str(error)[:200]})"
            ) from None
    found = Question(payload, deadline, on_timeout, adapter, shape)
    _check(node, found)
    return found


def _check(node: str, asked: Question) -> None:
    who = f"ctx.interrupt in node {node!r}"
    try:
        # UnicodeEncodeError is a ValueError: a lone surrogate is no text, and not every store could hold it.
        json.dumps(asked.payload, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(f"{who}: the payload is not JSON ({error}); use .model_dump(mode='json')") from None
    check_duration(asked.deadline, "the deadline of ctx.interrupt")
    then = asked.on_timeout
    if then is None:
        return
    if asked.deadline is None:
        raise CallerError(f"{who}: on_timeout={then!r:.80} without a deadline would never come; give deadline=")
    match then:
        case Continue(value):
            try:
                stored(asked.adapter, value)
            except (TypeError, ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
                raise CallerError(f"{who}: Continue({value!r:.80}) is no answer to it: {error}") from None
        case Escalate(payload, deadline, after):
            _check(node, replace(asked, payload=payload, deadline=deadline, on_timeout=after))
        case _:
            raise CallerError(f"{who}: on_timeout is Continue(value), Escalate(payload, ...) or None, not {then!r:.80}")


def check_duration(duration: Any, what: str) -> None:
    """Raises CallerError."""
    if not isinstance(duration, timedelta | None):
        raise CallerError(f"{what} is a timedelta, not {duration!r:.80}; write e.g. timedelta(seconds=3)")
    if duration is not None and duration > LONGEST:
        raise CallerError(f"{what} is {duration!r}, which is past any calendar; {LONGEST.days} days are the most")


def stored(adapter: TypeAdapter[Any] | None, value: Any) -> Any:
    """An answer that the code gives, as JSON values."""
    if adapter is not None:
        value = adapter.dump_python(adapter.validate_python(value), mode="json")
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


# --- names ---------------------------------------------------------------------------------------------------------


def interrupt_id(task_id: str, kind: str, index: int) -> str:
    """The name of a question: the same whenever its node runs again. `index` counts those of its kind in the task."""
    name = "\0".join((task_id, kind, str(index)))
    return ("t" if kind == "timer" else "q") + hashlib.sha256(name.encode()).hexdigest()[:15]


def next_id(before: str, why: str) -> str:
    """The name of the question that follows one: it was escalated, or its answer did not fit."""
    return "q" + hashlib.sha256(f"{before}\0{why}".encode()).hexdigest()[:15]


# --- asking --------------------------------------------------------------------------------------------------------


def new_interrupt(named: str, task_id: str, node: str, asked: Question, now: float, escalated_from: str) -> Interrupt:
    """The question as it is stored."""
    then: dict[str, Any] = {}
    match asked.on_timeout:
        case Continue(value):
            then = {"continue": stored(asked.adapter, value)}
        case Escalate(payload):
            then = {"escalate": payload}
    if escalated_from:
        then["escalated_from"] = escalated_from
    deadline = None if asked.deadline is None else now + asked.deadline.total_seconds()
    return Interrupt(
        named, task_id, node, "question", asked.payload, "", now, deadline, schema=asked.schema, on_timeout=then or None
    )


def escalated(asked: Question, then: Escalate) -> Question:
    """The question that follows an expired one."""
    return replace(asked, payload=then.payload, deadline=then.deadline, on_timeout=then.on_timeout)


def asked_again(asked: Question, problem: str) -> Question:
    """The question that follows an answer which the schema has let through, and the type has not."""
    payload = dict(asked.payload) if isinstance(asked.payload, Mapping) else {"question": asked.payload}
    return replace(asked, payload={**payload, "problem": problem})


def typed(asked: Question, answer: Any) -> Any:
    """An answer as the node gets it. Raises ValidationError."""
    return answer if asked.adapter is None else asked.adapter.validate_json(json.dumps(answer))
