"""Which rooms get a zygote, for how long, and what of a granted path is looked at: no sandbox is made here."""

import asyncio
import importlib
import os
import sys
import threading
from pathlib import Path

import pytest

from support.waiting import run_async
from understudy.actors.outcome import ToolCall, ToolCode
from understudy.actors.sandbox import rooms
from understudy.actors.sandbox.foreign import Foreign
from understudy.actors.sandbox.rooms import PATHS_BYTES_MOST, PATHS_MOST, Key, _is_small, key_of
from understudy.actors.sandbox.shown import NEAR_MOST, Shown, _concerns, look
from understudy.actors.sandbox.uses import (
    AGAIN_S,
    BARRED_S,
    IDLE_S,
    KEPT_S,
    REMEMBERED_MOST,
    ROOMS_MOST,
    USES,
    Uses,
    gives_way,
    idle,
)
from understudy.policies.profile import Profile


def test_a_room_is_worth_it_once_it_is_in_use() -> None:
    uses = Uses[str]()
    assert [uses.is_again("a", 1.0) for _ in range(USES)] == [False] * (USES - 1) + [True]
    assert uses.is_again("a", 1.0 + AGAIN_S)
    assert not uses.is_again("a", 2.0 + 2 * AGAIN_S + 1), "long after"
    assert not uses.is_again("b", 2.0)


def test_where_it_was_of_no_use_it_is_not_for_a_while() -> None:
    uses = Uses[str]()
    for now in range(USES):
        uses.is_again("a", now)
    uses.bar("a", 10.0)
    assert not any(uses.is_again("a", 10.0 + moment) for moment in range(0, int(BARRED_S), 5))
    assert uses.is_again("a", 10.0 + BARRED_S)


def test_what_is_remembered_is_bounded() -> None:
    uses = Uses[int]()
    for _ in range(2 * USES):
        assert not any(uses.is_again(key, 1.0) for key in range(REMEMBERED_MOST + 1))
    assert len(uses._of) == REMEMBERED_MOST


def test_a_room_that_was_just_used_does_not_give_way() -> None:
    used = {str(number): 100.0 + number for number in range(ROOMS_MOST)}
    assert gives_way(dict(list(used.items())[:-1]), 100.0) == (True, None)
    assert gives_way(used, 100.0) == (False, None)
    assert gives_way(used, 100.0 + KEPT_S) == (True, "0")
    assert idle(used, 101.0 + IDLE_S) == ["0", "1"]


def test_a_room_is_what_its_calls_see() -> None:
    def key(profile: Profile, environment: str = "", beside: bool = False) -> Key:
        return key_of(ToolCall("k", "t", ToolCode(ref="a:b", beside=beside), {}, environment=environment), profile)

    assert key(Profile(read=("/a", "/b"))) == key(Profile(read=("/b", "/a", "/a")))
    assert key(Profile(read=("/a",), write=("/a",))) == key(Profile(write=("/a",)))
    several = [
        key(Profile(read=("/a",))),
        key(Profile(read=("/a", "/b"))),
        key(Profile(write=("/a",))),
        key(Profile(read=("/a/b",), write=("/a",))),
        key(Profile(), "/env"),
        key(Profile(), "/env", beside=True),
        key(Profile(), "/other"),
        key(Profile(read=("/a",)), "/env"),
    ]
    assert len(set(several)) == len(several)
    many = tuple(f"/{number}" for number in range(PATHS_MOST + 1))
    assert _is_small(key(Profile(read=many[1:])))
    assert not _is_small(key(Profile(read=many)))
    assert not _is_small(key(Profile(read=("/" + "x" * PATHS_BYTES_MOST,))))


def test_what_is_looked_at_is_what_the_path_itself_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    assert look([str(link)]) is look([str(tmp_path / "none")]) is look([f"{link}/../real"]) is None
    (first,) = look([str(real)]) or ()
    assert first.identity == (real.stat().st_dev, real.stat().st_ino)
    (real / "new").touch()
    assert look([str(real)]) == (first,), "what is in a folder is not its own"
    listed = look([], [str(real)])
    os.utime(real, ns=(1, 1))
    assert look([str(real)]) == (first,)
    assert look([], [str(real)]) != listed
    real.chmod(0o500)
    assert look([str(real)]) != (first,)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("/", True),
        ("/srv", True),
        ("/srv/a\\040name", True),
        ("/srv/a\\040name/below", True),
        ("/srv/a", False),
        ("/srv/a\\040namesake", False),
        ("/other", False),
    ],
)
def test_mounts_on_the_way_and_below_concern_a_path(point: str, expected: bool) -> None:
    assert _concerns(point, ["/srv/a name"]) is expected


def test_what_may_wait_for_a_network_is_looked_at_in_a_thread(tmp_path: Path) -> None:
    shown = Shown([str(tmp_path)])
    try:
        row = "1 2 3:4 / /srv rw,relatime shared:1 - {} server:/export rw\n".format
        shown._mounts = [row("ext4"), row("tmpfs")]
        assert shown.is_near
        shown._mounts = [row("ext4"), row("nfs4")]
        assert not shown.is_near
        shown._mounts, shown._paths = [row("ext4")], (str(tmp_path),) * (NEAR_MOST + 1)
        assert not shown.is_near
    finally:
        shown.close()


@pytest.mark.parametrize(
    ("held", "has_own"),
    [
        ({"left_pad.py": "", "left_pad-1.0.dist-info/entry_points.txt": "[console_scripts]\nx = y\n"}, False),
        ({"lent.py": ""}, True),
        ({"lent/__init__.py": ""}, True),
        ({"lent.cpython-311-x86_64-linux-gnu.so": ""}, True),
        ({"more-1.0.dist-info/entry_points.txt": "[ pydantic ]\nx = y\n"}, True),
    ],
)
def test_an_environment_with_any_of_what_is_lent_is_lent_nothing_before_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: dict[str, str], has_own: bool
) -> None:
    for name, text in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = list(sys.meta_path)
    finder = type("Finder", (), {"find_spec": staticmethod(lambda *_: None)})
    monkeypatch.setattr(sys, "meta_path", [*before, finder])
    monkeypatch.setitem(sys.modules, "lent.part", sys)
    foreign = Foreign(str(tmp_path), {"lent"}, finder)
    assert foreign.has_own is has_own
    assert foreign.harmless(["lent.part", "json"]) == (["json"] if has_own else ["lent.part", "json"])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("left_pad_or_so")
    foreign.leave()
    assert sys.meta_path == before
    assert ("lent.part" in sys.modules) is not has_own


def test_what_was_asked_for_in_vain_and_a_call_would_find_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quicker.py").touch()
    finder = type("Finder", (), {"find_spec": staticmethod(lambda *_: None)})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    foreign = Foreign(str(tmp_path), {"lent"}, finder)
    with pytest.raises(ModuleNotFoundError):  # as a library does for one that makes it quicker
        importlib.import_module("quicker")
    with pytest.raises(SystemExit, match="quicker"):
        foreign.leave()


def test_a_file_system_that_does_not_answer_is_left_to_tier_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, descriptors = threading.Event(), Path("/proc/self/fd")
    monkeypatch.setattr(rooms, "LOOK_S", 0.05)
    monkeypatch.setattr(rooms, "refuse_unreachable", lambda _: answers.wait())

    def held() -> int:
        """How many descriptors look for a change of what is mounted; others of other tests come and go."""
        return sum(os.path.realpath(each).endswith("/mountinfo") for each in descriptors.iterdir())

    async def scenario() -> None:
        before = held()
        with pytest.raises(TimeoutError):
            await rooms._looked(Profile(), [str(tmp_path)], [])
        answers.set()
        shown = await rooms._looked(Profile(), [str(tmp_path)], [])
        assert held() > before
        shown.close()
        while held() > before:  # noqa: ASYNC110  what came late is closed, too
            await asyncio.sleep(0.01)

    run_async(scenario())


def test_all_who_ask_at_once_hear_of_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of it once."""
    shown = Shown([str(tmp_path)])
    try:
        assert shown.is_same()
        rows = shown._mounts
        shown._mounts = [*rows, "1 2 3:4 / /gone rw - none none rw\n"]

        class Once:
            told = False

            def poll(self, _: int) -> list[int]:
                first, self.told = not self.told, True
                return [1] if first else []

        shown._changes = Once()  # type: ignore[assignment]
        said: list[bool] = []
        threads = [threading.Thread(target=lambda: said.append(shown.is_same())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == [False] * 4
    finally:
        shown.close()
    assert not shown.is_same(), "closed"
