"""Commands that start runs and change them: run, resume, approve, deny, cancel."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import NotFound, StoreUnavailable
from understudy.actors.files import BYTES_MAX, FILES_MAX, Files
from understudy.actors.process import user_name
from understudy.actors.records import BUSY, RETRYABLE, Interrupt, RunRecord, open_questions
from understudy.actors.results import with_result
from understudy.actors.sandbox import unpack
from understudy.cluster.answering import ANSWERABLE
from understudy.cluster.cli.command import (
    Here,
    Json,
    RunId,
    WrongUsage,
    command,
    find_run,
    parse_json,
    parse_pairs,
    print_json,
    print_line,
    say,
    say_error,
    stderr,
)
from understudy.cluster.cli.live import Live
from understudy.cluster.cli.policy import read_policy
from understudy.cluster.cli.prompt import ask
from understudy.cluster.cli.view import question_lines, run_document, span, status_text

if TYPE_CHECKING:
    from understudy.actors.code import CodeMode
    from understudy.actors.store import Store
    from understudy.cluster.client import Run

PANEL = "Start and steer runs"
POLL_S = 0.05
SERVICE_POLL_S = 2.0

Note = Annotated[str, typer.Option(help="Kept with the answer.")]
By = Annotated[str, typer.Option("--by", metavar="WHO", help="Who decides; default: who is logged in.")]
CallId = Annotated[
    str | None,
    typer.Argument(metavar="CALL", help="The call; may be left out if only one waits.", show_default=False),
]


def _read_folder(folder: Path) -> Files:
    """What is in it, by path: files, links as they are, and empty folders."""
    if not folder.is_dir():
        raise WrongUsage(f"--files {str(folder)!r} is no folder")
    try:
        return unpack.collect(str(folder), FILES_MAX, BYTES_MAX)
    except (unpack.TooLarge, OSError) as error:
        raise WrongUsage(f"--files {str(folder)!r}: {error}") from None


@command(panel=PANEL)
async def run(
    here: Here,
    graph: Annotated[str, typer.Argument(metavar="MODULE:GRAPH", help="Found from this folder or PYTHONPATH.")],
    given: Annotated[
        str, typer.Option("--input", metavar="JSON|@FILE|-", help="The first state; - reads it from stdin.")
    ] = "{}",
    thread: Annotated[str, typer.Option(metavar="T", help="The thread to run on; default: one of its own.")] = "",
    busy: Annotated[str, typer.Option(metavar="HOW", help=f"If the thread has runs: {', '.join(BUSY)}.")] = "enqueue",
    key: Annotated[str, typer.Option(metavar="K", help="The same key is the same run, however often.")] = "",
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What its tools may do.")] = None,
    var: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A variable of the policy; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="A label, for policies and for people; repeatable.")
    ] = None,
    code: Annotated[
        str,
        typer.Option(
            metavar="migrate|latest|pin",
            help="After a deployment: the new code, its state migrated; the new code as it is; or the code of now.",
        ),
    ] = "migrate",
    files: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The first files of its workspace.")] = None,
    detach: Annotated[bool, typer.Option("--detach", metavar="", help="Do not wait for it.")] = False,
    as_json: Json = False,
) -> int:
    """Start a run, follow it, and print its result.

    Ctrl-C leaves, and the run stays. Without a running [bold]understudy up[/], it is served from here meanwhile.

    Examples:
    [bold]understudy run flows:refund --input '{"order": "A1"}' --key order-A1[/]
    [bold]understudy run flows:refund --input @order.json --policy policy.yaml --detach[/]
    """
    from understudy.actors.code import load_ref
    from understudy.actors.start import input_text
    from understudy.cluster.client import connect, is_served

    values, mode = read_input(given), _code_mode(code)
    chosen = next((how for how in BUSY if how == busy), None)
    if chosen is None:
        raise WrongUsage(f"--busy {busy!r} is none of {', '.join(BUSY)}")
    labels, variables = parse_pairs(label or [], "--label"), parse_pairs(var or [], "--var")
    rules = read_policy(policy, variables) if policy else None
    first = _read_folder(files) if files else None
    # Where `python -m` would look; what `understudy` as a script does not do by itself.
    sys.path.insert(0, os.getcwd())
    input_text(load_ref(graph).plan(), values)  # what is wrong with either is said before anything is started
    if not detach and not await _is_served(here):
        say("nobody serves this store; starting Ray here for the time of this command ...", "dim")
    async with connect(policy=rules, settings=here.settings, embedded=False if detach else None) as cluster:
        started = await cluster.start(
            graph, values, key=key, thread=thread, busy=chosen, labels=labels, code=mode, files=first
        )
        if detach:
            record = await started.record()
            print_json(run_document(record, (), here.command)) if as_json else print_line(record.run_id)
            try:
                if not await is_served(cluster.store, time.time()):
                    say(f"nobody serves this store yet; {here.command('up')} takes the run up", "yellow")
            except StoreUnavailable as error:
                say(f"the run is durable; whether anybody serves it cannot be told: {error}", "yellow")
            return 0
        say(f"run {started.run_id}", "bold")
        watch = asyncio.ensure_future(_watch_service(here, cluster.store)) if cluster.host is None else None
        try:
            record = await with_result(cluster.store, await _attend(here, cluster.store, started))
        except asyncio.CancelledError:
            serve = "" if cluster.host is None else f"; it goes on with {here.command('up')}"
            say(f"\nleft; the run stays{serve}\n  $ {here.command('events', started.run_id, '--follow')}", "yellow")
            raise
        finally:
            if watch is not None:
                watch.cancel()
        return _conclude(here, record, as_json, served=cluster.host is None)


def _code_mode(text: str) -> "CodeMode":
    from understudy.actors.code import MODES

    for mode in MODES:
        if mode == text:
            return mode
    raise WrongUsage(f"--code {text!r} is none of {', '.join(MODES)}")


def read_input(given: str) -> Any:
    """The input as JSON, from the argument, a file or stdin. Raises WrongUsage."""
    what = "--input"
    if given == "-":
        given, what = sys.stdin.read(), "the input on stdin"
    elif given.startswith("@"):
        what = f"--input file {given[1:]!r}"
        try:
            given = Path(given[1:]).read_text()
        except OSError as error:
            raise WrongUsage(f"{what} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise WrongUsage(f"{what} cannot be read: it is no text ({error.reason})") from None
    value = parse_json(given, what, {"order": "A1"})
    if not isinstance(value, dict):
        raise WrongUsage(f"{what} has to be a JSON object, one member per channel; it is {json.dumps(value)[:60]}")
    return value


async def _attend(here: Here, store: "Store", started: "Run") -> RunRecord:
    """Show events and what is streamed as they come, ask what the run asks if somebody is there; until the end, or
    until nobody answers."""
    from understudy.cluster.follow import Cursor

    cursor, asked, live = Cursor(), set[str](), Live(stderr())
    while True:
        record = await started.record()
        async for seen in started.follow(cursor, follow=False):
            cursor = seen.cursor
            live.show(seen.item)
        if record.final:
            live.end()
            return record
        questions = [q for q in open_questions(record) if q.interrupt_id not in asked]
        if not questions and any(open_questions(record)):
            return record
        for question in questions:
            asked.add(question.interrupt_id)
            if sys.stdin.isatty() and sys.stderr.isatty():
                live.end()
                stderr().print(question_lines(record.run_id, question, time.time(), here.command), soft_wrap=True)
                await ask(started, question)
        if not questions:
            await asyncio.sleep(POLL_S)


def _conclude(here: Here, record: RunRecord, as_json: bool, served: bool) -> int:
    questions = open_questions(record)
    line = Text("run ").append(record.run_id, "bold").append(" is ").append_text(status_text(record.status))
    line.append(f" after {span(record.updated_at - record.created_at)}", "dim")
    stderr().print(line)
    for question in questions:
        stderr().print(question_lines(record.run_id, question, time.time(), here.command), end="", soft_wrap=True)
    if questions and not served:
        say(f"the run is durable; it goes on once it is answered and {here.command('up')} serves it", "yellow")
    if record.error:
        say_error(record.error)
    if record.status in RETRYABLE:
        say(f"once what was wrong is mended: {here.command('retry', record.run_id)}", "dim")
    if as_json:
        print_json(run_document(record, questions, here.command))
    elif record.result:
        print_json(json.loads(record.result))
    return 1 if record.final and record.status != "succeeded" else 0


async def _is_served(here: Here) -> bool:
    from understudy.cluster.client import is_served

    async with here.store(make=True) as store:
        return await is_served(store, time.time())


async def _watch_service(here: Here, store: "Store") -> None:
    """Say it when whoever serves the store leaves (another `run` that ended, or `down`): nothing goes on then."""
    from understudy.cluster.client import is_served

    served = True
    while True:
        before, served = served, await is_served(store, time.time())
        if before and not served:
            say("whoever served this store has left; it is served from here, for the time of this command", "yellow")
        await asyncio.sleep(SERVICE_POLL_S)


async def report(here: Here, store: "Store", found: "Run", as_json: bool, done: str) -> None:
    """What a change has come to, and whether anybody acts on it."""
    from understudy.cluster.client import is_served

    record = await found.record()
    if as_json:
        record = await with_result(store, record)
        print_json(run_document(record, open_questions(record), here.command))
    else:
        text = (
            Text(f"{done}; run ").append(record.run_id, "bold").append(" is ").append_text(status_text(record.status))
        )
        stderr().print(text, soft_wrap=True)
    if not record.final and not await is_served(store, time.time()):
        say(f"nobody serves this store; the run goes on with {here.command('up')}", "yellow")


@command(panel=PANEL)
async def resume(
    here: Here,
    run: RunId,
    answer: Annotated[str, typer.Argument(metavar="JSON", help="The answer.", show_default=False)],
    question: Annotated[str, typer.Option(metavar="ID", help="Which question, if there are several.")] = "",
    as_json: Json = False,
) -> None:
    """Answer what a run waits for, and let it go on.

    Examples:
    [bold]understudy resume r3f-0c81 '{"ok": true}'[/]
    [bold]understudy resume r3f-0c81 '"yes"' --question q7d1[/]
    [bold]understudy resume r3f-0c81 '"reuse"'[/]   (an effect that a fork would repeat)
    """
    value = parse_json(answer, "the answer")
    async with here.store() as store:
        found = here.audited(await find_run(store, run))
        await found.resume(value, await _question(found, question, ANSWERABLE) if question else "")
        await report(here, store, found, as_json, "answered")


@command(panel=PANEL)
async def approve(
    here: Here,
    run: RunId,
    call: CallId = None,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="Arguments to change first; judged again.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="JSON", help="Execute nothing: this is the result.")
    ] = None,
    note: Note = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Allow a tool call that the policy asks about: this very call, once; or changed; or answer in its place.

    Examples:
    [bold]understudy approve r3f-0c81 a41c --note 'order checked'[/]
    [bold]understudy approve r3f-0c81 --args '{"amount": 40}'[/]
    [bold]understudy approve r3f-0c81 --answer '"paid by hand"'[/]
    """
    if args is not None and answer is not None:
        raise WrongUsage("--args makes another call, --answer makes none; give one of them")
    changed = None if args is None else parse_json(args, "--args", {"amount": 40})
    if changed is not None and not isinstance(changed, dict):
        raise WrongUsage("--args has to be a JSON object, one member per argument that is changed")
    value = None if answer is None else parse_json(answer, "--answer")
    async with here.store() as store:
        found = here.audited(await find_run(store, run))
        call_id = await _question(found, call or "", ("approval",))
        if answer is not None:
            await found.answer_call(call_id, value, note=note, by=by or user_name())
        else:
            await found.approve(call_id, args=changed, note=note, by=by or user_name())
        done = "answered" if answer is not None else "approved with other arguments" if changed else "approved"
        await report(here, store, found, as_json, done)


@command(panel=PANEL)
async def deny(
    here: Here, run: RunId, call: CallId = None, note: Note = "", by: By = "", as_json: Json = False
) -> None:
    """Refuse a tool call that the policy asks about; the node is told so.

    Example:
    [bold]understudy deny r3f-0c81 a41c --note 'wrong customer'[/]
    """
    async with here.store() as store:
        found = here.audited(await find_run(store, run))
        await found.deny(await _question(found, call or "", ("approval",)), note=note, by=by or user_name())
        await report(here, store, found, as_json, "denied")


async def _question(found: "Run", text: str, kinds: tuple[str, ...]) -> str:
    """The id of the one open question that begins with `text`. Raises NotFound, WrongUsage."""
    record = await found.record()
    mine: list[Interrupt] = [i for i in await found.questions() if i.kind in kinds]
    matching = [i.interrupt_id for i in mine if i.interrupt_id.startswith(text)]
    what = "call to be approved" if kinds == ("approval",) else "open question"
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(i.interrupt_id for i in mine) or "none"
    if not matching:
        named = f" {text!r}" if text else ""
        raise NotFound(f"run {record.run_id} is {record.status} and has no {what}{named}; waiting: {listed}")
    raise WrongUsage(f"run {record.run_id} has several: {listed}; name the one that you mean")


@command(panel=PANEL)
async def cancel(here: Here, run: RunId, as_json: Json = False) -> None:
    """Ask a run to end, and its children; its tool calls are ended, what was done stays done.

    Of a run that is over, the children that are not are asked to end.

    Example:
    [bold]understudy cancel r3f-0c81[/]
    """
    async with here.store() as store:
        found = await find_run(store, run)
        record = await found.cancel()
        over = "it was over already; children of it that are not over are asked to end"
        done = over if record.final and record.status != "cancelled" else "asked to cancel"
        await report(here, store, found, as_json, done)
