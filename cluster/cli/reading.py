"""Commands that look: ps, show, events, history. They open the store and nothing else."""

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import CallerError
from understudy.actors.records import RETRYABLE, STATUSES, RunRecord, open_questions
from understudy.actors.results import with_result
from understudy.cluster.cli.command import (
    Here,
    Json,
    RunId,
    WrongUsage,
    command,
    find_run,
    print_json,
    say,
    stdout,
)
from understudy.cluster.cli.live import Live, seen_document
from understudy.cluster.cli.screen import json_line
from understudy.cluster.cli.view import (
    abridged,
    checkpoint_document,
    counted,
    moment,
    note_on,
    open_waits,
    plain_table,
    question_lines,
    run_document,
    runs_table,
    span,
    status_text,
    wait_of,
)
from understudy.cluster.follow import Cursor, Seen

if TYPE_CHECKING:
    from understudy.cluster.client import Run

PANEL = "Look at runs"


@command(panel=PANEL)
async def ps(
    here: Here,
    status: Annotated[str | None, typer.Option(metavar="S", help=f"Only these: {', '.join(STATUSES)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")] = 30,
    as_json: Json = False,
) -> None:
    """List runs, newest first.

    Examples:
    [bold]understudy ps[/]
    [bold]understudy ps --status waiting --json[/]
    """
    chosen = next((s for s in STATUSES if s == status), None)
    if status and not chosen:
        raise WrongUsage(f"there is no status {status!r}; it is one of {', '.join(STATUSES)}")
    async with here.store() as store:
        records = await store.runs(chosen, limit)
        if as_json:
            records = [await with_result(store, record) for record in records]
        counts = await store.counts()
        where = "" if records else (await store.info()).where
    asked = {record.run_id: open_questions(record) for record in records}
    if as_json:
        print_json([run_document(record, asked[record.run_id], here.command) for record in records])
        return
    now = time.time()
    total = counts[chosen] if chosen else sum(counts.values())
    if not records:
        say(
            f"no runs{f' that are {status}' if status else ''}; start one: {here.command('run', 'MODULE:GRAPH')}", "dim"
        )
        _say_if_served_elsewhere(here, where)
        return
    stdout().print(runs_table(records, {r.run_id: note_on(r, asked[r.run_id], now) for r in records}, now))
    if total > len(records):
        say(f"{len(records)} of {total}; --limit shows more", "dim")


def _say_if_served_elsewhere(here: Here, where: str) -> None:
    """`up --store URL` is no setting: who leaves the URL away next time looks into an empty store."""
    from understudy.cluster.daemon import running_daemon

    running = running_daemon(here.settings)
    if running is not None and running.store != where:
        told = f"this is {where}, and the daemon that is up serves {running.store}"
        say(f"{told}: name that with --store or UNDERSTUDY_STORE", "yellow")


@command(panel=PANEL)
async def show(here: Here, run: RunId, as_json: Json = False) -> None:
    """Show one run: where it stands, its state, and what it waits for.

    Examples:
    [bold]understudy show r3f-0c81[/]
    [bold]understudy show r3f-0c81 --json[/]
    """
    async with here.store() as store:
        found = await find_run(store, run)
        record, state = await with_result(store, await found.record()), await found.state()
        children = [await child.record() for child in await found.children()]
    questions = open_questions(record)
    if as_json:
        told = [{"run_id": child.run_id, "graph": child.graph, "status": child.status} for child in children]
        print_json({**run_document(record, questions, here.command), "state": state, "children": told})
        return
    now, screen = time.time(), stdout()
    screen.print(_head(record, now), end="", soft_wrap=True)
    screen.print(_values("result" if record.status == "succeeded" else "state", state), end="", soft_wrap=True)
    for child in children:
        line = Text("child    ", "dim").append(child.run_id, "bold").append(f"  {child.graph}  ")
        screen.print(line.append_text(status_text(child.status)))
    if record.status == "waiting" and not questions:
        screen.print(Text(wait_of(record, now), "yellow"))
        if any(wait.kind == "message" for wait in open_waits(record)):
            screen.print(Text(f"  $ {here.command('send', record.run_id, 'JSON')}", "cyan"), soft_wrap=True)
    if record.status in RETRYABLE:
        screen.print(Text(f"  $ {here.command('retry', record.run_id)}", "cyan"), soft_wrap=True)
    for question in questions:
        screen.print()
        screen.print(question_lines(record.run_id, question, now, here.command), end="", soft_wrap=True)


def _head(record: RunRecord, now: float) -> Text:
    text = Text()
    restarts = f", {counted(record.restarts, 'restart')}" if record.restarts else ""
    lines = [
        ("run", Text(record.run_id, "bold")),
        ("graph", Text(f"{record.graph}, version {record.version}")),
        ("status", status_text(record.status) + Text(f"  at step {record.step}{restarts}")),
        ("thread", Text(record.thread_id)),
        ("created", Text(f"{moment(record.created_at)}, {span(now - record.created_at)} ago")),
        ("updated", Text(f"{moment(record.updated_at)}, {span(now - record.updated_at)} ago")),
    ]
    if record.parent:
        lines.append(("parent", Text(record.parent)))
    if record.key:
        lines.append(("key", Text(record.key)))
    if record.labels:
        lines.append(("labels", Text(", ".join(f"{k}={v}" for k, v in record.labels.items()))))
    if record.cancel_asked and not record.final:
        lines.append(("note", Text("somebody asked to cancel it", "yellow")))
    if record.error:
        lines.append(("error", Text(record.error, "red")))
    for name, value in lines:  # further lines of an error begin where the first one does: no line is made up by one
        text.append(f"{name:<9}", "dim").append_text(Text("\n" + " " * 9).join(value.split("\n"))).append("\n")
    return text


def _values(title: str, state: dict[str, Any]) -> Text:
    text = Text()
    for index, (name, value) in enumerate(state.items()):
        text.append(f"{title if index == 0 else '':<9}", "dim").append(name).append(" = ", "dim")
        text.append(abridged(value)).append("\n")
    return text


@command(panel=PANEL)
async def events(
    here: Here,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", metavar="", help="Go on until the run ends.")] = False,
    stream: Annotated[bool, typer.Option("--stream", metavar="", help="With what its nodes stream.")] = False,
    after: Annotated[
        str, typer.Option(metavar="N", help="Only what comes after event N; with --stream also EVENT.CHUNK.")
    ] = "0",
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print a JSON list; with --follow, one object a line.")
    ] = False,
) -> None:
    """Show what happened to a run, in order.

    Examples:
    [bold]understudy events r3f-0c81 --follow --stream[/]
    [bold]understudy events r3f-0c81 --after 40 --json[/]
    """
    screen, listed = stdout(), []
    live, cursor = Live(screen), _cursor(after)
    async with here.store() as store:
        found = await find_run(store, run)
        told = found.follow(cursor, follow=follow) if stream else _plain(found, cursor, follow)
        async for seen in told:
            document = seen_document(seen)
            if not stream:
                del document["cursor"]
            if not as_json:
                live.show(seen.item)
            elif follow:
                screen.file.write(json_line(document) + "\n")
                screen.file.flush()
            else:
                listed.append(document)
        live.end()
    if as_json and not follow:
        print_json(listed)


def _cursor(text: str) -> Cursor:
    try:
        return Cursor.read(f"{text}.0" if text.isdecimal() else text)
    except CallerError as error:
        raise WrongUsage(f"--after: {error}") from None


async def _plain(found: "Run", cursor: Cursor, follow: bool) -> AsyncIterator[Seen]:
    async for event in found.events(cursor.event, follow=follow):
        cursor = cursor.past(event)
        yield Seen(event, cursor)


@command(panel=PANEL)
async def history(here: Here, run: RunId, as_json: Json = False) -> None:
    """List the checkpoints of a run's thread, newest first; any of them can be forked.

    Examples:
    [bold]understudy history r3f-0c81[/]
    [bold]understudy fork r3f-0c81 --at 000002[/]
    """
    async with here.store() as store:
        found = await find_run(store, run)
        record, rows = await found.record(), await found.history()
    if as_json:
        print_json([checkpoint_document(row) for row in rows])
        return
    if not rows:
        say("no checkpoint yet", "dim")
        return
    table = plain_table("CHECKPOINT", "STEP", "AT", "RUN", "")
    for row in rows:
        mark = "head" if row.checkpoint_id == record.head else ""
        table.add_row(row.checkpoint_id, str(row.step), moment(row.at), row.run_id, Text(mark, "green"))
    stdout().print(table)
