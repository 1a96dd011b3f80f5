"""Effects of nodes, and deadlines, under a death at every durable operation: each happens once, and no way is left."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from understudy import END, START, Context, Continue, Done, Escalate, Graph, NeverHappened, append, tool
from understudy.cluster.testing.crash import VICTIMS, Victim, crash_points

LEDGER: dict[str, str] = {}
"""What the other side has, by idempotency key; it takes the same key twice as once."""
ARRIVED: list[str] = []
"""What reached the other side as something new."""


def arrived() -> Iterable[Any]:
    found = list(ARRIVED)
    ARRIVED.clear()
    LEDGER.clear()
    return found


def post(key: str, what: str) -> str:
    """The other side of all effects here."""
    assert key not in LEDGER, f"{what} was sent again under its key, though the other side could have been asked"
    LEDGER[key] = what
    ARRIVED.append(what)
    return what.upper()


def look(key: str) -> Done | NeverHappened:
    return Done(LEDGER[key].upper()) if key in LEDGER else NeverHappened()


class Story(BaseModel):
    seen: Annotated[list[Any], append] = []


@tool
def act(what: str) -> str:
    """In a sandbox."""
    return what.upper()


story = Graph("effects", Story)


@story.node
async def before(state: Story, ctx: Context) -> dict[str, Any]:
    first = await ctx.effect("post", lambda key: post(key, "first"), reconcile=look)
    second = await ctx.effect("post", lambda key: post(key, "second"), reconcile=look)
    return {"seen": [first, second]}


@story.node
async def wait(state: Story, ctx: Context) -> dict[str, Any]:
    acted = await ctx.call(act, what="before the question")
    answer = await ctx.interrupt(
        "anybody?",
        deadline=timedelta(hours=1),
        on_timeout=Escalate("somebody?", timedelta(hours=1), Continue("nobody")),
    )
    told = await ctx.effect("post", lambda key: post(key, f"told {answer}"), reconcile=look)
    return {"seen": [acted, answer, told]}


@story.node
async def failing(state: Story, ctx: Context) -> dict[str, Any]:
    try:
        await ctx.effect("refused", lambda: 1 / 0, idempotent=True)
    except Exception as error:
        return {"seen": [str(error)]}
    return {"seen": ["not reached"]}


story.edge(START, "before").edge("before", "wait").edge("before", "failing").edge(["wait", "failing"], END)


@pytest.mark.parametrize("victim", VICTIMS)
def test_every_effect_of_a_node_happens_once(victim: Victim) -> None:
    report = crash_points(story, world=arrived, victims=[victim], answers=lambda question: None)
    assert report.ok, report
    assert len(report.operations) > 20, report.operations


RULES = """
policy: test
version: 1
rules:
  - {id: ask-first, effect: ask, tool: act}
"""


class Deed(BaseModel):
    seen: Annotated[list[Any], append] = []


deeds = Graph("deeds", Deed)


@deeds.node
async def decide(state: Deed, ctx: Context) -> dict[str, Any]:
    large = await ctx.call(act, what="large")
    by_hand = await ctx.call(act, what="by hand")
    refused = await ctx.outcome(act, what="never")
    return {"seen": [large, by_hand, refused.kind]}


deeds.edge(START, "decide").edge("decide", END)


def person(question: Any) -> Any:
    """Makes one call smaller, answers another, and refuses the third."""
    match question.payload["args"]["what"]:
        case "large":
            return {"approve": True, "args": {"what": "small"}}
        case "by hand":
            return {"approve": False, "value": "done by hand"}
        case _:
            return {"approve": False, "note": "no"}


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_people_decide_is_done_once(victim: Victim) -> None:
    report = crash_points(deeds, policy=RULES, answers=person, victims=[victim])
    assert report.ok, report
    assert len(report.operations) > 12, report.operations
