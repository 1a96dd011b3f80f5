"""What a decision costs: in the core beside a bare look-up, and through the policy actor beside an empty actor.

In turns in one run, as in the other benchmarks.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from bench.settled import run_as_actor
from bench.table import Table
from ray import cloudpickle

from understudy.actors.calls import Granted
from understudy.actors.packed import pack
from understudy.actors.policy_actor import PolicyActor
from understudy.actors.policy_source import source_of
from understudy.actors.ports import NAMESPACE, Heard, Policies
from understudy.cluster.stores import open_store
from understudy.policies.permission import Allow, Policy, Request, decide
from understudy.policies.policy_file import load_policy

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
ROUNDS = 15
CALLS = 2000
RAY_CALLS = 300


def twenty_rules() -> str:
    """A third of which speak of the tool."""
    deny = [f'{{id: d{n}, effect: deny, tool: pay, when: {{path: {{matches: "/etc/{n}/.*"}}}}}}' for n in range(3)]
    when = "when: {path: {under: /srv}, amount: {le: 100}}, files: {read: [/srv]}"
    allow = [f'{{id: a{n}, effect: allow, tool: "p*", {when}}}' for n in range(4)]
    other = [f'{{id: o{n}, effect: allow, tool: "other_{n}*", {when}}}' for n in range(13)]
    return f"{{policy: twenty, version: 1, rules: [{', '.join(deny + allow + other)}]}}"


PARTICULAR = """
{policy: house, version: 1, layer: organisation, rules: [
  {id: day, effect: allow, tool: [pay, run], labels: {tenant: [acme, beta]}, not_after: {mark: [secret]},
   time: {zone: Europe/Berlin, until: "2100-01-01T00:00:00Z"}, files: {read: [/]}},
  {id: never, effect: deny, tool: "*", labels: {tenant: closed}, managed: true}]}
"""
GIT = """
{policy: git, version: 1, rules: [
  {id: log, effect: allow, tool: run,
   when: {line: {command: {program: git, operands: [log, "**"], only_flags: [-n, --oneline]}}}}]}
"""
PAY = Request("pay", {"path": "/srv/a", "amount": 50}, "r00-a", "refund", "d", {"tenant": "acme"}, code="c")
RUN = Request("run", {"line": "git log --oneline -n 5 src"}, "r00-a", "refund", "d", {"tenant": "acme"}, code="c")


def policy(text: str) -> Policy:
    return load_policy(text, source="bench")


def microseconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - began) / CALLS * 1e6


@pytest.mark.parametrize(
    ("what", "texts", "request_"),
    [
        ("a decision: 20 rules", [twenty_rules()], PAY),
        ("a decision: 20 rules under an organisation's time, labels and history", [PARTICULAR, twenty_rules()], PAY),
        ("a decision on a command line", [GIT], RUN),
    ],
)
def test_a_decision(table: Table, what: str, texts: list[str], request_: Request) -> None:
    known = {(request_.tool, request_.graph): "allow"}
    layers, now = [policy(text) for text in texts], time.time()
    assert isinstance(decide(layers, request_, now), Allow)
    rounds = [
        (
            microseconds(lambda: known.get((request_.tool, request_.graph))),
            microseconds(lambda: decide(layers, request_, now)),
        )
        for _ in range(ROUNDS)
    ]
    table.add(
        what,
        "no store, core",
        statistics.median(ours for _, ours in rounds),
        statistics.median(floor for floor, _ in rounds),
        "us",
        ratio=statistics.median(ours / floor for floor, ours in rounds),
        aim="<= 20",
    )


SAME = pack(("w" * 150, Granted("x" * 800, "rule", "policy")))


class Empty:
    """What Ray itself costs: an asyncio actor that answers the same."""

    async def decide_packed(self, asked: bytes) -> bytes:
        return SAME


def test_a_decision_through_the_actor(table: Table, tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(twenty_rules())

    async def milliseconds(actor: Any) -> float:
        spent = []
        for number in range(RAY_CALLS):
            began = time.perf_counter()
            await actor.decide(PAY, f"key {number}", 1, "", False)
            spent.append(time.perf_counter() - began)
        return statistics.median(spent) * 1e3

    async def measured() -> None:
        options = {"num_cpus": 0, "max_concurrency": 100, "namespace": NAMESPACE}
        alive = [ray.remote(Empty).options(**options, name="empty").remote()]
        bare = Policies("empty", Heard())
        await milliseconds(bare)
        stores = {"no store": "memory://", "sqlite": f"sqlite://{tmp_path}/audit.db"}
        stores |= {"postgres": postgres_url, "redis": redis_url}
        for store, url in stores.items():
            where = f"{store}, Ray"
            opened = functools.partial(open_store, url)
            made = ray.remote(PolicyActor).options(**options, name=where)
            alive.append(made.remote(opened, b"0" * 32, source_of(file)))
            actor = Policies(where, Heard())
            assert isinstance(await actor.decide(PAY, "key", 1, "", False), Granted)
            rounds = [(await milliseconds(bare), await milliseconds(actor)) for _ in range(5)]
            table.add(
                "a decision through the policy actor, with a signed grant, in the audit log before it is told",
                where,
                statistics.median(ours for _, ours in rounds),
                statistics.median(floor for floor, _ in rounds),
                "ms",
                ratio=statistics.median(ours / floor for floor, ours in rounds),
                aim="<= 2",
            )

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker does not find this module
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    try:
        run_as_actor(measured(), 500)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()
