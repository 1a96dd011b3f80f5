"""Commands about MCP servers: which tools are pinned, what is different now, and accepting it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import CallerError, NotFound
from understudy.actors.process import user_name
from understudy.cluster.cli.command import Group, Here, Json, app, command, print_json, say, stdout
from understudy.cluster.cli.view import plain_table

if TYPE_CHECKING:
    from understudy.actors.documents import Document
    from understudy.actors.mcp.pins import Pins
    from understudy.actors.store import Store

servers = typer.Typer(
    cls=Group, no_args_is_help=True, help="Tools of MCP servers: what is pinned, what has changed, accept it."
)
app.add_typer(servers, name="mcp", rich_help_panel="This machine")

Server = Annotated[str, typer.Argument(metavar="SERVER", help="Its name, as the graph declares it.")]


@command(servers, name="list")
async def list_(here: Here, as_json: Json = False) -> None:
    """List the servers that were seen, with how many tools are accepted, and how many are set aside."""
    from understudy.actors.mcp.pins import SHELF, Pins
    from understudy.actors.paging import each_document

    async with here.store() as store:
        known = [Pins.read(document.data) async for document in each_document(store, SHELF)]
    if as_json:
        print_json([_summary(pins) for pins in known])
        return
    table = plain_table("SERVER", "ACCEPTED", "SET ASIDE", "STARTED AS")
    for pins in known:
        aside = Text(str(len(pins.waiting)), "yellow" if pins.waiting else "")
        table.add_row(pins.server, str(len(pins.accepted)), aside, Text(pins.launch))
    stdout().print(table if known else "no MCP server was seen; one is when a run first calls it")


@command(servers)
async def show(here: Here, server: Server, as_json: Json = False) -> None:
    """Show what is pinned of a server's tools: digest, name, and the whole description."""
    from understudy.actors.mcp.pins import digest, shown

    async with here.store() as store:
        pins = (await _found(store, server))[0]
    if as_json:
        print_json({**_summary(pins), "accepted": dict(pins.accepted), "waiting": dict(pins.waiting)})
        return
    screen = stdout()
    for name, told in sorted(pins.accepted.items()):
        mark = " (set aside)" if name in pins.waiting else ""
        screen.print(Text(f"{shown(name)}{mark}", "bold").append(f"  {digest(server, told)[:16]}", "dim"))
        screen.print(Text(shown(told.get("description") or "")), soft_wrap=True)
    if pins.waiting:
        say(f"{len(pins.waiting)} set aside: {here.command('mcp', 'diff', server)}", "yellow")


@command(servers)
async def diff(here: Here, server: Server, as_json: Json = False) -> None:
    """Show what is set aside, against what is accepted. What is invisible is shown by its number.

    Example:
    [bold]understudy mcp diff git[/]
    """
    from understudy.actors.mcp.pins import diff as told_diff
    from understudy.actors.mcp.pins import digest, problem_of, shown

    async with here.store() as store:
        pins = (await _found(store, server))[0]
    told: list[dict[str, Any]] = [
        {
            "tool": name,
            "digest": "" if now is None else digest(server, now),
            "problem": "" if now is None else problem_of(now),
            "diff": told_diff(pins, name),
        }
        for name, now in sorted(pins.waiting.items())
    ]
    if as_json:
        print_json(told)
        return
    screen = stdout()
    if not told:
        screen.print(f"nothing of {server} is set aside")
    for item in told:
        screen.print(Text(shown(item["tool"]), "bold"))
        screen.print(Text(item["diff"]), soft_wrap=True)
        if item["problem"]:
            say(f"cannot be accepted: {item['problem']}", "red")
        else:
            words = ["mcp", "accept", server, item["tool"]]
            say(f"to accept it: {here.command(*words, *(['--digest', item['digest'][:16]] if item['digest'] else []))}")


@command(servers)
async def accept(
    here: Here,
    server: Server,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="One tool; default: all that can be accepted.")] = "",
    digest: Annotated[str, typer.Option("--digest", help="Only if it is what `diff` showed.", metavar="DIGEST")] = "",
    as_json: Json = False,
) -> None:
    """Accept what is set aside: a changed or new tool is used as it is now, a vanished one is forgotten.

    Example:
    [bold]understudy mcp accept git git_status[/]
    """
    from understudy.actors.mcp.pins import SHELF
    from understudy.actors.mcp.pins import accept as accepted
    from understudy.actors.mcp.pins import digest as digest_of

    async with here.store() as store:
        pins, document = await _found(store, server)
        now = pins.waiting.get(tool)
        if digest and not (now and digest_of(server, now).startswith(digest)):
            raise CallerError(f"tool {tool!r} of {server} is not {digest} any more; look again: understudy mcp diff")
        after = accepted(pins, tool)
        if after != pins:
            done = sorted(set(pins.waiting) - set(after.waiting))
            await here.pen(store).append("mcp_accepted", server=server, tools=_digests(pins, done), user=user_name())
            await store.write_document(SHELF, server, after.text(), document.version)
    done = sorted(set(pins.waiting) - set(after.waiting))
    if as_json:
        print_json({"server": server, "accepted": done, "waiting": sorted(after.waiting)})
        return
    stdout().print(Text(f"accepted: {', '.join(done) or 'nothing'}", "green" if done else "yellow"), soft_wrap=True)
    if after.waiting:
        say(f"still set aside: {len(after.waiting)}; {here.command('mcp', 'diff', server)}", "yellow")


async def _found(store: "Store", server: str) -> "tuple[Pins, Document]":
    from understudy.actors.mcp.pins import SHELF, Pins

    document = await store.read_document(SHELF, server)
    if document is None:
        raise NotFound(f"no MCP server {server!r} was seen; `understudy mcp list` names those that were")
    return Pins.read(document.data), document


def _digests(pins: "Pins", tools: list[str]) -> dict[str, str]:
    """Of tools that wait, by name; empty: it has vanished."""
    from understudy.actors.mcp.pins import digest

    waiting = {name: pins.waiting[name] for name in tools}
    return {name: digest(pins.server, told)[:16] if told else "" for name, told in waiting.items()}


def _summary(pins: "Pins") -> dict[str, Any]:
    aside = sorted(pins.waiting)
    return {"server": pins.server, "launch": pins.launch, "accepted": sorted(pins.accepted), "waiting": aside}
