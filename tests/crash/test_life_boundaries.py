"""A death at every durable operation of a run with children, messages and streams, on every store."""

from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Graph, InterruptExpired, append, tool
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points


class Log(BaseModel):
    seen: Annotated[list[str], append] = []
    word: str = ""


@tool
def say(word: str) -> str:
    return f"said {word}"


async def speak(state: Log, ctx: Context) -> dict[str, Any]:
    ctx.stream(state.word)
    return {"seen": [await ctx.call(say, word=state.word)]}


def speaking(name: str) -> Graph:
    graph = Graph(name, Log)
    graph.node(speak)
    return graph.edge(START, speak).edge(speak, END)


# One for each place: children that are started side by side have no order.
leaf, keyed, late = speaking("leaf"), speaking("keyed"), speaking("late")

family = Graph("family", Log)


@family.node
async def left(ctx: Context) -> dict[str, Any]:
    """Both receive the same words, so that it does not matter who is first; what each received has to stay its own."""
    word = await ctx.receive()
    child = await ctx.start(leaf, {"word": word})
    ctx.stream("left")
    return {"seen": (await child.result()).seen}


@family.node
async def right(ctx: Context) -> dict[str, Any]:
    await ctx.start(keyed, {"word": "key"}, key="k")
    return {"seen": [await ctx.receive(), *(await ctx.run(keyed, {"word": "key"}, key="k")).seen]}


@family.node
async def end(ctx: Context) -> dict[str, Any]:
    try:
        return {"seen": [await ctx.receive(deadline=timedelta(days=2))]}
    except InterruptExpired:
        return {"seen": ["nobody came", *(await ctx.run(late, {"word": "late"})).seen]}


family.edge(START, left).edge(START, right).edge([left, right], end).edge(end, END)


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite://{tmp_path}/crash.db"
        case "postgres":
            return str(request.getfixturevalue("made_postgres_url"))
        case name:
            return str(request.getfixturevalue(f"{name}_url"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_at_every_boundary_changes_nothing(url: str, victim: Victim) -> None:
    # Every one in memory; a sample where a play takes longer.
    sample = None if url.startswith("memory") else 4
    report = crash_points(family, messages=["word", "word"], store=url, victims=[victim], sample=sample)
    assert report.ok, report
    assert {"create", "begin", "stream"} <= set(report.operations), report.operations
    assert report.plays >= 8
