"""What people answer: checked before it is stored, by whoever hands it in, as the first answer to a question stands."""

import json
from typing import Any

from understudy.actors.errors import CallerError, Conflict
from understudy.actors.records import Interrupt


def misfit(schema: Any, answer: Any) -> str:
    """What is wrong with an answer, in words that say where; empty if it fits. `schema` None takes any answer."""
    if schema is None:
        return ""
    # Here and not above: it takes a tenth of a second, and most answers have no schema.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    error = best_match(validator.iter_errors(answer))
    if error is None:
        return ""
    where = "" if error.json_path == "$" else f"at {error.json_path}: "
    return f"{where}{error.message}"


def checked_answer(question: Interrupt | None, answer: Any, now: float) -> str:
    """JSON of an answer. Raises CallerError for one that does not fit its question, or that no store could hold;
    Conflict: its deadline has passed."""
    text = json_of(answer)
    if question is None:
        return text
    if question.kind == "unknown" and answer not in ("retry", "fail") and not _is_value(answer):
        raise CallerError(f'an unknown call is answered with "retry", "fail" or {{"value": ...}}, not {answer!r:.80}')
    problem = misfit(question.schema, answer)
    if problem:
        raise CallerError(
            f"the answer {text[:80]} does not fit question {question.interrupt_id} of node {question.node!r}: "
            f"{problem}; it has to fit the schema {json.dumps(question.schema)[:500]}"
        )
    if question.deadline is not None and question.deadline <= now:
        raise Conflict(
            f"question {question.interrupt_id} of node {question.node!r} expired {now - question.deadline:.0f} s ago; "
            f"what happens then is under way"
        )
    return text


def _is_value(answer: Any) -> bool:
    return isinstance(answer, dict) and list(answer) == ["value"]


def json_of(answer: Any) -> str:
    """Raises CallerError for what every store could not hold, or give back as it is."""
    try:
        json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(f"the answer {answer!r:.80} is not JSON: {error}") from None
    return json.dumps(answer)
