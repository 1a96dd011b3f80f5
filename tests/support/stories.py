"""A graph that has a bit of everything, for the crash kit: in a module, as processes that are killed import it."""

from datetime import timedelta
from pathlib import Path
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


@tool(workspace="write", idempotent=True)
def note(path: str, text: str) -> str:
    """Appends to a file: what a call left twice, or found missing, stands there."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        file.write(text)
    return place.read_text()


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
async def right(state: Story, ctx: Context) -> dict[str, Any]:
    ctx.write_file("right.txt", "right")
    return {"seen": [await ctx.call(note, path="right.txt", text=", noted")]}


@story.node
async def again(state: Story, ctx: Context) -> dict[str, Any]:
    seen = [await ctx.call(note, path="rounds.txt", text=f"round {state.rounds}\n")]
    return {"seen": seen, "rounds": state.rounds + 1}


@story.node
async def ask(state: Story, ctx: Context) -> dict[str, Any]:
    first = await ctx.call(act, what="before the question")
    answer = await ctx.interrupt("go on?")
    second = await ctx.call(note, path="asked/answer", text=f"{answer}\n")
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
async def sum_up(state: Story, ctx: Context) -> dict[str, Any]:
    rounds = ctx.read_file("rounds.txt").decode().splitlines()
    return {"answer": f"{state.answer}, {len(state.seen)} lines, {len(rounds)} rounds"}


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


diary = Graph("diary", Story)
"""Nothing but files: whoever loses one does not see it in the state."""


@diary.node
async def morning(state: Story, ctx: Context) -> None:
    await ctx.call(note, path="morning", text="coffee")
    await ctx.call(look, where="out")


@diary.node
async def noon(state: Story, ctx: Context) -> None:
    ctx.write_file("noon", "lunch")
    await ctx.call(look, where="up")


@diary.node
async def evening(state: Story, ctx: Context) -> None:
    await ctx.call(note, path="evening", text="tea")


diary.edge(START, morning).edge(START, noon).edge([morning, noon], evening).edge(evening, END)
