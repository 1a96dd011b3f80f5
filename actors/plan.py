"""A plan is a graph in its validated, frozen form, and what its nodes return: the values that the engine works on.

What a user builds it with is in graph.py.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, TypeAdapter

from understudy.actors.channels import Channel
from understudy.actors.checkpoint import TaskSpec
from understudy.policies.retention import Keep
from understudy.policies.retry import Retry

START = "__start__"
END = "__end__"

Target = str | Callable[..., Any]


@dataclass(frozen=True)
class Send:
    """Run `node` once with `arg` in the place of the state; several of them fan out in one superstep."""

    node: Target
    arg: Any


@dataclass(frozen=True)
class Command:
    """What a node returns to write and to say where to go: a node name, END, Sends, or a list of them."""

    update: Mapping[str, Any] | BaseModel | None = None
    goto: Target | Send | Sequence[Target | Send] | None = None


@dataclass(frozen=True)
class Node:
    """A function of the graph, and how it wants to be called."""

    name: str
    fn: Callable[..., Any]
    takes_state: bool
    context_name: str
    """Name of its context parameter; empty when it takes none."""
    is_async: bool
    arg_adapter: TypeAdapter[Any]
    """Of the first parameter: reads what a Send carries."""
    takes_model: bool
    """The first parameter is the state model (or is not annotated): without a Send it gets the state."""
    goto: tuple[str, ...]
    """Where its Commands may lead, as declared."""
    retry: Retry | None = None
    """When it is tried again after an exception; None: never."""
    timeout_s: float | None = None
    """Seconds that one try may take; None: as long as it wants."""
    fallback: str = ""
    """The node that comes instead of its followers once it is given up; empty: the run fails."""


@dataclass(frozen=True)
class Branch:
    source: str
    choose: Callable[[Any], Any]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Join:
    """An edge from several nodes: its target runs once all of them have finished."""

    sources: tuple[str, ...]
    target: str

    @property
    def name(self) -> str:
        return "+".join(self.sources) + ">" + self.target


@dataclass(frozen=True)
class Migration:
    """How the channels of one version become those of another."""

    from_: str
    to: str
    fn: Callable[[dict[str, Any]], Any]


def is_async(fn: Any) -> bool:
    """Whether calling it gives a coroutine; of an object, whether its `__call__` does."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


@dataclass(frozen=True)
class Plan:
    """A validated graph. Nothing in it changes any more."""

    name: str
    version: str
    state: type[BaseModel]
    channels: Mapping[str, Channel]
    nodes: Mapping[str, Node]
    edges: Mapping[str, tuple[str, ...]]
    branches: tuple[Branch, ...]
    joins: tuple[Join, ...]
    step_limit: int
    retain_s: float
    """Seconds that a thread is kept after its last run ended; negative: for ever."""
    keep: Keep
    """Which checkpoints of a thread are kept."""
    migrations: Mapping[str, Migration]
    """By the version that they start from; from each of them, they lead to this one."""

    @cached_property
    def passing(self) -> tuple[Channel, ...]:
        """Channels whose value passes with the superstep."""
        return tuple(channel for channel in self.channels.values() if channel.kind in ("topic", "ephemeral"))

    @cached_property
    def given(self) -> dict[tuple[str, str], str]:
        """What channels have made of short values in inputs: most are the model's defaults, the same for each run."""
        return {}

    @cached_property
    def straight(self) -> Mapping[str, tuple[TaskSpec, ...]]:
        """What follows each node that has nothing but edges: no branch is to be asked, and no join waits for it."""
        more = {branch.source for branch in self.branches}.union(*(join.sources for join in self.joins))
        return {
            name: tuple(TaskSpec(target) for target in dict.fromkeys(self.edges.get(name, ())) if target != END)
            for name in (START, *self.nodes)
            if name not in more
        }

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the state's JSON schema: tells a checkpoint of another model when it is loaded (law 6)."""
        schema = json.dumps(self.state.model_json_schema(), sort_keys=True, default=str)
        return hashlib.sha256(schema.encode()).hexdigest()[:16]
