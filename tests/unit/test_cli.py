"""The command line without Ray: what is printed where, with which exit status, and what a person can type next."""

import asyncio
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pytest
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner, Result

from support.servers import promtool_check_metrics
from support.stage import Stage, YesPolicy
from understudy import END, START, Context, Graph, append, tool
from understudy.actors.calls import Asked, Granted, Verdict
from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.events import Event
from understudy.actors.records import STATUSES, Interrupt, InterruptKind
from understudy.actors.store import Store
from understudy.cluster import daemon
from understudy.cluster.cli import budgets, demo, files, forking, machine, policy, reading, running  # noqa: F401 (they register commands)
from understudy.cluster.cli.command import Here, app
from understudy.cluster.cli.screen import Screen
from understudy.cluster.cli.view import clock, event_line, iso, moment, note_on, plain_table, short, span
from understudy.cluster.client import Run
from understudy.cluster.settings import read_settings
from understudy.cluster.stores import open_store
from understudy.policies.permission import Request

T = TypeVar("T")
Cli = Callable[..., Result]


class Refund(BaseModel):
    order: str = "A1"
    notes: Annotated[list[str], append] = []


@tool
def pay(order: str) -> str:
    return f"paid {order}"


asking = Graph("asking", Refund)


@asking.node
async def think(state: Refund) -> dict[str, Any]:
    return {"notes": ["thought"]}


@asking.node
async def question(state: Refund, ctx: Context) -> dict[str, Any]:
    return {"notes": [str(await ctx.interrupt({"refund": state.order}))]}


asking.edge(START, "think")
asking.edge("think", "question")
asking.edge("question", END)

paying = Graph("paying", Refund)


@paying.node
async def charge(state: Refund, ctx: Context) -> dict[str, Any]:
    return {"notes": [await ctx.call(pay, order=state.order)]}


paying.edge(START, "charge")
paying.edge("charge", END)


def ask_first(request: Request, approved: bool) -> Verdict:
    return Granted("token", "ask", "p", "approved") if approved else Asked("ask", "p", "money leaves")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/test.db"


@pytest.fixture
def cli(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call `understudy` with these words, on the test's own store."""
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", url)
    Path(url.removeprefix("sqlite://")).touch()
    monkeypatch.chdir(tmp_path)

    def call(*words: str, given: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=given, prog_name="understudy")

    return call


def on(url: str, body: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Do something with the store, as another process would."""

    async def opened() -> T:
        store = await open_store(url)
        try:
            return await body(store)
        finally:
            await store.close()

    return asyncio.run(opened())


def played(url: str, graph: Graph, order: str = "A1") -> str:
    """A run of this graph, driven to its end or its first question."""

    async def play(store: Store) -> str:
        stage = Stage(store, graph, YesPolicy({"pay": ask_first})).tools(pay)
        run = await stage.start({"order": order})
        await stage.drive(run)
        return run.run_id

    return on(url, play)


def driven(url: str, graph: Graph, run_id: str) -> None:
    """One more residence of a run."""

    async def drive(store: Store) -> None:
        stage = Stage(store, graph, YesPolicy({"pay": ask_first})).tools(pay)
        await stage.drive(Run(store, run_id, graph))

    on(url, drive)


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def words_of(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[0] == "understudy"
    return words[1:]


# --- usage ---------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_each_has_an_example(cli: Cli) -> None:
    text = cli("--help").stdout
    looking, steering = (
        ("ps", "show", "events", "history", "effects", "files"),
        ("run", "resume", "approve", "deny", "cancel", "fork"),
    )
    for command in (*looking, *steering, "up", "down", "status", "doctor", "metrics", "demo"):
        assert command in text
        assert f"understudy {command}" in cli(command, "--help").stdout
    for command in ("check", "explain", "schema"):
        assert f"understudy policy {command}" in cli("policy", command, "--help").stdout


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("understudy 0.")


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["ps", "--nonsense"],
        ["ps", "--status", "asleep"],
        ["show"],
        ["run", "flows:graph", "--input", "{"],
        ["run", "flows:graph", "--input", "[1]"],
        ["run", "flows:graph", "--input", "@nowhere.json"],
        ["run", "flows:graph", "--label", "x"],
        ["resume", "r00-1", "yes"],
        ["policy", "explain", "--tool", "pay"],
    ],
)
def test_wrong_usage_is_two_and_says_what(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["policy", "check", "binary"], "it is no text"),
        (["run", "flow:graph", "--input", "@binary"], "it is no text"),
        (["run", "flow:graph", "--input", "[" * 100_000], "nested too deep"),
        (["ps", "--store", "redis://:secret@127.0.0.1:99999/0"], "Port out of range"),
        (["events", "r", "--after", "9" * 30], "is no cursor"),
        (["ps", "--limit", "9" * 30], "1000000"),
        (["show", "r\udc9b"], "is not UTF-8"),
        (["run", "flow:graph", "--label", "a=\udc9b"], "is not UTF-8"),
    ],
    ids=["policy", "input file", "deep input", "port", "cursor", "limit", "bytes", "bytes in a list"],
)
def test_what_is_wrong_with_an_argument_is_not_called_a_bug_of_ours(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    result = cli(*words)
    assert result.exit_code in (1, 2)
    assert told in result.stderr
    assert "bug of ours" not in result.stderr
    assert "secret" not in result.stderr


def test_a_settings_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "understudy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CallerError, match=r"understudy.toml cannot be read"):
        read_settings(environ={"UNDERSTUDY_STATE_DIR": str(tmp_path / "state")})


def test_a_word_that_is_no_json_is_shown_quoted(cli: Cli) -> None:
    assert """'"yes"'""" in cli("resume", "r00-1", "yes").stderr


def test_what_cannot_be_done_is_one_and_says_why(cli: Cli, tmp_path: Path) -> None:
    assert "there is no run 'r00-nix'" in failed(cli("show", "r00-nix"))
    assert "is not known; it is one of sqlite" in failed(cli("ps", "--store", "mysql://x"))
    assert "there is no module 'nowhere'" in failed(cli("run", "nowhere:graph"))
    assert "UNDERSTUDY_LEASE_S" in failed(_with_env(cli, "UNDERSTUDY_LEASE_S", "soon"))
    for words in (["ps"], ["status"], ["show", "r00"], ["resume", "r00", "1"]):
        told = failed(cli(*words, "--store", f"sqlite://{tmp_path}/mistyped.db"))
        assert f"there is no store at {tmp_path}/mistyped.db; --store or UNDERSTUDY_STORE names the one" in told
    assert not (tmp_path / "mistyped.db").exists()
    assert "did you mean UNDERSTUDY_STORE?" in _with_env(cli, "UNDERSTUDY_STOER", "x").stderr


def failed(result: Result) -> str:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return " ".join(result.stderr.split())


def _with_env(cli: Cli, name: str, value: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        return cli("ps")


def test_a_bug_shows_its_traceback_only_when_asked(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("understudy.cluster.cli.reading.runs_table", broken)
    played(url, asking)
    short_one, long_one = cli("ps"), cli("ps", "--debug")
    assert (short_one.exit_code, long_one.exit_code) == (1, 1)
    assert "ZeroDivisionError: ours" in short_one.stderr
    assert "Traceback" not in short_one.stderr
    assert "Traceback" in long_one.stderr


def test_the_store_may_be_named_before_or_after_the_command(cli: Cli, tmp_path: Path) -> None:
    other = f"sqlite://{tmp_path}/other.db"
    run_id = played(other, asking)
    assert document(cli("ps", "--json")) == []
    assert [run["run_id"] for run in document(cli("ps", "--json", "--store", other))] == [run_id]
    [run] = document(cli("--store", other, "ps", "--json"))
    # And a command that is printed goes to the same one.
    assert f"--store {other}" in run["questions"][0]["commands"][0]


def test_a_password_is_not_repeated() -> None:
    from understudy.cluster.cli.command import _here

    here = _here({"store": "redis://:secret@127.0.0.1:1/0", "state_dir": None, "debug": False})
    assert here.command("up") == 'understudy up --store "$UNDERSTUDY_STORE"'


def test_reading_does_not_import_ray(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom understudy.cluster.cli import main\nsys.argv = ['understudy', *sys.argv[1:]]\n"
        "try: main()\nfinally: assert 'ray' not in sys.modules and 'redis' not in sys.modules, 'imported'"
    )
    for words in (["ps"], ["show", "r00"], ["status"], ["resume", "r00-1", "1"], ["metrics"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={"UNDERSTUDY_STATE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "imported" not in done.stderr, words


# --- looking -------------------------------------------------------------------------------------------------------


def test_a_run_in_json_has_what_programs_rely_on(cli: Cli, url: str) -> None:
    run_id = played(url, paying)
    [run] = document(cli("ps", "--json"))
    promised = "run_id thread_id graph version status step restarts created_at updated_at error"
    assert run.keys() >= set(promised.split())
    assert run.items() <= document(cli("show", run_id, "--json")).items()
    assert run["status"] == "waiting"
    assert "result" not in run
    assert run["created_at"].endswith("Z")
    [asked] = run["questions"]
    assert asked["kind"] == "approval"
    assert asked["node"] == "charge"
    assert asked["payload"]["args"] == {"order": "A1"}


def test_ps_shows_a_line_a_run_and_what_to_know(cli: Cli, url: str) -> None:
    first, second = played(url, asking), played(url, paying)
    head, *lines = cli("ps").stdout.splitlines()
    assert head.split() == ["RUN", "GRAPH", "STATUS", "STEP", "RESTARTS", "AGE", "NOTE"]
    assert lines[0].startswith(second)
    assert "approve pay?" in lines[0]
    assert lines[1].startswith(first)
    assert 'asks: {"refund": "A1"}' in lines[1]
    assert len(document(cli("ps", "--json", "--limit", "1"))) == 1
    assert document(cli("ps", "--json", "--status", "failed")) == []


@pytest.mark.parametrize(("kind", "told"), [("unknown", "how did pay end?"), ("repeat", "repeat pay?")])
def test_ps_asks_about_an_effect_in_words(kind: InterruptKind, told: str) -> None:
    question = Interrupt("u1", "t1", "charge", kind, {"tool": "pay", "question": "the sandbox died during this call"})
    record: Any = None  # whose questions are asked first
    assert note_on(record, [question], 0.0) == told


def test_ps_of_nothing_says_how_to_begin(cli: Cli) -> None:
    result = cli("ps")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "understudy run" in result.stderr


def test_ps_of_nothing_says_that_the_daemon_serves_another_store(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    up = daemon.Daemon(os.getpid(), daemon.born(os.getpid()), "postgresql://127.0.0.1/agents", "", "", {}, 0.0)
    monkeypatch.setattr(daemon, "running_daemon", lambda settings: up)
    told = " ".join(cli("ps").stderr.split())
    assert "the daemon that is up serves postgresql://127.0.0.1/agents: name that with --store" in told


def test_show_tells_what_waits_and_what_to_type(cli: Cli, url: str) -> None:
    text = cli("show", played(url, paying)).stdout
    assert 'pay(order="A1")' in text
    assert "money leaves" in text
    typed = [line.strip().removeprefix("$ ") for line in text.splitlines() if line.strip().startswith("$ ")]
    assert [words_of(command)[0] for command in typed] == ["approve", "deny"]
    assert "approved" in cli(*words_of(typed[0])).stderr


def test_show_shows_what_is_there_and_says_what_it_leaves_out(cli: Cli, url: str) -> None:
    text = cli("show", played(url, asking, "two  blanks\tand\n a line")).stdout
    assert r'order = "two  blanks\tand\n a line"' in text
    text = cli("show", played(url, asking, "x" * 200)).stdout
    assert f'order = "{"x" * 159}… (42 characters more; --json has all)' in text


def test_a_beginning_of_an_id_is_enough_if_it_is_one(cli: Cli, url: str) -> None:
    ids = [played(url, asking) for _ in range(2)]
    assert document(cli("show", ids[0][:12], "--json"))["run_id"] == ids[0]
    result = cli("show", "r")
    assert result.exit_code == 2
    assert all(run_id in result.stderr for run_id in ids)


def test_a_shell_is_offered_the_ids_of_runs(
    cli: Cli, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = played(url, asking)

    def offered(*words: str) -> list[str]:
        monkeypatch.setenv("_UNDERSTUDY_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["understudy", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        result = cli()
        monkeypatch.delenv("_UNDERSTUDY_COMPLETE")
        return result.output.split()

    assert offered("show", run_id[:3]) == [run_id]
    assert offered("show", "zz") == []
    assert offered("polic") == ["policy"]
    elsewhere = tmp_path / "elsewhere.db"
    assert offered("--store", f"sqlite://{elsewhere}", "show", "r") == []
    assert not elsewhere.exists(), "nothing is made by being asked"
    assert offered("--store", "redis://127.0.0.1:1/0", "show", "r") == []


def test_help_fills_the_width_and_says_no_types_of_switches(cli: Cli) -> None:
    text = cli("budgets", "--help").stdout
    assert "[RUN|ACCOUNT]" in text
    assert "[[" not in text
    assert "<bool>" not in text + cli("--help").stdout


def test_events_in_order_from_a_cursor_on(cli: Cli, url: str) -> None:
    run_id = played(url, asking)
    events = document(cli("events", run_id, "--json"))
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "created"
    assert document(cli("events", run_id, "--json", "--after", "3")) == events[3:]
    lines = cli("events", run_id).stdout.splitlines()
    assert len(lines) == len(events)
    assert "node_finished" in "".join(lines)


def test_following_ends_with_the_run(cli: Cli, url: str) -> None:
    run_id = played(url, asking)
    assert cli("cancel", run_id).exit_code == 0
    lines = cli("events", run_id, "--follow", "--json").stdout.splitlines()
    assert json.loads(lines[-1])["kind"] == "finished"


def test_every_kind_of_event_has_its_line() -> None:
    data = {
        "graph": "g",
        "run_id": "r",
        "version": "1",
        "owner": "o",
        "epoch": 1,
        "cause": "c",
        "attempt": 1,
        "seconds": 0.5,
        "node": "n",
        "step": 1,
        "error": "",
        "checkpoint_id": "c1",
        "interrupt_id": "q1",
        "kind": "question",
        "payload": 1,
        "decision": "deny",
        "tool": "t",
        "rule": "",
        "reason": "r",
        "sandbox": "s",
        "outcome": "ok",
        "status": "failed",
        "name": "e",
        "call": "e()",
        "answer": "done",
        "by": "a person",
        "to": "q2",
        "method": "GET",
        "host": "h",
        "port": 80,
        "sent_bytes": 1,
        "received_bytes": 2,
        "server": "m",
        "first": True,
        "tools": 1,
        "waiting": 0,
    }
    from understudy.actors.events import KINDS

    for kind in KINDS:
        assert kind in event_line(Event(kind, 0.0, data, 1)).plain
        assert "\n" not in event_line(Event(kind, 0.0, {**data, "error": "a\nb", "payload": "a\nb"}, 1)).plain


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("expired", {"interrupt_id": "q1", "node": "n"}, "q1  node n"),
        ("interrupted", {"kind": "timer", "payload": {}, "deadline": 0.0}, f"t1  timer until {moment(0.0)}, node n"),
        ("interrupted", {"kind": "message", "payload": {}, "deadline": None}, "t1  message, node n"),
        ("interrupted", {"kind": "child", "payload": {"run_id": "r1", "graph": "g"}}, "t1  child r1, node n"),
        ("node_failed", {"error": "ValueError: no", "again_at": 0.0}, f"n  ValueError: no; again at {clock(0.0)}"),
        ("node_failed", {"error": "ValueError: no"}, "n  ValueError: no"),
        ("mcp_tools", {"server": "m", "first": True, "tools": 1, "waiting": 0}, "m  first seen, 1 tool accepted"),
        (
            "mcp_tools",
            {"server": "m", "first": False, "tools": 2, "waiting": 1},
            "m  looked at, 2 tools accepted, 1 set aside: `understudy mcp diff m`",
        ),
    ],
)
def test_the_line_of_an_event_is_words_not_json(kind: str, data: dict[str, Any], told: str) -> None:
    line = event_line(Event(kind, 0.0, {"interrupt_id": "t1", "node": "n", **data}, 1)).plain
    assert line.split(kind, 1)[1].strip() == told


def test_history_lists_what_can_be_forked(cli: Cli, url: str) -> None:
    run_id = played(url, asking)
    rows = document(cli("history", run_id, "--json"))
    assert [row["step"] for row in rows] == [1]
    assert "head" in cli("history", run_id).stdout
    forked = cli("fork", run_id, "--at", rows[0]["checkpoint_id"][:6])
    assert forked.exit_code == 0
    fork_id = forked.stdout.strip()
    assert document(cli("show", fork_id, "--json"))["labels"]["forked_from"].startswith(run_id)
    assert "no checkpoint begins with 'zzz'" in failed(cli("fork", run_id, "--at", "zzz"))


# --- steering ------------------------------------------------------------------------------------------------------


def test_an_answer_lets_a_run_go_on(cli: Cli, url: str) -> None:
    run_id = played(url, asking)
    [asked] = document(cli("show", run_id, "--json"))["questions"]
    words = ['"sure"' if word == "JSON" else word for word in words_of(asked["commands"][0])]
    result = cli(*words)
    assert result.exit_code == 0
    assert "is queued" in result.stderr
    assert "understudy up" in result.stderr  # nobody serves this store
    driven(url, asking, run_id)
    assert document(cli("show", run_id, "--json"))["result"]["notes"] == ["thought", "sure"]
    assert "and asks nothing that could be answered" in failed(cli("resume", run_id, "1"))
    assert "no open question 'q'" in failed(cli("resume", run_id, "1", "--question", "q"))


def test_an_answer_where_a_call_is_to_be_approved_tells_how_that_is_done(cli: Cli, url: str) -> None:
    run_id = played(url, paying)
    [asked] = document(cli("show", run_id, "--json"))["questions"]
    assert asked["commands"][0] in failed(cli("resume", run_id, "1"))


@pytest.mark.parametrize(("word", "status"), [("approve", "succeeded"), ("deny", "failed")])
def test_a_call_is_approved_or_denied_without_naming_the_only_one(cli: Cli, url: str, word: str, status: str) -> None:
    run_id = played(url, paying)
    assert document(cli(word, run_id[:10], "--note", "looked", "--json"))["status"] == "queued"
    driven(url, paying, run_id)
    run = document(cli("show", run_id, "--json"))
    assert run["status"] == status
    assert ("looked" in run["error"]) == (word == "deny")
    assert "waiting: none" in failed(cli(word, run_id))


def test_cancel(cli: Cli, url: str) -> None:
    run_id = played(url, asking)
    assert document(cli("cancel", run_id, "--json"))["status"] == "cancelled"
    again = cli("cancel", run_id)
    assert again.exit_code == 0


def test_run_detached_is_durable_and_says_that_nobody_serves(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flow_here.py").write_text(FLOW)
    result = cli("run", "flow_here:graph", "--input", '{"n": 3}', "--key", "k", "--label", "a=b", "--detach")
    assert result.exit_code == 0, result.stderr
    run_id = result.stdout.strip()
    assert "understudy up" in result.stderr
    run = document(cli("show", run_id, "--json"))
    assert (run["status"], run["labels"], run["state"]) == ("queued", {"a": "b"}, {"n": 3})
    same = cli("run", "flow_here:graph", "--input", "-", "--key", "k", "--detach", given='{"n": 3}')
    assert same.stdout.strip() == run_id
    (tmp_path / "input.json").write_text('{"n": 4}')
    assert "another" in failed(cli("run", "flow_here:graph", "--input", "@input.json", "--key", "k", "--detach"))
    assert "does not fit graph" in failed(cli("run", "flow_here:graph", "--input", '{"n": "x"}', "--detach"))
    # Not detached, a cluster would be started: what is wrong is said before.
    told = failed(cli("run", "flow_here:graph", "--input", '{"m": 3}'))
    assert "'m', which is no channel" in told
    assert "starting Ray" not in told
    wrong = cli("run", "flow_here:graph", "--input", "n=3")
    assert wrong.exit_code == 2
    assert """write e.g. '{"order": "A1"}'""" in wrong.stderr
    assert "its graphs: graph" in failed(cli("run", "flow_here:nix"))

    async def away(store: Store, now: float) -> bool:
        raise StoreUnavailable("too many clients already")

    monkeypatch.setattr("understudy.cluster.client.is_served", away)
    result = cli("run", "flow_here:graph", "--input", '{"n": 3}', "--key", "k", "--detach")
    assert (result.exit_code, result.stdout.strip()) == (0, run_id), "it is durable"
    assert "the run is durable; whether anybody serves it cannot be told: too many clients" in result.stderr


def test_a_run_that_is_left_alone_says_so_once(cli: Cli, capsys: pytest.CaptureFixture[str], url: str) -> None:
    async def watched(store: Store) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "SERVICE_POLL_S", 0.0)
            watch = asyncio.ensure_future(running._watch_service(Here(read_settings({"store": url})), store))
            for alive in (True, False, False):
                await store.beat("elsewhere:1:1", "{}", time.time() if alive else 0.0)
                for _ in range(20):
                    await asyncio.sleep(0.005)
            watch.cancel()

    on(url, watched)
    assert capsys.readouterr().err.count("whoever served this store has left; it is served from here") == 1


FLOW = """
from pydantic import BaseModel
from understudy import END, START, Graph

class State(BaseModel):
    n: int = 0

graph = Graph("here", State)

@graph.node
def one(state: State):
    return {"n": state.n + 1}

graph.edge(START, "one")
graph.edge("one", END)
"""

# --- this machine --------------------------------------------------------------------------------------------------


def test_metrics_please_promtool(cli: Cli, url: str) -> None:
    played(url, asking)
    text = cli("metrics").stdout
    promtool_check_metrics(text)
    assert 'understudy_runs{status="waiting"} 1.0' in text
    assert cli("metrics", "--openmetrics").stdout.endswith("# EOF\n")


def test_status_without_a_daemon(cli: Cli, url: str) -> None:
    run_id = played(url, paying)
    found = document(cli("status", "--json"))
    assert found["daemon"] is None
    assert found["store"]["kind"] == "sqlite"
    assert found["runs"] == {**dict.fromkeys(STATUSES, 0), "waiting": 1}
    assert [asked["run_id"] for asked in found["questions"]] == [run_id]
    text = cli("status")
    assert "down" in text.stdout
    assert "understudy up" in text.stderr


def test_down_without_a_daemon_is_no_error(cli: Cli) -> None:
    told = document(cli("down", "--json"))
    assert set(told.pop("left_over")) == {"processes", "cgroups", "folders"}, "others may have left some here"
    assert told == {"stopped": False, "unfinished_runs": 0}


def test_a_daemon_that_serves_another_store_is_told_of(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the runs of one store would seem to be served, and to stay, as those of the other."""
    other = daemon.Daemon(77, "1", "redis://host/0", "http://127.0.0.1:1/metrics", "127.0.0.1:2", {}, 0.0)
    monkeypatch.setattr(daemon, "running_daemon", lambda settings: other)
    monkeypatch.setattr(daemon, "stop", lambda settings: other)
    told = [" ".join(cli(word).stderr.split()) for word in ("status", "down")]
    here = f"redis://host/0, not sqlite://{tmp_path}/test.db"
    assert f"the daemon that is up (pid 77) serves {here}" in told[0]
    assert f"the daemon (pid 77) served {here}" in told[1]


def test_down_needs_no_store(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database " * 1000)
    result = cli("down", "--json", "--store", f"sqlite://{tmp_path}/broken.db")
    assert (document(result)["stopped"], document(result)["unfinished_runs"]) == (False, None)
    assert "cannot be told" in result.stderr
    assert "damaged" in result.stderr


def test_doctor_tries_what_it_tells(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("doctor", "--json")
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {"python", "ray", "isolation", "store", "secret", "disk", "capacity", "daemon"} <= found.keys()
    assert found["store"]["state"] == "ok"
    assert "network works" in found["tier zygote"]["found"]
    assert "network cannot be given" in found["tier landlock"]["found"]
    assert all(check["remedy"] for check in found.values() if check["state"] != "ok")
    secret = tmp_path / "state" / "secret"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("x" * 64)
    secret.chmod(0o644)
    monkeypatch.setenv("UNDERSTUDY_STORE", "redis://127.0.0.1:1/0")
    granted = tmp_path / "secrets.yaml"
    granted.touch(mode=0o640)
    granted.write_text("token: {value: for-nobodys-eyes, hosts: [api.example.org]}")
    granted.chmod(0o640)
    monkeypatch.setenv("UNDERSTUDY_SECRETS", str(granted))
    monkeypatch.setenv("UNDERSTUDY_PRELOAD", "sqlite3,no_such_module")
    bad = cli("doctor")
    assert bad.exit_code == 1
    assert f"chmod 600 {granted}" in " ".join(bad.stdout.split())
    assert "ok preload sqlite3 warn preload no_such_module is not loaded: ModuleNotFoundError" in " ".join(
        bad.stdout.split()
    )
    granted.chmod(0o600)
    told = cli("doctor").stdout
    assert "token (by the proxy)" in " ".join(told.split())
    assert "for-nobodys-eyes" not in told
    assert f"chmod 600 {secret}" in bad.stdout
    assert "fail  store" in bad.stdout


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000123, "12 us"),
        (0.0123, "12 ms"),
        (1.26, "1.3 s"),
        (75, "75 s"),
        (150, "2 min"),
        (9000, "2 h"),
        (1e6, "12 d"),
    ],
)
def test_a_span_has_the_unit_that_fits(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_time_beyond_all_dates_is_told_all_the_same() -> None:
    assert iso(1e15) == "9999-01-01T00:00:00.000Z"
    assert moment(1e15).startswith(("9999-01", "9998-12"))
    assert iso(0.0) is None


def test_on_a_narrow_screen_one_column_gives_way() -> None:
    def shown(table: Table, width: int) -> str:
        screen = Screen(io.StringIO(), width)
        screen.print(table)
        return "".join(f"{line.rstrip()}\n" for line in screen.file.getvalue().splitlines())  # type: ignore[attr-defined]

    table = plain_table("RUN", "STATUS", "NOTE")
    table.add_row("r1f-43389196dc364985", Text("succeeded"), "asks: " + "x" * 100)
    assert shown(table, 60) == (
        f"RUN                   STATUS     NOTE\nr1f-43389196dc364985  succeeded  asks: {'x' * 18}…\n"
    )
    assert "x" * 100 in shown(table, 200)
    table = plain_table("ACCOUNT", "LEFT", yields="ACCOUNT", fold=True)
    table.add_row("tenant/acme/run/shop", "7")
    assert shown(table, 20) == "ACCOUNT       LEFT\ntenant/acme/  7\nrun/shop\n"


def test_short_is_one_line_and_else_as_it_is() -> None:
    assert short("a\nb  c") == "a b  c"
    assert short(["a  b"]) == '["a  b"]'
    assert len(short("x" * 100, 10)) == 10
