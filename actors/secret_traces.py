"""Finds secrets in what a tool says, in the forms in which they usually come out, and puts their names in the place.

This is not what keeps a secret from a tool that wants it out (a network that leads nowhere is); it keeps an honest
mistake, a printed header or an error with a URL in it, out of everything that is recorded. Pure.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, quote_plus

from understudy.actors.outcome import Outcome

SHORTEST: Final = 8
"""Characters of a secret. A shorter one would be found in text that has nothing to do with it."""
PART_MIN: Final = 6
"""Characters of a secret, at an end where a text was cut off, that count as it."""


class Traces:
    """Of some secrets, by name."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @cached_property
    def _forms(self) -> list[tuple[str, str]]:
        """Each form, and what stands in its place; the longest first, for a short one may be a part of it."""
        found = {form: f"[secret {name}]" for name, value in self._values.items() for form in forms(value)}
        return sorted(found.items(), key=lambda pair: -len(pair[0]))

    def text(self, text: str, *, cut_before: bool = False, cut_after: bool = False) -> str:
        """`cut_before`, `cut_after`: there was more of the text, so what is left of a secret may stand at that end."""
        for form, name in self._forms:
            text = text.replace(form, name)
        for form, name in self._forms if cut_before or cut_after else ():
            lengths = range(len(form) - 1, PART_MIN - 1, -1)
            length = next((n for n in lengths if cut_before and text.startswith(form[-n:])), 0)
            text = f"{name}{text[length:]}" if length else text
            length = next((n for n in lengths if cut_after and text.endswith(form[:n])), 0)
            text = f"{text[: len(text) - length]}{name}" if length else text
        return text

    def value(self, value: Any) -> Any:
        """A JSON value, keys as well."""
        if not self._values:
            return value
        match value:
            case str():
                return self.text(value)
            case bool() | None:
                return value
            case int() | float():
                text = json.dumps(value)
                found = self.text(text)
                return value if found == text else found
            case dict():
                return {self.text(key): self.value(each) for key, each in value.items()}
            case list():
                return [self.value(each) for each in value]
        return value

    def outcome(self, outcome: Outcome, printed_max: int, error_max: int) -> Outcome:
        """What is recorded of a call. A text of the greatest length was cut."""
        if not self._values:
            return outcome
        named = next((path for path in map(self._named_in, outcome.files or ()) if path), "")
        if named:
            said = f"the workspace was left as it was: {named} holds a secret, and it is stored; leave it out"
            return replace(outcome, kind="error", value=None, error=said, error_type="BadFiles", files=None)
        cut_before = len(outcome.printed.encode()) >= printed_max
        return replace(
            outcome,
            value=self.value(outcome.value),
            error=self.text(outcome.error, cut_after=len(outcome.error) >= error_max),
            error_type=self.text(outcome.error_type),
            printed=self.text(outcome.printed, cut_before=cut_before, cut_after=outcome.kind != "ok"),
        )

    def _named_in(self, item: Any) -> str:
        """The path of a changed file that has a secret in it; empty if it has none."""
        if isinstance(item, list):
            return ""
        held = [item["id"], item.get("target", ""), base64.b64decode(item.get("data", "")).decode(errors="replace")]
        return self.text(repr(item["id"])) if any(self.text(text) != text for text in held) else ""


def forms(value: str) -> Iterable[str]:
    """The value, and as it stands in JSON, in a URL, in Python's repr, in hexadecimal, in base64 at any offset."""
    data = value.encode()
    found = {value, quote(value, safe=""), quote(value), quote_plus(value), repr(value)[1:-1], data.hex()}
    found |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], data.hex().upper()}
    found |= {json.dumps(form)[1:-1] for form in tuple(found)}  # JSON that was put into JSON
    for offset in range(3):
        # Characters that hold bits of a neighbour are left out: they depend on it.
        whole = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        start = (offset * 8 + 5) // 6
        inner = whole[start : (offset + len(data)) * 8 // 6]
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found
