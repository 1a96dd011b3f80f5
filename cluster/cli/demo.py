"""The command `understudy demo`; what it shows lives in understudy.cluster.demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from understudy.cluster.cli.command import Here, Json, command


@command(panel="This machine")
async def demo(
    here: Here,
    environment: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Python environment to audit; default: this one.")
    ] = None,
    runs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only so many distributions.")] = None,
    kill: Annotated[int, typer.Option(metavar="N", min=0, help="Run actors to end with SIGKILL meanwhile.")] = 3,
    approve: Annotated[
        Literal["all", "none", "ask"] | None,
        typer.Option(help="Who approves; default: ask on a terminal, else all."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the report and the ledger.")] = None,
    as_json: Json = False,
) -> int:
    """Audit a Python environment with many concurrent runs, while some of their processes are killed.

    Examples:
    [bold]understudy demo[/]
    [bold]understudy demo --runs 10 --kill 5 --approve all --json[/]
    """
    from understudy.cluster.demo.command import run_demo

    return await run_demo(
        environment=environment,
        runs=runs,
        kill=kill,
        approve=approve,
        out=out,
        as_json=as_json,
        settings=here.settings,
    )
