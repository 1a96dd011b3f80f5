"""Commands about the environments of tools: build what the tools of a module want, list what is there, remove it."""

import os
import sys
import time
from typing import Annotated, Any

import typer
from rich.text import Text

from understudy.cluster.cli.command import Group, Here, Json, WrongUsage, app, command, print_json, say, stdout
from understudy.cluster.cli.view import iso, plain_table, short, span

group = typer.Typer(
    cls=Group, no_args_is_help=True, help="Packages that tools find in their sandboxes: build, list, remove."
)
app.add_typer(group, name="environments", rich_help_panel="This machine")


@command(group)
async def build(
    here: Here,
    targets: Annotated[
        list[str], typer.Argument(metavar="MODULE[:NAME]", help="Its tools; or one tool of it.", show_default=False)
    ],
    links: Annotated[
        list[str] | None, typer.Option("--find-links", metavar="DIR", help="Look for packages here, too; repeatable.")
    ] = None,
    index: Annotated[bool, typer.Option("--index/--no-index", help="Look in pip's package index.")] = True,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also build from source, which executes what is built, outside a sandbox.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the environments that tools declare, on this machine, where they are not there already.

    A module none of whose tools declares one is fine; a tool that is named, and declares none, is not.

    Do this on each machine that has sandbox actors, with the interpreter that they have. pip's own settings count
    (PIP_INDEX_URL, pip.conf). Two that build the same wait for each other.

    Example:
    [bold]understudy environments build flows[/]
    """
    from understudy.actors.sandbox.build import build as built
    from understudy.actors.sandbox.environments import Environments
    from understudy.cluster.equipment import is_tool, wanted_by

    sys.path.insert(0, os.getcwd())
    pip = [] if index else ["--no-index"]
    pip += [word for folder in links or [] for word in ("--find-links", folder)]
    environments = Environments(str(here.settings.environments))
    rows: list[dict[str, Any]] = []
    wishes = {target: wanted_by(target) for target in targets}
    for target in (target for target, found in wishes.items() if not found and is_tool(target)):
        raise WrongUsage(
            f"tool {target!r} declares no environment, so there is nothing to build; give it one, "
            f"e.g. @tool(environment=Environment(packages=['left-pad==1.0']))"
        )
    for wanted in [each for found in wishes.values() for each in found]:
        key, fresh = built(environments, wanted.environment, pip, sources)
        told = {"environment": key, "of": str(wanted.environment), "tools": list(wanted.tools), "built": fresh}
        rows.append(told)
        if not as_json:
            words = "built" if fresh else "was there"
            stdout().print(Text(f"{short(key, 12)}  {words}: {wanted.environment}", "green" if fresh else ""))
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"no tool of {', '.join(targets)} declares an environment", "yellow")


@command(group, name="list")
async def list_(here: Here, as_json: Json = False) -> int:
    """List what is built on this machine; each is verified, file by file. Exit status 1 if one is broken."""
    from understudy.actors.sandbox.environments import Environments

    found = Environments(str(here.settings.environments)).all()
    broken = [each for each in found if each.problem]
    if as_json:
        print_json(
            [
                {
                    "environment": each.key,
                    "folder": each.folder,
                    "packages": list(each.wanted.packages),
                    "installed": list(each.installed),
                    "built_at": iso(each.built_at),
                    "used_at": iso(each.used_at),
                    "problem": each.problem,
                }
                for each in found
            ]
        )
        return 1 if broken else 0
    table = plain_table("ENVIRONMENT", "OF", "USED", "NOTE")
    for each in found:
        note = Text(each.problem, "red") if each.problem else Text(", ".join(each.installed), "dim")
        table.add_row(each.key[:12], str(each.wanted), f"{span(time.time() - each.used_at)} ago", note)
    stdout().print(table if found else "no environment is built here; `understudy environments build MODULE` does it")
    return 1 if broken else 0


@command(group)
async def clean(
    here: Here,
    days: Annotated[
        float, typer.Option("--unused-for", metavar="DAYS", min=0, help="Remove what no call had for so long.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Remove environments that are not used; sandbox actors do it, too, when they start. What a call has now stays."""
    from understudy.actors.sandbox.environments import Environments

    removed = Environments(str(here.settings.environments)).clean(days * 86400)
    if as_json:
        print_json(removed)
        return
    stdout().print(f"removed: {len(removed)}")
