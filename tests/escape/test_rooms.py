"""Zygotes that show files of the host: a call in one sees what was granted, as it is now, or is made in tier cold."""

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from escape import attempts, tools
from escape.places import by_value, processes_with
from escape.test_zygote import until, zygotes

from support.processes import is_alive
from support.waiting import run_async
from understudy.actors.environment import Environment
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import rooms, uses
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.egress.way_out import WayOut
from understudy.actors.sandbox.environments import Environments, site_packages
from understudy.actors.sandbox.rooms import NotWarm
from understudy.actors.sandbox.tiers import Tiers
from understudy.actors.sandbox.uses import ROOMS_MOST, USES
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Profile


class Cold(BubblewrapBackend):
    """Tier cold, which counts what it makes."""

    made = 0

    async def execute(self, call: ToolCall, profile: Profile, way_out: WayOut | None = None) -> Outcome:
        self.made += 1
        return await super().execute(call, profile, way_out)


class Both:
    """The two tiers, as a sandbox actor has them."""

    def __init__(self) -> None:
        self.cold, self.zygotes = Cold(), ZygoteBackend(spares=1)
        self.rooms = self.zygotes._rooms
        self.tiers = Tiers([self.zygotes, self.cold])

    async def of(self, profile: Profile, function: Any, /, **args: Any) -> Outcome:
        outcome = await self.tiers.execute(made(function, **args), profile)
        await self.settled()
        return outcome

    async def settled(self) -> None:
        await until(lambda: self.rooms._starting is None)

    async def warm(self, *profiles: Profile, call: ToolCall | None = None) -> None:
        """Have a room for each."""
        for profile in profiles:
            for _ in range(USES):
                with pytest.raises(NotWarm):
                    await self.zygotes.execute(call or made(attempts.p03_processes), profile)
                await self.settled()

    async def by_cold(self, profile: Profile, function: Any, /, **args: Any) -> tuple[bool, Any]:
        """Whether the call was made by tier cold, and what came of it."""
        before = self.cold.made
        outcome = await self.of(profile, function, **args)
        return self.cold.made > before, outcome.value if outcome.kind == "ok" else outcome.error


@asynccontextmanager
async def both() -> AsyncIterator[Both]:
    """In the end, there is no process of theirs, and no descriptor."""
    descriptors, at_first = len(os.listdir("/proc/self/fd")), zygotes()
    opened = Both()
    await opened.tiers.preflights()
    try:
        yield opened
    finally:
        await opened.tiers.close()
    await until(lambda: zygotes() <= at_first)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def made(function: Any, **args: Any) -> ToolCall:
    return ToolCall("k", "t", by_value(function), args)


def reading(*paths: Path) -> Profile:
    return Profile(read=tuple(map(str, paths)))


def test_a_room_is_warm_after_its_first_uses_and_lives_while_its_grants_do(owned: Path) -> None:
    """Each change of what the path leads to: the call sees what is there now, and tier cold has made it."""
    folder, data = owned / "folder", owned / "data"
    folder.mkdir()
    data.write_text("one")
    granted = reading(folder, data)

    async def scenario() -> None:
        async with both() as tiers:
            found = [await tiers.by_cold(granted, tools.contents, path=str(data)) for _ in range(USES + 1)]
            assert found == [(True, "one")] * USES + [(False, "one")]
            data.write_text("two")  # in place, as in a folder
            (folder / "new").write_text("new")
            assert await tiers.by_cold(granted, tools.contents, path=str(data)) == (False, "two")
            assert await tiers.by_cold(granted, tools.contents, path=f"{folder}/new") == (False, "new")
            assert await tiers.by_cold(granted, attempts.write, path=f"{folder}/x") == (False, "EROFS")

            (owned / "draft").write_text("three")
            (owned / "draft").rename(data)
            assert await tiers.by_cold(granted, tools.contents, path=str(data)) == (True, "three")
            assert tiers.zygotes.rooms == 0
            for _ in range(USES):  # whose files have changed once, and may again, it is not for now
                assert await tiers.by_cold(granted, tools.contents, path=str(data)) == (True, "three")

    run_async(scenario(), 90)


def test_what_took_the_place_of_a_granted_path_is_seen_or_refused_as_in_tier_cold(
    owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "BARRED_S", 0.0)
    above = owned / "above"
    place, beside = above / "place", above / "beside"

    async def scenario() -> None:
        above.mkdir()
        for folder, text in ((place, "inside"), (beside, "beside")):
            folder.mkdir()
            (folder / "data").write_text(text)
        granted, path = reading(place), f"{place}/data"
        async with both() as tiers:
            await tiers.warm(granted)
            place.rename(owned / "away")
            beside.rename(place)
            assert await tiers.by_cold(granted, tools.contents, path=path) == (True, "beside")
            await tiers.warm(granted)
            assert await tiers.by_cold(granted, tools.contents, path=path) == (False, "beside")

            place.rename(beside)
            is_cold, said = await tiers.by_cold(granted, tools.contents, path=path)
            assert (is_cold, tiers.zygotes.rooms) == (True, 0)
            assert said == (await BubblewrapBackend().execute(made(tools.contents, path=path), granted)).error

            beside.rename(place)
            await tiers.warm(granted)
            place.rename(beside)
            place.symlink_to(beside)  # to the very same folder: a grant does not go through links
            is_cold, said = await tiers.by_cold(granted, tools.contents, path=path)
            assert is_cold
            assert f"goes through a symbolic link; grant {str(beside)!r}" in said

            place.unlink()
            beside.rename(place)
            await tiers.warm(granted)
            above.rename(owned / "moved")
            above.symlink_to("moved")
            is_cold, said = await tiers.by_cold(granted, tools.contents, path=path)
            assert (is_cold, "symbolic link" in said) == (True, True)
            above.unlink()
            (owned / "moved").rename(above)

            await tiers.warm(granted)
            place.chmod(0o700)  # what a bind depends on where owners are exchanged, and what a call is refused for
            assert (await tiers.by_cold(granted, tools.contents, path=path))[0]

    run_async(scenario(), 120)


def test_other_grants_are_other_rooms(owned: Path) -> None:
    one, two = owned / "one", owned / "two"
    for path in (one, two):
        path.write_text(path.name)

    async def scenario() -> None:
        async with both() as tiers:
            writing = Profile(write=(str(one),), read=(str(two),))
            await tiers.warm(reading(one, two), writing)
            assert await tiers.by_cold(reading(two, one), tools.contents, path=str(two)) == (False, "two")
            is_cold, said = await tiers.by_cold(reading(one), tools.contents, path=str(two))
            assert (is_cold, "No such file" in said) == (True, True)
            assert await tiers.by_cold(Profile(), attempts.read, path=str(one)) == (False, "ENOENT")
            assert await tiers.by_cold(reading(one, two), attempts.open_for_writing, path=str(one)) == (False, "EROFS")
            assert await tiers.by_cold(writing, tools.append_line, path=str(one), line="more") == (False, 1)
            assert await tiers.by_cold(writing, attempts.open_for_writing, path=str(two)) == (False, "EROFS")
            assert one.read_text() == "onemore\n"
            cold = dataclasses.replace(writing, tier="cold")
            assert await tiers.by_cold(cold, tools.contents, path=str(two)) == (True, "two")
            # At once, in both rooms and in none: each sees its own.
            calls = [(reading(one, two), one), (writing, two), (Profile(), one)] * 4
            outcomes = await asyncio.gather(
                *(tiers.tiers.execute(made(tools.contents, path=str(path)), profile) for profile, path in calls)
            )
            said = [outcome.value or outcome.error_type for outcome in outcomes]
            assert said == ["onemore\n", "two", "FileNotFoundError"] * 4

    run_async(scenario(), 90)


def test_rooms_end_when_nobody_uses_them_and_there_are_never_many(owned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [owned / str(number) for number in range(3 * ROOMS_MOST)]
    for path in paths:
        path.write_text("x")

    async def scenario() -> None:
        async with both() as tiers:
            at_first, seen = zygotes(), 0
            for path in paths:  # twice each: there is no place for more than these, and none that is new goes
                for _ in range(USES):
                    with pytest.raises(NotWarm):
                        await tiers.zygotes.execute(made(tools.contents, path=str(path)), reading(path))
                    if tiers.zygotes.rooms < ROOMS_MOST:
                        await tiers.settled()
                seen = max(seen, len(zygotes() - at_first))
            assert (tiers.zygotes.rooms, seen) == (ROOMS_MOST, ROOMS_MOST)
            monkeypatch.setattr(uses, "KEPT_S", 0.0)
            await tiers.warm(reading(*paths))
            assert tiers.zygotes.rooms == ROOMS_MOST
            with pytest.raises(NotWarm):  # the oldest went
                await tiers.zygotes.execute(made(tools.contents, path=str(paths[0])), reading(paths[0]))
            await tiers.settled()
            monkeypatch.setattr(uses, "IDLE_S", 0.0)
            tiers.rooms._sweep()
            assert tiers.zygotes.rooms == 0
            await until(lambda: zygotes() <= at_first)
            for module in (rooms, uses):
                monkeypatch.setattr(module, "IDLE_S", 0.01)
            await tiers.warm(reading(*paths[:2]))
            await until(lambda: not tiers.zygotes.rooms and zygotes() <= at_first)

    run_async(scenario(), 120)


def test_a_room_whose_zygote_dies_takes_its_calls_with_it_and_the_next_is_made(owned: Path, token: str) -> None:
    data = owned / "data"
    data.write_text("x")

    async def scenario() -> None:
        async with both() as tiers:
            at_first = zygotes()
            await tiers.warm(reading(data))
            [outermost] = zygotes() - at_first
            call, before = made(attempts.r11_never_return, token=token), tiers.cold.made
            pending = asyncio.ensure_future(tiers.tiers.execute(call, reading(data)))
            await until(lambda: processes_with(token))
            os.kill(outermost, signal.SIGKILL)
            outcome = await pending
            assert (outcome.kind, "SIGKILL" in outcome.error) == ("killed", True), outcome
            assert tiers.cold.made == before, "it is not made again"
            await until(lambda: not is_alive(outermost))
            assert not processes_with(token)
            assert await tiers.by_cold(reading(data), tools.contents, path=str(data)) == (True, "x")

            # One that is to end ends with its calls.
            other = owned / "other"
            other.write_text("y")
            await tiers.warm(reading(other))
            pending = asyncio.ensure_future(tiers.tiers.execute(call, reading(other)))
            await until(lambda: processes_with(token))
            tiers.rooms._end(rooms.key_of(call, reading(other)))
            await asyncio.sleep(0)
            assert processes_with(token)
            pending.cancel()
            await asyncio.wait([pending])
            await until(lambda: zygotes() <= at_first)

    run_async(scenario(), 90)


# --- environments ---------------------------------------------------------------------------------------------------


def environment(folder: Path, **packages: str) -> str:
    """As `python -m venv` leaves one, without pip."""
    found = folder / "-".join(["env", *packages])
    inside = Path(site_packages(str(found)))
    inside.mkdir(parents=True)
    for name, text in packages.items():
        (inside / f"{name}.py").write_text(text)
    (found / "bin").mkdir()
    (found / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (found / "pyvenv.cfg").write_text("home = somewhere\n")
    return str(found)


def test_a_warm_environment_is_found_as_in_tier_cold(owned: Path) -> None:
    """Also one with a pydantic of its own, and one with a package that would be there before it; none is executed where
    another call could find what it has done."""
    told = f"import os; open({str(owned)!r} + '/told', 'a').write('here')\nVERSION = 'theirs'\n"
    own = environment(owned, own="VERSION = 'own'\n")
    other = environment(owned, own="VERSION = 'other'\n", pydantic=told, typing_extensions=told)
    granted = Profile(write=(str(owned),))

    def wanted(folder: str) -> ToolCall:
        with Environments("/nonexistent").lent(Environment(venv=folder)) as lent:
            return dataclasses.replace(made(tools.imports), environment=lent)

    async def scenario() -> None:
        async with both() as tiers:
            for folder in (own, other):
                call = wanted(folder)
                cold = await BubblewrapBackend().execute(call, granted)
                (owned / "told").unlink(missing_ok=True)
                await tiers.warm(granted, call=call)
                assert not (owned / "told").exists(), "the zygote has executed what the environment holds"
                before = tiers.cold.made
                outcome = await tiers.tiers.execute(call, granted)
                assert (outcome.kind, outcome.value) == ("ok", cold.value), outcome
                assert tiers.cold.made == before
                assert outcome.value["own"][0] == f"{site_packages(folder)}/own.py"
                assert outcome.value["yaml"] == "ModuleNotFoundError", "the worker has it"
            assert outcome.value["pydantic"] == [f"{site_packages(other)}/pydantic.py", "theirs"]
            assert (owned / "told").read_text() == "herehere"
            # The packages change under it.
            (Path(site_packages(own)) / "pydantic.py").write_text("VERSION = 'late'\n")
            outcome = await tiers.tiers.execute(wanted(own), granted)
            assert outcome.value["pydantic"] == [f"{site_packages(own)}/pydantic.py", "late"]
            assert tiers.cold.made == before + 1

    run_async(scenario(), 90)


# --- mounts ---------------------------------------------------------------------------------------------------------

MOUNTING = """
import subprocess, sys
from understudy.actors.sandbox.shown import Shown

def shown_after(*lines):
    shown = Shown([f"{folder}/granted", f"{folder}/a name"])
    try:
        before = shown.is_same()
        for line in lines:
            subprocess.run(line, check=True)
        return before, shown.is_same(), shown.is_same()
    finally:
        shown.close()

folder = sys.argv[1]
there, away = ["mount", "-t", "tmpfs", "none"], ["umount"]
assert shown_after([*there, f"{folder}/elsewhere"], [*away, f"{folder}/elsewhere"]) == (True, True, True)
assert shown_after([*there, f"{folder}/granted"]) == (True, False, False)
assert shown_after([*away, f"{folder}/granted"]) == (True, False, False)
assert shown_after([*there, f"{folder}/granted/below"]) == (True, False, False)
assert shown_after([*away, f"{folder}/granted/below"]) == (True, False, False)
assert shown_after([*there, f"{folder}/a name"]) == (True, False, False)
assert shown_after([*there, folder], [*away, folder]) == (True, True, True)
assert shown_after(["mount", "-o", "remount,bind,ro", f"{folder}/a name"]) == (True, False, False)
"""


def test_what_is_mounted_at_a_granted_path_or_below_it_is_noticed(tmp_path: Path) -> None:
    for name in ("elsewhere", "granted", "granted/below", "a name"):
        (tmp_path / name).mkdir()
    line: Sequence[str] = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNTING]
    subprocess.run([*line, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize("most", [1, 100])
def test_a_file_that_is_replaced_just_while_it_is_bound(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a bubblewrap that first does so, this often: the call is begun again, and the grant is told of in the end."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # the launcher covers /tmp
        folder, program = Path(name), Path(name) / "bwrap"
        data = folder / "data"
        data.write_text("0")
        for number in range(1, most + 1):
            (folder / f"next{number:03}").write_text(str(number))
        program.write_text(f"""#!/bin/sh
            for next in {name}/next*; do [ -e "$next" ] && mv "$next" {data}; break; done
            exec {shutil.which("bwrap")} "$@"
        """)
        program.chmod(0o755)
        folder.chmod(0o777)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        outcome = run_async(BubblewrapBackend().execute(made(tools.contents, path=str(data)), reading(data)))
    if most == 1:
        assert outcome.value == "1"
    else:
        assert outcome.error_type == "BadGrant"
        assert f"{str(data)!r} is replaced or removed all the time" in outcome.error


@pytest.mark.parametrize("always", [False, True])
def test_one_that_is_killed_before_it_begins_is_begun_again(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        program = Path(name) / "bwrap"
        once = "" if always else f"[ -e {name}/killed ] || "
        program.write_text(f"""#!/bin/sh
            {once}{{ touch {name}/killed; kill -9 $$; }}
            exec {shutil.which("bwrap")} "$@"
        """)
        program.chmod(0o755)
        Path(name).chmod(0o777)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        begun = BubblewrapBackend().execute(made(tools.measures, value="abc"), Profile())
        if always:
            with pytest.raises(IsolationUnavailable, match="was killed, 3 times; remedy: look for memory"):
                run_async(begun)
        else:
            assert run_async(begun).value == 3
