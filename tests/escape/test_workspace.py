"""Files of a run go into every tier and come out of it; what a tool does to them, or says of them, harms nobody."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from escape import file_attempts
from escape.places import Place, limited

from understudy.actors.files import FILES_MAX, applied, bytes_of, given, read, text_of
from understudy.actors.outcome import ToolCode

FILES = text_of({item["id"]: item for item in given({"a.txt": b"one", "folder/b.txt": b"two", "folder/c.txt": b""})})
ROOM = limited(disk_bytes=32 << 20)


def test_files_go_in_and_what_changed_comes_out(sandbox: Place) -> None:
    outcome = sandbox.in_workspace(file_attempts.works, ROOM, FILES)
    assert (outcome.kind, outcome.value) == ("ok", ["b.txt", "c.txt", "one"]), outcome
    after = applied(read(FILES), outcome.files)
    assert set(after) == {"a.txt", "folder/c.txt", "folder/link", "new/deep", "run.sh", "twin.txt"}
    assert bytes_of(after, "a.txt") == bytes_of(after, "twin.txt") == bytes_of(after, "folder/link") == b"one more"
    assert after["run.sh"]["x"]
    assert ["folder/c.txt"] not in outcome.files
    assert all(item == ["folder/b.txt"] or item["id"] != "folder/c.txt" for item in outcome.files)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (file_attempts.links_out, "leads out of the workspace"),
        (file_attempts.links_up, "leads out of the workspace"),
        (file_attempts.has_a_pipe, "neither a file, a folder nor a link"),
        (file_attempts.is_many, f"more than {FILES_MAX} files"),
        (file_attempts.is_sparse, "more bytes than it may hold"),
        (file_attempts.is_deep, "deeper than"),
        (file_attempts.fails, "no"),
    ],
)
def test_what_cannot_be_kept_changes_nothing(sandbox: Place, attack: Callable[[], None], said: str) -> None:
    outcome = sandbox.in_workspace(attack, ROOM, FILES)
    assert (outcome.kind, outcome.files) == ("error", None), outcome
    assert said in outcome.error


@pytest.mark.parametrize(
    "files",
    [
        [{"id": "../../etc/x", "kind": "file", "data": "", "x": False}],
        [{"id": "/etc/x", "kind": "file", "data": "", "x": False}],
        [{"id": "x", "kind": "file", "data": "", "x": False, "size": 10**12}],
        [{"id": "x", "kind": "device", "data": ""}],
        [{"id": "x", "kind": "link", "target": "/"}],
        [["x"], ["x"]],
        {"x": 1},
        "x",
        None,
    ],
    ids=lambda files: json.dumps(files)[:20],
)
def test_a_reply_that_lies_is_refused(sandbox: Place, files: Any) -> None:
    outcome = sandbox.in_workspace(file_attempts.tells_of_its_own, ROOM, FILES, files=files)
    assert (outcome.kind, outcome.files) == ("error", None), outcome


def test_room_for_files_is_no_room_for_a_value(sandbox: Place) -> None:
    outcome = sandbox.in_workspace(file_attempts.tells_a_large_value, ROOM, FILES)
    assert outcome.kind == "output_too_large", outcome


def test_files_that_change_while_they_are_packed_are_one_or_the_other(sandbox: Place) -> None:
    outcome = sandbox.in_workspace(file_attempts.changes_while_packed, ROOM, FILES)
    if outcome.kind == "ok":  # else a file was gone between two looks, and the workspace is as it was
        applied(read(FILES), outcome.files or [])
        return
    assert (outcome.kind, outcome.files) == ("error", None), outcome


def test_a_command_and_code_run_there(sandbox: Place) -> None:
    ran = sandbox.referred("understudy.actors.programs:run_command", command="echo out; echo err >&2; exit 3")
    assert ran.value == {"status": 3, "stdout": "out\n", "stderr": "err\n"}, ran
    ran = sandbox.referred("understudy.actors.programs:run_code", code="print(1)\nn + 1", inputs={"n": 2})
    assert ran.value == {"printed": "1\n", "value": 3, "shown": "", "error": ""}, ran
    assert ran.printed == "1\n"


def test_what_a_command_printed_is_known_when_its_time_is_up(sandbox: Place) -> None:
    asked = ToolCode(ref="understudy.actors.programs:run_command")
    wall_s = 10 if sandbox.tier == "gvisor" else 1.5  # there a start alone may take that long
    number = sandbox._send(asked, limited(wall_s=wall_s), {"command": "echo first; exec cat /dev/zero > /dev/null"})
    outcome = sandbox.answer(number)
    assert (outcome.kind, outcome.printed) == ("timeout", "first\n"), outcome


def test_without_a_workspace_a_reply_brings_none(sandbox: Place) -> None:
    data = base64.b64encode(b"x" * (3 << 20)).decode()
    files = [{"id": "x", "kind": "file", "data": data, "x": False}]
    assert sandbox.outcome(file_attempts.tells_of_its_own, ROOM, files=files).kind in ("output_too_large", "error")
