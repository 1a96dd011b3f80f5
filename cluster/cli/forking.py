"""Commands about what runs do to the world: effects (the ledger of a run), fork (another run from a checkpoint)."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from understudy.actors.effects import is_effect, read_outcome
from understudy.actors.forks import MODES, Beyond
from understudy.actors.ledger import calls_of
from understudy.actors.outcome import Outcome
from understudy.actors.records import Receipt
from understudy.cluster.cli.command import (
    Here,
    Json,
    RunId,
    WrongUsage,
    command,
    find_checkpoint,
    find_run,
    parse_json,
    print_json,
    print_line,
    say,
    stdout,
)
from understudy.cluster.cli.reading import PANEL as LOOK
from understudy.cluster.cli.running import PANEL as STEER
from understudy.cluster.cli.running import report
from understudy.cluster.cli.view import clock, iso, on_one_line, plain_table, short

PRINTED_LINES = 8
"""Of what a call has printed that did not end well."""
STANDINGS = {"done": "green", "failed": "red", "unknown": "bold yellow", "started": "cyan"}


@command(panel=LOOK)
async def effects(here: Here, run: RunId, as_json: Json = False) -> None:
    """List what a run has done to the world: its tool calls and effects, and how each stands.

    Standings: started, done, failed, unknown (nobody knows how it ended; a person is asked). Of one that did not end
    well: how it ended, and the last that it had printed by then (all of it with --json).

    Example:
    [bold]understudy effects r3f-0c81[/]
    """
    async with here.store() as store:
        found = await find_run(store, run)
        receipts = [receipt for receipt in await store.receipts(found.run_id) if is_effect(receipt.tool)]
        calls = await calls_of(store, found.run_id)
    if as_json:
        print_json([_document(receipt, calls) for receipt in receipts])
        return
    if not receipts:
        say("it has no effects on record", "dim")
        return
    table = plain_table("AT", "PLACE", "STANDING", "CALL")
    for receipt in receipts:
        call = short(calls.get(receipt.digest, receipt.tool), 70)
        table.add_row(clock(receipt.at), receipt.place, _standing(receipt.standing), call)
    stdout().print(table)
    for receipt in receipts:
        if receipt.outcome and (outcome := read_outcome(receipt.outcome)).kind != "ok":
            stdout().print(_how_it_ended(receipt, outcome), end="", soft_wrap=True)


def _how_it_ended(receipt: Receipt, outcome: Outcome) -> Text:
    """What it printed is set off, so that no line of it can look like one of ours."""
    text = Text(f"\n{receipt.place}  ", "bold").append(f"{outcome.kind}: {on_one_line(outcome.said)}\n", "red")
    for line in outcome.printed.splitlines()[-PRINTED_LINES:]:
        text.append(f"  | {short(line, 300)}\n", "dim")
    return text


def _document(receipt: Receipt, calls: dict[str, str]) -> dict[str, Any]:
    return {
        "place": receipt.place,
        "name": receipt.tool,
        "standing": receipt.standing,
        "call": calls.get(receipt.digest, ""),
        "digest": receipt.digest,
        "key": receipt.key,
        "checkpoint_id": receipt.checkpoint_id,
        "at": iso(receipt.at),
        "outcome": _outcome_document(receipt.outcome),
    }


def _outcome_document(text: str) -> dict[str, Any] | None:
    """How it ended; None while nobody knows."""
    if not text:
        return None
    outcome = read_outcome(text)
    return {
        "kind": outcome.kind,
        "error": outcome.said,
        "printed": outcome.printed,
        "duration_s": outcome.duration_s,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "note": outcome.note,
    }


def _standing(standing: str) -> Text:
    return Text(standing, style=STANDINGS.get(standing, ""))


@command(panel=STEER)
async def fork(
    here: Here,
    run: RunId,
    at: Annotated[str, typer.Option("--at", metavar="CHECKPOINT", help="See `understudy history`.")],
    update: Annotated[str | None, typer.Option(metavar="JSON", help="Written to the state first.")] = None,
    effects: Annotated[
        str,
        typer.Option(
            metavar="MODE", help=f"What to do about effects that this run has had beyond it: {', '.join(MODES)}."
        ),
    ] = "ask",
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only list those effects.")] = False,
    as_json: Json = False,
) -> None:
    """Start a new run from a checkpoint of this one. Nothing that this one did to the world is repeated unasked.

    Examples:
    [bold]understudy fork r3f-0c81 --at c9d2 --dry-run[/]
    [bold]understudy fork r3f-0c81 --at c9d2 --update '{"limit": 5}' --effects reuse[/]
    """
    mode = next((known for known in MODES if known == effects), None)
    if mode is None:
        raise WrongUsage(f"--effects {effects!r} is none of {', '.join(MODES)}")
    values = None if update is None else parse_json(update, "--update")
    if values is not None and not isinstance(values, dict):
        raise WrongUsage("--update has to be a JSON object, one member per channel")
    sys.path.insert(0, os.getcwd())
    async with here.store() as store:
        found = await find_run(store, run)
        checkpoint = await find_checkpoint(here, found, at)
        beyond = await found.beyond(checkpoint)
        if dry_run and as_json:
            print_json({"checkpoint_id": checkpoint, "effects": [_beyond_document(told) for told in beyond]})
        elif dry_run:
            _list(beyond, mode)
        if dry_run:
            return
        forked = await found.fork(checkpoint, values, effects=mode)
        await report(here, store, forked, as_json, f"forked at {checkpoint}")
        if not as_json:
            print_line(forked.run_id)
            if beyond and mode == "ask":
                say(f"effects beyond it: {len(beyond)}; it asks before it repeats any of them", "dim")


def _beyond_document(told: Beyond) -> dict[str, Any]:
    return {
        "place": told.place,
        "name": told.name,
        "standing": told.standing,
        "call": told.call,
        "run_id": told.run_id,
        "would": {mode: told.would(mode) for mode in MODES},
    }


def _list(beyond: Sequence[Beyond], mode: Any) -> None:
    if not beyond:
        say("nothing that this run did to the world lies beyond it", "dim")
        return
    table: Table = plain_table("PLACE", "STANDING", "CALL", f"WITH --effects {mode}", yields="CALL")
    for told in beyond:
        call = short(told.call or told.name, 50)
        table.add_row(told.place, _standing(told.standing), call, "it " + told.would(mode))
    stdout().print(table)
