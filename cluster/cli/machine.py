"""Commands about this machine: up, down, status, doctor, metrics."""

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import UnderstudyError
from understudy.actors.process import is_dead
from understudy.actors.records import FINAL, STATUSES, Interrupt, RunRecord, open_questions
from understudy.cluster.cli.command import Here, Json, command, print_json, say, stderr, stdout
from understudy.cluster.cli.screen import write_out
from understudy.cluster.cli.view import iso, plain_table, question_document, question_lines, span, status_text

if TYPE_CHECKING:
    from understudy.actors.store import Store
    from understudy.cluster.daemon import Daemon
    from understudy.cluster.doctor import Check

PANEL = "This machine"
QUESTIONS_MAX = 20
ISOLATION_KNOWN_S = 20.0
"""How long `up` waits to tell about isolation."""


@command(panel=PANEL)
async def up(here: Here, as_json: Json = False) -> None:
    """Start the daemon: a supervisor, its actors, and a metrics exporter. It takes up every unfinished run.

    Example:
    [bold]understudy up --store redis://127.0.0.1:6379/0[/]
    """
    from understudy.cluster import daemon as daemons

    running = daemons.running_daemon(here.settings)
    async with here.store(make=True) as store:  # what is wrong with it is better said here than in a log
        where = (await store.info()).where
        already = running is not None
        _tell_of_another(running, where)
        if running is None:
            say("starting Ray and the supervisor ...", "dim")
            running = await asyncio.to_thread(daemons.start, here.settings)
        unfinished = await _unfinished(store)
        supervisors = await _with_isolation(store)
    if as_json:
        print_json({"already": already, "daemon": _daemon_document(running), "supervisors": supervisors})
        return
    stdout().print(Text("understudy is up already" if already else "understudy is up", "bold green"))
    rows = [("daemon", f"pid {running.pid}"), ("store", running.store), ("metrics", running.metrics_url)]
    rows += [*_isolation(supervisors), ("log", str(daemons.log_path(here.settings)))]
    if unfinished:
        rows.append(("runs", f"{unfinished} unfinished, taken up"))
    _print_rows(rows)


@command(panel=PANEL)
async def down(here: Here, as_json: Json = False) -> None:
    """End the daemon and all of its actors. Unfinished runs stay durable; the next `up` takes them up.

    Example:
    [bold]understudy down[/]
    """
    from understudy.actors.sandbox.tiers import end_leftovers
    from understudy.cluster import daemon as daemons

    stopped = await asyncio.to_thread(daemons.stop, here.settings)
    left = await asyncio.to_thread(end_leftovers)
    unfinished: int | None = None
    try:
        async with here.store() as store:
            _tell_of_another(stopped, (await store.info()).where, "served")
            unfinished = await _unfinished(store)
    except UnderstudyError as error:  # the daemon is down all the same
        say(f"how many runs are unfinished cannot be told: {error}", "yellow")
    if as_json:
        print_json({"stopped": stopped is not None, "unfinished_runs": unfinished, "left_over": asdict(left)})
        return
    say("understudy is down" if stopped else "there was no daemon to end", "bold" if stopped else "dim")
    if left.processes or left.folders:  # empty cgroups are always there: those of sandboxes that waited for a call
        say(f"of its calls there were left, and are gone: {left}", "dim")
    if unfinished:
        runs, them = ("run stays", "it") if unfinished == 1 else ("runs stay", "them")
        say(f"{unfinished} unfinished {runs} durable; {here.command('up')} takes {them} up", "yellow")


@command(panel=PANEL)
async def status(here: Here, as_json: Json = False) -> None:
    """Show the daemon, the store, actors with their processes, runs by status, and what waits for a person.

    Examples:
    [bold]understudy status[/]
    [bold]understudy status --json[/]
    """

    from understudy.cluster.daemon import running_daemon

    now = time.time()
    daemon = running_daemon(here.settings)
    async with here.store() as store:
        info, counts = await store.info(), await store.counts()
        _tell_of_another(daemon, info.where)
        supervisors = await _supervisors(store, now)
        waiting = await store.runs("waiting", 1000)
    asked = [(record, question) for record in waiting for question in open_questions(record)]
    if as_json:
        questions = [{"run_id": r.run_id, **question_document(r.run_id, q, here.command)} for r, q in asked]
        print_json(
            {
                "daemon": _daemon_document(daemon) if daemon else None,
                "store": {**asdict(info), "detail": dict(info.detail)},
                "supervisors": supervisors,
                "runs": counts,
                "questions": questions,
            }
        )
        return
    up_for = f"up for {span(now - daemon.started_at)}, pid {daemon.pid}" if daemon else "down"
    rows = [("daemon", up_for), ("store", info.where + ("" if info.durable else "  (not durable)"))]
    rows += [("metrics", daemon.metrics_url), *_isolation(supervisors)] if daemon else []
    rows += [("policy", words) for words in _policies(supervisors)]
    _print_rows(rows)
    runs = Text(f"{'runs':<10}", "dim")
    for name in STATUSES:
        if counts[name]:
            runs.append_text(status_text(name)).append(f" {counts[name]}   ")
    stdout().print(runs if sum(counts.values()) else Text("runs      none", "dim"))
    _print_actors(supervisors)
    _print_questions(asked, now, here)
    if not daemon and not supervisors and any(counts[s] for s in STATUSES if s not in FINAL):
        say(f"nobody serves this store; {here.command('up')} takes its unfinished runs up", "yellow")


@command(panel=PANEL)
async def doctor(here: Here, as_json: Json = False) -> int:
    """What isolation, durability and capacity this node really gives, and how to get more.

    Exit status 1 if something essential is missing.

    Example:
    [bold]understudy doctor[/]
    """
    from understudy.cluster.doctor import examine

    checks = await examine(here.settings)
    failed = any(check.state == "fail" for check in checks)
    if as_json:
        print_json({"healthy": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print_checks(checks)
    return 1 if failed else 0


@command(panel=PANEL)
async def metrics(
    here: Here,
    openmetrics: Annotated[bool, typer.Option("--openmetrics", metavar="", help="In OpenMetrics format.")] = False,
) -> None:
    """Print the metrics of the store once, as a scraper would read them.

    Example:
    [bold]understudy metrics | grep tool_calls[/]
    """
    from understudy.cluster.metrics import encode, read_metrics

    async with here.store() as store:
        found = await read_metrics(store, time.time())
    write_out(encode(found, "application/openmetrics-text" if openmetrics else "")[0])


# --- what they share -----------------------------------------------------------------------------------------------


def _tell_of_another(daemon: "Daemon | None", where: str, serves: str = "serves") -> None:
    """`where`: the store that this command looks into."""
    if daemon is not None and daemon.store != where:
        which = "that is up " if serves == "serves" else ""
        say(f"the daemon {which}(pid {daemon.pid}) {serves} {daemon.store}, not {where}", "yellow")


async def _unfinished(store: "Store") -> int:
    counts = await store.counts()
    return sum(counts[name] for name in STATUSES if name not in FINAL)


async def _supervisors(store: "Store", now: float) -> list[dict[str, Any]]:
    """What the living supervisors last said."""
    from understudy.cluster.client import SILENT_AFTER_S

    found = []
    for member, (at, text) in sorted((await store.beats()).items()):
        if now - at < SILENT_AFTER_S and not is_dead(member):
            found.append({"member": member, "at": iso(at), **json.loads(text)})
    return found


async def _with_isolation(store: "Store") -> list[dict[str, Any]]:
    """The same, once a sandbox actor has tried what this machine isolates: seconds after its supervisor is there."""
    until = time.monotonic() + ISOLATION_KNOWN_S
    while True:
        found = await _supervisors(store, time.time())
        if any(s.get("isolation") for s in found) or time.monotonic() > until:
            return found
        await asyncio.sleep(0.1)


def _daemon_document(daemon: "Daemon") -> dict[str, Any]:
    document = {**asdict(daemon), "started_at": iso(daemon.started_at)}
    del document["guarded"]
    return document


def _isolation(supervisors: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A row for each tier."""
    known = [s["isolation"] for s in supervisors if s.get("isolation")]
    if not known:
        return [("isolation", "not known yet")]
    lacking = next((i for i in known if not i["available"]), None)
    if lacking is None:
        tiers: dict[str, str] = known[0].get("tiers", {})
        words = [f"{tier}: {found}" for tier, found in tiers.items()]
        return [*zip(["isolation", *[""] * len(words)], words, strict=False)]
    return [("isolation", f"none, so no untrusted tool runs: {lacking['reason']}; remedy: {lacking['remedy']}")]


def _policies(supervisors: list[dict[str, Any]]) -> list[str]:
    """The deployment's policies that are in force, and why those in the file are not, where that is so."""
    found = []
    for policies in (s["policies"] for s in supervisors if s.get("policies")):
        found += [f"{p['policy']} version {p['version']} ({p['layer']})" for p in policies["layers"]]
        found += policies["problem"].splitlines()
    return list(dict.fromkeys(found))


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        stdout().print(Text(f"{name:<10}", "dim").append(value, ""), soft_wrap=True)


def _print_actors(supervisors: list[dict[str, Any]]) -> None:
    table = plain_table("ACTOR", "PID", "STATE", "RUNS")
    table.columns[3].justify = "left"
    for supervisor in supervisors:
        table.add_row("supervisor", str(supervisor["pid"]), "", "")
        sandboxes = supervisor.get("sandboxes", ())
        for name, pid in supervisor.get("services", {}).items():
            table.add_row("sandbox actor" if name in sandboxes else "policy actor", str(pid), "", "")
        for actor in supervisor.get("actors", ()):
            state = "busy" if actor["runs"] else "spare" if actor["ready"] else "starting"
            table.add_row("run actor", str(actor["pid"] or "-"), state, " ".join(actor["runs"]))
    if table.row_count:
        stdout().print()
        stdout().print(table)


def _print_questions(asked: list[tuple[RunRecord, Interrupt]], now: float, here: Here) -> None:
    screen = stdout()
    for record, question in asked[:QUESTIONS_MAX]:
        screen.print()
        screen.print(Text(f"run {record.run_id} ({record.graph})", "bold"))
        screen.print(question_lines(record.run_id, question, now, here.command), end="", soft_wrap=True)
    if len(asked) > QUESTIONS_MAX:
        say(f"and {len(asked) - QUESTIONS_MAX} more; {here.command('ps', '--status', 'waiting')} lists the runs", "dim")


def _print_checks(checks: "list[Check]") -> None:
    marks = {"ok": ("ok  ", "green"), "none": ("-   ", "dim"), "warn": ("warn", "yellow"), "fail": ("fail", "bold red")}
    screen = stdout()
    for check in checks:
        word, style = marks[check.state]
        line = Text(word, style).append(f"  {check.name:<14}", "bold").append(check.found, "")
        screen.print(line, soft_wrap=True)
        if check.remedy:
            screen.print(Text(f"      {'':<14}-> {check.remedy}", style), soft_wrap=True)
    worst = next((state for state in ("fail", "warn") if any(c.state == state for c in checks)), "ok")
    summary = {
        "ok": "all is well",
        "warn": "it works; the warnings say what is weaker than it could be",
        "fail": "something essential is missing",
    }
    stderr().print(Text(summary[worst], marks[worst][1]))
