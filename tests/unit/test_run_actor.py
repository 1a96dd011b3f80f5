"""A process that has had a run is as it was before, or takes no other. Without Ray: the actor's own class."""

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from support.waiting import run_async
from understudy import END, START, Graph
from understudy.actors.code import Code, Library
from understudy.actors.memory import MemoryStore
from understudy.actors.process import Bearings
from understudy.actors.run_actor import Left, RunActor, RunActorConfig
from understudy.actors.ship import Shipper
from understudy.actors.start import create, new_run


class Nothing(BaseModel):
    pass


async def led(node: Any, claims: int = 1) -> Left:
    """How a run of this one node leaves its actor, which was given it after the first of these claims."""
    graph = Graph("one", Nothing)
    graph.node(node, name="work")
    graph.edge(START, "work").edge("work", END)
    store, code = MemoryStore(), Code(ref="nowhere:graph")

    async def opened() -> MemoryStore:
        return store

    actor = RunActor(RunActorConfig(opened, b"", "policy", ("sandbox",), 10.0, 10.0, 10.0))
    # As `ready` does, but for the thread that renews its leases.
    actor._loop, actor._store = asyncio.get_running_loop(), store
    actor._ship, actor._library = Shipper(store, b""), Library(b"", store.get_blob)
    actor._library._graphs[code.text()] = graph
    actor._bearings = Bearings.of_this_process()
    run = await create(store, new_run(graph.plan(), code, {}))
    await store.claim(run.run_id, "one", 10.0, time.time())
    for _ in range(claims - 1):
        at = time.time()
        await store.requeue(run.run_id, (await store.run(run.run_id)).epoch, at, 0.0, [], {})
        await store.claim(run.run_id, "another", 10.0, at)
    left = await actor.drive(run.run_id, 1)
    assert claims == 1 or (await store.run(run.run_id)).status == "running", "it is the other one's"
    return left


def test_a_run_that_somebody_else_has_by_now_is_left_to_them() -> None:
    """Law 1: what is loaded has the epoch of the present owner, and whoever drove it would be a second one."""
    ran = []

    async def node() -> None:
        ran.append(1)

    left = run_async(led(node, claims=2))
    assert (left.how, ran) == ("fenced", [])


@pytest.fixture
def before() -> Iterator[Bearings]:
    bearings = Bearings.of_this_process()
    yield bearings
    assert bearings.restore()


def test_what_a_node_has_changed_about_its_process_is_set_back(before: Bearings) -> None:
    seen = []

    async def node() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.umask(0o777)
        os.chdir("/")
        seen.append(Bearings.of_this_process())

    left = run_async(led(node))
    assert (left.status, left.dirty) == ("succeeded", False)
    assert seen[0] != before
    assert Bearings.of_this_process() == before


def test_a_process_with_a_limit_that_is_lowered_for_good_takes_no_other_run(
    before: Bearings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(which: int, limit: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    async def node() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        monkeypatch.setattr(resource, "setrlimit", refused)  # as for whoever is not root

    left = run_async(led(node))
    monkeypatch.undo()
    assert (left.status, left.dirty) == ("succeeded", True)
