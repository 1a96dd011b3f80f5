"""Every kind of event, and which counters move with it: one table, so that metrics and event logs cannot disagree.

An event is written in the same atomic move as its counters (law 2). `counters_of` is the only place that turns
one into the other; a test adds up the event logs of a whole workload and compares them with the store, exactly.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from understudy.actors.records import Event

RECOVERY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
TOOL_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@lru_cache(maxsize=4096)
def sample(name: str, /, **labels: str) -> str:
    """A sample's full name in Prometheus' own notation; labels in alphabetical order, values escaped."""
    if not labels:
        return name
    inner = ",".join(f'{key}="{_escaped(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{inner}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def histogram(name: str, buckets: Iterable[float], value: float, /, **labels: str) -> dict[str, float]:
    """Increments of one observation: its bucket (not cumulative; the exporter adds up), sum and count."""
    bucket = next((format(b, "g") for b in buckets if value <= b), "+Inf")
    return {
        sample(f"{name}_bucket", le=bucket, **labels): 1.0,
        sample(f"{name}_sum", **labels): value,
        sample(f"{name}_count", **labels): 1.0,
    }


class Observed:
    """Observations of one thing that are counted together, now and then."""

    __slots__ = ("_buckets", "_counts", "_name", "_sum")

    def __init__(self, name: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def __bool__(self) -> bool:
        return any(self._counts)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def take(self) -> dict[str, float]:
        """The increments, as those of `histogram`; none are left."""
        counted = zip(_bucket_samples(self._name, tuple(self._buckets)), self._counts, strict=True)
        increments = {name: float(count) for name, count in counted if count}
        increments[sample(f"{self._name}_sum")] = self._sum
        increments[sample(f"{self._name}_count")] = float(sum(self._counts))
        self._counts, self._sum = [0] * len(self._counts), 0.0
        return increments


@lru_cache(maxsize=16)
def _bucket_samples(name: str, buckets: tuple[float, ...]) -> tuple[str, ...]:
    """The samples of a histogram's buckets, the last of which has no end."""
    labels = [*(format(bucket, "g") for bucket in buckets), "+Inf"]
    return tuple(sample(f"{name}_bucket", le=label) for label in labels)


def _created(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return {sample("runs_started_total", graph=graph): 1.0}


def _finished(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return {sample("runs_finished_total", graph=graph, status=data["status"]): 1.0}


def _crashed(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return {sample("run_restarts_total", cause=data["cause"], graph=graph): 1.0}


def _recovered(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return histogram("run_recovery_seconds", RECOVERY_BUCKETS_S, float(data["seconds"]))


def _node(outcome: str) -> Callable[[str, Mapping[str, Any]], dict[str, float]]:
    def counters(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
        return {sample("node_executions_total", graph=graph, node=data["node"], outcome=outcome): 1.0}

    return counters


def _decided(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    counted = {sample("policy_decisions_total", decision=data["decision"], tool=data["tool"]): 1.0}
    if "refused" in data:  # by the sandbox, which did not believe the grant
        counted[sample("grants_refused_total", reason=data["refused"])] = 1.0
    for reached in (*data.get("budgets", ()), *data.get("beyond", ())):  # a budget's limit, and what came of it
        named = {"budget": reached["budget"], "policy": reached["policy"], "decision": data["decision"]}
        counted[sample("budget_limits_reached_total", **named)] = 1.0
    return counted


def _tool_finished(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    tool = data["tool"]
    counters = {sample("tool_calls_total", outcome=data["outcome"], tool=tool): 1.0}
    return counters | histogram("tool_call_seconds", TOOL_BUCKETS_S, float(data["seconds"]), tool=tool)


def _connected(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    """Of one connection; or, with `more`, of all that came after those that are told one by one."""
    denied = float(data["denied"]) if "more" in data else float(data["decision"] == "deny")
    counted = {"deny": denied, "allow": float(data.get("more", 1)) - denied}
    counters = {sample("egress_connections_total", decision=each): amount for each, amount in counted.items() if amount}
    for direction in ("sent", "received"):
        if data[f"{direction}_bytes"]:
            counters[sample("egress_bytes_total", direction=direction)] = float(data[f"{direction}_bytes"])
    return counters


def _effect_finished(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return {sample("effects_total", name=data["name"], outcome=data["outcome"]): 1.0}


def _none(graph: str, data: Mapping[str, Any]) -> dict[str, float]:
    return {}


KINDS: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, float]]] = {
    "created": _created,  # graph, version, thread_id
    "claimed": _none,  # owner, epoch
    "crashed": _crashed,  # cause, epoch, attempt
    "recovered": _recovered,  # seconds from the notice of the crash to the first node that runs again
    "node_finished": _node("ok"),  # node, task_id, step, seconds
    "node_failed": _node("error"),  # node, task_id, step, error
    "node_suspended": _node("suspended"),  # node, task_id, step
    "checkpoint": _none,  # checkpoint_id, step
    "interrupted": _none,  # interrupt_id, node, kind, payload, deadline
    "answered": _none,  # interrupt_id
    "expired": _none,  # interrupt_id, node
    "escalated": _none,  # interrupt_id, to, node, deadline
    "decided": _decided,  # tool, key, call, decision, rule, reason, digest, policy, by
    "tool_started": _none,  # tool, key, sandbox, wall_s
    "connected": _connected,  # tool, key, method, host, port, address, decision, reason, *_bytes; or more, denied
    "tool_finished": _tool_finished,  # tool, key, outcome, seconds, error; printed (of unknown)
    "mcp_tools": _none,  # server, launch, first, accepted and set_aside (digests by tool), tools, waiting (how many)
    "effect_started": _none,  # name, key, call, digest
    "effect_finished": _effect_finished,  # name, key, outcome, seconds, error
    "reconciled": _none,  # tool, key, answer (done or fail), by (reconcile or person)
    "cancel_asked": _none,
    "retried": _none,
    "message": _none,  # n, message_id
    "received": _none,  # node, task_id; n, message_id (without: the deadline passed)
    "child_started": _none,  # node, task_id, run_id, graph, key, call, digest; close, if it was given
    "finished": _finished,  # status, error
}


def counters_of(graph: str, events: Iterable[Event]) -> dict[str, float]:
    """The increments that go with these events of a run of `graph`. Raises KeyError for a kind without a row."""
    total: dict[str, float] = {}
    for event in events:
        for name, amount in KINDS[event.kind](graph, event.data).items():
            total[name] = total.get(name, 0.0) + amount
    return total
