"""Whether an answer fits the JSON schema of its question: looked at before it is stored, by whoever hands it in."""

from typing import Any


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
