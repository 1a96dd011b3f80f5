"""Reads the conditions of a rule: each operator with an operand that it can use, or what is wrong with it."""

import re
from collections.abc import Iterable
from typing import Any, Final, cast, get_args

from understudy.policies.argv import basename, is_launcher
from understudy.policies.command_line import REST
from understudy.policies.condition import Condition
from understudy.policies.hosts import NotCanonical, read_host_pattern, read_url_pattern
from understudy.policies.operators import MATCHED_TEXT_MAX, Op, show
from understudy.policies.reading import Reader

PATTERN_MAX = 512
"""Characters of a regular expression."""
OPS: Final[tuple[Op, ...]] = get_args(Op)
COMMAND_KEYS: Final = ("program", "operands", "any_operand", "only_flags", "any_flag")
_FIELD: Final = re.compile(r"[^.\s]{1,64}(?:\.[^.\s]{1,64}){0,15}")


class ConditionReader(Reader):
    """`when`, and other paths into arguments."""

    def conditions(self, data: Any) -> Iterable[Condition]:
        for path, tests in self.mapping("when", data).items():
            at = f"when.{path}"
            self.field_path("when", path)
            if isinstance(tests, dict) and not tests:
                self.wrong(at, f"{{}} says nothing; write e.g. {{{OPS[0]}: 1}}")
            for known, value in self.mapping(at, tests, OPS).items():
                op = cast(Op, known)
                yield Condition(path, op, self.operand(f"{at}.{op}", op, value))

    def field_path(self, at: str, path: str) -> None:
        if not _FIELD.fullmatch(path):
            self.wrong(at, f"{show(path)} names no argument; write names with dots between, e.g. order.amount")

    def operand(self, at: str, op: Op, value: Any) -> Any:
        match op:
            case "eq" | "ne":
                return self.anything(at, value)
            case "in" | "not_in":
                if not isinstance(value, list) or not value:
                    self.wrong(at, f"{show(value)} is no list of values; write e.g. [EUR, USD]")
                    return []
                return self.anything(at, value)
            case "lt" | "le" | "gt" | "ge":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    self.wrong(at, f"{show(value)} is no number; write one, without quotes")
                return value
            case "matches":
                return self.pattern(at, value)
            case "under":
                found = self.paths(at, [value] if isinstance(value, str) else value)
                if not found and isinstance(value, list) and not value:
                    self.wrong(at, "an empty list is over nothing; name a folder")
                return found[0] if isinstance(value, str) and found else list(found)
            case "exists" | "plain":
                return self.boolean(at, value)
            case "host" | "url":
                return self.targets(at, op, value)
            case "command":
                return self.command(at, value)

    def pattern(self, at: str, value: Any) -> str:
        pattern = self.text(at, value, re.escape)
        if len(pattern) > PATTERN_MAX:
            self.wrong(at, f"it has {len(pattern)} characters, and {PATTERN_MAX} are the most; split the rule")
            return ""
        from understudy.policies.backtracking import Runaway, longest_text

        try:
            re.compile(pattern)
            longest_text(pattern, MATCHED_TEXT_MAX)
        except Runaway as error:
            remedy = "write a possessive repetition, (a++)+, or put something between"
            self.wrong(at, f"{show(pattern)} could take for ever on a text made for it: {error}; {remedy}")
        except (re.error, OverflowError, RecursionError) as error:
            self.wrong(at, f"{show(pattern)} is no regular expression: {error}")
        return pattern

    def targets(self, at: str, op: str, value: Any) -> list[str]:
        """Patterns of hosts or URLs, in their one spelling."""
        example = "[api.example.org, '*.example.org:443']" if op == "host" else "[https://example.org/docs]"
        found = []
        for text in self.texts(at, value, example):
            try:
                found.append(str(read_host_pattern(text) if op == "host" else read_url_pattern(text)))
            except NotCanonical as error:
                self.wrong(at, f"{show(text)} names no {op}: {error}; write e.g. {example}")
        return found

    def command(self, at: str, value: Any) -> dict[str, list[str]]:
        if value == {}:
            self.wrong(at, "{} says nothing; write e.g. {program: git}, or 'plain: true' for any command line")
        found = {}
        for key, given in self.mapping(at, value, COMMAND_KEYS).items():
            none = key in ("operands", "only_flags") and given == []
            found[key] = [] if none else list(self.globs(f"{at}.{key}", given))
        for name in found.get("program", ()):
            if is_launcher(basename(name)):
                words = f"{show(name)} starts other commands, so no line with it can be judged"
                self.wrong(f"{at}.program", f"{words}; leave it out (lines with it are denied), or use 'matches'")
        if REST in found.get("operands", [])[:-1]:
            self.wrong(f"{at}.operands", f"'{REST}' stands for all that follows; write it last")
        return found
