"""Commands about the audit log: verify it, note its head, show it, prune it."""

import time
from collections import defaultdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from understudy.cluster.cli.command import (
    Group,
    Here,
    Json,
    WrongUsage,
    app,
    command,
    find_run,
    print_json,
    print_line,
    say,
    say_error,
    stdout,
)
from understudy.cluster.cli.view import counted, iso, moment, short
from understudy.policies.audit import OTHER_SECRET, Entry, Head

audits = typer.Typer(
    cls=Group, no_args_is_help=True, help="Verify the log of all decisions, grants and answers; show it; prune it."
)
app.add_typer(audits, name="audit", rich_help_panel="This machine")


@command(audits)
async def verify(
    here: Here,
    start: Annotated[int, typer.Option("--from", metavar="NUMBER", help="Believe what comes before this segment.")] = 0,
    head: Annotated[
        str, typer.Option(metavar="NUMBER:MAC", help="A head that was noted before; it has to be there still.")
    ] = "",
    runs: Annotated[bool, typer.Option(help="Look whether all that runs name is there.")] = True,
    as_json: Json = False,
) -> int:
    """Find any change of the audit log, and any gap. Exit status 1, and the first number that is wrong.

    Two things only a head finds that was noted elsewhere (`understudy audit head`) and is given with --head. That the
    log was cut off at its end, where no run names what is gone: runs name their decisions, not the answers, connections
    and revocations, and a run may be deleted together with the log. And that it was written anew by somebody who knows
    the deployment's secret.

    Example:
    [bold]understudy audit verify --head "$(cat /safe/place/head)"[/]
    """
    from understudy.cluster.auditing import verify as verified

    noted = _head(head)
    async with here.store() as store:
        found = await verified(store, here.settings.secret(), start=start, noted=noted, runs=runs)
    fault = found.fault
    if as_json:
        bad = {"number": fault.number, "what": fault.what, "why": fault.why} if fault else None
        print_json(
            {"good": fault is None, "first": found.first, "head": str(found.head), "entries": found.entries, "bad": bad}
        )
    elif fault:
        say_error(str(fault))
        if fault.number > found.first:
            say(f"good are segments {found.first} to {min(found.head.number, fault.number - 1)}", "dim")
        elif fault.why == OTHER_SECRET:  # of the very first: rather a store that was moved, or another state folder
            path = here.settings.secret_path
            say(
                f"if the log was written under another secret than {path}, name that one: UNDERSTUDY_SECRET_FILE", "dim"
            )
    else:
        screen = stdout()
        told = f"good: segments {found.first} to {found.head.number}, "
        told += "1 entry" if found.entries == 1 else f"{found.entries} entries"
        screen.print(Text(told if found.entries else "good: there are no entries", "green"), soft_wrap=True)
        screen.print(Text(f"head {found.head}", "dim"), soft_wrap=True)
    return 1 if fault else 0


@command(audits)
async def head(here: Here, as_json: Json = False) -> None:
    """Print the head of the log, NUMBER:MAC. Kept elsewhere, it tells later that nothing was cut off or rewritten.

    Example:
    [bold]understudy audit head > /safe/place/head[/]
    """
    from understudy.actors.audit_log import head_of

    async with here.store() as store:
        found, _ = await head_of(store, here.settings.secret())
    print_json({"number": found.number, "mac": found.mac}) if as_json else print_line(str(found))


@command(audits)
async def show(
    here: Here,
    run: Annotated[str, typer.Option(metavar="RUN", help="Only what is about this run.")] = "",
    as_json: Json = False,
) -> None:
    """Show the entries, oldest first. It is not verified meanwhile: see [bold]understudy audit verify[/].

    Example:
    [bold]understudy audit show --run r3f-0c81[/]
    """
    from understudy.cluster.auditing import entries_of

    async with here.store() as store:
        run_id = (await find_run(store, run)).run_id if run else ""
        if as_json:
            found = [
                {"place": place, **entry, "at": iso(entry["at"])} async for place, entry in entries_of(store, run_id)
            ]
            print_json(found)
            return
        screen = stdout()
        async for place, entry in entries_of(store, run_id):
            screen.print(_line(place, entry), soft_wrap=True)


@command(audits)
async def prune(
    here: Here,
    before: Annotated[str, typer.Option(metavar="TIME", help="An ISO date or time, as 2026-01-31.")],
    as_json: Json = False,
) -> None:
    """Delete what is older than a time, and leave a signed note, so that what stays can still be verified.

    With [bold]UNDERSTUDY_AUDIT_KEEP_DAYS[/] set, `understudy up` does it by itself.

    Example:
    [bold]understudy audit prune --before 2026-01-31[/]
    """
    from understudy.cluster.auditing import prune as pruned

    try:
        until = datetime.fromisoformat(before).timestamp()
    except ValueError:
        raise WrongUsage(f"--before {before!r} is no ISO date or time; write e.g. 2026-01-31") from None
    async with here.store() as store:
        count = await pruned(store, here.settings.secret(), until, time.time())
    print_json({"pruned": count}) if as_json else print_line(f"pruned {counted(count, 'segment')}")


def _head(text: str) -> Head | None:
    try:
        return Head.read(text.strip()) if text else None
    except ValueError as error:
        raise WrongUsage(f"--head: {error}") from None


WORDS = {
    "decision": "magenta",
    "grant_used": "green",
    "grant_refused": "red",
    "grant_ended": "red",
    "revoke": "red",
    "budget_raised": "yellow",
    "budget_reset": "yellow",
    "answer": "cyan",
    "connection": "blue",
}


def _line(place: str, entry: Entry) -> Text:
    line = Text(f"{place:>8}  {moment(entry['at'])}  ", "dim")
    line.append(f"{entry['kind']:14}", WORDS.get(entry["kind"], ""))
    line.append(f"{entry.get('run', '-')}  ")
    line.append(short(" ".join(_gist(defaultdict(str, entry))), 160))  # it may be a forged one that lacks something
    return line


def _gist(entry: Entry) -> list[str]:
    said: list[Any] = []
    match entry["kind"]:
        case "decision":
            by = f"by rule {entry['rule']!r} of {entry['policy']!r}" if entry["rule"] else "by the lack of a rule"
            if "budgets" in entry:
                by = f"by a budget of {entry['policy']!r}"
            said = [entry["decision"], entry["call"], by, entry["reason"]]
        case "grant_used" | "grant_refused" | "grant_ended":
            said = [entry["tool"], entry.get("refused", ""), entry.get("reason", ""), entry.get("grant", "")]
        case "connection":
            place = f"{entry['method'] or 'no request'} {entry['host']}:{entry['port']}"
            moved = f"{entry['sent_bytes']} bytes out, {entry['received_bytes']} in"
            said = [entry["decision"], entry["tool"], place, moved, entry["reason"]]
        case "answer" | "answer_refused":
            said = [entry["said"], entry["interrupt"], entry.get("tool", ""), f"by {entry.get('by') or entry['user']}"]
        case _:
            said = [f"{name}={value}" for name, value in entry.items() if name not in ("kind", "at", "run")]
    return [str(word) for word in said if word]
