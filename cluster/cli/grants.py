"""Commands about what a run may do right now: the grants in force, and taking them back."""

import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from understudy.cluster.cli.command import (
    Here,
    Json,
    RunId,
    WrongUsage,
    command,
    find_run,
    print_json,
    print_line,
    say,
    stdout,
)
from understudy.cluster.cli.view import iso, plain_table, short, span

PANEL = "Start and steer runs"


@command(panel=PANEL)
async def grants(here: Here, run: RunId, as_json: Json = False) -> None:
    """List the grants of a run that are in force: calls that may begin, and calls that are at work.

    Example:
    [bold]understudy grants r3f-0c81[/]
    """
    from understudy.cluster.grants import grants_of

    now = time.time()
    async with here.store() as store:
        found = await find_run(store, run)
        listed = await grants_of(store, here.settings.secret(), found.run_id, now)
    if as_json:
        times = ("issued_at", "expires_at")
        print_json([{**asdict(each), **{name: iso(getattr(each, name)) for name in times}} for each in listed])
        return
    if not listed:
        say(f"run {found.run_id} has no grant in force", "dim")
        return
    table = plain_table("CALL", "WHAT", "RULE", "STATE", "GRANT", yields="WHAT")
    for each in listed:
        state = "at work" if each.at_work else f"good for {span(each.expires_at - now)}"
        by = f"{each.rule}, approved" if each.approved else each.rule
        table.add_row(each.key[:12], short(each.call, 60), by, state, each.grant[:12])
    stdout().print(table)


@command(panel=PANEL)
async def revoke(
    here: Here,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")] = "",
    call: Annotated[str, typer.Argument(metavar="CALL", help="Only for this call, as `grants` lists it.")] = "",
    grant: Annotated[str, typer.Option(metavar="ID", help="Instead: one grant, by its id or its beginning.")] = "",
    note: Annotated[str, typer.Option(help="Why; the call that is ended says so.")] = "",
    by: Annotated[str, typer.Option("--by", metavar="WHO", help="Who; default: who is logged in.")] = "",
    as_json: Json = False,
) -> None:
    """Take grants back. No call begins under them any more, and a call at work under one is ended.

    The run may ask again, and is judged again: to keep it from that, cancel it, or change the policy. So it is with a
    call that was approved and has no grant yet.

    Examples:
    [bold]understudy revoke r3f-0c81 --note 'wrong customer'[/]
    [bold]understudy revoke r3f-0c81 9a41c0[/]
    """
    from understudy.cluster.grants import revoke as taken_back

    if bool(run) == bool(grant):
        raise WrongUsage("name a run, or one grant with --grant ID")
    async with here.store() as store:
        run_id = (await find_run(store, run)).run_id if run else ""
        hit = await taken_back(store, here.settings, run_id=run_id, key=call, grant=grant, by=by, note=note)
    if as_json:
        print_json({"run_id": run_id, "grant": grant, "calls": [each.key for each in hit]})
        return
    for each in hit:
        state = "is ended" if each.at_work else "does not begin"
        stdout().print(Text(f"revoked: {short(each.call, 80)} {state}"), soft_wrap=True)
    if grant:
        print_line(f"revoked: grant {grant}" + ("" if hit else "; no call is at work under it, or may begin"))
