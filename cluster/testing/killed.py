"""The crash kit with real deaths: a process is killed with SIGKILL at a durable operation, and another one goes on.

    report = kill_points("shop.flows:refund", {"order": "A1"}, store="redis://127.0.0.1:6379/0", folder=tmp_path)

Slower than `crash_points` (a process takes about a second to start), so it takes a sample of the operations. A play's
processes note what they do to the world in a file, which outlives them.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from understudy.actors.code import load_ref
from understudy.cluster.stores import open_store
from understudy.cluster.testing.crash import CrashReport, Difference
from understudy.cluster.testing.mortal import Fault, Ledger, Process, Side
from understudy.cluster.testing.play import Played, Script, Theatre

TIMEOUT_S = 60.0
LIVES_MAX = 4


@dataclass(frozen=True)
class Order:
    """What a process is to play, and where it is killed. Crosses to it as JSON."""

    graph: str
    input: Mapping[str, Any]
    store: str
    answers: Mapping[str, Any]
    messages: Sequence[Any]
    thread: str
    ledger: str
    at: int
    side: Side


def kill_points(
    graph: str,
    input: Mapping[str, Any] | None = None,
    *,
    store: str,
    folder: Path,
    answers: Mapping[str, Any] | None = None,
    messages: Sequence[Any] = (),
    sample: int = 5,
    seed: int = 0,
    sides: Iterable[Side] = ("before", "after"),
) -> CrashReport:
    """Kill a process that plays a graph at `sample` of its operations, and compare how others finish the play.

    Args:
        graph: MODULE:GRAPH, importable from the present import path.
        input: JSON values.
        store: its URL; one that outlives a process. What is played there is deleted again.
        folder: for the files in which processes note what they do.
        answers, messages: as for `Graph.run_inline`; answers by node, tool or interrupt id.
    Raises AssertionError: a process ends otherwise than by its end or our kill; TimeoutError.
    """
    order = Order(graph, input or {}, store, answers or {}, list(messages), "", "", 10**9, "before")
    expected, _ = _played(order, folder)
    dice = random.Random(seed)
    points = sorted(dice.sample(range(len(expected.operations)), min(sample, len(expected.operations))))
    plays, differences = 0, list[Difference]()
    for at in points:
        for side in sides:
            plays += 1
            found, deaths = _played(Order(**{**asdict(order), "at": at, "side": side}), folder)
            what = expected.difference(found) or ("" if deaths else "nobody was killed")
            if what:
                differences.append(Difference(Fault("machine", at, side), expected.operations[at], what))
    return CrashReport(load_ref(graph).name, expected.operations, plays, tuple(differences))


def _played(order: Order, folder: Path) -> tuple[Played, int]:
    """One play by as many processes as it takes; how it ended, and how many were killed."""
    name = uuid.uuid4().hex
    order = Order(**{**asdict(order), "thread": f"play-{name}", "ledger": str(folder / f"{name}.jsonl")})
    for deaths in range(LIVES_MAX):
        command = [sys.executable, "-m", __name__, json.dumps(asdict(order))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment, cwd=folder
        )
        if done.returncode == 0:
            return asyncio.run(_look(order, json.loads(done.stdout.splitlines()[-1]))), deaths
        assert done.returncode == -signal.SIGKILL, f"a process ended with {done.returncode}:\n{done.stderr}"
        order = Order(**{**asdict(order), "at": 10**9})
    raise AssertionError(f"{LIVES_MAX} processes were not enough to play {order.graph} to its end")


async def _look(order: Order, told: Mapping[str, Any]) -> Played:
    """What the last process told, with what all of them noted."""
    return Played(**{**Played.read(told).__dict__, "effects": Ledger(Path(order.ledger)).effects()})


class KilledTheatre(Theatre):
    """Dies for real."""

    async def _everything_dies(self, process: Process) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def _live(order: Order) -> None:
    """One process of a play: from wherever the run stands, to its end or the kill."""
    store = await open_store(order.store)
    try:
        script = Script(load_ref(order.graph), order.input, order.answers, order.messages)
        fault = Fault("machine", order.at, order.side)
        theatre = KilledTheatre(script, store, fault, False, Ledger(Path(order.ledger)))
        played = await theatre.play(order.thread)
    finally:
        await store.close()
    print(json.dumps(played.tell()))


if __name__ == "__main__":
    asyncio.run(_live(Order(**json.loads(sys.argv[1]))))
