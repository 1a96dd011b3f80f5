"""A process may die at any line: play a graph with a death at every durable operation, and compare how it ends.

    from understudy.cluster.testing.crash import crash_points

    def test_my_graph_survives_everything():
        report = crash_points(graph, {"order": "A1"}, answers={"charge": True})
        assert report.ok, report

First the graph is played undisturbed, and its N durable operations are counted. Then, for every k below N and both
sides of it (just before, just after; and between two commits that travel in one call), a process dies there, another
one takes the run over, and the play has to end as if nothing had happened: the same final state and files of the run
and its children, every effect exactly once, every node finished once, no checkpoint lost. Four plays for each k:

    run      the run's actor dies; its tool calls go on (law 5)
    sandbox  the process that executes tools dies: calls in it are unknown, and a person who knows answers for them
    machine  both, and every other run, die at once
    owner    nobody dies: a second owner claims the run, and the first, which goes on, changes nothing any more (law 1)

Tools are really called, in this process, many times over: give `tools` to replace those that do harm. Time is stepped:
timers and deadlines take none. All that a node does must follow from its state, as everywhere.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from understudy.actors.graph import Graph
from understudy.actors.inline import Answers
from understudy.actors.inline import policy_port as policy_port
from understudy.actors.open import OpenStore
from understudy.actors.store import Store
from understudy.cluster.stores import open_store
from understudy.cluster.testing.mortal import Fault, Side
from understudy.cluster.testing.play import Script, play
from understudy.policies.permission import Policy

Victim = Literal["run", "sandbox", "machine", "owner"]
VICTIMS: tuple[Victim, ...] = ("run", "sandbox", "machine", "owner")
SIDES: tuple[Side, ...] = ("before", "after", "between")


@dataclass(frozen=True)
class Difference:
    """A play that ended otherwise than the undisturbed one."""

    fault: Fault
    operation: str
    what: str

    def __str__(self) -> str:
        who = {
            "run": "the run's actor died",
            "sandbox": "the sandbox died",
            "machine": "the machine died",
            "owner": "a second owner claimed the run",
        }[self.fault.victim]
        side = "between two commits of" if self.fault.side == "between" else f"just {self.fault.side}"
        return f"{who} {side} operation {self.fault.at} ({self.operation}): {self.what}"


@dataclass(frozen=True, repr=False)
class CrashReport:
    """What came of it. As text: one line if all is well, else the first difference and where it was."""

    graph: str
    operations: tuple[str, ...]
    """Of the undisturbed play, in order."""
    plays: int
    differences: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.differences

    def __repr__(self) -> str:
        told = f"graph {self.graph!r}: {len(self.operations)} durable operations, {self.plays} disturbed plays"
        if self.ok:
            return f"{told}, all ended as the undisturbed one"
        first = self.differences[0]
        around = self.operations[max(0, first.fault.at - 3) : first.fault.at + 4]
        return (
            f"{told}, {len(self.differences)} of which ended otherwise. The first: {first}\n"
            f"  operations around it in the undisturbed play: {' '.join(around)}"
        )


def crash_points(graph: Graph, input: BaseModel | Mapping[str, Any] | None = None, **how: Any) -> CrashReport:
    """`crash_points_async`, from code that is not async."""
    return asyncio.run(crash_points_async(graph, input, **how))


async def crash_points_async(
    graph: Graph,
    input: BaseModel | Mapping[str, Any] | None = None,
    *,
    store: str | OpenStore = "memory://",
    answers: Answers | None = None,
    messages: Sequence[Any] = (),
    tools: Mapping[str, Callable[..., Any]] | None = None,
    policy: Policy | str | None = None,
    world: Callable[[], Iterable[Any]] | None = None,
    victims: Iterable[Victim] = VICTIMS,
    sides: Iterable[Side] = SIDES,
    sample: int | None = None,
    seed: int = 0,
    slow_commits: bool = False,
) -> CrashReport:
    """Play a graph with a death at every durable operation.

    Args:
        input, answers, messages, tools, policy: as for `Graph.run_inline`.
        store: URL of a store, or a function that opens one. What is played there is deleted again.
        world: everything that was done to the world since it was asked last, as hashable values; compared as well.
            Executions of tools are counted anyway; this is for what nodes do by other ways.
        victims, sides: who dies, and where; default: all.
        sample: so many operations for each victim, chosen by `seed`; None: every one.
        slow_commits: let other nodes go on while a commit is under way, so that commits travel together.
    Raises what the undisturbed play raises, AssertionError: two undisturbed plays differ (nodes that are not a function
    of their state), TimeoutError: a play hangs.
    """
    opened: Store = await (open_store(store) if isinstance(store, str) else store())
    script = Script(graph, input, answers, messages, tools, policy_port(policy, opened), world)
    try:
        expected = await play(script, opened, slow=slow_commits)
        assert not expected.broken, f"graph {graph.name!r}, undisturbed: {expected.broken[0]}"
        again = expected.difference(await play(script, opened, slow=slow_commits))
        assert not again, f"graph {graph.name!r} is played twice, undisturbed, and differs: {again}"
        plays, differences = 0, list[Difference]()
        for fault in await _faults(script, opened, victims, sides, sample, seed, slow_commits):
            plays += 1
            found = await play(script, opened, fault, slow=slow_commits)
            what = expected.difference(found)
            if what:
                operation = found.operations[fault.at] if fault.at < len(found.operations) else "never reached"
                differences.append(Difference(fault, operation, what))
    finally:
        await opened.close()
    return CrashReport(graph.name, expected.operations, plays, tuple(differences))


async def _faults(
    script: Script,
    store: Store,
    victims: Iterable[Victim],
    sides: Iterable[Side],
    sample: int | None,
    seed: int,
    slow: bool,
) -> list[Fault]:
    """Every operation that counts for each victim, and each side of it."""
    found: list[Fault] = []
    for victim in victims:
        counted = (await play(script, store, Fault(victim, NEVER), slow=slow)).operations
        chosen = range(len(counted))
        if sample is not None and sample < len(counted):
            chosen = sorted(random.Random(f"{seed} {victim}").sample(chosen, sample))  # type: ignore[assignment]
        for at in chosen:
            found += [
                Fault(victim, at, side) for side in sides if side != "between" or counted[at].startswith("commit x")
            ]
    return found


NEVER = 10**9
