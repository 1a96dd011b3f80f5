"""How a run actor finds the other actors, without Ray's being there."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.waiting import run_async
from understudy.actors import ports


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
