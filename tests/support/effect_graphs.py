"""Graphs whose nodes and tools do something to the world, for tests on a real Ray."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from support.graphs import gate, noted
from understudy import END, START, Context, Done, Graph, NeverHappened, ToolError, append, tool


class Script(BaseModel):
    folder: str = ""
    ask: int = 0
    seen: Annotated[list[Any], append] = []


def ask_the_bank(folder: str) -> Any:
    """Looks in a sandbox of its own whether a transfer under this key has arrived."""
    path = os.path.join(folder, "bank-" + os.environ["UNDERSTUDY_EFFECT_KEY"])
    return {"done": "it had arrived"} if os.path.exists(path) else "never happened"


@tool(reconcile=ask_the_bank)
def transfer(folder: str) -> str:
    """Arrives at once, and then takes long to say so."""
    import time
    from pathlib import Path

    (Path(folder) / ("bank-" + os.environ["UNDERSTUDY_EFFECT_KEY"])).touch()
    (Path(folder) / "transferred").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)
    return "arrived just now"


@tool
def spend(amount: int) -> str:
    """Asks first."""
    return f"spent {amount}"


@tool(workspace="write")
def jot(line: str) -> None:
    """Behind what is there: done twice, it would stand there twice."""
    with open("notes/log", "a") as file:
        file.write(line + "\n")


keeping = Graph("keeping", Script)


@keeping.node
async def begin(state: Script, ctx: Context) -> None:
    await ctx.call(jot, line="begun")


@keeping.node
async def keep(state: Script, ctx: Context) -> dict[str, Any]:
    await ctx.call(jot, line="kept")
    noted(state.folder, "keep")
    await gate(state.folder, "go")
    await ctx.call(jot, line="ended")
    return {"seen": ctx.read_file("notes/log").decode().split()}


keeping.edge(START, begin).edge(begin, keep).edge(keep, END)


transferring = Graph("transferring", Script)


@transferring.node
async def move(state: Script, ctx: Context) -> dict[str, Any]:
    noted(state.folder, "move")
    return {"seen": [await ctx.call(transfer, folder=state.folder)]}


transferring.edge(START, move).edge(move, END)


posting = Graph("posting", Script)


@posting.node
async def prepare(state: Script) -> dict[str, Any]:
    return {"seen": ["prepared"]}


@posting.node
async def post(state: Script, ctx: Context) -> dict[str, Any]:
    noted(state.folder, "post")

    async def send(key: str) -> str:
        with open(Path(state.folder) / "posted", "a") as file:  # noqa: ASYNC230 (a line)
            file.write(key + "\n")
        await gate(state.folder, "go")
        return "sent"

    def look(key: str) -> Done | NeverHappened:
        posted = (Path(state.folder) / "posted").read_text().splitlines()
        return Done("sent before the crash") if key in posted else NeverHappened()

    return {"seen": [await ctx.effect("post", send, reconcile=look)]}


posting.edge(START, prepare).edge(prepare, post).edge(post, END)


spending = Graph("spending", Script)


@spending.node
async def pay(state: Script, ctx: Context) -> dict[str, Any]:
    try:
        return {"seen": [await ctx.call(spend, amount=state.ask)]}
    except ToolError as error:
        return {"seen": [str(error)]}


spending.edge(START, pay).edge(pay, END)
