"""Commands about the store itself: what it is and holds, and moving all of it to another one."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import CallerError
from understudy.cluster.cli.command import Group, Here, Json, WrongUsage, app, command, print_json, say, stdout
from understudy.cluster.cli.view import counted, plain_table

if TYPE_CHECKING:
    from understudy.cluster.move import Progress

stores = typer.Typer(cls=Group, no_args_is_help=True, help="What the store is and holds; move it to another one.")
app.add_typer(stores, name="store", rich_help_panel="This machine")

TELL_S = 1.0
"""How often progress is told."""


@command(stores)
async def info(here: Here, as_json: Json = False) -> None:
    """Say what the store is, whether it is durable, and how much it holds.

    Example:
    [bold]understudy store info --store redis://127.0.0.1/0[/]
    """
    from understudy.actors.paging import each_thread
    from understudy.cluster.client import is_served

    async with here.store() as store:
        about = await store.info()
        document: dict[str, Any] = {
            "kind": about.kind,
            "where": about.where,
            "durable": about.durable,
            "served": await is_served(store, time.time()),
            "threads": len([None async for _ in each_thread(store)]),
            "runs": await store.counts(),
            "blobs": len(await store.blobs()),
            "documents": await store.shelves(),
            "detail": dict(about.detail),
        }
    if as_json:
        print_json(document)
        return
    screen = stdout()
    screen.print(Text(f"{about.kind} at {about.where}", "bold"), soft_wrap=True)
    table = plain_table("", "")
    table.add_row("durable", Text("yes", "green") if about.durable else Text("no", "red"))
    table.add_row("served", "yes" if document["served"] else "no")
    table.add_row("threads", str(document["threads"]))
    runs = ", ".join(f"{count} {status}" for status, count in document["runs"].items() if count)
    table.add_row("runs", runs or "none")
    table.add_row("blobs", str(document["blobs"]))
    shelves = ", ".join(f"{count} of {shelf}" for shelf, count in document["documents"].items())
    table.add_row("documents", shelves or "none")
    for name, value in about.detail.items():
        table.add_row(name, value)
    screen.print(table)


@command(stores)
async def migrate(
    here: Here,
    source: Annotated[str, typer.Option("--from", metavar="URL", help="The store that is to be left.")],
    target: Annotated[str, typer.Option("--to", metavar="URL", help="The store to move to; an empty one.")],
    as_json: Json = False,
) -> None:
    """Move all threads, blobs, documents and counters to another store. Nobody may serve either meanwhile.

    It may be interrupted, and typed again until it is done. The source stays as it is; serve only the target then.

    Example:
    [bold]understudy store migrate --from sqlite:///var/lib/understudy.db --to postgresql://127.0.0.1/agents[/]
    """
    from understudy.cluster.move import move
    from understudy.cluster.stores import open_store

    if source == target:
        raise WrongUsage("--from and --to name the same store")
    if source.startswith("sqlite://"):  # which would be made by being opened
        from understudy.cluster.stores.sqlite_file import parsed

        path, _ = parsed(source)
        if not path.exists():
            raise CallerError(f"--from: there is no store at {path}; `understudy store info` says where yours is")
    old = await open_store(source, allow_volatile=here.settings.allow_volatile)
    try:
        new = await open_store(target, allow_volatile=here.settings.allow_volatile)
        try:
            moved = await move(old, new, _Teller())
        finally:
            await new.close()
    finally:
        await old.close()
    if as_json:
        print_json(asdict(moved))
        return
    before = f", {moved.found} of them before" if moved.found else ""
    screen = stdout()
    screen.print(
        Text(f"moved {counted(moved.threads, 'thread')}{before}", "green").append(
            f": {counted(moved.runs, 'run')}, {counted(moved.checkpoints, 'checkpoint')}, "
            f"{counted(moved.blobs, 'blob')}, {counted(moved.documents, 'document')}, "
            f"{counted(moved.counters, 'counter')}",
            "",
        ),
        soft_wrap=True,
    )
    screen.print(Text(f"both sides compared, digest {moved.digest[:16]}; serve only the new store from now on", "dim"))
    secret = here.settings.secret_path
    told = f"what is signed in it holds under the same secret only (here {secret}); it is not in a store: take it along"
    screen.print(Text(told, "dim"), soft_wrap=True)


@command(stores)
async def claim(here: Here) -> None:
    """Have the store belong to the secret of this machine, where the one that it belongs to is lost.

    Policies and code that are signed under the old one stay unusable, and so do the runs that need them; the audit log
    is good up to here only.

    Example:
    [bold]understudy store claim --store postgresql://127.0.0.1/agents[/]
    """
    from understudy.cluster.belonging import claim
    from understudy.cluster.client import is_served

    async with here.store() as store:
        if await is_served(store, time.time()):
            raise CallerError("somebody serves the store, and so the secret that it belongs to is not lost")
        was_anothers = await claim(store, here.settings)
    before = ", and not to another one any more" if was_anothers else ""
    say(f"the store belongs to the secret {here.settings.secret_path}{before}", "green")


class _Teller:
    """Tells progress on stderr, once a second at most."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        if time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            say(f"{progress.stage}: {progress.done} of {progress.of}", "dim")
