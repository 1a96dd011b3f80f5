"""The text of all channels at one moment: a mapping that shares what has not changed with the moments before it.

A channel that grows (append, union, merge, messages) is kept as the list of what was written to it, and made one text
only when somebody reads it; a superstep then costs what it wrote, not what there is (law 8). Nothing here needs the
user's code: a run is restored from JSON alone.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from understudy.actors.spelling import compact as compact

Op = Literal["set", "unset", "append", "union", "merge", "messages"]
Growing = Literal["append", "union", "merge", "messages"]

GROWING: frozenset[str] = frozenset(get_args(Growing))


@dataclass(frozen=True)
class Change:
    """How one channel changed.

    `set`: `text` is the JSON of the new value. `unset`: it has none any more. Else `text` is what was written to it:
    `append` and `union` a JSON array of items, `merge` a JSON object, `messages` an array that holds messages (objects
    with an `id`) and, in the place of one that is taken out, an array with its id: `[{"id": "a"}, ["b"]]`.
    """

    text: str
    op: Op = "set"

    def then(self, later: "Change") -> "Change":
        """Both, as one change."""
        if later.op in ("set", "unset"):
            return later
        assert later.op in GROWING
        if self.op == later.op:
            return Change(joined(self.text, later.text), self.op)
        return Change(folded(later.op, [later.text] if self.op == "unset" else [self.text, later.text]))


def joined(old: str, new: str) -> str:
    """Two JSON arrays, or two objects, as one, without reading what is in them. Of a key that both have, JSON readers
    take the last."""
    first, second = old.strip(), new.strip()
    if len(first) == 2:  # [] or {}
        return second
    return first if len(second) == 2 else f"{first[:-1]},{second[1:]}"


def folded(op: Op, writes: Sequence[str]) -> str:
    """The text of a growing channel after these writes; the first may be its text before them."""
    if op == "append":
        inner = [text for text in (write.strip()[1:-1] for write in writes) if text and not text.isspace()]
        return f"[{','.join(inner)}]"
    return _spelled(op, _keyed(op, {}, writes))


def _keyed(op: Op, before: Mapping[str, str], writes: Iterable[str]) -> dict[str, str]:
    """The items of a channel by what makes them the same: itself (union), its key (merge), its id (messages).

    A dict keeps the place of a key that is written again, which is what "replaced in place" means.
    """
    items = dict(before)
    for write in writes:
        for item in _items(op, json.loads(write)):
            key, text = item
            if text is None:
                items.pop(key, None)
            elif op != "union" or key not in items:
                items[key] = text
    return items


def _items(op: Op, written: Any) -> Iterator[tuple[str, str | None]]:
    if op == "merge":
        yield from ((compact(key), compact(value)) for key, value in written.items())
    elif op == "union":
        yield from ((compact(item), "") for item in written)
    else:
        assert op == "messages"
        for item in written:
            yield (compact(item["id"]), compact(item)) if isinstance(item, dict) else (compact(item[0]), None)


def _spelled(op: Op, items: Mapping[str, str]) -> str:
    if op == "merge":
        return "{" + ",".join(f"{key}:{text}" for key, text in items.items()) + "}"
    return "[" + ",".join(items if op == "union" else items.values()) + "]"


class _Log:
    """What was written to one growing channel, oldest first. Only ever appended to, so that every value that the
    channel ever had is the log and a length."""

    __slots__ = ("keyed", "op", "text", "writes")

    def __init__(self, op: Op, writes: list[str]) -> None:
        self.op = op
        self.writes = writes
        # What was made of the first n writes, the last time that somebody read it. Replaced, never changed: nodes in
        # threads may read while another one does.
        self.text: tuple[int, str] = (0, "")
        self.keyed: tuple[int, Mapping[str, str]] = (0, {})


class Grown:
    """One value of a growing channel."""

    __slots__ = ("_length", "_log", "_written")

    def __init__(self, op: Op, writes: Sequence[str]) -> None:
        self._log = _Log(op, list(writes))
        self._length = len(self._log.writes)
        self._written = sum(map(len, writes))

    def after(self, change: Change) -> "Grown":
        """The value after a write. Costs what is written, unless the channel went on from this value before."""
        log = self._log
        if change.op != log.op:
            return Grown(change.op, [self.text(), change.text])
        if len(log.writes) != self._length:
            return Grown(log.op, [*log.writes[: self._length], change.text])
        log.writes.append(change.text)
        grown = Grown.__new__(Grown)
        grown._log, grown._length = log, self._length + 1
        grown._written = self._written + len(change.text)
        return grown

    @property
    def size(self) -> int:
        """Characters of its text, without making it: exact but for commas where it only grows, else as it was when
        somebody read it last."""
        if self._log.op == "append":
            return self._written
        known, text = self._log.text
        return len(text) if known else len(self._log.writes[0])

    def text(self) -> str:
        """All of it as JSON. Costs its size, so ask only if you need it."""
        known, text = self._log.text
        if known != self._length:
            text = self._fold()
            self._log.text = (self._length, text)
        return text

    def _fold(self) -> str:
        log = self._log
        if log.op == "append":
            return folded("append", log.writes[: self._length])
        known, items = log.keyed
        if known > self._length:
            known, items = 0, {}
        items = _keyed(log.op, items, log.writes[known : self._length])
        log.keyed = (self._length, items)
        return _spelled(log.op, items)


class Values(Mapping[str, str]):
    """JSON text of each channel that has a value. Does not change; `after` makes another one."""

    __slots__ = ("_cells",)

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._cells: dict[str, str | Grown] = dict(texts._cells if isinstance(texts, Values) else texts or {})

    def after(self, changes: Mapping[str, Change]) -> "Values":
        """The channels after these changes."""
        values = Values.__new__(Values)
        values._cells = self._cells.copy()
        values.put(changes)
        return values

    def put(self, changes: Mapping[str, Change]) -> None:
        """Make these changes here. Only for whoever made this one, before anybody else has it."""
        cells = self._cells
        for name, change in changes.items():
            old = cells.get(name)
            if change.op == "set":
                cells[name] = change.text
            elif change.op == "unset":
                cells.pop(name, None)
            elif isinstance(old, Grown):
                cells[name] = old.after(change)
            else:
                cells[name] = Grown(change.op, [change.text] if old is None else [old, change.text])

    def in_order(self, names: Iterable[str]) -> "Values":
        """The same, with these names first."""
        values = Values()
        values._cells = {name: self._cells[name] for name in dict.fromkeys((*names, *self)) if name in self}
        return values

    @property
    def size(self) -> int:
        """About how many characters all texts have; costs the number of channels."""
        return sum(len(cell) if isinstance(cell, str) else cell.size for cell in self._cells.values())

    def __getitem__(self, name: str) -> str:
        cell = self._cells[name]
        return cell if isinstance(cell, str) else cell.text()

    def __contains__(self, name: object) -> bool:
        return name in self._cells

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return f"Values({dict(self)!r})"
