"""A small family of graphs, made by chance: stages of parallel nodes, loops, and in each node whatever a node may do.

What a node writes follows from its state, its calls and the answers it gets, so every run of a graph ends the same.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel

from understudy import (
    END,
    START,
    All,
    Context,
    Done,
    Graph,
    InterruptExpired,
    Last,
    NeverHappened,
    Retry,
    add,
    append,
    tool,
)
from understudy.actors.tool import Tool


class State(BaseModel):
    log: Annotated[list[str], append] = []
    rounds: Annotated[int, add] = 0


@dataclass
class World:
    """What is outside: it knows what was really done to it, and by which effect key."""

    done: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Effect keys by what they did, once for each time that they did it."""
    failures: Counter[str] = field(default_factory=Counter)
    breaks: bool = False
    """There is something that fails until the run is retried."""

    def do(self, what: str, key: str) -> str:
        self.done[what].append(key)
        return what + "!"

    def by_key(self, key: str) -> str | None:
        """What the effect of this key did, as its result; None if it did nothing."""
        return next((what + "!" for what, keys in self.done.items() if key in keys), None)

    def tools(self) -> dict[str, Tool[Any, Any]]:
        """Tools of all declarations."""
        world = self

        @tool
        def plain(what: str) -> str:
            return world.do(what, os.environ["UNDERSTUDY_EFFECT_KEY"])

        @tool(idempotent=True)
        def idempotent(what: str) -> str:
            key = os.environ["UNDERSTUDY_EFFECT_KEY"]
            return what + "!" if key in world.done[what] else world.do(what, key)

        def ended(what: str) -> Any:
            return Done(what + "!") if os.environ["UNDERSTUDY_EFFECT_KEY"] in world.done[what] else NeverHappened()

        @tool(reconcile=ended)
        def reconciled(what: str) -> str:
            return world.do(what, os.environ["UNDERSTUDY_EFFECT_KEY"])

        return {"plain": plain, "idempotent": idempotent, "reconciled": reconciled}


@dataclass(frozen=True)
class Able:
    """What a graph's nodes can do."""

    world: World
    tools: dict[str, Tool[Any, Any]]
    child: Graph | None


OPS = ("note", "plain", "plain", "idempotent", "reconciled", "both", "effect", "ask", "asks", "expire", "sleep", "fail")
PARENTS_OPS = (*OPS, "stream", "child", "children", "receive", "break", "close", "tell")


LISTENER = "listener"


def graph_of(seed: str, world: World, *, is_child: bool = False) -> Graph:
    """The graph of a seed. Some of its nodes run another one as a child."""
    dice = random.Random(seed)
    name = "child" if is_child else "story"
    child = None if is_child else graph_of(f"{seed} child", world, is_child=True)
    able = Able(world, world.tools(), child)
    graph = Graph(name, State, keep=dice.choice((All(), All(), Last(1), Last(3))))
    before: Sequence[str] = [START]
    for stage in range(dice.choice((1, 2, 2, 3, 4))):
        names = [f"n{stage}{branch}" for branch in range(dice.choice((1, 1, 2, 3)))]
        for name in names:
            ops = [dice.choice(OPS if is_child else PARENTS_OPS) for _ in range(dice.choice((0, 1, 1, 2, 3)))]
            if len(names) > 1:  # which of two that receive side by side gets which message is not told by anything
                ops = ["note" if op == "receive" else op for op in ops]
            if "fail" in ops:  # its retries would mend it
                ops = ["note" if op == "break" else op for op in ops]
            world.breaks = world.breaks or "break" in ops
            retry = Retry(attempts=20, base_s=0.3) if "fail" in ops else None
            graph.node(_node(name, ops, dice.random(), able), name=name, retry=retry)
            graph.edge(before[0] if len(before) == 1 else list(before), name)
        before = names
    graph.node(_count, name="count")
    graph.edge(before[0] if len(before) == 1 else list(before), "count")
    rounds = dice.choice((1, 1, 2, 3))
    first = "n00"
    if dice.random() < 0.5 and len([name for name in graph.nodes if name.startswith("n0")]) == 1:
        graph.branch("count", lambda state: first if state.rounds % rounds else END, [first, END])
    else:
        graph.edge("count", END)
    return graph


def listener() -> Graph:
    """A child that ends once it is told something."""

    async def listen(state: State, ctx: Context) -> dict[str, Any]:
        return {"log": sorted(await ctx.receive())}

    graph = Graph(LISTENER, State)
    graph.node(listen)
    return graph.edge(START, listen).edge(listen, END)


async def _count(state: State) -> dict[str, Any]:
    return {"rounds": 1, "log": ["count"]}


def _node(name: str, ops: Sequence[str], pace: float, able: Able) -> Any:
    async def node(state: State, ctx: Context) -> dict[str, Any]:
        said = []
        for n, op in enumerate(ops):
            # The run's own name is part of it: several runs share the world.
            label = f"{ctx.run_id} {state.rounds} {name}.{n}"
            await asyncio.sleep(pace * 0.1)
            said.append(f"{state.rounds} {name}.{n} {op}: {(await _act(op, label, ctx, able))}")
        return {"log": [text.replace(ctx.run_id, "run") for text in said]}

    return node


async def _act(op: str, label: str, ctx: Context, able: Able) -> str:
    world, tools = able.world, able.tools
    match op:
        case "plain" | "idempotent" | "reconciled":
            return str(await ctx.call(tools[op], what=label))
        case "both":
            both = ctx.call(tools["plain"], what=label + "a"), ctx.call(tools["plain"], what=label + "b")
            return " ".join(await asyncio.gather(*both))
        case "effect":

            async def effect(key: str) -> str:
                await asyncio.sleep(0.05)
                return world.do(label, key)

            return str(await ctx.effect("own", effect, about=label))
        case "ask":
            return str(await ctx.interrupt({"label": label}))
        case "asks":
            asked = [ctx.interrupt({"label": label + suffix}) for suffix in "ab"]
            return " ".join(map(str, await asyncio.gather(*asked)))
        case "expire":
            try:
                return str(await ctx.interrupt({"nobody": label}, deadline=timedelta(seconds=5)))
            except InterruptExpired:
                return "nobody came"
        case "sleep":
            await ctx.sleep(timedelta(seconds=7))
            return "slept"
        case "fail":
            world.failures[label] += 1
            if world.failures[label] < 3:
                raise ValueError("not yet")
            return "at last"
        case "break":
            world.failures[label] += 1
            if world.failures[label] == 1:
                raise ValueError("broken, until somebody has the run retried")
            return "mended"
        case "stream":
            for n in range(3):
                ctx.stream({"label": label, "n": n})
                await asyncio.sleep(0.02)
            return "streamed"
        case "child" if able.child is not None:
            return _said(await ctx.run(able.child, {}))
        case "children" if able.child is not None:
            children = [await ctx.start(able.child, {"log": [which]}) for which in "ab"]
            return " | ".join([_said(await child.result()) for child in children])
        case "close" | "tell":
            # Nobody else ends it: the story does not, unless its parent's end does.
            await ctx.start(listener(), {}, parent_close="cancel" if op == "close" else "request")
            return "started"
        case "receive":
            return str(await ctx.receive())
    return "noted"


def _said(state: Any) -> str:
    return f"{len(state.log)} lines, the last {state.log[-1]!r}"
