"""Reads YAML or JSON into plain data, and refuses whatever two readers could understand differently.

A policy is read by people who approve it and by a program that obeys it; both have to see the same. So: no key twice
(the last would silently win), no anchors (ten of them can expand to gigabytes), no merge, nothing but JSON values (a
bare date or `!!set` is none), and no word that is one thing to YAML 1.1 and another to 1.2, as `010`, `12:30`, `1e3`
and `no`: `deny` with `eq: no` was meant for Norway, and would never fit.
"""

import json
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Final

TEXT_MAX_BYTES = 1024 * 1024
DEPTH_MAX = 32
NUMBER_MAX = 1000
"""Characters of a number: to read one takes the square of its length, and a minute for half a megabyte."""
_NUMBER = re.compile(r"[-+.:_ 0-9a-fA-FoxT]*")
"""What YAML 1.1 makes numbers of, hexadecimal and sexagesimal ones, too."""
_ALIKE: Final = {
    "bool": re.compile("true|True|TRUE|false|False|FALSE"),
    "int": re.compile("[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    "float": re.compile(r"[-+]?(0|[1-9][0-9]*)?\.[0-9]*([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
"""How a bare word is written that is the same to every reader, by what PyYAML (1.1) takes it for."""
_NUMBER_TO_OTHERS: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+")
"""What PyYAML takes for text."""
_HIDING: Final = re.compile("[\x85\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Ends a line for YAML 1.1 and for no editor, so that a rule stands in a comment; or turns round what is shown."""


class Unreadable(ValueError):
    """The text is no data that everybody would read alike. Says where, and what to write instead."""


def read(text: str) -> Any:
    """The JSON value that a text in JSON or YAML holds. Raises Unreadable."""
    size = len(text.encode(errors="replace"))
    if size > TEXT_MAX_BYTES:
        raise Unreadable(f"it has {size} bytes, and {TEXT_MAX_BYTES} are the most; split it into layers")
    return _plain(_json(text) if text.lstrip()[:1] == "{" else _yaml(text), "", 0)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        return _yaml(text)  # a YAML flow mapping begins like JSON


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Unreadable(f"the key {key[:80]!r} is there twice in one mapping; keep one")
        found[key] = value
    return found


def _yaml(text: str) -> Any:
    hiding = _HIDING.search(text)
    if hiding:
        line = text.count("\n", 0, hiding.start()) + 1
        raise Unreadable(f"line {line}: it holds {hiding[0]!a}, which hides from people what is read; take it out")
    try:
        return _loader()(text).get_single_data()
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable(f"it is nested too deeply; {DEPTH_MAX} levels are the most") from None
    except Exception as error:  # PyYAML lets KeyError, IndexError and others out, e.g. for `!!bool x` and `!!int ""`
        mark: Any = getattr(error, "problem_mark", None)
        said = str(error) if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {_problem(error)}"
        words = " ".join(said.split()) or type(error).__name__
        raise Unreadable(f"it is no YAML: {words[:300]}") from None


def _problem(error: Any) -> str:
    """PyYAML's words without its picture of the place: `while parsing a flow node, expected the node content, ...`."""
    return ", ".join(part for part in (error.context, error.problem) if part)


@cache
def _loader() -> Any:
    """PyYAML's safe loader, made stricter. Imported here: most processes that know policies never read a file."""
    import yaml

    class Strict(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if getattr(event, "anchor", None) is not None:
                raise Unreadable(f"{_place(event)}: anchors and aliases (& and *) are not read; write the value out")
            if isinstance(event, yaml.ScalarEvent) and event.implicit != (False, True) and is_endless(event.value):
                what = f"a number of {len(event.value)} characters, {event.value[:20]}..."
                raise Unreadable(f"{_place(event)}: {what}; {NUMBER_MAX} are the most (text goes in quotes)")
            self.depth += 1
            if self.depth > DEPTH_MAX:
                raise Unreadable(f"{_place(event)}: it is nested deeper than {DEPTH_MAX} levels")
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def compose_scalar_node(self, anchor: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            node: Any = super().compose_scalar_node(anchor)
            bare = event.tag is None and node.style is None
            if bare and not node.value:
                raise Unreadable(f"{_place(node)}: there is nothing where a value should be; write it, or null")
            if bare and not _is_alike(node.tag.rpartition(":")[2], node.value):
                words = f"{node.value[:80]!r} is not the same to every reader of YAML"
                raise Unreadable(f"{_place(node)}: {words}; put it in quotes, or write true, false or a plain number")
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                name = str(key.value)
                if key.tag != "tag:yaml.org,2002:str":
                    raise Unreadable(f"{_place(key)}: the key {name[:80]!r} is not text; put it in quotes")
                if name in seen:
                    raise Unreadable(f"{_place(key)}: the key {name[:80]!r} is there twice in one mapping; keep one")
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Strict


def _is_alike(kind: str, word: str) -> bool:
    """Whether a bare word is the same to readers of both versions. (One with a tag says itself what it is.)"""
    if kind == "str":
        return _NUMBER_TO_OTHERS.fullmatch(word) is None
    return kind not in _ALIKE or _ALIKE[kind].fullmatch(word) is not None


def line_of(text: str, place: int | None, field: str) -> int:
    """The line, from 1, of a field (`when.amount.gt`) of the rule at this place; 0: not known.

    As near as there is one: of the rule, where it lacks the field. Keys may have dots in them.
    """
    node = _nodes(text)
    if node is None:
        return 0
    path = ("rules", str(place)) if place is not None else ()
    line: int = node.start_mark.line + 1
    for step in path:
        node = next((inner for name, _, inner in _inside(node) if name == step), None)
        if node is None:
            return line
        line = node.start_mark.line + 1
    while field:
        fitting = [each for each in _inside(node) if field == each[0] or field.startswith(f"{each[0]}.")]
        if not fitting:
            break
        name, mark, node = max(fitting, key=lambda each: len(each[0]))
        line, field = mark.line + 1, field[len(name) + 1 :]
    return line


def _inside(node: Any) -> Iterable[tuple[str, Any, Any]]:
    """Name, place and node of what a node holds."""
    if node.id == "mapping":
        return [(str(key.value), key.start_mark, inner) for key, inner in node.value]
    if node.id == "sequence":
        return [(str(number), inner.start_mark, inner) for number, inner in enumerate(node.value)]
    return []


@lru_cache(maxsize=1)
def _nodes(text: str) -> Any:
    """The tree of a text, with its lines. None where there is none."""
    try:
        return _loader()(text).get_single_node()
    except Exception:  # it is told elsewhere
        return None


def is_endless(text: str) -> bool:
    """Whether it looks like a number, a date or a time, and has more digits than any that is meant."""
    return len(text) > NUMBER_MAX and _NUMBER.fullmatch(text) is not None


def _place(thing: Any) -> str:
    return f"line {thing.start_mark.line + 1}"


def _plain(value: Any, at: str, depth: int) -> Any:
    """The value, if it is JSON all the way down."""
    if depth > DEPTH_MAX:
        raise Unreadable(f"{at[:80]}: it is nested deeper than {DEPTH_MAX} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) <= 2**63:
            return value
        raise Unreadable(f"{at}: a number of {value.bit_length()} bits; 63 are the most")
    if isinstance(value, str):
        return _writable(value, at)
    if isinstance(value, float):
        if abs(value) < float("inf"):
            return value
        raise Unreadable(f"{at}: {value} is no number that can be compared")
    if isinstance(value, list):
        return [_plain(item, f"{at}.{n}", depth + 1) for n, item in enumerate(value)]
    if isinstance(value, dict):
        return {_writable(key, at): _plain(item, f"{at}.{key}".lstrip("."), depth + 1) for key, item in value.items()}
    raise Unreadable(f"{at}: {str(value)[:80]!r} is read as a {type(value).__name__}; put it in quotes")


def _writable(text: str, at: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{at}: {text[:80]!a} holds half a character, which no file can hold") from None
    return text
