"""How a run actor finds the other actors, without Ray's being there."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.waiting import run_async
from understudy.actors import ports
from understudy.actors.process import born, end, name_of_this_process


def test_an_actor_is_found_while_every_thread_of_the_loop_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six `def` nodes at once that each made the process's first call waited for ever: there are six such threads."""
    monkeypatch.setattr(ports.ray, "get_actor", lambda name, namespace: f"{namespace}/{name}")

    async def played() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
        found = threading.Event()
        node = loop.run_in_executor(None, found.wait, 5)
        async with asyncio.timeout(2):
            assert await ports.find("policy") == "understudy/policy"
        found.set()
        assert await node

    run_async(played())


def test_a_call_that_is_never_answered_is_told_from_a_pause_of_this_process() -> None:
    async def played() -> None:
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await ports.in_time(never, 0.05)
        assert never.cancelled()

        async def soon() -> str:
            await asyncio.sleep(0.03)
            return "here"

        answer = asyncio.ensure_future(ports.in_time(soon(), 0.1))
        await asyncio.sleep(0.01)
        time.sleep(0.3)  # noqa: ASYNC251 (as a SIGSTOP would)
        assert await answer == "here"

    run_async(played())


def test_a_stopped_process_is_ended_by_its_name_and_no_other() -> None:
    with subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]) as process:
        os.waitpid(process.pid, os.WUNTRACED)
        host, pid, since = name_of_this_process().split(":")[0], process.pid, born(process.pid)
        for other in ("", f"elsewhere:{pid}:{since}", f"{host}:{pid}:1", f"{host}:{pid}:"):
            end(other)
        assert process.poll() is None
        end(f"{host}:{pid}:{since}")
        assert process.wait() == -9
