"""The crash kit from the command line: a graph is played with a death at every durable operation."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from understudy.cluster.cli.command import Here, Json, WrongUsage, command, parse_json, print_json, say, stdout
from understudy.cluster.cli.running import read_input


@command(panel="This machine")
async def crashtest(
    here: Here,
    graph: Annotated[str, typer.Argument(metavar="MODULE:GRAPH", show_default=False)],
    given: Annotated[
        str, typer.Option("--input", metavar="JSON", help="The first state; @FILE or - for stdin.")
    ] = "{}",
    answers: Annotated[
        str, typer.Option("--answers", metavar="JSON", help="What to answer, by node, tool or interrupt id.")
    ] = "{}",
    on: Annotated[
        str, typer.Option("--on", metavar="URL", help="The store to play on; nobody else may serve it.")
    ] = "memory://",
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Only so many operations for each kind of death; 0: all."),
    ] = 0,
    kill: Annotated[
        bool, typer.Option("--kill", metavar="", help="Kill real processes (slower; a sample; --on another store).")
    ] = False,
    as_json: Json = False,
) -> int:
    """Play a graph with a crash at every boundary, and say whether it always ends the same.

    Tools are really called, in this process, once a play: point them at something that can bear it.

    Examples:
    [bold]understudy crashtest flows:refund --input '{"order": "A1"}' --answers '{"charge": true}'[/]
    [bold]understudy crashtest flows:refund --kill --on sqlite:////tmp/crash.db[/]
    """
    from understudy.actors.code import load_ref
    from understudy.actors.errors import AnswerNeeded, CallerError
    from understudy.cluster.testing.crash import crash_points_async
    from understudy.cluster.testing.killed import kill_points

    sys.path.insert(0, os.getcwd())
    loaded, values = load_ref(graph), read_input(given)
    replies = parse_json(answers, "--answers", {"node": True})
    if not isinstance(replies, dict):
        raise WrongUsage("--answers has to be a JSON object: what to answer, by node, tool or interrupt id")
    if kill and on.startswith("memory:"):
        raise WrongUsage("a store in memory does not outlive a kill; name another, e.g. --on sqlite:////tmp/crash.db")
    if kill:
        with tempfile.TemporaryDirectory() as folder:
            report = await asyncio.to_thread(
                kill_points, graph, values, store=on, folder=Path(folder), answers=replies, sample=sample or 5
            )
    else:
        try:
            report = await crash_points_async(loaded, values, store=on, answers=replies, sample=sample or None)
        except AnswerNeeded as needed:
            raise WrongUsage(f"{needed.asked}; give --answers '{{{json.dumps(needed.by)}: ANSWER}}'") from None
        except AssertionError as error:  # two plays that nothing disturbed
            raise CallerError(
                f"{error}; plays can be compared where each ends the same: have what answers with a time or by chance "
                f"answer something fixed while it is tested"
            ) from None
    if as_json:
        print_json(
            {
                "graph": report.graph,
                "ok": report.ok,
                "operations": list(report.operations),
                "plays": report.plays,
                "differences": [str(difference) for difference in report.differences],
            }
        )
    else:
        stdout().print(str(report), soft_wrap=True)
        say("crash-proof" if report.ok else "not crash-proof", "green" if report.ok else "red")
    return 0 if report.ok else 1
