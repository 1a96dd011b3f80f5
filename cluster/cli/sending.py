"""Commands that make a run go on: send (a message into its mailbox) and retry (one that failed)."""

from typing import Annotated

import typer

from understudy.cluster.cli.command import Here, Json, RunId, command, find_run, parse_json
from understudy.cluster.cli.running import PANEL, report


@command(panel=PANEL)
async def send(
    here: Here,
    run: RunId,
    message: Annotated[str, typer.Argument(metavar="JSON", help="The message.", show_default=False)],
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Sent again under this id, it is the same.")] = "",
    as_json: Json = False,
) -> None:
    """Send a message to a run; its node receives it with ctx.receive().

    Examples:
    [bold]understudy send r3f-0c81 '{"say": "hello"}'[/]
    [bold]understudy send r3f-0c81 '"stop"' --id stop-1[/]
    """
    value = parse_json(message, "the message")
    async with here.store() as store:
        found = await find_run(store, run)
        n = await found.send(value, id)
        await report(here, store, found, as_json, f"sent as message {n}")


@command(panel=PANEL)
async def retry(here: Here, run: RunId, as_json: Json = False) -> None:
    """Take a failed or quarantined run up again from its last checkpoint; what went well is not done again.

    Example:
    [bold]understudy retry r3f-0c81[/]
    """
    async with here.store() as store:
        found = await find_run(store, run)
        final = (await found.record()).final
        await found.retry()
        await report(here, store, found, as_json, "taken up again" if final else "it has not ended")
