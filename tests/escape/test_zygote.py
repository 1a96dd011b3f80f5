"""Zygotes come and go, and calls do not notice; nothing is left of any."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from asyncio.selector_events import BaseSelectorEventLoop
from pathlib import Path

import pytest
from escape import attempts, tools
from escape.places import by_value, processes_with

from support.processes import is_alive
from support.waiting import run_async
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.sandbox import runtime, warm_call, watch, zygote, zygote_process
from understudy.actors.sandbox.backend import IsolationUnavailable, Preflight
from understudy.actors.sandbox.cgroup import NO_CELLS
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Limits, Profile


def call() -> ToolCall:
    return ToolCall("k", "t", by_value(attempts.p03_processes), {})


def zygotes() -> set[int]:
    """Children of this process: their outermost processes, and workers of other tests."""
    return {pid for pid in watch.tree(os.getpid()) if watch.status(pid).get("PPid") == str(os.getpid())}


async def until(wanted: object) -> None:
    assert callable(wanted)
    async with asyncio.timeout(20):
        while not wanted():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_another_takes_over_after_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "CALLS_MOST", 6)
    before = len(os.listdir("/proc/self/fd"))

    async def scenario() -> None:
        backend, seen = ZygoteBackend(spares=2), set[int]()
        at_first = zygotes()
        async with asyncio.timeout(60):
            while len(seen) < 3:
                outcomes = await asyncio.gather(*(backend.execute(call(), Profile()) for _ in range(3)))
                assert [outcome.value for outcome in outcomes] == [2, 2, 2]
                seen |= zygotes() - at_first
        await until(lambda: len(zygotes() - at_first) <= 2)  # those that are done end by themselves
        await backend.close()
        await until(lambda: not [pid for pid in seen if is_alive(pid)])

    run_async(scenario(), 90)
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_dies_while_it_starts_leaves_no_descriptor_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever got the number of its socket was never woken: other calls never ended, not even when they were cancelled.
    Its bubblewrap has died here, and somebody else has the socket still."""
    monkeypatch.setattr(zygote_process, "START_S", 3.0)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, BaseSelectorEventLoop)
        starting = asyncio.ensure_future(zygote_process.start(runtime.this_runtime(), NO_CELLS))
        while not starting.done():
            for key in loop._selector.get_map().values():  # type: ignore[attr-defined]
                os.fstat(key.fd)
            await asyncio.sleep(0)
        with pytest.raises(IsolationUnavailable, match="bubblewrap did not come up: it dies"):
            await starting

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # the launcher covers /tmp
        program = Path(name, "bwrap")
        program.write_text("#!/bin/sh\nsleep 1 &\necho it dies; exit 1\n")
        program.chmod(0o755)
        Path(name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{name}:{os.environ['PATH']}")
        before = len(os.listdir("/proc/self/fd"))
        run_async(scenario(), 60)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_tool_with_models_loads_nothing_for_them() -> None:
    async def scenario() -> Outcome:
        backend = ZygoteBackend(spares=1)
        try:
            return await backend.execute(ToolCall("k", "t", by_value(tools.loads_for_a_model), {}), Profile())
        finally:
            await backend.close()

    outcome = run_async(scenario(), 60)
    assert (outcome.kind, outcome.value) == ("ok", []), outcome


def test_modules_that_are_wanted_are_loaded_before_the_call_and_what_cannot_be_is_told() -> None:
    async def scenario() -> tuple[Outcome, Preflight]:
        backend = ZygoteBackend(spares=1, wanted=["sqlite3", "no_such_module"])
        try:
            found = await backend.preflight()
            return await backend.execute(
                ToolCall("k", "t", by_value(tools.is_loaded), {"name": "sqlite3"}), Profile()
            ), found
        finally:
            await backend.close()

    outcome, found = run_async(scenario(), 60)
    assert outcome.value is True, outcome
    assert found.details["loaded"] == "sqlite3"
    assert found.details["not loaded: no_such_module"] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_what_starts_threads_or_ends_the_process_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=[9], daemon=True).start()"
    )
    (tmp_path / "ending.py").write_text("import os; os.abort()")
    (tmp_path / "fine.py").write_text("here = 1")
    code = """
from understudy.actors.sandbox.zygote_inside import load
import json, sys
told = [load(name) for name in ("threaded", "ending", "fine")]
print(json.dumps([told, [name in sys.modules for name in ("threaded", "ending", "fine")]]))
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(said.stdout) == [
        ["it starts 1 thread when it is imported", "it ended the process that imported it (status -6)", ""],
        [False, False, True],
    ]


def test_calls_of_other_terms_get_a_spare_of_their_own() -> None:
    async def scenario() -> list[Outcome]:
        backend = ZygoteBackend(spares=1)
        try:
            free = by_value(tools.free_bytes)
            sizes = (8 << 20, 16 << 20, 8 << 20, 16 << 20)
            profiles = [Profile(limits=Limits(disk_bytes=size)) for size in sizes]
            measuring = ToolCall("k", "t", free, {"folder": "/tmp"})
            return [await backend.execute(measuring, profile) for profile in profiles]
        finally:
            await backend.close()

    assert [outcome.value for outcome in run_async(scenario())] == [8 << 20, 16 << 20, 8 << 20, 16 << 20]


def test_calls_share_no_chance_and_no_thread() -> None:
    """A runner is a fork: what every fork of Python does anew, it has to do as well."""

    async def scenario() -> list[Outcome]:
        backend = ZygoteBackend(spares=2)
        try:
            chance = ToolCall("k", "t", by_value(tools.chance), {})
            return [await backend.execute(chance, Profile()) for _ in range(2)]
        finally:
            await backend.close()

    outcomes = run_async(scenario())
    numbers = [number for outcome in outcomes for number in outcome.value]
    assert len(set(numbers)) == 6, outcomes


def test_a_tool_that_speaks_to_the_first_process_as_the_host_does_ends_itself() -> None:
    async def scenario() -> tuple[Outcome, Outcome]:
        backend = ZygoteBackend(spares=1)
        try:
            halting = ToolCall("k", "t", by_value(attempts.b20_halt_the_first), {})
            return await backend.execute(halting, Profile()), await backend.execute(call(), Profile())
        finally:
            await backend.close()

    halted, after = run_async(scenario())
    assert (halted.kind, halted.printed) == ("killed", "before\n")
    assert after.value == 2


def test_what_has_answered_is_gone_soon(token: str) -> None:
    """A child that ignores what it can, and works on; the call does not wait until the kernel has cleaned up."""

    async def scenario() -> None:
        backend, at_first = ZygoteBackend(spares=1), zygotes()
        try:
            staying = ToolCall("k", "t", by_value(attempts.b21_answer_and_work_on), {"token": token})
            outcome = await backend.execute(staying, Profile())
            assert (outcome.kind, outcome.value) == ("ok", "answered")
            await until(lambda: not backend.leaving)
            assert processes_with(token) == []
        finally:
            await backend.close()
        assert zygotes() <= at_first

    run_async(scenario())


def test_a_stopped_zygote_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not make what it is told to; so the call is refused, and the next one finds another."""
    monkeypatch.setattr(warm_call, "START_S", 0.5)

    async def scenario() -> None:
        backend, at_first = ZygoteBackend(spares=0), zygotes()
        try:
            assert (await backend.execute(call(), Profile())).value == 2
            [outermost] = zygotes() - at_first
            for pid in watch.tree(outermost):
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(IsolationUnavailable, match="not ready"):
                await backend.execute(call(), Profile())
            monkeypatch.setattr(warm_call, "START_S", 20.0)
            await until(lambda: not is_alive(outermost))
            assert (await backend.execute(call(), Profile())).value == 2
        finally:
            await backend.close()

    run_async(scenario(), 60)


def test_a_call_that_is_refused_by_a_machine_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = run_async(ZygoteBackend().preflight())
    assert not found.available
    assert "bubblewrap (bwrap) is not installed" in found.reason


def test_a_launcher_that_is_killed_leaves_nobody_behind() -> None:
    """While it makes an id map, a process holds the user namespace for it: as root, with all that it had open."""
    there, held = os.pipe()
    script = "launcher.open = lambda *_: os.kill(os.getpid(), 9); launcher.user_namespace('0 0 1', '0 0 1')"
    ended = subprocess.run(
        [sys.executable, "-c", f"import os; from understudy.actors.sandbox import launcher; {script}"],
        pass_fds=(held,),
        check=False,
    )
    os.close(held)
    assert ended.returncode == -signal.SIGKILL
    assert select.select([there], [], [], 10)[0], "somebody has the pipe still"
    os.close(there)
