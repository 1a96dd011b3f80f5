"""The environments of tools: built once, aside, whole; lent as they were built; removed when nobody uses them."""

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from support import hostile_mcp
from support.waiting import run_async
from support.wheels import left_pad, wheel
from understudy import Environment, tool
from understudy.actors.by_value import tool_code
from understudy.actors.errors import CallerError
from understudy.actors.mcp.server import McpTool, mcp_server
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox import build as building
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.build import build
from understudy.actors.sandbox.environments import (
    Environments,
    EnvironmentUnusable,
    interpreter,
    site_packages,
)
from understudy.actors.sandbox.rooms import NotWarm
from understudy.actors.sandbox.tiers import Tiers, all_tiers
from understudy.policies.profile import Profile

PAD = Environment(packages=["left-pad==1.0"])


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("links")
    left_pad(folder)
    return ["--no-index", "--find-links", str(folder)]


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory, links: list[str]) -> Environments:
    """With one in it, built by pip."""
    found = Environments(str(tmp_path_factory.mktemp("state") / "environments"))
    assert build(found, PAD, links) == (PAD.key(interpreter()), True)
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environments:
    """Without pip: what is installed is one file."""

    def installed(draft: str, wanted: Environment, pip: Any) -> None:
        packages = Path(site_packages(draft))
        packages.mkdir(parents=True)
        (packages / "left_pad.py").write_text("VERSION = 1\n")
        (Path(draft) / "bin").mkdir()
        (Path(draft) / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        (Path(draft) / "pyvenv.cfg").write_text("home = somewhere\n")

    monkeypatch.setattr(building, "_install", installed)
    return Environments(str(tmp_path / "environments"))


def names(environments: Environments) -> list[str]:
    return [name for name in sorted(os.listdir(environments.folder)) if not name.endswith(".lock")]


# --- in a sandbox ---------------------------------------------------------------------------------------------------


@tool(environment=PAD)
def looks(day: datetime.date, width: int) -> Any:
    """What a tool finds in its environment, and what it does not."""
    import importlib
    import os
    import subprocess
    import sys

    import left_pad

    def ran(*line: str) -> str:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def tried(work: Any) -> str:
        try:
            work()
        except Exception as error:
            return type(error).__name__
        return "it worked"

    return {
        "padded": left_pad.pad(f"{day:%d}", width),
        "where": os.path.dirname(left_pad.__file__),
        "prefix": sys.prefix,
        "script": ran("padder"),
        "other": ran(sys.executable, "-c", "import left_pad; print(left_pad.VERSION)"),
        "yaml": tried(lambda: importlib.import_module("yaml")),
        "read only": bool(os.statvfs(left_pad.__file__).f_flag & os.ST_RDONLY),
        "write": tried(lambda: open(left_pad.__file__, "a")),
        "add": tried(lambda: open(os.path.dirname(left_pad.__file__) + "/new.py", "w")),
    }


def called(environments: Environments, code: ToolCode, **args: Any) -> Outcome:
    with environments.lent(PAD) as folder:
        call = ToolCall("k", "t", code, args, environment=folder)
        return run_async(BubblewrapBackend().execute(call, Profile(tier="cold")))


def test_a_tool_by_value_finds_its_own_packages_and_not_the_workers(environments: Environments) -> None:
    code = tool_code(looks)
    assert code.environment == PAD.text
    outcome = called(environments, code, day="2026-11-24", width=4)
    assert outcome.kind == "ok", outcome
    folder = f"{os.path.realpath(environments.folder)}/{PAD.key(interpreter())}"
    told = outcome.value
    assert (told["padded"], told["where"], told["prefix"]) == ("  24", site_packages(folder), folder)
    assert (told["script"], told["other"]) == ("    x\n", "1.0\n")
    assert told["yaml"] == "ModuleNotFoundError", "the worker has it"
    assert told["read only"]
    assert {told["write"], told["add"]} <= {"OSError", "PermissionError"}


def test_a_tool_by_reference_is_found_in_its_environment(environments: Environments) -> None:
    outcome = called(environments, ToolCode(ref="left_pad:pad", environment=PAD.text), text="y", width=3)
    assert (outcome.kind, outcome.value) == ("ok", "  y"), outcome
    lent = called(environments, ToolCode(ref="yaml:safe_dump", environment=PAD.text), data=1)
    assert lent.value == "1\n...\n", "its own package is lent to it where the environment has none"


def test_an_mcp_server_has_its_packages_and_the_client_those_of_the_worker(tmp_path: Path) -> None:
    source = Path(hostile_mcp.__file__).read_text()
    wheel(tmp_path, "tiny_mcp", "1.0", {"tiny_mcp.py": source}, {})
    wanted = Environment(packages=["tiny-mcp==1.0"])
    found = Environments(str(tmp_path / "environments"))
    build(found, wanted, ["--no-index", "--find-links", str(tmp_path)])
    told = {**hostile_mcp.TOOL, "outputSchema": None, "annotations": None}

    server = mcp_server("tiny", command=["python", "-m", "tiny_mcp", "fine"], environment=wanted)
    code = McpTool(server, "add", told=told)._shipped
    with found.lent(wanted) as folder:
        call = ToolCall("k", "mcp:tiny/add", code, {"a": 1}, environment=folder)
        outcome = run_async(BubblewrapBackend().execute(call, Profile(tier="cold")))
    assert outcome.value == "3", outcome


def test_a_tier_that_cannot_show_an_environment_is_not_used() -> None:
    class Standing:
        def __init__(self, tier: Any, warm: bool = True) -> None:
            self.tier, self.warm = tier, warm

        def fits(self, profile: Profile) -> bool:
            return True

        async def preflight(self) -> Any:
            from understudy.actors.sandbox.backend import Preflight

            return Preflight(True, details={"duration_ms": "1"})

        async def execute(self, *_: Any) -> Outcome:
            if not self.warm:
                raise NotWarm("no sandbox is warm", "")
            return Outcome("ok", value=self.tier)

    plain = ToolCall("k", "t", ToolCode(ref="json:dumps"), {})
    call = ToolCall("k", "t", ToolCode(ref="json:dumps"), {}, environment="/e")
    tiers = Tiers([Standing(each.tier) for each in all_tiers(0)])  # type: ignore[misc]
    for each in (plain, call):
        assert run_async(tiers.execute(each, Profile(tier="landlock"))).value == "zygote"
    tiers = Tiers([Standing(each.tier, each.tier != "zygote") for each in all_tiers(0)])  # type: ignore[misc]
    assert run_async(tiers.execute(plain, Profile(tier="landlock"))).value == "landlock"
    assert run_async(tiers.execute(call, Profile(tier="landlock"))).value == "cold"
    few = Tiers([Standing("landlock")])  # type: ignore[list-item]
    with pytest.raises(IsolationUnavailable, match="landlock: it can show no environment of a tool"):
        run_async(few.execute(call, Profile(tier="landlock")))


# --- building -------------------------------------------------------------------------------------------------------


def test_whoever_dies_before_the_renaming_leaves_nothing_that_is_lent(quick: Environments, links: list[str]) -> None:
    found, folder = quick, Path(quick.folder)
    dying = (
        "import os, sys; from understudy.actors.sandbox.build import build; "
        "from understudy.actors.environment import Environment; "
        "from understudy.actors.sandbox.environments import Environments; "
        "os.rename = lambda *_: os._exit(9); "
        "build(Environments(sys.argv[1]), Environment(packages=['left-pad==1.0']), sys.argv[2:])"
    )
    ran = subprocess.run([sys.executable, "-c", dying, str(folder), *links], check=False)
    assert ran.returncode == 9
    (draft,) = names(found)
    assert draft.startswith("building-")
    with pytest.raises(EnvironmentUnusable, match=r"left-pad==1.0.*is not built on this machine"), found.lent(PAD):
        pass
    assert build(found, PAD)[1]
    assert names(found) == [PAD.key(interpreter())]
    (folder / f"building-{'0' * 32}-dead").mkdir()
    (folder / f"{'1' * 32}.lock").touch()  # of what could not be built
    assert found.clean() == []
    assert len(os.listdir(folder)) == 2, "it and its lock"
    assert names(found) == [PAD.key(interpreter())], "what nobody builds any more is removed"


def test_two_who_build_the_same_build_it_once(quick: Environments) -> None:
    fresh: list[bool] = []
    both = [threading.Thread(target=lambda: fresh.append(build(quick, PAD)[1])) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(fresh) == [False, True]


@pytest.mark.parametrize("what", ["changed", "added", "removed", "manifest", "link"])
def test_what_is_not_as_it_was_built_is_not_lent_and_is_built_anew(quick: Environments, what: str) -> None:
    key, _ = build(quick, PAD)
    module = Path(site_packages(f"{quick.folder}/{key}")) / "left_pad.py"
    match what:
        case "changed":
            module.chmod(0o644)
            module.write_text("VERSION = 2\n")
        case "added":
            (module.parent / "other.py").write_text("")
        case "removed":
            module.unlink()
        case "manifest":
            manifest = Path(quick.folder, key, "understudy.json")
            manifest.chmod(0o644)
            manifest.write_text("{}")
        case "link":
            module.unlink()
            module.symlink_to("/etc/hostname")
    anew = Environments(quick.folder)  # another process
    with pytest.raises(EnvironmentUnusable, match="is broken: its files are not those that were built"), anew.lent(PAD):
        pass
    assert "is broken" in anew.all()[0].problem or "nothing of itself" in anew.all()[0].problem
    assert build(anew, PAD)[1]
    with anew.lent(PAD) as folder:
        assert Path(site_packages(folder), "left_pad.py").read_text() == "VERSION = 1\n"


def test_what_nobody_uses_is_removed_and_what_a_call_has_is_not(quick: Environments) -> None:
    key, _ = build(quick, PAD)
    build(quick, Environment(packages=["other==1"]))
    assert quick.clean(unused_s=3600) == []
    with quick.lent(PAD):
        assert len(quick.clean(unused_s=0)) == 1
        assert names(quick) == [key]
        with pytest.raises(BlockingIOError), quick.locked(key, 2 | 4):
            pass
    assert quick.clean(unused_s=0) == [key]
    assert os.listdir(quick.folder) == [], "not even a lock"


# --- what is declared -----------------------------------------------------------------------------------------------


def test_a_venv_that_is_there_is_lent_if_it_is_of_the_same_interpreter(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    wanted, nowhere = Environment(venv=str(tmp_path / "v")), Environments(str(tmp_path / "none"))
    with nowhere.lent(wanted) as folder:
        assert folder == os.path.realpath(tmp_path / "v")
    (tmp_path / "v" / "bin" / "python").unlink()
    (tmp_path / "v" / "bin" / "python").symlink_to("/bin/sh")
    with pytest.raises(EnvironmentUnusable, match="and tools run on"), nowhere.lent(wanted):
        pass
    (tmp_path / "v" / "lib").rename(tmp_path / "lib")
    (tmp_path / "v" / "lib").symlink_to("/etc")
    with pytest.raises(EnvironmentUnusable, match="is no folder of the environment itself"), nowhere.lent(wanted):
        pass
    with pytest.raises(EnvironmentUnusable, match="no virtual environment"), nowhere.lent(Environment(venv="/etc")):
        pass


def test_declarations_are_values_and_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# what it needs\nleft-pad==1.0 \\\n    --hash=sha256:00  # pinned\n\nother>=2 ; python_version>'3'\n"
    )
    of_file = Environment.of_file(file)
    assert of_file.packages == ("left-pad==1.0 --hash=sha256:00", "other>=2 ; python_version>'3'")
    assert Environment.read(of_file.text) == of_file
    assert PAD.key("a") != PAD.key("b")
    assert len({tool_code(looks).digest, ToolCode(blob=tool_code(looks).blob).digest}) == 2, "a grant is bound to it"
    wrong: list[dict[str, Any]] = [
        {},
        {"packages": "left-pad"},
        {"packages": ["--index-url=http://x"]},
        {"packages": ["a\n-r b"]},
        {"venv": "relative"},
        {"packages": ["a"], "venv": "/v"},
    ]
    for each in wrong:
        with pytest.raises(CallerError):
            Environment(**each)
    with pytest.raises(CallerError, match="cannot be read"):
        Environment.of_file(tmp_path / "nowhere")
