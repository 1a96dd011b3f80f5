"""What is granted works, and works alone: paths, values by reference and by value, effect keys."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from escape import attempts, tools
from escape.calls import NOTHING, by_value, limited, outcome_of, shown_below, tried

from support.waiting import run_async
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox.bubblewrap import HOST_ID, BubblewrapBackend
from understudy.policies.profile import Profile

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that its sandboxes' user does not own")


def referred(ref: str, **args: Any) -> Outcome:
    call = ToolCall("effect-7", ref, ToolCode(ref=ref), args)
    return run_async(BubblewrapBackend().execute(call, NOTHING))


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_granted_file_is_readable_and_not_writable(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "data"
    path.write_text("contents")
    path.chmod(mode)
    granted = Profile(read=(str(path),))
    assert tried(tools.contents, granted, path=str(path)) == "contents"
    assert tried(attempts.open_for_writing, granted, path=str(path)) in ("EROFS", "EACCES")
    assert tried(attempts.f03_list, granted, path=str(tmp_path)) == ["data"]


def test_a_granted_ledger_is_written_in_place(tmp_path: Path) -> None:
    """As root, the file is root's, in folders closed to all others; and stays so."""
    ledger = tmp_path / "ledger"
    ledger.write_text("one\n")
    ledger.chmod(0o600)
    before = ledger.stat()
    assert tried(tools.append_line, Profile(write=(str(ledger),)), path=str(ledger), line="two") == 2
    after = ledger.stat()
    assert ledger.read_text() == "one\ntwo\n"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_what_is_made_in_a_granted_folder_belongs_to_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o700)
    assert tried(attempts.write, Profile(write=(str(folder),)), path=f"{folder}/new") == "done"
    made = (folder / "new").stat()
    assert (made.st_uid, made.st_gid) == (folder.stat().st_uid, folder.stat().st_gid)
    assert not made.st_mode & (stat.S_ISUID | stat.S_ISGID)


@as_root
def test_the_files_of_a_third_user_stay_closed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("theirs")
    (tmp_path / "private").chmod(0o600)
    os.chown(tmp_path / "private", 1234, 1234)
    granted = Profile(write=(str(tmp_path),))
    assert tried(attempts.read, granted, path=f"{tmp_path}/private") == "EACCES"


@as_root
def test_a_file_of_another_user_can_be_granted(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_text("one\n")
    path.chmod(0o600)
    os.chown(path, 1234, 1234)
    assert tried(tools.append_line, Profile(write=(str(path),)), path=str(path), line="two") == 2
    assert path.stat().st_uid == 1234


@as_root
def test_a_grant_that_stays_closed_is_refused_in_words(tmp_path: Path) -> None:
    """Nobody may write it, so neither may the sandbox; an overlay, which cannot exchange owners, ends up here too."""
    path = tmp_path / "readonly"
    path.touch()
    path.chmod(0o400)
    assert f"setfacl -m u:{HOST_ID}:rwX {path}" in _refused(Profile(write=(str(path),)))


def test_a_link_in_a_granted_folder_leads_nowhere_new(tmp_path: Path) -> None:
    (tmp_path / "granted").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "granted" / "link").symlink_to(tmp_path / "secret")
    granted = Profile(write=(str(tmp_path / "granted"),))
    assert tried(attempts.read, granted, path=f"{tmp_path}/granted/link") == "ENOENT"


def test_a_read_only_corner_of_a_granted_folder_stays_so(tmp_path: Path) -> None:
    (tmp_path / "corner").mkdir()
    granted = Profile(write=(str(tmp_path),), read=(str(tmp_path / "corner"),))
    assert tried(attempts.write, granted, path=f"{tmp_path}/corner/new") == "EROFS"
    assert tried(attempts.write, granted, path=f"{tmp_path}/new") == "done"


def _refused(profile: Profile) -> str:
    outcome = outcome_of(attempts.p03_processes, profile)
    assert (outcome.kind, outcome.error_type) == ("error", "BadGrant"), outcome
    return outcome.error


def test_a_grant_through_a_link_is_refused(tmp_path: Path) -> None:
    """A tool with a granted folder could otherwise turn the next grant to any file of the host."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert str(tmp_path / "real") in _refused(Profile(write=(str(tmp_path / "link"),)))


@pytest.mark.parametrize("path", ["/", "/tmp", "/proc/self", "/dev/mem", "relative", "/etc/../root", "/nowhere/at/all"])
def test_a_bad_grant_is_refused_in_words(path: str) -> None:
    assert repr(path) in _refused(Profile(read=(path,)))


def test_no_grant_opens_the_interpreter() -> None:
    package = str(Path(pytest.__file__).parent)
    assert "interpreter" in _refused(Profile(write=(package,)))
    above = next(path for path in Path(package).parents if path.name == "lib").parent.parent
    site = f"{Path(package).parent}/evil.pth"
    assert tried(attempts.write, Profile(write=(str(above),)), path=site) == "EROFS"


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_tool_by_reference_is_found() -> None:
    assert referred("json:dumps", obj=[1, 2]).value == "[1, 2]"
    outcome = referred("no_such_module:function")
    assert (outcome.kind, outcome.error_type) == ("error", "ModuleNotFoundError"), outcome


def test_our_own_package_is_there() -> None:
    outcome = referred("understudy.actors.sandbox.probe:look")
    assert outcome.kind == "ok", outcome
    assert "UNDERSTUDY_EFFECT_KEY" in outcome.value["environment"]


def test_the_effect_key_is_in_the_environment() -> None:
    assert referred("os:getenv", key="UNDERSTUDY_EFFECT_KEY").value == "effect-7"


def test_a_decorated_tool_is_unwrapped() -> None:
    call = ToolCall("k", "add", by_value(tools.decorated), {"a": 2, "b": 3})
    assert run_async(BubblewrapBackend().execute(call, NOTHING)).value == 5


@pytest.mark.parametrize(
    ("function", "args", "value"),
    [
        (tools.waits, {"a": 1}, 2),
        (tools.pays, {"order": {"id": "A1", "amount": "12.50"}}, {"id": "A1", "amount": "12.50", "paid": True}),
        (tools.counts, {"day": "2026-01-31", "more": ["a", "a", "b"]}, {"day": "2026-02-01", "distinct": 2}),
        (
            tools.echoes,
            {"value": {"ä\u2603": [None, True, -1, 0.5, {"": []}]}},
            {"ä\u2603": [None, True, -1, 0.5, {"": []}]},
        ),
    ],
)
def test_values_cross_both_ways(function: Callable[..., Any], args: dict[str, Any], value: Any) -> None:
    assert tried(function, NOTHING, **args) == value


def test_ordinary_libraries_work() -> None:
    assert tried(tools.does_much) == {
        "shell": "A B",
        "threads": [1, 2],
        "processes": [3, 4],
        "sqlite": 5,
        "files": sorted(["archive.tar.gz", "copy", "unpacked", *shown_below("/tmp")]),
        "python": 0,
        "lock": True,
    }


def test_a_large_request_crosses() -> None:
    assert tried(tools.measures, limited(memory_bytes=1 << 30), value="x" * 3_000_000) == 3_000_000


def test_arguments_that_do_not_fit_are_an_error() -> None:
    outcome = outcome_of(tools.pays, order={"id": "A1"})
    assert (outcome.kind, outcome.error_type) == ("error", "ValidationError"), outcome
    assert "amount" in outcome.error


def test_an_exception_is_told_and_what_was_printed_is_kept() -> None:
    outcome = outcome_of(tools.fails)
    assert (outcome.kind, outcome.error_type, outcome.error) == ("error", "KeyError", "'no such order'")
    assert outcome.printed.startswith("on stdout\non stderr\n")
    assert "Traceback" in outcome.printed
    assert outcome.duration_s > 0
    assert outcome.peak_memory_bytes > 0
