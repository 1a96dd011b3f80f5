"""Graphs and tools for tests on a real Ray. A module of the user's own: not installed, found through its folder."""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from understudy import END, START, Context, Graph, Paid, append, tool

POLICY = """
policy: test
version: 1
rules:
  - id: write-down
    effect: allow
    tool: [write_down]
    when: {path: {under: "${folder}"}}
    files: {write: ["${folder}"]}
    limits: {wall: 20s, memory: 256MiB}
  - id: slow
    effect: allow
    tool: slow
    when: {folder: {under: "${folder}"}}
    files: {write: ["${folder}"]}
    limits: {wall: 60s, memory: 256MiB}
  - id: hostile
    effect: allow
    tool: ["hostile_*"]
    limits: {wall: 2s, cpu: 2s, memory: 200MiB, processes: 24, output: 64KiB, disk: 8MiB}
  - id: ask-first
    effect: ask
    tool: pay
    reason: money leaves the house
"""


@tool
def write_down(path: str, line: str) -> int:
    """Append a line to a file: a side effect that can be counted."""
    with open(path, "a") as file:
        return file.write(line + "\n")


class Script(BaseModel):
    folder: str
    name: str = "run"
    seen: Annotated[list[str], append] = []


async def gate(folder: str, name: str) -> None:
    """Wait for a file that the test makes; the test's own time bounds it."""
    while not (Path(folder) / name).exists():  # noqa: ASYNC110 (another process makes it)
        await asyncio.sleep(0.01)


def noted(folder: str, line: str) -> None:
    """Written by the node itself, in the run actor: tells how often a node ran, and in which process."""
    with open(Path(folder) / "ran", "a") as file:
        file.write(f"{line} {os.getpid()}\n")


twelve = Graph("twelve", Script)
NAMES = [f"n{index}" for index in range(1, 13)]


def _twelfth(name: str) -> Any:
    async def node(state: Script, ctx: Context) -> dict[str, Any]:
        noted(state.folder, name)
        if name == "n7":
            await ctx.call(write_down, path=f"{state.folder}/ledger", line="first call of n7")
            await gate(state.folder, "go")
            await ctx.call(write_down, path=f"{state.folder}/ledger", line="second call of n7")
        return {"seen": [name]}

    return node


for _name in NAMES:
    twelve.node(_twelfth(_name), name=_name)
for _before, _after in zip([START, *NAMES], [*NAMES, END], strict=True):
    twelve.edge(_before, _after)


short = Graph("short", Script)


@short.node
async def look(state: Script) -> dict[str, Any]:
    await asyncio.sleep(0.05)
    return {"seen": ["look"]}


@short.node
async def act(state: Script, ctx: Context) -> dict[str, Any]:
    await ctx.call(write_down, path=f"{state.folder}/ledger", line=state.name)
    await asyncio.sleep(0.05)
    return {"seen": ["act"]}


@short.node
def finish(state: Script) -> dict[str, Any]:
    return {"seen": ["finish"]}


short.edge(START, look).edge(look, act).edge(act, finish).edge(finish, END)


errands = Graph("errands", Script)
ERRANDS = [f"e{index}" for index in range(1, 9)]


def _errand(name: str) -> Any:
    async def node(state: Script, ctx: Context) -> dict[str, Any]:
        await asyncio.sleep(0.4)
        if name in ERRANDS[::2]:
            await ctx.call(write_down, path=f"{state.folder}/ledger", line=f"{state.name} {name}")
        return {"seen": [name]}

    return node


for _name in ERRANDS:
    errands.node(_errand(_name), name=_name)
for _before, _after in zip([START, *ERRANDS], [*ERRANDS, END], strict=True):
    errands.edge(_before, _after)


asking = Graph("asking", Script)


@asking.node
async def ask(state: Script, ctx: Context) -> dict[str, Any]:
    await ctx.call(write_down, path=f"{state.folder}/ledger", line="before the question")
    answer = await ctx.interrupt({"question": "go on?"})
    return {"seen": [str(answer)]}


asking.edge(START, ask).edge(ask, END)


paused = Graph("paused", Script)


@paused.node
async def hold(state: Script) -> dict[str, Any]:
    noted(state.folder, "hold")
    await gate(state.folder, "go")
    return {"seen": [f"held by {os.getpid()}"]}


paused.edge(START, hold).edge(hold, END)


crashing = Graph("crashing", Script)


@crashing.node
def crash(state: Script) -> None:
    noted(state.folder, "crash")
    os.kill(os.getpid(), 9)


crashing.edge(START, crash).edge(crash, END)


# --- hostile tools -------------------------------------------------------------------------------------------------


@tool
def hostile_environment() -> dict[str, str]:
    """Everything that the environment of this process and, where it may be read, of its pid 1 says."""
    found = dict(os.environ)
    try:
        with open("/proc/1/environ", "rb") as file:
            found["pid1"] = file.read().decode(errors="replace")
    except PermissionError:
        found["pid1"] = ""
    return found


@tool
def hostile_socket(port: int) -> str:
    """Opens a socket to the store."""
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        return str(connection.getpeername())


@tool
def hostile_write(path: str) -> int:
    """Writes outside of its folder."""
    with open(path, "w") as file:
        return file.write("mine")


@tool
def hostile_forks() -> int:
    """Forks without end."""
    import time

    count = 0
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1


@tool
def hostile_memory() -> int:
    """Fills memory."""
    kept = []
    while True:
        kept.append(bytearray(16 * 1024 * 1024))


@tool
def hostile_output() -> None:
    """Prints without end."""
    while True:
        print("x" * 1000)


@tool
def hostile_wait() -> None:
    """Never returns, and ignores SIGTERM."""
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


class Report(BaseModel):
    port: int
    outside: str
    kinds: dict[str, str] = {}
    errors: dict[str, str] = {}
    environment: dict[str, str] = {}


hostile = Graph("hostile", Report)


@hostile.node
async def attack(state: Report, ctx: Context) -> dict[str, Any]:
    outcomes = {
        "environment": ctx.outcome(hostile_environment),
        "socket": ctx.outcome(hostile_socket, port=state.port),
        "write": ctx.outcome(hostile_write, path=state.outside),
        "forks": ctx.outcome(hostile_forks),
        "memory": ctx.outcome(hostile_memory),
        "output": ctx.outcome(hostile_output),
        "wait": ctx.outcome(hostile_wait),
        "unruled": ctx.outcome(unruled),
    }
    done = {name: await outcome for name, outcome in outcomes.items()}
    return {
        "kinds": {name: outcome.kind for name, outcome in done.items()},
        "errors": {name: outcome.error for name, outcome in done.items()},
        "environment": done["environment"].value or {},
    }


@hostile.node
async def careless(state: Report, ctx: Context) -> None:
    """Does not look at the outcome: fails the run."""
    await ctx.call(hostile_wait)


hostile.edge(START, attack).branch(attack, lambda state: END if state.port else "careless", [END, "careless"])
hostile.edge(careless, END)


@tool
def unruled() -> None:
    """No rule of the policy names this one."""


@tool
def pay(amount: int) -> str:
    """Asks first."""
    return f"paid {amount}"


@tool
def slow(folder: str) -> str:
    """Works until the test lets it go."""
    import time
    from pathlib import Path

    (Path(folder) / "slow-began").touch()
    while not (Path(folder) / "slow-go").exists():
        time.sleep(0.02)
    return "done"


lasting = Graph("lasting", Script)


@lasting.node
async def last(state: Script, ctx: Context) -> dict[str, Any]:
    noted(state.folder, "last")
    return {"seen": [await ctx.call(slow, folder=state.folder)]}


lasting.edge(START, last).edge(last, END)


class Bill(BaseModel):
    amount: int
    receipt: str = ""


paying = Graph("paying", Bill)


@paying.node
async def settle(state: Bill, ctx: Context) -> dict[str, Any]:
    return {"receipt": await ctx.call(pay, amount=state.amount)}


paying.edge(START, settle).edge(settle, END)


stuck = Graph("stuck", Script)


@stuck.node
async def hold_loop(state: Script) -> dict[str, Any]:
    """Holds the loop of its actor for longer than any test, as a node does that calls something that blocks."""
    noted(state.folder, "hold-loop")
    time.sleep(300)  # noqa: ASYNC251
    return {}


stuck.edge(START, hold_loop).edge(hold_loop, END)


class Walk(BaseModel):
    folder: str
    name: str
    steps: int
    at: int = 0


walk = Graph("walk", Walk)
"""So many supersteps, none of which takes long; each is written down when it runs."""


@walk.node
async def walk_on(state: Walk) -> dict[str, int]:
    noted(state.folder, f"{state.name}-{state.at}")
    await asyncio.sleep(0.05)
    return {"at": state.at + 1}


walk.edge(START, walk_on)
walk.branch(walk_on, lambda state: "walk_on" if state.at < state.steps else END, ["walk_on", END])


class Spent(BaseModel):
    calls: int
    seen: Annotated[list[str], append] = []


@tool
def counted(n: int) -> dict[str, int]:
    """Says what it has used, as a model's answer does."""
    return {"n": n, "tokens": 10}


spending = Graph("spending", Spent)


@spending.node
async def spend(state: Spent, ctx: Context) -> dict[str, Any]:
    thought = await ctx.effect("think", lambda: Paid("thought", tokens=20), cost={"tokens": 50})
    return {"seen": [thought, *[str((await ctx.call(counted, n=n))["n"]) for n in range(state.calls)]]}


spending.edge(START, "spend").edge("spend", END)
