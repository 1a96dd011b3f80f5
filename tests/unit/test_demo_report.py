"""The demo's last word: the ledger is checked row by row, and the report and the views say what is in them."""

import asyncio
import io
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from understudy.cluster.demo import ledger, show
from understudy.cluster.demo.audit import Approval, Audit, Findings, Imported, Metadata, Reason
from understudy.cluster.demo.command import keep_it
from understudy.cluster.demo.ledger import Row, check_ledger
from understudy.cluster.demo.report import Failure, Kill, Report, as_json, as_markdown, entries_of
from understudy.cluster.demo.scoring import reasons_of, score_of, verdict_of


def row(name: str, verdict: str = "clean", key: str = "") -> Row:
    return Row(distribution=name, version="1.0", score=0, verdict=verdict, run=f"r-{name}", key=key or f"k-{name}")


def audit(name: str, **more: Any) -> Audit:
    return Audit(distribution=name, version="1.0", site="/s", info="/s/i", environment="/e", ledger="/l", **more)


def report(**more: Any) -> Report:
    audits = [
        audit(
            "ant",
            metadata=Metadata(licence="MIT", files=12),
            faults=Findings(counts={"altered": 2}, examples=[{"kind": "altered", "what": "ant|`x`.py"}]),
            imports=[Imported(module="ant", ended="ok"), Imported(module="bee", ended="timeout", error="late")],
            score=45,
            reasons=[Reason(points=45, text="2 files altered since the installation")],
            approval=Approval(approve=True, note="I did that", by="Ada"),
        ),
        audit("cat", score=3, reasons=[Reason(points=3, text="opens sockets, in 1 place")]),
    ]
    rows = [row("ant", "approved"), row("cat")]
    whole = Report(
        environment="/env",
        entries=entries_of(audits, rows),
        failures=(),
        ledger=check_ledger(["ant", "cat"], rows),
        kills=(Kill(4711, "run actor", "r-ant", "ant", 3.25, 0.75), Kill(4712, "run actor", "r-cat", "cat", 5.0)),
        restarts=1,
        tools=14,
        duration_s=7.0,
        paths={"markdown": "/out/report.md"},
    )
    return replace(whole, **more)


# --- ledger ----------------------------------------------------------------------------------------------------------


def test_a_ledger_with_every_row_once():
    check = check_ledger(["ant", "bee"], [row("bee"), row("ant")])
    assert check.ok
    assert check.words() == "every distribution has exactly one row in the ledger (2 rows)"


def test_missing_doubled_and_unexpected_rows():
    check = check_ledger(["ant", "bee", "cat"], [row("ant"), row("ant", key="k-ant"), row("dog")], unreadable=1)
    assert not check.ok
    assert (check.missing, check.doubled, check.unexpected) == (("bee", "cat"), ("ant",), ("dog",))
    assert check.words() == (
        "the ledger is wrong (3 rows): 2 missing: bee, cat; 1 doubled: ant; 1 unexpected: dog; 1 unreadable"
    )


@pytest.mark.parametrize("bad", [{"missing": ["a"]}, {"doubled": ["a"]}, {"unexpected": ["a"]}, {"unreadable": 1}])
def test_any_flaw_makes_it_wrong(bad: dict[str, Any]):
    assert not ledger.Check(rows=1, **bad).ok


def test_reading_the_file(tmp_path: Path):
    path = tmp_path / "folder" / "ledger.jsonl"
    ledger.create(path)
    with pytest.raises(FileExistsError):
        ledger.create(path)
    line = json.dumps({**row("ant").__dict__, "more": "is ignored"})
    path.write_text(f'{line}\n[]\n{{"distribution": "bee"}}\n{line[:20]}')
    assert ledger.read(path) == ([row("ant")], 3)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_signs_of_an_attack_are_enough_by_themselves():
    def score(**found: Any) -> int:
        return score_of(reasons_of(audit("ant", **found)))

    def doing(kind: str, what: str = "", by: str = "ant") -> dict[str, Any]:
        notes = [{"kind": kind, "what": what, "by": by}]
        return {"imports": [Imported(module="ant.sub", ended="ok", notes=notes)]}

    assert score() == 0
    assert score(faults=Findings(counts={"altered": 1})) >= 30
    assert score(code=Findings(counts={"hidden": 1})) >= 30
    assert score(**doing("network")) >= 30
    assert score(**doing("process")) >= 30
    assert score(**doing("read", "/root/.ssh/id_rsa")) >= 30
    assert score(**doing("read", "/proc/stat")) < 15
    assert score(**doing("network", by="bee")) == 0  # what others do when they are imported is theirs
    assert score(faults=Findings(counts={"altered": 9, "missing": 9}), code=Findings(counts={"hidden": 9})) == 100


def test_verdicts():
    assert verdict_of(audit("ant", score=0)) == "clean"
    assert verdict_of(audit("ant", score=20)) == "suspicious"
    assert verdict_of(audit("ant", score=80, approval=Approval(approve=True))) == "approved"
    assert verdict_of(audit("ant", score=80, approval=Approval(approve=False))) == "rejected"


# --- report ----------------------------------------------------------------------------------------------------------


def test_the_summary_of_a_good_demo():
    summary = report().summary()
    assert summary["ok"]
    assert (summary["distributions"], summary["succeeded"], summary["failed"]) == (2, 2, 0)
    assert summary["ledger"] == {"rows": 2, "missing": [], "doubled": [], "unexpected": [], "unreadable": 0}
    assert summary["kills"][0]["recovery_s"] == 0.75
    assert (summary["restarts"], summary["tools"], summary["tools_per_s"]) == (1, 14, 2.0)
    assert summary["verdicts"] == {"clean": 1, "approved": 1}


def test_a_failed_run_or_a_wrong_ledger_is_not_good():
    assert not report(failures=(Failure("dog", "r-dog", "failed", "ToolDenied"),)).ok
    assert not report(ledger=check_ledger(["ant"], [])).ok


def test_json_holds_everything_by_score():
    value = json.loads(as_json(report()))
    assert [one["distribution"] for one in value["audits"]] == ["ant", "cat"]
    assert value["audits"][0]["imports"] == "1 ok, 1 timeout"
    assert value["audits"][0]["approved_by"] == "Ada: I did that"


def test_markdown_cannot_be_broken_by_what_it_quotes():
    text = as_markdown(report(failures=(Failure("d|o\ng", "r-dog", "failed", "<b>"),)))
    assert "| ant | 1.0 | MIT | 12 | 2 altered | 1 ok, 1 timeout | 45 | approved | Ada: I did that |" in text
    assert "- d\\|o g: run r-dog failed: &lt;b>" in text
    assert "altered: ant|'x'.py" in text
    assert "| 3.2 s | 4711 | r-ant | ant | 0.75 s |" in text
    assert "not seen" in text
    assert "**Not good**" in text


def test_states_may_come_as_json():
    state = audit("ant", score=1)
    assert entries_of([state.model_dump(mode="json")], []) == entries_of([state], [])
    assert entries_of([state], [])[0].verdict == "not in the ledger"


# --- views -----------------------------------------------------------------------------------------------------------


def lines(renderable: RenderableType) -> list[str]:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(renderable)
    return console.export_text().splitlines()


def test_the_live_view():
    snapshot = show.Snapshot(
        total=51,
        statuses={"succeeded": 20, "running": 4, "waiting": 1, "queued": 26},
        elapsed_s=12.3,
        restarts=2,
        kills=report().kills,
        kills_planned=3,
        tools=99,
        tools_per_s=8.04,
        waiting=[show.Question("r-1", "ray[x]", 32, "starts other programs, in 103 places " * 3)],
        finished=[show.Finished("rich", "15.0", 4, "clean")],
        message="2 questions for you",
    )
    shown = lines(show.view(snapshot))
    text = "\n".join(shown)
    assert max(map(len, shown)) <= 80
    assert "51 runs · 12 s · 99 tool calls (8.0/s) · 2 of 3 killed · 2 restarts" in text
    for part in ("back after 0.75 s", "not seen back", "ray[x]", "rich", "2 questions for you", "failed"):
        assert (part in text) == (part != "failed")


def test_the_first_view_is_empty_and_whole():
    assert len(lines(show.view(show.Snapshot(total=0, statuses={}, elapsed_s=0)))) < 9


def test_the_last_view():
    text = "\n".join(lines(show.summary(report())))
    assert "Good: every distribution has exactly one row" in text
    assert "Back after 0.75 s" in text
    assert "/out/report.md" in text
    paths = {"markdown": "/out/report.md", "json": "/out/report.json", "ledger": "/out/ledger.jsonl"}
    text = "\n".join(lines(show.summary(report(paths=paths))))
    assert text.count("/out/") == 1
    assert "report.md, report.json, ledger.jsonl" in text
    failed = "\n".join(lines(show.summary(report(failures=(Failure("dog", "r", "failed", "ToolDenied: no"),)))))
    assert "Not good" in failed
    assert "dog: failed: ToolDenied: no" in failed


def answered(monkeypatch: pytest.MonkeyPatch, read: Callable[[], str]) -> bool | None:
    """What `keep_it` makes of it, inside of a loop, as in the demo."""
    monkeypatch.setattr("builtins.input", read)

    async def asked() -> bool | None:
        return keep_it(Console(file=io.StringIO()))

    return asyncio.run(asked())


def test_the_end_of_the_input_is_nobody_s_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> str:
        raise EOFError

    assert answered(monkeypatch, ended) is None
    assert answered(monkeypatch, lambda: "n") is False


def test_ctrl_c_ends_the_question_and_not_only_once_somebody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        signal.raise_signal(signal.SIGINT)  # asyncio's own handler would let the read go on
        return "y"

    with pytest.raises(KeyboardInterrupt):
        answered(monkeypatch, interrupted)
