"""A graph that has a bit of everything, for the crash kit: in a module, as processes that are killed import it."""

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, append, tool


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


errand = Graph("errand", Story)


@errand.node
async def go(state: Story, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.call(act, what="errand"), str(await ctx.interrupt("was it far?"))]}


errand.edge(START, go).edge(go, END)

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


@story.node
async def send(state: Story, ctx: Context) -> dict[str, Any]:
    child = await ctx.start(errand, {})
    own = await ctx.effect("model", lambda: "thought about it")
    ctx.stream({"sent": "errand"})
    return {"seen": [own, *(await child.result()).seen]}


@story.node
async def hear(state: Story, ctx: Context) -> dict[str, Any]:
    return {"seen": [await ctx.receive(), await ctx.receive()]}


@story.node
async def sum_up(state: Story) -> dict[str, Any]:
    return {"answer": f"{state.answer}, {len(state.seen)} lines"}


@story.node
async def once_more(state: Story) -> dict[str, Any]:
    return {"seen": ["once more"]}


@story.node
async def at_last(state: Story) -> dict[str, Any]:
    return {"seen": ["at last"]}


story.edge(START, left).edge(START, right).edge([left, right], again)
story.branch(again, lambda state: "again" if state.rounds < 3 else "ask", ["again", "ask"])
story.edge(ask, rest).edge(rest, send).edge(rest, hear).edge([send, hear], sum_up)
story.edge(sum_up, once_more).edge(once_more, at_last).edge(at_last, END)
PLAYED = {"answers": {"ask": "yes", "go": "not far"}, "messages": ["first", "second"]}
"""How it is played."""
