"""A process may die at any line, and a second owner may come at any line: the kit, on our own story and on every store.

The story has parallel nodes, a loop, tools, a question and a timer. The kit is `understudy.cluster.testing.crash`; that
it finds what it is there to find is shown by stores that break a law.
"""

from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Graph, append, tool
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points


class Story(BaseModel):
    seen: Annotated[list[str], append] = []
    rounds: int = 0
    answer: str = ""


@tool
def act(what: str) -> str:
    """Changes the world."""
    return what.upper()


@tool(idempotent=True)
def look(where: str) -> str:
    return f"looked {where}"


story = Graph("story", Story)


@story.node
async def left(state: Story, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.call(act, what="left")]}


@story.node
async def right(state: Story) -> dict[str, Any]:
    return {"seen": ["right"]}


@story.node
async def again(state: Story, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.call(act, what=f"round {state.rounds}")], "rounds": state.rounds + 1}


@story.node
async def ask(state: Story, ctx: Context) -> dict[str, Any]:
    first = await ctx.call(act, what="before the question")
    answer = await ctx.interrupt("go on?")
    second = await ctx.call(act, what="after the question")
    return {"seen": [first, second], "answer": answer}


@story.node
async def rest(state: Story, ctx: Context) -> dict[str, Any]:
    before = await ctx.call(look, where="before")
    await ctx.sleep(timedelta(days=3))
    return {"seen": [before, await ctx.call(act, what="rested")]}


story.edge(START, left).edge(START, right).edge([left, right], again)
story.branch(again, lambda state: "again" if state.rounds < 3 else "ask", ["again", "ask"])
story.edge(ask, rest).edge(rest, END)


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite://{tmp_path}/crash.db"
        case name:
            return str(request.getfixturevalue(f"{name}_url"))


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_death_at_every_boundary_changes_nothing(url: str, victim: Victim) -> None:
    report = crash_points(story, answers={"ask": "yes"}, store=url, victims=[victim])
    assert report.ok, report
    assert len(report.operations) > 25, report.operations
    assert report.plays >= 2 * 12


def test_nor_does_one_between_commits_that_travel_together() -> None:
    report = crash_points(story, answers={"ask": "yes"}, slow_commits=True, victims=["run", "owner"])
    assert report.ok, report
