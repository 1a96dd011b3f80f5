"""Runs driven by `run_inline` in a process that is killed at a durable operation, and taken up by another process.

    python -m support.inline_lives FOLDER    tells how each play ended, as JSON

One process imports everything and forks for each life: a fork is there in milliseconds, a new interpreter in a second.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, SteppedClock, append, open_store, tool

NOW = 1_764_000_000.0
CHANGES = {"create", "send", "claim", "commit", "begin", "finish", "resume", "requeue"}
"""Between two of these a death is like one just after the first."""


class Trip(BaseModel):
    told: Annotated[list[str], append] = []


@tool(idempotent=True)
def look(where: str) -> str:
    return f"looked {where}"


grandchild = Graph("grandchild", Trip)


@grandchild.node
async def rest(state: Trip, ctx: Context) -> dict[str, Any]:
    await ctx.sleep(timedelta(days=1))
    return {"told": [await ctx.call(look, where="down")]}


child = Graph("child", Trip)


@child.node
async def wonder(state: Trip, ctx: Context) -> dict[str, Any]:
    answer = await ctx.interrupt("well?", deadline=timedelta(days=5))
    return {"told": [answer, *(await ctx.run(grandchild)).told]}


parent = Graph("parent", Trip)


@parent.node
async def wait(state: Trip, ctx: Context) -> dict[str, Any]:
    await ctx.sleep(timedelta(days=3))
    return {"told": ["rested"]}


@parent.node
async def send(state: Trip, ctx: Context) -> dict[str, Any]:
    first = await ctx.start(child)
    return {"told": [await ctx.receive(), *(await first.result()).told]}


grandchild.edge(START, rest).edge(rest, END)
child.edge(START, wonder).edge(wonder, END)
parent.edge(START, wait).edge(wait, send).edge(send, END)


class Deadly:
    """A store that kills its process after its `at`-th change, and notes in a file what was asked."""

    def __init__(self, store: Any, at: int, log: Path) -> None:
        self._store, self._at, self._log = store, at, log
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name not in CHANGES:
            return verb

        async def asked(*args: Any, **kwargs: Any) -> Any:
            answer = await verb(*args, **kwargs)
            with self._log.open("a") as log:
                log.write(name + "\n")
            if self._count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._count += 1
            return answer

        return asked


def lived(play: Path, at: int) -> bool:
    """One process, from wherever the run stands to its end, or to the kill. Whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (play / "end").write_text(json.dumps(_end_of(play, at)))
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, f"a process ended with {status}"
    return os.WIFSIGNALED(status)


def _end_of(play: Path, at: int) -> Any:
    async def opened() -> Any:
        return Deadly(await open_store(f"sqlite://{play}/runs.db"), at, play / "changes")

    how: Any = {"answers": {"wonder": "well enough"}, "messages": ["a word"], "clock": SteppedClock(NOW)}
    try:
        return parent.run_inline(store=opened, key="k", **how).told
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder: Path) -> None:
    def played(name: str, at: int) -> Any:
        play = folder / name
        play.mkdir()
        assert lived(play, at) == (at >= 0), f"nobody was killed at {at}"
        if at >= 0:
            lived(play, -1)
        return json.loads((play / "end").read_text())

    undisturbed = played("undisturbed", -1)
    changes = (folder / "undisturbed" / "changes").read_text().split()
    ends = {f"after {at} ({change})": played(str(at), at) for at, change in enumerate(changes)}
    print(json.dumps({"undisturbed": undisturbed, "ends": ends}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
