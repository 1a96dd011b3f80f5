"""What tools, models and strangers wrote is shown, and steers no terminal: no escapes, no made-up lines."""

import asyncio
import contextlib
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner, Result

from support.stage import Stage, YesPolicy
from understudy import END, START, Context, Graph, open_store, tool
from understudy.actors.calls import Asked, Verdict
from understudy.actors.mcp import pins
from understudy.cluster.cli import audit, files, forking, grants, mcp, reading, running, screen  # noqa: F401
from understudy.cluster.cli.command import app, say_error
from understudy.cluster.cli.screen import Screen, harmless, json_line
from understudy.policies.permission import Request

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202egnp.exe\u200b\x7f\u2028\x08a"
FORGED = "fine\n  $ understudy approve other-run\nstatus   succeeded"
STEERS = frozenset("\x1b\x07\x08\x9b\r\u202e\u200b\x7f\u2028")


class Told(BaseModel):
    said: str = EVIL
    unit: str = "\ud800"


@tool
def pay(order: str) -> str:
    return order


asking = Graph("asking", Told)


@asking.node
async def asks(state: Told, ctx: Context) -> None:
    await ctx.interrupt(f"{EVIL}\n{FORGED}")


asking.edge(START, "asks")
asking.edge("asks", END)

paying = Graph("paying", Told)


@paying.node
async def pays(state: Told, ctx: Context) -> None:
    await ctx.call(pay, order=f"{EVIL}{FORGED}")


paying.edge(START, "pays")
paying.edge("pays", END)

failing = Graph("failing", Told)


@failing.node
async def fails(state: Told) -> None:
    raise ValueError(f"{EVIL}{FORGED}")


failing.edge(START, "fails")
failing.edge("fails", END)


def ask_first(request: Request, approved: bool) -> Verdict:
    return Asked("a rule", "p", f"{EVIL}{FORGED}")


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("UNDERSTUDY_STORE", f"sqlite://{tmp_path}/test.db")
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="understudy")


@pytest.fixture
def ids(cli: Cli, tmp_path: Path) -> dict[str, str]:
    """Runs whose every text is hostile, and an MCP server."""

    async def play() -> dict[str, str]:
        store = await open_store(f"sqlite://{tmp_path}/test.db")
        found = {}
        for graph in (asking, paying, failing):
            stage = Stage(store, graph, YesPolicy({"pay": ask_first})).tools(pay)
            run = await stage.start({"said": f"{EVIL}{FORGED}", "unit": "x"}, key=f"{EVIL}{FORGED}{graph.name}")
            await stage.drive(run)
            found[graph.name] = run.run_id
        evil = {"name": EVIL, "description": FORGED, "inputSchema": {"type": "object", "title": EVIL}}
        known = pins.seen(
            pins.first_sight("calc", [evil], EVIL), [evil, {**evil, "name": "other", "description": EVIL}]
        )
        await store.write_document(pins.SHELF, "calc", known.text(), 0)
        await store.close()
        return found

    return asyncio.run(play())


def test_no_command_prints_what_steers_a_terminal(cli: Cli, ids: dict[str, str]) -> None:
    commands = [("ps",), ("audit", "show"), ("mcp", "list"), ("mcp", "show", "calc"), ("mcp", "diff", "calc")]
    commands += [
        (word, run_id) for run_id in ids.values() for word in ("show", "events", "history", "effects", "files")
    ]
    for words in commands:
        for more in ((), ("--json",)):
            result = cli(*words, *more)
            assert result.exit_code == 0, (words, result.output)
            assert not STEERS & {*result.output}, (words, more)
    for words in (("show", EVIL), ("approve", ids["asking"], EVIL), ("mcp", "accept", "calc", EVIL)):
        result = cli(*words)
        assert result.exit_code != 0
        assert not STEERS & {*result.output}, words


def test_json_says_the_very_same(cli: Cli, ids: dict[str, str]) -> None:
    shown = json.loads(cli("show", ids["asking"], "--json").stdout)
    assert shown["state"]["said"] == f"{EVIL}{FORGED}"
    assert shown["questions"][0]["payload"] == f"{EVIL}\n{FORGED}"


def test_no_text_makes_up_a_line(cli: Cli, ids: dict[str, str]) -> None:
    for graph, run_id in ids.items():
        for words in (("show", run_id), ("events", run_id), ("ps",), ("audit", "show")):
            lines = cli(*words).output.splitlines()
            assert not [
                line for line in lines if line.startswith(("status   succeeded", "  $ understudy approve o"))
            ], (
                graph,
                words,
            )


def test_errors_and_what_is_unforeseen_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("sys.stderr", told)
    say_error(EVIL)
    with contextlib.suppress(ValueError):
        raise ValueError(EVIL)
    assert "\ufffd" in told.getvalue()
    assert not STEERS & {*told.getvalue()}


def test_a_file_is_raw_in_a_pipe_and_harmless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen = Terminal()
    monkeypatch.setattr("sys.stdout", seen)
    screen.write_out(EVIL.encode() + b"\xff\x1b")
    assert not STEERS & {*seen.getvalue()}
    piped = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", piped)
    screen.write_out(b"\x1b\xff")
    assert piped.buffer.getvalue() == b"\x1b\xff"  # type: ignore[attr-defined]


TEXTS = st.text(max_size=40) | st.text(
    st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"]), max_size=20
)


@given(TEXTS, TEXTS)
def test_whatever_is_printed_is_harmless_and_json_is_the_same(text: str, other: str) -> None:
    file = io.StringIO()
    table = Table("A", "B")
    table.add_row(text, Text(other))
    for shown in (text, Text(other, "bold"), table):
        Screen(file).print(shown)
    unseen = [char for char in file.getvalue() if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert {*unseen} <= {"\n"}
    assert not STEERS & {*file.getvalue()}
    assert harmless(harmless(text)) == harmless(text)
    value: Any = {text: [other, {"a": text}]}
    line = json_line(value)
    assert json.loads(line) == json.loads(json.dumps(value))  # two halves of a character are one in any JSON
    assert not STEERS & {*line}
    line.encode()
