"""The check before a deployment: `understudy preflight MODULE:GRAPH`."""

import os
import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from understudy.cluster.cli.command import Here, Json, command, print_json, say, stdout


@command(panel="Start and steer runs")
async def preflight(
    here: Here,
    graph: Annotated[
        str, typer.Argument(metavar="MODULE:GRAPH", help="The new version, from this folder.", show_default=False)
    ],
    as_json: Json = False,
) -> int:
    """List the unfinished runs that this version of a graph could not take up; exit status 1 if there are any.

    And the tools of its module whose environment this machine does not have: their calls would be refused.

    Of quarantined runs it is said how many could be taken up again; [bold]understudy retry RUN[/] does it.

    Run it where the new version is importable, against the store of the deployment, before you deploy. Runs that carry
    their own code (started with [bold]--code pin[/], or from a script) go on with that.

    Example:
    [bold]understudy preflight flows:refund --store redis://127.0.0.1/0[/]
    """
    from understudy.actors.code import load_ref
    from understudy.actors.sandbox.environments import Environments
    from understudy.cluster.equipment import problems, wanted_by
    from understudy.cluster.preflight import preflight as look

    sys.path.insert(0, os.getcwd())
    loaded = load_ref(graph)
    unequipped = problems(Environments(str(here.settings.environments)), wanted_by(graph))
    plan = loaded.plan()
    async with here.store() as store:
        seen = await look(store, loaded)
    found = [finding for finding in seen if finding.record.status != "quarantined"]
    aside = [finding for finding in seen if finding.record.status == "quarantined"]
    able = sum(not finding.problem for finding in aside)
    blocked = [finding for finding in found if finding.problem]
    own = sum(finding.by_value for finding in found)
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "run_id": finding.record.run_id,
                "thread_id": finding.record.thread_id,
                "status": finding.record.status,
                "version": finding.record.version,
                "code": finding.mode,
                "problem": finding.problem,
            }
            for finding in blocked
        ]
        document = {"graph": plan.name, "version": plan.version, "unfinished": len(found), "with_own_code": own}
        set_aside = {"quarantined": len(aside), "quarantined_taken_up": able}
        print_json({**document, **set_aside, "blocked": rows, "unequipped": unequipped})
        return 1 if blocked or unequipped else 0
    for tool, problem in unequipped.items():
        say(f"tool {tool!r}: {problem}", "red")
    for finding in blocked:
        record = finding.record
        line = Text(record.run_id, "bold").append(f"  {record.status}, version {record.version}\n", "dim")
        stdout().print(line.append(f"  {finding.problem}"), soft_wrap=True)
    if aside:
        them = "that" if len(aside) == 1 else f"{able} of them"
        could = f"version {plan.version} could take up {them}, after `understudy retry RUN`"
        could = could if able else f"version {plan.version} could not take up any, either"
        say(f"quarantined runs of graph {plan.name!r}: {len(aside)}; {could}", "dim")
    told = f"unfinished runs of graph {plan.name!r}: {len(found)}"
    told += f" ({own} with code of {'its' if own == 1 else 'their'} own); " if own else "; "
    told += f"version {plan.version}"
    if blocked:
        say(f"{told} cannot take up {len(blocked)} of them", "red")
        return 1
    say(f"{told} can take up all of them", "green")
    return 1 if unequipped else 0
