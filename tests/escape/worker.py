"""A worker that makes sandboxed calls for tests: JSON lines come and go by a socket. Run by `workers.py`, as any user.

It stands in an actor of Ray's, as sandbox actors do; or in a process that only stands for one, for tests in which it is
killed. It dies as those do: at any moment.
"""

import asyncio
import base64
import collections
import dataclasses
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from typing import Any

from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox import cgroup, watch
from understudy.actors.sandbox.backend import Backend, IsolationUnavailable
from understudy.actors.sandbox.rooms import NotWarm, key_of
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.tiers import Tiers, all_tiers
from understudy.actors.sandbox.uses import USES
from understudy.actors.sandbox.verdict import seen_by
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Limits, Profile

SPARES = 1
ROOM = "room"
"""How these tests call tier zygote, where it shows files of the host."""
LINE_MOST = 1 << 26
OBJECT_STORE_BYTES = 80 << 20
TCP_ESTABLISHED = 1


class Worker:
    def __init__(self, **hello: Any) -> None:
        """`hello`: what the tests are told of where it stands."""
        self._hello = hello
        self._backends: dict[str, Backend] = {backend.tier: backend for backend in all_tiers(SPARES)}
        self._tried: set[str] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}

    async def is_up(self) -> bool:
        return True

    async def serve(self, path: str) -> None:
        """Until the tests hang up."""
        os.set_inheritable(os.open("/proc/self/status", os.O_RDONLY), True)  # Ray's workers have many; see `p10`
        lines, self._out = await asyncio.open_unix_connection(path, limit=LINE_MOST)
        self._say({"pid": os.getpid(), **self._hello})
        while line := await lines.readline():
            wanted = json.loads(line)
            task = asyncio.ensure_future(self._answer(wanted))
            self._calls[wanted["id"]] = task
            if wanted.get("cancel_after") is not None:
                await asyncio.sleep(0)  # it begins
                for _ in range(wanted["cancel_after"]):
                    await asyncio.sleep(0.0002)
                task.cancel()

    def _say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer).encode() + b"\n")

    async def _answer(self, wanted: dict[str, Any]) -> None:
        try:
            answer = await getattr(self, "do_" + wanted["do"])(wanted)
        except asyncio.CancelledError as error:
            answer = {"raised": "CancelledError", "printed": seen_by(error).printed}
        except Exception as error:
            answer = {"raised": type(error).__name__, "words": str(error)}
        self._say({"id": wanted["id"], **answer})

    async def do_call(self, wanted: dict[str, Any]) -> dict[str, Any]:
        code = ToolCode(ref=wanted["ref"], blob=base64.b64decode(wanted["blob"]))
        files = wanted.get("files")
        call = ToolCall("effect-1", "attempt", code, wanted["args"], files, keeps=files is not None)
        backend = self._backends[base_of(wanted["tier"])]
        profile = profile_of(wanted["profile"])
        outcome = await (self._in_room(call, profile) if wanted["tier"] == ROOM else backend.execute(call, profile))
        if isinstance(backend, ZygoteBackend):  # what is left does nothing any more; the tests look when it is gone
            await until(lambda: not backend.leaving)
        return {"outcome": dataclasses.asdict(outcome)}

    async def _in_room(self, call: ToolCall, profile: Profile) -> Outcome:
        """In tier zygote, by a zygote that shows files of the host: what is granted, and one that all see anyway. What
        has none, because the grant is bad, tier cold refuses."""
        backend = self._zygotes
        shown = dataclasses.replace(profile, read=(*profile.read, this_runtime().runner))
        for _ in range(USES + 1):
            try:
                return await backend.execute(call, shown)
            except NotWarm:
                await until(lambda: backend._rooms._starting is None)
        refused = await self._backends["cold"].execute(call, shown)
        assert refused.error_type == "BadGrant", "there was no room for it"
        return refused

    async def _keep_one_room(self) -> None:
        """Of the rooms, only that of calls that are granted nothing."""
        call, rooms = ToolCall("effect-1", "attempt", ToolCode(ref="os:getpid"), {}), self._zygotes._rooms
        await self._in_room(call, Profile())
        kept = key_of(call, Profile(read=(this_runtime().runner,)))
        for key in [each for each in rooms._warm if each != kept]:
            rooms._end(key)
        await until(lambda: rooms._warm[kept].zygote.waiting >= SPARES and not rooms.leaving)

    @property
    def _zygotes(self) -> ZygoteBackend:
        found = self._backends["zygote"]
        assert isinstance(found, ZygoteBackend)
        return found

    async def do_cancel(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self._calls[wanted["of"]].cancel()
        return {}

    async def do_preflight(self, wanted: dict[str, Any]) -> dict[str, Any]:
        found = await self._backends[base_of(wanted["tier"])].preflight()
        return {"available": found.available, "reason": found.reason, "remedy": found.remedy, "uid": os.geteuid()}

    async def do_told(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Of every tier; and what comes of a call that wants this one at least."""
        call = ToolCall("effect-1", "attempt", ToolCode(ref="os:getpid"), {})
        tiers = Tiers(tuple(self._backends.values()))
        found = {tier: dataclasses.asdict(each) for tier, each in (await tiers.preflights()).items()}
        try:
            outcome = await tiers.execute(call, Profile(tier=wanted["tier"]))
        except IsolationUnavailable as error:
            return {"found": found, "reason": error.reason, "remedy": error.remedy}
        return {"found": found, "kind": outcome.kind}

    async def do_shown(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {"places": [place for _, place in this_runtime().folders]}

    async def do_holds(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Descriptors and cgroups, by kind. Once the tier has made a first call, and as many spares wait as should."""
        backend = self._backends[base_of(wanted["tier"])]
        if wanted["tier"] not in self._tried:
            await backend.preflight()
            self._tried.add(wanted["tier"])
        if wanted["tier"] == ROOM:
            await self._keep_one_room()
        if isinstance(backend, ZygoteBackend):
            await until(lambda: backend.waiting >= SPARES and not backend.leaving and have_runners())
        held = {"cgroup of a call": cells(), **collections.Counter(kinds())}
        return {"held": held, **await self.do_shown(wanted)}


def base_of(tier: str) -> str:
    return "zygote" if tier == ROOM else tier


def have_runners() -> bool:
    """Whether each spare is whole: its first process says that it is there, and then starts the runner."""
    firsts = [pid for pid in watch.tree(os.getpid()) if watch.status(pid).get("NSpid", "").split()[2:] == ["1"]]
    return all(len(watch.tree(first)) > 1 for first in firsts)


def kinds() -> list[str]:
    """What each descriptor of this process leads to, without numbers that differ.

    Ray's own connections come and go, and all have somebody at the other end; of ours, that of a test has gone away.
    Those into cgroups of calls are kept with these, which are counted.
    """
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            kind = re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{fd}"))
            if "/understudy-cell-" not in kind and (kind != "socket" or not is_connected(fd)):
                found.append(kind)
        except OSError:  # it was closed between two looks
            continue
    return found


def is_connected(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as same:
        if same.family not in (socket.AF_INET, socket.AF_INET6) or same.type != socket.SOCK_STREAM:
            return False
        return same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED


def cells() -> int:
    """Cgroups of calls that there are of this process."""
    made, _told = cgroup.cells_here()
    made.remove_free()
    place = made.place
    return sum(f"-{os.getpid()}-" in name for name in os.listdir(place.path)) if place is not None else 0


async def until(fulfilled: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not fulfilled():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def profile_of(data: dict[str, Any]) -> Profile:
    lists = {name: tuple(data[name]) for name in ("read", "write", "network", "secrets")}
    return Profile(**lists, limits=Limits(**data["limits"]), tier=base_of(data["tier"]))  # type: ignore[arg-type]


def serve_in_ray(path: str, folder: str) -> None:
    """As a driver of Ray's, with the worker in an actor; it ends all of that when its standard input ends. Killed, its
    guard does: Ray would leave some of its own behind."""
    import ray

    from understudy.cluster.guard import Guard
    from understudy.cluster.lean_ray import without_extras

    guard = Guard()
    with without_extras():
        ray.init(
            address="local",
            num_cpus=0,  # so that it starts no worker but the actor's
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
    node = ray._private.worker._global_node
    place = {"session": node.get_session_dir_path(), "gcs": ray.get_runtime_context().gcs_address}
    actor = ray.remote(Worker).options(num_cpus=0, max_restarts=0).remote(**place)
    ray.get(actor.is_up.remote())  # and so are Ray's agents, which the guard has to know
    guard.watch_over(started.process.pid for several in node.all_processes.values() for started in several)
    serving = actor.serve.remote(path)
    sys.stdin.read()
    del serving
    ray.shutdown()
    guard.end()
    shutil.rmtree(folder, ignore_errors=True)  # whoever started this may be dead


if __name__ == "__main__":
    if sys.argv[2:]:
        serve_in_ray(*sys.argv[1:])
    else:
        asyncio.run(Worker().serve(sys.argv[1]))
