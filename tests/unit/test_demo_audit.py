"""The audit, from the inside out: what is installed, the tools as plain functions, and the graph on the engine.

Everything happens in a made-up environment on disk, whose RECORDs are right until a test changes a file.
"""

import base64
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.stage import Stage, YesPolicy
from support.waiting import run_async
from understudy.actors.calls import Refused
from understudy.actors.errors import CallerError
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.actors.tool import Tool
from understudy.cluster.client import Run, RunFailed, open_questions
from understudy.cluster.demo import ledger, sources, tools
from understudy.cluster.demo.audit import Approval, Audit, Findings, Imported, merged
from understudy.cluster.demo.environment import distributions, normalised, sites_of, variables
from understudy.cluster.demo.graph import audit_of, graph
from understudy.cluster.demo.tools import (
    append_ledger,
    parse_sources,
    probe_import,
    read_metadata,
    read_startup,
    verify_files,
)
from understudy.policies.permission import Allow, Deny, Request, decide
from understudy.policies.policy_file import load_policy

TOOLS = [tool for tool in vars(tools).values() if isinstance(tool, Tool)]
POLICY = Path(tools.__file__).with_name("policy.yaml").read_text()


class Environment:
    """A prefix with one site-packages folder."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.site = prefix / "lib/python3.11/site-packages"
        self.site.mkdir(parents=True)

    def install(
        self, name: str, files: Mapping[str, str], version: str = "1.0", headers: str = "", record: bool = True
    ) -> Path:
        """Install a distribution; its .dist-info."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{headers}\nSummary: of the body\n"
        everything = {**files, f"{info.name}/METADATA": metadata}
        lines = [self._write(path, text) for path, text in everything.items()]
        if record:
            (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")
        return info

    def _write(self, path: str, text: str) -> str:
        file = self.site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(text.encode())}"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


# --- what is installed -----------------------------------------------------------------------------------------------


def test_all_distributions_of_this_environment():
    sites = [str(site) for site in sites_of(None)]
    named = {normalised(found.metadata["Name"]) for found in importlib.metadata.distributions(path=sites)}
    found = distributions()
    assert [normalised(one.name) for one in found] == sorted(named)
    assert {"understudy", "pydantic", "ray"} <= named
    assert {one.name: one.version for one in found}["pydantic"] == importlib.metadata.version("pydantic")
    assert distributions(Path(sys.prefix)) == found


def test_another_environment(tmp_path: Path):
    environment = Environment(tmp_path / "env")
    environment.install("Zebra.tools", {"zebra.py": ""})
    info = environment.install("ant", {"ant.py": ""})
    (environment.site / "~nt-0.9.dist-info").mkdir()
    (environment.site / "half-1.0.dist-info").mkdir()
    (environment.site / "old-2.0.egg-info").write_text("Name: old\nVersion: 2.0\n")
    found = distributions(tmp_path / "env")
    assert [(one.name, one.version) for one in found] == [("ant", "1.0"), ("old", "2.0"), ("Zebra.tools", "1.0")]
    assert (found[0].site, found[0].info) == (str(environment.site), str(info))


def test_a_folder_that_is_no_environment(tmp_path: Path):
    with pytest.raises(CallerError, match=r"is no Python environment.*--environment \.venv"):
        distributions(tmp_path)


def test_variables_are_real_paths(tmp_path: Path):
    environment = Environment(tmp_path / "env")
    (tmp_path / "link").symlink_to(environment.prefix)
    (tmp_path / "base" / "bin").mkdir(parents=True)
    (environment.prefix / "pyvenv.cfg").write_text(f"home = {tmp_path}/base/bin\nversion = 3.11.7\n")
    assert variables(tmp_path / "link", tmp_path / "ledger") == {
        "environment": str(environment.prefix),
        "visible": str(environment.prefix),
        "interpreter": str(tmp_path / "base"),
        "ledger": str(tmp_path / "ledger"),
    }


# --- what it says about itself ---------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path):
    environment = Environment(tmp_path)
    headers = (
        "Summary: does things\nLicense: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License\n"
        "Requires-Dist: left\nRequires-Dist: right; extra == 'more'\nRequires-Python: >=3.9\n"
    )
    files = {
        "ant/__init__.py": "",
        "ant/deep/__init__.py": "",
        "ant/fast.cpython-311-x86_64-linux-gnu.so": "",
        "space/ant/__init__.py": "",
        "single.py": "",
        "12ab__mypyc.cpython-311-x86_64-linux-gnu.so": "",
        "ant.pth": "import ant.startup\n",
        "ant-1.0.dist-info/entry_points.txt": "[console_scripts]\nant = ant:main\n",
    }
    value = read_metadata(str(environment.install("ant", files, headers=headers)))
    assert value["modules"] == ["ant", "single", "space.ant"]
    assert (value["summary"], value["licence"], value["requires"]) == ("does things", "MIT License", ["left"])
    assert value["entry_points"] == ["console_scripts: ant = ant:main"]
    assert (value["files"], value["sources"], value["natives"]) == (10, 4, 2)
    assert value["startup"] == ["ant.pth"]
    assert not value["editable"]


def test_lines_that_run_at_every_start(tmp_path: Path):
    environment = Environment(tmp_path)
    info = environment.install("ant", {"ant.pth": "/some/folder\nimport ant.startup; ant.startup.go()\n# import\n"})
    assert read_startup(str(info), ["ant.pth", "gone.pth"]) == ["ant.pth: import ant.startup; ant.startup.go()"]


def test_an_editable_installation(tmp_path: Path):
    environment = Environment(tmp_path)
    files = {
        "__editable__.ant-1.0.pth": "/src\n",
        "ant-1.0.dist-info/direct_url.json": '{"dir_info": {"editable": true}, "url": "file:///src"}',
        "ant-1.0.dist-info/top_level.txt": "ant\n",
    }
    value = read_metadata(str(environment.install("ant", files)))
    assert (value["editable"], value["modules"]) == (True, ["ant"])


def test_a_distribution_without_record_is_read_from_its_folders(tmp_path: Path):
    environment = Environment(tmp_path)
    info = environment.install("ant", {"ant/__init__.py": "", "ant/more.py": "", "bee.py": ""}, record=False)
    value = read_metadata(str(info))
    assert (value["modules"], value["files"]) == (["ant"], 2)


# --- files -----------------------------------------------------------------------------------------------------------


def verify(environment: Environment, info: Path, **batch: Any) -> dict[str, Any]:
    return verify_files(str(info), str(environment.prefix), **batch)


def test_files_as_installed(environment: Environment):
    info = environment.install("ant", {"ant/__init__.py": "1", "ant/data.bin": "x" * 100})
    found = verify(environment, info)
    assert (found["next"], found["checked"], found["counts"]) == (None, 3, {})
    assert found["bytes"] > 101


def test_altered_missing_unlisted_and_outside(environment: Environment):
    info = environment.install("ant", {"ant/__init__.py": "abc", "ant/size.py": "", "ant/gone.py": "", "bee.py": ""})
    (environment.site / "ant/__init__.py").write_text("abd")
    (environment.site / "ant/size.py").write_text("longer")
    (environment.site / "ant/gone.py").unlink()
    (environment.site / "ant/new.py").write_text("")
    (environment.site / "ant/__pycache__").mkdir()
    (environment.site / "ant/__pycache__/new.cpython-311.pyc").write_text("")
    (environment.site / "another.py").write_text("somebody else's")
    with (info / "RECORD").open("a") as record:
        record.write("ant/__pycache__/size.cpython-311.pyc,,\n../../../../../etc/passwd,sha256=abc,3\n")
    found = verify(environment, info)
    assert found["counts"] == {"altered": 2, "missing": 1, "outside": 1, "unlisted": 1}
    assert [(one["kind"], one["what"]) for one in found["examples"]] == [
        ("altered", "ant/__init__.py"),
        ("altered", "ant/size.py (6 bytes, not 0)"),
        ("missing", "ant/gone.py"),
        ("outside", "../../../../../etc/passwd"),
        ("unlisted", "ant/new.py"),
    ]


def test_batches_cover_every_file_once(environment: Environment):
    info = environment.install("ant", {f"ant/{number}.py": str(number) for number in range(10)})
    start: int | None = 0
    checked, steps = 0, 0
    while start is not None:
        found = verify(environment, info, start=start, files_max=3)
        start, checked, steps = found["next"], checked + found["checked"], steps + 1
    assert (checked, steps) == (11, 4)  # METADATA too, and RECORD has no hash of itself


def test_a_batch_without_time_still_gets_on(environment: Environment):
    info = environment.install("ant", {"ant/__init__.py": "", "ant/more.py": ""})
    assert verify(environment, info, budget_s=0.0)["next"] == 1
    assert parse_sources(str(info), budget_s=0.0)["next"] == 1


def test_without_record(environment: Environment):
    info = environment.install("ant", {"ant/__init__.py": ""}, record=False)
    assert verify(environment, info)["counts"] == {"unrecorded": 1}


# --- sources ---------------------------------------------------------------------------------------------------------


def kinds(source: str) -> list[str]:
    return [kind for kind, _line, _text in sources.scan(source.encode())]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = eval('1')", ["eval"]),
        ("import builtins; builtins.exec('')", ["exec"]),
        ("__import__('os')", ["import"]),
        ("import subprocess as sp\nsp.run(['ls'])", ["process"]),
        ("from os import system as s\ns('ls')", ["process"]),
        ("import os\nos.execv('/bin/sh', [])", ["process"]),
        ("import socket\nsocket.socket()", ["socket"]),
        ("import ctypes\nctypes.CDLL(None)", ["ctypes"]),
        ("import base64\nexec(base64.b64decode('eA=='))", ["hidden"]),
        ("import zlib\nexec(compile(zlib.decompress(b''), 'x', 'exec'))", ["hidden", "hidden"]),
        ("exec(bytes.fromhex('00').decode())", ["hidden"]),
        ("import re\nre.compile('x')\nmodel.eval()", []),
        ("'eval(1)'  # exec('x')", []),
        ("print 'two'", ["syntax"]),
        ("x = '\\0" + "a" * 3000 + "'", ["line"]),
        ("", []),
    ],
)
def test_what_is_found_in_source(source: str, found: list[str]):
    assert kinds(source) == found


def test_packed_data_and_words_are_told_apart():
    packed = base64.b64encode(b"".join(hashlib.sha256(bytes([i])).digest() for i in range(16))).decode()
    assert kinds(f"x = '{packed}'") == ["literal"]
    assert kinds("x = '" + "word_" * 200 + "'") == []


def test_a_null_byte_and_deep_nesting_are_syntax_not_a_crash():
    assert kinds("x = 1\0") == ["syntax"]
    assert kinds("x = " + "(" * 5000) == ["syntax"]


def test_examples_are_capped_and_all_is_counted(environment: Environment):
    info = environment.install("ant", {"ant.py": "eval('1')\n" * 50, "bad.py": "def"})
    found = parse_sources(str(info))
    assert found["counts"] == {"eval": 50, "syntax": 1}
    assert [one["where"] for one in found["examples"][:2]] == ["ant.py:1", "ant.py:2"]
    assert sum(one["kind"] == "eval" for one in found["examples"]) == sources.EXAMPLES_MAX


def test_a_file_that_is_too_long_is_skipped_and_counted(environment: Environment):
    info = environment.install("ant", {"ant.py": "#" * (sources.FILE_MAX_BYTES + 1), "bee.py": ""})
    found = parse_sources(str(info))
    assert (found["files"], found["skipped"]) == (1, 1)


# --- imports ---------------------------------------------------------------------------------------------------------


def probe(environment: Environment, source: str, **more: Any) -> dict[str, Any]:
    environment.install("ant", {"ant/__init__.py": source})
    return probe_import("ant", str(environment.site), str(environment.prefix), **more)


def notes(found: dict[str, Any], kind: str) -> list[str]:
    return [note["what"] for note in found["notes"] if note["kind"] == kind and note["by"] == "ant"]


def test_a_harmless_import(environment: Environment):
    environment.install("bee", {"bee.py": ""})
    found = probe(environment, "import json, bee\nx = [0] * 3_000_000\nopen(__file__).close()\nprint('hello')")
    assert (found["ended"], found["error"], found["notes"], found["imports"]) == ("ok", "", [], ["bee"])
    assert found["ms"] > 0
    assert found["memory_mb"] > 15
    assert found["python"].startswith("3.")


def test_an_import_that_opens_sockets_starts_processes_and_writes_files(environment: Environment, tmp_path: Path):
    source = f"""
import os, socket, subprocess
socket.socket().close()
try:
    socket.create_connection(("127.0.0.1", 1), 0.1)
except OSError:
    pass
subprocess.run(["true"])
os.system("true")
open({str(tmp_path / "dropped")!r}, "w").close()
os.remove({str(tmp_path / "dropped")!r})
open("/etc/passwd").close()
"""
    found = probe(environment, source)
    assert found["ended"] == "ok"
    assert notes(found, "socket")
    assert any("127.0.0.1" in what for what in notes(found, "network"))
    assert {what.split("(")[0] for what in notes(found, "process")} >= {"subprocess.Popen", "os.system"}
    assert str(tmp_path / "dropped") in notes(found, "write")
    assert notes(found, "read") == ["/etc/passwd"]


def test_what_another_module_does_is_put_down_to_that(environment: Environment):
    environment.install("bee", {"bee.py": "import os; os.system('true')"})
    found = probe(environment, "import bee")
    assert {(note["kind"], note["by"]) for note in found["notes"]} == {("process", "bee")}


@pytest.mark.parametrize(
    ("source", "ended"),
    [
        ("raise RuntimeError('not today')", "error"),
        ("import sys; sys.exit(3)", "error"),
        ("import os; os._exit(3)", "exit"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import time; time.sleep(60)", "timeout"),
        ("import no_such_module", "error"),
    ],
)
def test_however_an_import_ends_what_it_did_until_then_is_known(environment: Environment, source: str, ended: str):
    found = probe(environment, "open('/etc/passwd').close()\n" + source, timeout_s=2.0 if ended == "timeout" else 30.0)
    assert found["ended"] == ended
    assert found["error"]
    assert notes(found, "read") == ["/etc/passwd"]


def test_notes_that_the_module_forges_are_only_text(environment: Environment):
    source = """
import os
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'[1]\\nnot json\\n{"kind": 5, "what": {"x": 1}}\\n')
    except OSError:
        pass
"""
    found = probe(environment, source)
    assert all(isinstance(value, str) for note in found["notes"] for value in note.values())
    assert found["ended"] == "ok"


def test_the_environments_own_interpreter_does_it(environment: Environment):
    (environment.prefix / "bin").mkdir()
    (environment.prefix / "bin/python").write_text(f'#!/bin/sh\nexport WHO=own\nexec {sys.executable} "$@"\n')
    (environment.prefix / "bin/python").chmod(0o755)
    found = probe(environment, "import os\nraise RuntimeError(os.environ['WHO'])")
    assert found["error"] == "RuntimeError: own"


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_a_row_is_appended_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_EFFECT_KEY", "k1")
    path = tmp_path / "ledger"
    path.touch()
    first = append_ledger(str(path), {"distribution": "ant"})
    append_ledger(str(path), {"distribution": "ant"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"distribution": "ant", "key": "k1"}] * 2
    assert first == {"key": "k1", "bytes": path.stat().st_size // 2}


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        append_ledger(str(tmp_path / "typo"), {})


# --- the graph -------------------------------------------------------------------------------------------------------


class Theatre:
    """One distribution, its ledger, and a stage to audit it on."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(folder / "env")
        self.ledger = folder / "ledger.jsonl"
        ledger.create(self.ledger)
        self.stage = Stage(MemoryStore(), graph).tools(*TOOLS)

    async def start(self, **more: Any) -> Run:
        found = distributions(self.environment.prefix)[0]
        return await self.stage.start(audit_of(found, str(self.environment.prefix), str(self.ledger), **more))

    def play(self, **more: Any) -> Audit:
        """From start to end, without a question."""

        async def played() -> Audit:
            run = await self.start(**more)
            await self.stage.drive(run)
            result: Audit = await run.result(1.0)
            return result

        return run_async(played())

    @property
    def rows(self) -> list[ledger.Row]:
        return ledger.read(self.ledger)[0]

    @property
    def called(self) -> list[str]:
        return [name for name, _ in self.stage.sandboxes.calls]


@pytest.fixture
def theatre(tmp_path: Path) -> Theatre:
    return Theatre(tmp_path)


def test_a_clean_distribution(theatre: Theatre):
    theatre.environment.install("ant", {"ant/__init__.py": "", "bee.py": "import json"})
    audit = theatre.play()
    assert (audit.score, audit.verdict, audit.reasons) == (0, "clean", [])
    assert (audit.checked, audit.parsed, [one.module for one in audit.imports]) == (3, 2, ["ant", "bee"])
    assert audit.summary == "ant 1.0: clean, score 0; 3 files compared, no at fault; 2 modules imported"
    assert theatre.called == [
        *("read_metadata", "verify_files", "parse_sources", "probe_import", "probe_import", "append_ledger")
    ]
    assert [(row.distribution, row.score, row.verdict) for row in theatre.rows] == [("ant", 0, "clean")]


def test_loops_go_on_from_where_the_last_batch_ended(theatre: Theatre):
    theatre.environment.install("ant", {f"ant/m{number}.py": "eval('1')" for number in range(900)})
    audit = theatre.play(ask_from=101)
    assert theatre.called.count("parse_sources") >= 3
    assert (audit.parsed, audit.code["eval"], audit.checked) == (900, 900, 901)
    assert audit.parsed_to is audit.verified_to is None


def test_a_high_score_waits_for_a_person(theatre: Theatre):
    info = theatre.environment.install("ant", {"ant.py": "", "ant.pth": "import ant\n"})
    (info.parent / "ant.py").write_text("7")

    async def played() -> tuple[Any, Audit]:
        run = await theatre.start()
        assert await theatre.stage.drive(run) == "waiting"
        assert theatre.rows == []
        question = open_questions(await run.record())[0].payload
        await run.resume({"approve": False, "note": "who did that?", "by": "Ada"})
        await theatre.stage.drive(run)
        return question, await run.result(1.0)

    question, audit = run_async(played())
    assert "read_startup" in theatre.called
    assert question["question"] == "keep ant 1.0, with a score of 55?"
    assert question["reasons"][0] == "1 file altered since the installation"
    assert (audit.verdict, audit.approval) == ("rejected", Approval(approve=False, note="who did that?", by="Ada"))
    assert [row.verdict for row in theatre.rows] == ["rejected"]


@pytest.mark.parametrize(
    ("answer", "approve"),
    [({"approve": True}, True), (True, True), ({"approve": "yes"}, False), ("yes", False), (None, False), ([], False)],
)
def test_only_a_clear_yes_is_one(answer: Any, approve: bool):
    assert Approval.read(answer).approve is approve


class Mortal:
    """A store whose second call with commits is the end of its process."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, *commits: Any) -> Any:
        self._calls += 1
        if self._calls > 1:
            raise RuntimeError("killed")
        return await self._store.commit(*commits)


def test_a_crash_at_any_point_leaves_one_row_and_repeats_no_call(theatre: Theatre):
    theatre.environment.install("ant", {"ant.py": "", "bee.py": ""})

    async def played() -> Audit:
        run = await theatre.start()
        for lives in range(20):
            driver = await theatre.stage.driver(run, owner=f"actor-{lives}")
            driver.store = Mortal(driver.store)  # type: ignore[assignment]
            try:
                await driver.drive()
            except RuntimeError:
                await theatre.stage.crash(run)
            else:
                break
        assert lives > 5
        result: Audit = await run.result(1.0)
        return result

    audit = run_async(played())
    assert audit.verdict == "clean"
    assert len(theatre.rows) == 1
    assert sorted(theatre.called) == sorted(
        ["read_metadata", "verify_files", "parse_sources", "probe_import", "probe_import", "append_ledger"]
    )


def test_a_tool_that_ends_badly_is_a_finding(theatre: Theatre, monkeypatch: pytest.MonkeyPatch):
    theatre.environment.install("ant", {"ant.py": ""})

    def broken(**args: Any) -> None:
        raise MemoryError("too much")

    for tool in (tools.verify_files, tools.parse_sources, tools.probe_import):
        monkeypatch.setattr(tool, "fn", broken)
    audit = theatre.play(ask_from=101)
    assert audit.faults["ended"] == 2
    assert audit.imports == [Imported(module="ant", ended="error", error="too much")]
    assert len(theatre.rows) == 1


def test_a_refusal_is_a_failure(theatre: Theatre):
    theatre.environment.install("ant", {"ant.py": ""})
    theatre.stage.policy = YesPolicy({"verify_files": lambda request, approved: Refused("none", "demo", "no rule")})
    with pytest.raises(RunFailed, match="no rule"):
        theatre.play()
    assert theatre.rows == []


def test_how_a_sandbox_ended_an_import_is_kept():
    outcome = Outcome("out_of_memory", error="the call held 1100 MiB", peak_memory_bytes=1100 * 1024**2)
    imported = Imported.of("ant", outcome)
    assert (imported.ended, imported.memory_mb) == ("out_of_memory", 1100.0)


def test_examples_stay_few():
    old = Findings(counts={"eval": 39}, examples=[{"kind": "eval"}] * 39)
    new = merged(old, Findings(counts={"eval": 1, "exec": 5}, examples=[{"kind": "exec"}] * 5))
    assert (new.counts, len(new.examples)) == ({"eval": 40, "exec": 5}, 40)


# --- its policy ------------------------------------------------------------------------------------------------------


def test_the_policy_allows_what_the_audit_does_and_nothing_else(theatre: Theatre):
    theatre.environment.install("ant", {"ant.py": "", "ant.pth": "import ant\n"})
    theatre.play()
    given = variables(theatre.environment.prefix, theatre.ledger)
    policy = load_policy(POLICY, source="policy.yaml", variables=given)
    asked = theatre.stage.policy.asked
    assert {request.tool for request in asked} == {tool.name for tool in TOOLS}
    for request in asked:
        decision = decide([policy], request)
        assert isinstance(decision, Allow), decision
        writes = (given["ledger"],) if request.tool == "append_ledger" else ()
        assert decision.profile.write == writes
        for name, value in request.args.items():
            if isinstance(value, str) and value.startswith("/"):
                assert isinstance(decide([policy], _with(request, name, "/etc")), Deny), (request.tool, name)


def _with(request: Request, name: str, value: str) -> Request:
    args = {**request.args, name: value}
    return Request(tool=request.tool, args=args, run_id="r", graph=request.graph, digest="d", labels={})
