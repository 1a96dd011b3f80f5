"""`understudy demo`: start an audit for every distribution, kill some run actors meanwhile, and show that all is there.

Nothing here helps the runs to survive: it starts them, answers their questions, kills, watches, and counts.
"""

import asyncio
import importlib.resources
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.prompt import Confirm
from rich.text import Text

from understudy.actors.errors import CallerError, Conflict
from understudy.actors.records import Event, RunRecord
from understudy.actors.results import with_result
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.cluster.cli.screen import Screen
from understudy.cluster.client import Cluster, Run, connect, open_questions
from understudy.cluster.demo import ledger, report, show
from understudy.cluster.demo.audit import Audit
from understudy.cluster.demo.environment import Found, distributions, prefix_of, variables
from understudy.cluster.demo.graph import audit_of, graph
from understudy.cluster.settings import Settings
from understudy.policies.policy_file import load_policy

REFRESH_S = 0.25
PLAIN_EVERY_S = 5.0
"""Seconds between lines of progress where there is no terminal to draw on."""


@dataclass
class Demo:
    """One demo under way."""

    cluster: Cluster
    environment: Path
    names: dict[str, Found]
    """By run id."""
    kill: int
    approve: str
    console: Console
    began: float = field(default_factory=time.time)
    kills: list[report.Kill] = field(default_factory=list)
    _victims: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Run and epoch by place in `kills`."""
    _thresholds: list[float] = field(default_factory=list)
    _tools_before: float = 0.0
    _declined: set[str] = field(default_factory=set)
    message: str = ""

    def __post_init__(self) -> None:
        # One kill in each stretch of the work, at a moment in it that chance decides.
        self._thresholds = [(i + random.random() * 0.8) / max(1, self.kill) for i in range(self.kill)]

    async def records(self) -> list[RunRecord]:
        store = self.cluster.store
        return [await with_result(store, await store.run(run_id)) for run_id in self.names]

    async def leave(self) -> None:
        """Cancel what is left: whoever serves the store next would go on with a demo that nobody watches."""
        ended = 0
        for run_id in self.names:
            run = Run(self.cluster.store, run_id)
            if not (await run.record()).final:
                await run.cancel()
                ended += 1
        self.console.print(f"left; {show.counted(ended, 'run')} cancelled")

    # --- what it does to the runs ---

    async def answer(self, records: list[RunRecord], ask: Callable[[RunRecord, Any], Any]) -> None:
        """Answer the questions of waiting runs, or have a person do it."""
        for record in records:
            for question in open_questions(record):
                if self.approve == "ask":
                    yes, note = await ask(record, question.payload)
                else:
                    yes, note = self.approve == "all", f"--approve {self.approve}"
                with suppress(Conflict):  # somebody was faster, with `understudy resume`
                    await Run(self.cluster.store, record.run_id).resume(
                        {"approve": yes, "note": note}, question.interrupt_id
                    )

    def kill_one(self, records: list[RunRecord]) -> None:
        """End the actor of a running run with SIGKILL, if it is time for one."""
        done = sum(record.final for record in records) / max(1, len(records))
        effective = len(self._victims)
        if effective >= self.kill or done < self._thresholds[effective] or len(self.kills) >= 3 * self.kill:
            return
        if any(kill.recovery_s is None for kill in self.kills[-1:]):
            return  # one after the other: the last one is not back yet
        running = [record for record in records if record.status == "running" and _actor_pid(record)]
        if not running:
            return
        record = random.choice(running)
        pid = _actor_pid(record)
        at = time.time()
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            return
        self._victims[len(self.kills)] = (record.run_id, record.epoch)
        self.kills.append(report.Kill(pid, "run actor", record.run_id, self.names[record.run_id].name, at - self.began))

    async def see_kills(self) -> None:
        """Look in the event logs how long each killed run took to come back. A run that had just ended is no victim."""
        for place, (run_id, epoch) in list(self._victims.items()):
            if self.kills[place].recovery_s is not None:
                continue
            events = await self.cluster.store.events(run_id, limit=100_000)
            back = _back_after(events, epoch, self.began + self.kills[place].at)
            if back is not None:
                self.kills[place] = replace(self.kills[place], recovery_s=back)
            elif not any(event.kind == "crashed" and event.data["epoch"] == epoch for event in events):
                record = await self.cluster.store.run(run_id)
                if record.final or record.status == "waiting":
                    del self._victims[place]
                    self.kills[place] = replace(self.kills[place], recovery_s=0.0, actor="idle run actor")

    # --- what it shows ---

    async def snapshot(self, records: list[RunRecord]) -> show.Snapshot:
        elapsed = time.time() - self.began
        tools = await _tool_calls(self.cluster) - self._tools_before
        finished = sorted((r for r in records if r.status == "succeeded"), key=lambda r: -r.updated_at)
        return show.Snapshot(
            total=len(records),
            statuses=Counter(record.status for record in records),
            elapsed_s=elapsed,
            restarts=sum(record.restarts for record in records),
            kills=[kill for kill in self.kills if kill.actor == "run actor"],
            kills_planned=self.kill,
            tools=int(tools),
            tools_per_s=tools / elapsed if elapsed > 0 else 0.0,
            waiting=[_question(r, self.names[r.run_id]) for r in records if open_questions(r)],
            finished=[_finished(record) for record in finished[: show.ROWS]],
            message=self.message,
        )

    async def report(self, path: Path, out: Path) -> report.Report:
        """The end: what was found, and whether each distribution has its one row."""
        records = await self.records()
        rows, unreadable = ledger.read(path)
        duration_s = time.time() - self.began
        audits = [Audit.model_validate_json(record.result) for record in records if record.status == "succeeded"]
        calls = 0
        for run_id in self.names:
            events = await self.cluster.store.events(run_id, limit=100_000)
            calls += sum(event.kind == "tool_finished" for event in events)
        return report.Report(
            environment=str(self.environment),
            entries=report.entries_of(audits, rows),
            failures=tuple(
                report.Failure(self.names[r.run_id].name, r.run_id, r.status, r.error)
                for r in records
                if r.status != "succeeded"
            ),
            ledger=report.check_ledger([found.name for found in self.names.values()], rows, unreadable),
            kills=tuple(kill for kill in self.kills if kill.actor == "run actor"),
            restarts=sum(record.restarts for record in records),
            tools=calls,
            duration_s=duration_s,
            paths={
                "markdown": str(out / "report.md"),
                "json": str(out / "report.json"),
                "ledger": str(path),
            },
        )


async def run_demo(
    *,
    environment: Path | None,
    runs: int | None,
    kill: int,
    approve: str | None,
    out: Path | None,
    as_json: bool,
    settings: Settings,
) -> int:
    """Do the demo; 0 if every distribution has exactly one row in the ledger, else 1. Raises CallerError."""
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    console: Console = Screen(sys.stderr, 80)
    preflight = await BubblewrapBackend().preflight()
    if not preflight.available:
        raise CallerError(f"this machine cannot isolate tools: {preflight.reason}; {preflight.remedy}")
    found = distributions(environment)[:runs]
    name = time.strftime("%Y%m%d-%H%M%S")
    folder = (out or settings.state_dir / "demo" / name).absolute()
    rows = folder / "ledger.jsonl"
    try:
        ledger.create(rows)
    except FileExistsError:
        raise CallerError(f"{rows} exists already: name another folder with --out, or remove it") from None
    except OSError as error:
        raise CallerError(f"{folder} cannot be written to: {error}; name another folder with --out") from None
    text = importlib.resources.files("understudy.cluster.demo").joinpath("policy.yaml").read_text()
    policy = load_policy(text, source="policy.yaml", variables=variables(environment, rows))
    with console.status("starting Ray and the first actors ...") if console.is_terminal else nullcontext():
        connected = connect(settings=settings, policy=policy)
        cluster = await connected.__aenter__()
    demo = Demo(cluster, prefix_of(environment), {}, kill, approve or ("ask" if terminal else "all"), console)
    try:
        demo._tools_before = await _tool_calls(cluster)
        for one in found:
            given = audit_of(one, str(prefix_of(environment)), str(rows))
            run = await cluster.start(graph, given, key=f"demo-{folder}-{one.name}", labels={"demo": name})
            demo.names[run.run_id] = one
        await _follow(demo)
        done = await demo.report(rows, folder)
    except (asyncio.CancelledError, KeyboardInterrupt):
        await demo.leave()
        raise
    finally:
        await connected.__aexit__(None, None, None)
    (folder / "report.md").write_text(report.as_markdown(done))
    (folder / "report.json").write_text(report.as_json(done))
    if as_json:
        import json

        print(json.dumps(done.summary(), indent=2))
    else:
        Screen(sys.stdout, 80).print(show.summary(done))
    return 0 if done.ok else 1


def keep_it(console: Console) -> bool | None:
    """Ask on the terminal; None if the input ends. Blocks, and Ctrl-C ends it: in a thread, it would wait for Enter."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return Confirm.ask("keep it?", console=console, default=True)
    except EOFError:
        console.print()
        return None
    finally:
        signal.signal(signal.SIGINT, before)


async def _follow(demo: Demo) -> None:
    """Until all runs are final: draw, answer, kill."""
    live = Live(console=demo.console, transient=True, auto_refresh=False) if demo.console.is_terminal else None

    async def ask(record: RunRecord, payload: Any) -> tuple[bool, str]:
        if live is not None:
            live.stop()
        reasons = "".join(f"\n  · {reason}" for reason in payload["reasons"])
        demo.console.print(Text(payload["question"], "bold").append(reasons, "not bold"))
        yes = keep_it(demo.console)
        if live is not None:
            live.start()
        return (False, "nobody answered: the input had ended") if yes is None else (yes, "asked on the terminal")

    printed = 0.0
    with live if live is not None else nullcontext():
        while True:
            records = await demo.records()
            await demo.see_kills()
            demo.kill_one(records)
            await demo.answer(records, ask)
            snapshot = await demo.snapshot(records)
            if live is not None:
                live.update(show.view(snapshot), refresh=True)
            elif snapshot.elapsed_s - printed >= PLAIN_EVERY_S:
                printed = snapshot.elapsed_s
                statuses = ", ".join(f"{count} {status}" for status, count in sorted(snapshot.statuses.items()))
                demo.console.print(
                    f"{snapshot.elapsed_s:4.0f} s: {statuses}; {show.counted(snapshot.tools, 'tool call')}, "
                    f"{show.counted(len(snapshot.kills), 'actor')} killed, "
                    f"{show.counted(snapshot.restarts, 'restart')}",
                    highlight=False,
                    soft_wrap=True,
                )
            if all(record.final for record in records):
                return
            await asyncio.sleep(REFRESH_S)


def _actor_pid(record: RunRecord) -> int:
    """The process of a run's actor, if it is one of this machine; else 0."""
    host, _, rest = record.owner.partition(":")
    pid = rest.rpartition("/")[2]
    if host != socket.gethostname() or not pid.isdigit():
        return 0
    try:
        return int(pid) if "RunActor" in Path(f"/proc/{pid}/cmdline").read_text() else 0
    except OSError:
        return 0


def _back_after(events: list[Event], epoch: int, killed_at: float) -> float | None:
    """Seconds from a kill until a node of the run was at work again, by its event log."""
    crashed: Event | None = None
    for event in events:
        if event.kind == "crashed" and event.data["epoch"] == epoch:
            crashed = event
        elif event.kind == "recovered" and crashed is not None:
            return max(0.0, crashed.at + float(event.data["seconds"]) - killed_at)
    return None


async def _tool_calls(cluster: Cluster) -> float:
    counters = await cluster.store.counters()
    return sum(value for name, value in counters.items() if name.startswith("tool_calls_total"))


def _question(record: RunRecord, found: Found) -> show.Question:
    payload = open_questions(record)[0].payload
    reasons = payload.get("reasons") or [""]
    return show.Question(record.run_id, found.name, int(payload.get("score", 0)), str(reasons[0]))


def _finished(record: RunRecord) -> show.Finished:
    audit = Audit.model_validate_json(record.result)
    return show.Finished(audit.distribution, audit.version, audit.score, audit.verdict or "")
