"""What a tool call costs in each tier, from a Ray actor, beside a bare subprocess from the same actor."""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from bench.table import Table
from ray import cloudpickle

from support.waiting import wait_until
from understudy.actors.outcome import ToolCall, ToolCode
from understudy.actors.sandbox import watch
from understudy.actors.sandbox.tiers import Tiers, all_tiers
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Profile, Tier

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
CALL = ToolCall("k", "dumps", ToolCode(ref="json:dumps"), {"obj": [1, 2, 3]})
BARE = [sys.executable, "-I", "-S", "-c", "import json; print(json.dumps([1, 2, 3]))"]
FILE = Profile(read=(os.path.realpath(ray.__file__),))
SPARES = 8
SPARES_WITHIN_S = 60.0
AT_ONCE = 4


class Caller:
    """As the sandbox actor is, without grant, receipt and store: those have rows of their own."""

    def __init__(self) -> None:
        tiers = all_tiers(SPARES)
        self._zygote = next(each for each in tiers if isinstance(each, ZygoteBackend))
        self._tiers = Tiers(tiers)

    async def call(self, tier: Tier) -> str:
        outcome = await self._tiers.execute(CALL, Profile(tier=tier))
        return outcome.kind + outcome.error

    async def has_room(self) -> bool:
        """Whether calls with the granted file are warm: after a few of them."""
        await self.granted()
        return bool(self._zygote.rooms)

    async def granted(self) -> str:
        outcome = await self._tiers.execute(CALL, FILE)
        return outcome.kind + outcome.error

    async def nothing(self) -> str:
        return "ok"

    async def bare(self) -> str:
        """From a thread: the loop's own way, uvloop's, copies the actor's page tables each time."""
        return (await asyncio.to_thread(subprocess.run, BARE, stdout=subprocess.PIPE, check=True)).stdout.decode()

    async def spare_bytes(self) -> float:
        """Memory of its own that each waiting spare holds: the pages that it shares with none. Looks once all are made,
        and again while not all are seen: the kernel may leave out a child of whose siblings one ends just then."""
        await self._zygote._rooms.close()
        async with asyncio.timeout(SPARES_WITHIN_S):
            while True:
                made = self._zygote.waiting == SPARES and not self._zygote.leaving
                if made and len(held := _held_by_spares()) == SPARES:
                    return statistics.mean(held)
                await asyncio.sleep(0.01)


def _held_by_spares() -> list[int]:
    return [
        sum(_private(pid) for pid in watch.tree(first))
        for first in watch.tree(os.getpid())
        if watch.status(first).get("NSpid", "").split()[2:] == ["1"]
    ]


def _private(pid: int) -> int:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Private_"))


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    """A worker of Ray's, and a sandbox, do not find this module."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def caller() -> Iterator[Any]:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield ray.remote(Caller).options(num_cpus=0, max_concurrency=100).remote()
    finally:
        ray.shutdown()


def milliseconds(method: Any, *args: Any) -> float:
    began = time.perf_counter()
    answer = ray.get(method.remote(*args))
    spent = time.perf_counter() - began
    assert answer == "ok" or answer.startswith("[1"), answer
    return spent * 1000


@pytest.mark.parametrize(("tier", "count", "aim"), [("zygote", 200, "p50 <= 3 ms"), ("cold", 50, "p50 <= 60 ms")])
def test_a_call_through_ray(table: Table, caller: Any, tier: str, count: int, aim: str) -> None:
    milliseconds(caller.call, tier)
    table.add(f"tool call through Ray, tier {tier}", "-", *beside_bare(caller, count, caller.call, tier), "ms", aim=aim)


def test_a_call_with_a_granted_file(table: Table, caller: Any) -> None:
    """Warm, as the calls are after the first ones, which are made in tier cold."""
    wait_until(lambda: ray.get(caller.has_room.remote()), 60, "a zygote that shows the file")
    ours, floors = beside_bare(caller, 200, caller.granted)
    table.add("tool call with a granted file through Ray, tier zygote", "-", ours, floors, "ms", aim="p50 <= 4 ms")


def beside_bare(caller: Any, count: int, method: Any, *args: Any) -> tuple[float, float]:
    """Medians of calls and of bare subprocesses: in turns, so that what else the machine does counts for both."""
    rounds = []
    for _ in range(count):
        ours = milliseconds(method, *args)
        rounds.append((ours, milliseconds(caller.bare)))
    ours, floors = (statistics.median(column) for column in zip(*rounds, strict=True))
    return ours, floors


def _requests(port: int, proxied: bool, count: int) -> list[float]:
    """What each of some requests takes, in milliseconds, each on a connection of its own."""
    import socket
    import time

    spent = []
    for _ in range(count):
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", 3128 if proxied else port)) as there:
            path = f"http://127.0.0.1:{port}/" if proxied else "/"
            there.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            while there.recv(65536):
                pass
        spent.append((time.perf_counter() - began) * 1000)
    return spent


def test_a_request_through_the_proxy(table: Table) -> None:
    """From inside a sandbox, beside the same request to the same server without one."""
    serve = "from support.upstream import upstream\nwith upstream() as u: print(u.port, flush=True); input()"
    line, tests = [sys.executable, "-c", serve], str(Path(__file__).parents[1])
    pipe = subprocess.PIPE  # a process of its own: one with the proxy in it would wait for the same interpreter
    environment = {**os.environ, "PYTHONPATH": tests}
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, env=environment, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        code = ToolCode(blob=cloudpickle.dumps(_requests))
        call = ToolCall("k", "requests", code, {"port": port, "proxied": True, "count": 200})
        profile = Profile(network=(f"127.0.0.1:{port}",))

        async def made() -> Any:
            tiers = Tiers(all_tiers(1))
            try:
                return (await tiers.execute(call, profile)).value
            finally:
                await tiers.close()

        ours, floor = statistics.median(asyncio.run(made())), statistics.median(_requests(port, False, 200))
        server.communicate("\n")
    table.add("HTTP request through the proxy of a call", "-", ours, floor, "ms", aim="p50 <= 2 ms")


def test_an_empty_call_through_ray(table: Table, caller: Any) -> None:
    """Part of every figure above: what Ray takes for a call that does nothing."""
    empty = statistics.median(milliseconds(caller.nothing) for _ in range(200))
    table.add("empty call through Ray, for comparison", "-", empty, 0, "ms", aim="-")


def test_many_calls(table: Table, caller: Any) -> None:
    """Sustained: AT_ONCE calls are always under way, for ten seconds."""

    def per_second(method: Any, *args: Any) -> float:
        pending = [method.remote(*args) for _ in range(AT_ONCE)]
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < 10.0:
            [first], pending = ray.wait(pending)
            assert ray.get(first)
            done += 1
            pending.append(method.remote(*args))
        ray.get(pending)
        return done / spent

    floor = per_second(caller.bare)
    table.add("tool calls, sustained, tier zygote", "-", per_second(caller.call, "zygote"), floor, "/s", aim=">= 200/s")


def test_what_a_spare_holds(table: Table, caller: Any) -> None:
    milliseconds(caller.call, "zygote")
    held = ray.get(caller.spare_bytes.remote()) / (1 << 20)
    table.add("memory of a waiting spare", "-", held, 0, "MiB", aim="small")
