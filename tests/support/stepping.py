"""Supersteps without nodes, tasks or a store: the writes that they would make, through the real channels and rows."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from understudy.actors.checkpoint import Checkpoint, following, restore
from understudy.actors.graph import Graph
from understudy.actors.lazy import state_of
from understudy.actors.plan import END, START
from understudy.actors.records import CheckpointRow, NewCheckpoint
from understudy.actors.start import input_text
from understudy.actors.step import TaskResult, apply, opening, result_of, tasks_of

RUN = "r00-x"


def _idle(state: Any) -> None: ...


def _choice(node: str) -> Callable[[Any], str]:
    return lambda state: node


def loop_of(state: type[BaseModel], *nodes: str, name: str = "loop") -> Graph:
    """A graph in which these nodes run in every superstep, side by side, for ever."""
    graph = Graph(name, state, step_limit=1_000_000)
    for node in nodes:
        graph.node(_idle, name=node)
        graph.edge(START, node).branch(node, _choice(node), [node, END])
    return graph


def as_row(new: NewCheckpoint) -> CheckpointRow:
    return CheckpointRow(new.checkpoint_id, new.parent, new.step, new.snapshot, new.body, RUN, 0.0, since=new.since)


@dataclass
class Stepping:
    """A run that is moved by hand."""

    graph: Graph
    given: Any = None
    rows: list[CheckpointRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.graph.plan()
        self.now = opening(self.plan, Checkpoint(), input_text(self.plan, self.given))

    def step(self, writes: Mapping[str, Any]) -> Checkpoint:
        """One superstep: what each node returns, by its name; the others return None."""
        results = []
        for task in tasks_of(self.now, RUN):
            # Through the text that pending writes keep, as after a crash in the middle of the superstep.
            body = result_of(self.plan, self.plan.nodes[task.node], writes.get(task.node)).body()
            results.append((task, TaskResult.read(body)))
        values, changes, frontier, arrived = apply(self.plan, self.now, results)
        self.now, new = following(
            self.now, RUN, values, changes, frontier, arrived, self.plan.fingerprint, self.plan.version
        )
        self.rows.append(as_row(new))
        return self.now

    def chain(self, index: int = -1) -> list[CheckpointRow]:
        """What a store would load for the checkpoint of this superstep."""
        index %= len(self.rows)
        known = {row.checkpoint_id: row for row in self.rows[: index + 1]}
        chain = [self.rows[index]]
        while chain[-1].stands_on:
            chain.append(known[chain[-1].stands_on])
        return chain[::-1]

    def restored(self, index: int = -1) -> Any:
        """The state that a process which loads the checkpoint would give to its nodes."""
        return state_of(self.plan.state, self.plan.channels, restore(self.chain(index)).values)

    def state(self) -> Any:
        """The state that the next nodes of this process would be given."""
        return state_of(self.plan.state, self.plan.channels, self.now.values)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(row.body) for row in self.rows]
