"""A driver of Ray's with an actor that makes calls in every tier; as a program, it makes one of each that never ends.

It is a process of its own because Ray takes its driver along when it is killed.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from escape import attempts
from escape.places import by_value
from ray import cloudpickle

from understudy.actors.outcome import ToolCall, ToolCode
from understudy.actors.sandbox.tiers import all_tiers
from understudy.policies.profile import Profile, Tier

TIERS: tuple[Tier, ...] = ("landlock", "zygote", "cold")


class Caller:
    """Calls as the sandbox actor makes them, each by the very tier that is asked for."""

    def __init__(self) -> None:
        self._backends = {backend.tier: backend for backend in all_tiers(spares=1)}

    async def call(self, tier: Tier, blob: bytes, args: dict[str, Any]) -> Any:
        call = ToolCall("effect-1", "attempt", ToolCode(blob=blob), args)
        outcome = await self._backends[tier].execute(call, Profile(tier=tier))
        return outcome.value if outcome.kind == "ok" else outcome.kind + ": " + outcome.error

    async def pid(self) -> int:
        return os.getpid()


@contextmanager
def caller() -> Iterator[Any]:
    """The actor, in a Ray of its own on loopback."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
    )
    try:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker of Ray's does not find this module
        yield ray.remote(Caller).options(num_cpus=0, max_concurrency=10, max_restarts=0).remote()
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()


if __name__ == "__main__":
    with caller() as actor:
        for tier in TIERS:
            actor.call.remote(tier, by_value(attempts.r14_daemonise_and_wait).blob, {"token": sys.argv[1]})
        print(ray.get(actor.pid.remote()), flush=True)
        time.sleep(600)
