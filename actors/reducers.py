"""Reducers: how several writes to one channel become one value. `Annotated[list[str], append]` gives a field one.

A field without a reducer holds the last value, and takes one write in a superstep. Any function of (old, new) is a
reducer; of those below, the first four store only what is written (law 8), never the whole value again.

The ideas are LangGraph's (`langgraph.channels`), after Pregel's message combiners.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
V = TypeVar("V")


def append(old: list[T], new: list[T]) -> list[T]:
    """Reducer of a list: the new items go behind the old ones."""
    return [*old, *new]


def union(old: Any, new: Any) -> Any:
    """Reducer of a set, a frozenset, or a list without doubles: what is new is added, a list's behind the others.

    Two items are the same if their JSON is the same.
    """
    if isinstance(old, list):
        return [*old, *(item for index, item in enumerate(new) if item not in old and item not in new[:index])]
    return old | new


def merge(old: Mapping[T, V], new: Mapping[T, V]) -> dict[T, V]:
    """Reducer of a dict: `old.update(new)`. None is a value like others."""
    return {**old, **new}


@dataclass(frozen=True)
class Remove:
    """Written to a `messages` channel in the place of a message: takes out the one with this id, if it is there."""

    id: Any


def messages(old: list[Any], new: list[Any]) -> list[Any]:
    """Reducer of a list of dicts or models with an `id`: a message with an id that is there already replaces that one,
    in its place; others go to the end; `Remove(id)` takes one out."""
    kept = {_id_of(message): message for message in old}
    for item in new:
        if isinstance(item, Remove):
            kept.pop(item.id, None)
        else:
            kept[_id_of(item)] = item
    return list(kept.values())


def _id_of(message: Any) -> Any:
    return message["id"] if isinstance(message, Mapping) else message.id


def add(old: Any, new: Any) -> Any:
    """Reducer: old + new, e.g. for counts and sums."""
    return old + new


def topic(old: list[T], new: list[T]) -> list[T]:
    """Reducer of a list: it holds what the nodes of the last superstep wrote, all of them, and nothing older."""
    return [*old, *new]


def ephemeral(old: T, new: T) -> T:
    """Reducer of a value that the next superstep sees, and that then goes back to its default. One writer."""
    return new


@dataclass(frozen=True)
class Barrier:
    """See `barrier`."""

    writers: tuple[str, ...]

    def __call__(self, old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T]:
        return {**old, **new}


def barrier(*writers: str) -> Barrier:
    """Reducer of a dict by node name: it keeps its default until each of these nodes has written (its own item, not a
    dict), then holds what each wrote last. The next write begins the next round.

        votes: Annotated[dict[str, bool], barrier("alice", "bob")] = {}       # alice returns {"votes": True}
    """
    return Barrier(writers)
