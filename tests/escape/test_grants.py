"""What is granted works, and works alone: paths, values by reference and by value, effect keys."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from escape import attempts, tools
from escape.places import Place, limited

from understudy.actors.sandbox.launch import HOST_ID
from understudy.policies.profile import Profile

# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_granted_file_is_readable_and_not_writable(granting: Place, mode: int) -> None:
    path = granting.folder / "data"
    path.write_text("contents")
    path.chmod(mode)
    granting.hand_over()
    granted = Profile(read=(str(path),))
    assert granting.tried(tools.contents, granted, path=str(path)) == "contents"
    assert granting.tried(attempts.open_for_writing, granted, path=str(path)) in ("EROFS", "EACCES")
    assert granting.tried(attempts.f03_list, granted, path=str(granting.folder)) in (["data"], ["EACCES"])


def test_a_granted_ledger_is_written_in_place(granting: Place) -> None:
    """As root, the file is root's, in folders closed to all others; and stays so."""
    ledger = granting.folder / "ledger"
    ledger.write_text("one\n")
    ledger.chmod(0o600)
    granting.hand_over()
    before = ledger.stat()
    assert granting.tried(tools.append_line, Profile(write=(str(ledger),)), path=str(ledger), line="two") == 2
    after = ledger.stat()
    assert ledger.read_text() == "one\ntwo\n"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_what_is_made_in_a_granted_folder_belongs_to_its_owner(granting: Place) -> None:
    folder = granting.folder / "out"
    folder.mkdir(mode=0o700)
    granting.hand_over()
    assert granting.tried(attempts.write, Profile(write=(str(folder),)), path=f"{folder}/new") == "done"
    made = (folder / "new").stat()
    assert (made.st_uid, made.st_gid) == (folder.stat().st_uid, folder.stat().st_gid)
    assert not made.st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_the_files_of_a_third_user_stay_closed(as_root: Place) -> None:
    (as_root.folder / "private").write_text("theirs")
    (as_root.folder / "private").chmod(0o600)
    os.chown(as_root.folder / "private", 1234, 1234)
    granted = Profile(write=(str(as_root.folder),))
    assert as_root.tried(attempts.read, granted, path=f"{as_root.folder}/private") == "EACCES"


def test_a_file_of_another_user_can_be_granted(as_root: Place) -> None:
    path = as_root.folder / "theirs"
    path.write_text("one\n")
    path.chmod(0o600)
    os.chown(path, 1234, 1234)
    assert as_root.tried(tools.append_line, Profile(write=(str(path),)), path=str(path), line="two") == 2
    assert path.stat().st_uid == 1234


def test_a_grant_that_stays_closed_is_refused_in_words(as_root: Place) -> None:
    """Nobody may write it, so neither may the sandbox; an overlay, which cannot exchange owners, ends up here too."""
    path = as_root.folder / "readonly"
    path.touch()
    path.chmod(0o400)
    assert f"setfacl -m u:{HOST_ID}:rwX {path}" in _refused(as_root, Profile(write=(str(path),)))


def test_a_link_in_a_granted_folder_leads_nowhere_new(granting: Place) -> None:
    (granting.folder / "granted").mkdir()
    (granting.folder / "secret").write_text("secret")
    (granting.folder / "granted" / "link").symlink_to(granting.folder / "secret")
    granting.hand_over()
    granted = Profile(write=(str(granting.folder / "granted"),))
    assert granting.tried(attempts.read, granted, path=f"{granting.folder}/granted/link") in ("ENOENT", granting.hidden)


def test_a_read_only_corner_of_a_granted_folder_stays_so(granting: Place) -> None:
    (granting.folder / "corner").mkdir()
    granting.hand_over()
    granted = Profile(write=(str(granting.folder),), read=(str(granting.folder / "corner"),))
    if granting.tier == "landlock":  # rules can only add
        assert "must not be written" in _refused(granting, granted)
        return
    assert granting.tried(attempts.write, granted, path=f"{granting.folder}/corner/new") in ("EROFS", "EACCES")
    assert granting.tried(attempts.write, granted, path=f"{granting.folder}/new") == "done"


def _refused(granting: Place, profile: Profile) -> str:
    outcome = granting.outcome(attempts.p03_processes, profile)
    assert (outcome.kind, outcome.error_type) == ("error", "BadGrant"), outcome
    return outcome.error


def test_a_grant_through_a_link_is_refused(granting: Place) -> None:
    """A tool with a granted folder could otherwise turn the next grant to any file of the host."""
    (granting.folder / "real").mkdir()
    (granting.folder / "link").symlink_to("real")
    assert str(granting.folder / "real") in _refused(granting, Profile(write=(str(granting.folder / "link"),)))


@pytest.mark.parametrize("path", ["/", "/tmp", "/proc/self", "/dev/mem", "relative", "/etc/../root", "/nowhere/at/all"])
def test_a_bad_grant_is_refused_in_words(granting: Place, path: str) -> None:
    assert repr(path) in _refused(granting, Profile(read=(path,)))


def test_no_grant_opens_the_interpreter(granting: Place) -> None:
    folder = granting.worker.ask("shown")["places"][0]
    assert "interpreter" in _refused(granting, Profile(write=(folder,)))


def test_no_grant_above_the_interpreter_opens_it(as_root: Place) -> None:
    package = Path(pytest.__file__).parent
    above = next(path for path in package.parents if path.name == "lib").parent.parent
    site = f"{package.parent}/evil.pth"
    if as_root.tier == "landlock":
        assert "must not be written" in _refused(as_root, Profile(write=(str(above),)))
        return
    assert as_root.tried(attempts.write, Profile(write=(str(above),)), path=site) in ("EROFS", "EACCES")


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_tool_by_reference_is_found(sandbox: Place) -> None:
    assert sandbox.referred("json:dumps", obj=[1, 2]).value == "[1, 2]"
    outcome = sandbox.referred("no_such_module:function")
    assert (outcome.kind, outcome.error_type) == ("error", "ModuleNotFoundError"), outcome


def test_our_own_package_is_there(sandbox: Place) -> None:
    outcome = sandbox.referred("understudy.actors.sandbox.probe:look")
    assert outcome.kind == "ok", outcome
    assert "UNDERSTUDY_EFFECT_KEY" in outcome.value["environment"]


def test_the_effect_key_is_in_the_environment(sandbox: Place) -> None:
    assert sandbox.referred("os:getenv", key="UNDERSTUDY_EFFECT_KEY").value == "effect-1"


def test_a_decorated_tool_is_unwrapped(sandbox: Place) -> None:
    assert sandbox.tried(tools.decorated, a=2, b=3) == 5


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
def test_values_cross_both_ways(sandbox: Place, function: Callable[..., Any], args: dict[str, Any], value: Any) -> None:
    assert sandbox.tried(function, **args) == value


def test_ordinary_libraries_work(sandbox: Place) -> None:
    namespaces = sandbox.tier != "landlock"
    shown = sandbox.shown_below("/tmp") if namespaces else []
    assert sandbox.tried(tools.does_much, namespaces=namespaces) == {
        "shell": "A B",
        "threads": [1, 2],
        **({"processes": [3, 4]} if namespaces else {}),
        "sqlite": 5,
        "files": sorted(["archive.tar.gz", "copy", "unpacked", *shown]),
        "python": 0,
        "lock": True,
    }


def test_a_large_request_crosses(sandbox: Place) -> None:
    assert sandbox.tried(tools.measures, limited(memory_bytes=1 << 30), value="x" * 3_000_000) == 3_000_000


def test_arguments_that_do_not_fit_are_an_error(sandbox: Place) -> None:
    outcome = sandbox.outcome(tools.pays, order={"id": "A1"})
    assert (outcome.kind, outcome.error_type) == ("error", "ValidationError"), outcome
    assert "amount" in outcome.error


def test_an_exception_is_told_and_what_was_printed_is_kept(sandbox: Place) -> None:
    outcome = sandbox.outcome(tools.fails)
    assert (outcome.kind, outcome.error_type, outcome.error) == ("error", "KeyError", "'no such order'")
    assert outcome.printed.startswith("on stdout\non stderr\n")
    assert "Traceback" in outcome.printed
    assert outcome.duration_s > 0
    assert outcome.peak_memory_bytes > 0
