"""A worker that makes sandboxed calls for tests: JSON lines in, JSON lines out. Run by `places.py`, as any user.

It stands for the process of a sandbox actor, and dies as such a process does: killed, at any moment.
"""

import asyncio
import base64
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from understudy.actors.outcome import ToolCall, ToolCode
from understudy.actors.sandbox.backend import Backend, IsolationUnavailable
from understudy.actors.sandbox.runtime import this_runtime
from understudy.actors.sandbox.tiers import Tiers, all_tiers
from understudy.actors.sandbox.verdict import seen_by
from understudy.actors.sandbox.zygote import ZygoteBackend
from understudy.policies.profile import Limits, Profile

SPARES = 1


class Worker:
    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {backend.tier: backend for backend in all_tiers(SPARES)}
        self._tried: set[str] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        os.set_inheritable(os.open("/proc/self/status", os.O_RDONLY), True)  # as Ray's workers have many
        lines = asyncio.StreamReader(limit=1 << 26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            wanted = json.loads(line)
            task = asyncio.ensure_future(self._answer(wanted))
            self._calls[wanted["id"]] = task
            if wanted.get("cancel_after") is not None:
                await asyncio.sleep(0)  # it begins
                for _ in range(wanted["cancel_after"]):
                    await asyncio.sleep(0.0002)
                task.cancel()

    async def _answer(self, wanted: dict[str, Any]) -> None:
        try:
            answer = await getattr(self, "do_" + wanted["do"])(wanted)
        except asyncio.CancelledError as error:
            answer = {"raised": "CancelledError", "printed": seen_by(error).printed}
        except Exception as error:
            answer = {"raised": type(error).__name__, "words": str(error)}
        print(json.dumps({"id": wanted["id"], **answer}), flush=True)

    async def do_call(self, wanted: dict[str, Any]) -> dict[str, Any]:
        code = ToolCode(ref=wanted["ref"], blob=base64.b64decode(wanted["blob"]))
        files = wanted.get("files")
        call = ToolCall("effect-1", "attempt", code, wanted["args"], files, keeps=files is not None)
        backend = self._backends[wanted["tier"]]
        outcome = await backend.execute(call, profile_of(wanted["profile"]))
        if isinstance(backend, ZygoteBackend):  # what is left does nothing any more; the tests look when it is gone
            await until(lambda: not backend.leaving)
        return {"outcome": dataclasses.asdict(outcome)}

    async def do_cancel(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self._calls[wanted["of"]].cancel()
        return {}

    async def do_preflight(self, wanted: dict[str, Any]) -> dict[str, Any]:
        found = await self._backends[wanted["tier"]].preflight()
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

    async def do_descriptors(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Once the tier has made a first call, and as many spares wait as should."""
        backend = self._backends[wanted["tier"]]
        if wanted["tier"] not in self._tried:
            await backend.preflight()
            self._tried.add(wanted["tier"])
        if isinstance(backend, ZygoteBackend):
            await until(lambda: backend.waiting >= SPARES and not backend.leaving)
        return {"count": len(os.listdir("/proc/self/fd"))}


async def until(fulfilled: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not fulfilled():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def profile_of(data: dict[str, Any]) -> Profile:
    lists = {name: tuple(data[name]) for name in ("read", "write", "network", "secrets")}
    return Profile(**lists, limits=Limits(**data["limits"]), tier=data["tier"])


if __name__ == "__main__":
    asyncio.run(Worker().serve())
