"""The command that looks at the files of a run."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.actors.errors import CallerError
from understudy.cluster.cli.command import Here, Json, RunId, WrongUsage, command, find_run, print_json, say, stdout
from understudy.cluster.cli.reading import PANEL
from understudy.cluster.cli.screen import write_out
from understudy.cluster.cli.view import plain_table


@command(panel=PANEL)
async def files(
    here: Here,
    run: RunId,
    at: Annotated[str, typer.Option(metavar="CHECKPOINT", help="As of then; default: the newest.")] = "",
    get: Annotated[str, typer.Option(metavar="PATH", help="Print this one.")] = "",
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write all of them to a new folder.")] = None,
    as_json: Json = False,
) -> None:
    """List the files of a run's workspace, or fetch them.

    Examples:
    [bold]understudy files r3f-0c81[/]
    [bold]understudy files r3f-0c81 --get report.md[/]
    """
    from understudy.cluster.client import Run

    if to is not None and to.exists():
        raise WrongUsage(f"--to {str(to)!r} is there already; name a folder that is not")
    async with here.store() as store:
        found = await Run(store, (await find_run(store, run)).run_id).files(at)
    if get:
        if get not in found:
            raise CallerError(f"the run has no file {get!r}; it has {', '.join(sorted(found)[:10]) or 'none'}")
        write_out(found[get])
    elif to is not None:
        for path, data in found.items():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(data)
        say(f"{len(found)} files in {to}", "dim")
    elif as_json:
        print_json([{"path": path, "bytes": len(data)} for path, data in sorted(found.items())])
    elif not found:
        say("it has no files", "dim")
    else:
        table = plain_table("BYTES", "PATH")
        for path, data in sorted(found.items()):
            table.add_row(str(len(data)), path)
        stdout().print(table)
