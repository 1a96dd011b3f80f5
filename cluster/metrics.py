"""Metrics are read from the store when somebody scrapes: nothing is kept here, so nothing is lost.

Counters move in the same transaction as what they count (law 2, `understudy.actors.events`); here they only get a
prefix, a help text and their type. Gauges are counted at the scrape. When the store is away, `understudy_store_up 0`
is all there is: a stale number would be believed.
"""

import json
import logging
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from understudy.actors.events import COMMIT_BUCKETS_S, RECOVERY_BUCKETS_S, TOOL_BUCKETS_S
from understudy.actors.records import Status
from understudy.actors.store import Store
from understudy.cluster.version import __version__

log = logging.getLogger(__name__)

PREFIX = "understudy_"
SILENT_AFTER_S = 5.0
"""What a supervisor said of its actors is not repeated when it is older than this."""

# --- the catalogue -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One metric. `name` without the prefix, and for a counter without `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    buckets: tuple[float, ...] = ()
    labelled: bool = True
    """Without labels, a family is there from the first scrape on, at zero."""


STORE_UP = Family("store_up", "gauge", "1 if the store answered this scrape, 0 if not.", labelled=False)
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("runs", "gauge", "Runs in the store, by status."),
        Family("runs_started", "counter", "Runs made durable, by graph."),
        Family("runs_finished", "counter", "Runs that reached a final status, by graph and status."),
        Family("run_restarts", "counter", "Runs taken from a lost owner, by graph and cause."),
        Family(
            "run_recovery_seconds",
            "histogram",
            "Seconds from the notice of a crash to the first node that runs again.",
            RECOVERY_BUCKETS_S,
            labelled=False,
        ),
        Family("fence_rejections", "counter", "Writes refused because their owner had lost the run, by operation."),
        Family("node_executions", "counter", "Ends of node attempts, by graph, node and outcome."),
        Family("checkpoint_commits", "counter", "Commits of runs, by result (ok or duplicate)."),
        Family(
            "checkpoint_commit_seconds",
            "histogram",
            "Seconds that a call of the store took that carried commits, as the run actor saw it.",
            COMMIT_BUCKETS_S,
            labelled=False,
        ),
        Family("tool_calls", "counter", "Ends of tool calls, by tool and outcome."),
        Family("tool_call_seconds", "histogram", "Seconds that a tool executed, by tool.", TOOL_BUCKETS_S),
        Family("effects", "counter", "Ends of effects that nodes performed themselves, by name and outcome."),
        Family(
            "policy_decisions",
            "counter",
            "Decisions on tool calls, by tool and decision (allow, ask, deny, answer or reuse).",
        ),
        Family("grants_refused", "counter", "Grants that a sandbox refused, by reason: forged, replayed, expired, ..."),
        Family(
            "sandbox_leftovers",
            "counter",
            "What calls of dead sandbox actors had left, by kind (processes, cgroups or folders). It is gone.",
        ),
        Family("run_actors", "gauge", "Run actors of the living supervisors, by state (starting, idle or busy)."),
        Family(
            "supervisor_last_tick_timestamp_seconds",
            "gauge",
            "Unix time of the last sign of life of any supervisor.",
            labelled=False,
        ),
        Family("build_info", "gauge", "Always 1; what is installed where the exporter runs."),
        STORE_UP,
    )
}

# --- from samples to families: pure --------------------------------------------------------------------------------

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(,|$)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Labels = tuple[tuple[str, str], ...]


def parse_sample(text: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a full sample name, the inverse of `events.sample`. Raises ValueError."""
    name = _NAME.match(text)
    if name is None:
        raise ValueError(f"{text!r} does not start with a metric name")
    rest = text[name.end() :]
    if not rest:
        return name.group(), {}
    if not (rest.startswith("{") and rest.endswith("}")):
        raise ValueError(f"{text!r}: after the name, labels stand in braces")
    labels: dict[str, str] = {}
    inner, at = rest[1:-1], 0
    while at < len(inner):
        label = _LABEL.match(inner, at)
        if label is None:
            raise ValueError(f'{text!r}: no name="value" at {inner[at : at + 20]!r}')
        labels[label.group(1)] = _ESCAPED.sub(lambda m: {"n": "\n"}.get(m[1], m[1]), label.group(2))
        at = label.end()
    return name.group(), labels


def metrics_of(
    counters: Mapping[str, float],
    counts: Mapping[Status, int],
    beats: Mapping[str, tuple[float, str]],
    now: float,
) -> list[Metric]:
    """Everything that is exported while the store answers, in the order of the catalogue, unknown families last."""
    found: dict[str, dict[str, dict[Labels, float]]] = {
        "runs": {"runs": {(("status", status),): float(n) for status, n in counts.items()}},
        "store_up": {"store_up": {(): 1.0}},
        "build_info": {"build_info": {_build(): 1.0}},
        **_of_supervisors(beats, now),
    }
    for text, value in counters.items():
        try:
            name, labels = parse_sample(text)
        except ValueError as error:
            log.warning("a counter of the store is left out: %s", error)
            continue
        series = found.setdefault(_family_name(name), {}).setdefault(name, {})
        series[tuple(sorted(labels.items()))] = value
    for family in FAMILIES.values():
        if family.kind == "histogram" and not family.labelled:
            found.setdefault(family.name, {}).setdefault(f"{family.name}_count", {(): 0.0})
    order = [*(name for name in FAMILIES if name in found), *sorted(found.keys() - FAMILIES.keys())]
    return [_metric(FAMILIES.get(name) or _unknown(name, found[name]), found[name]) for name in order]


def store_away() -> list[Metric]:
    """What is exported when the store does not answer."""
    return [_metric(STORE_UP, {"store_up": {(): 0.0}})]


def _build() -> Labels:
    try:
        ray = metadata.version("ray")
    except metadata.PackageNotFoundError:
        ray = ""
    return (("python", platform.python_version()), ("ray", ray), ("version", __version__))


def _of_supervisors(beats: Mapping[str, tuple[float, str]], now: float) -> dict[str, dict[str, dict[Labels, float]]]:
    states = {"starting": 0.0, "idle": 0.0, "busy": 0.0}
    last = 0.0
    for at, text in beats.values():
        report = json.loads(text)
        if report.get("role") != "supervisor":
            continue
        last = max(last, at)
        for actor in report.get("actors", ()) if now - at < SILENT_AFTER_S else ():
            states["starting" if not actor["ready"] else "busy" if actor["runs"] else "idle"] += 1
    if not last:
        return {}
    tick = "supervisor_last_tick_timestamp_seconds"
    actors: dict[Labels, float] = {(("state", state),): n for state, n in states.items()}
    return {tick: {tick: {(): last}}, "run_actors": {"run_actors": actors}}


def _family_name(sample_name: str) -> str:
    for ending in ("_total", "_bucket", "_sum", "_count"):
        base = sample_name.removesuffix(ending)
        if base != sample_name and (ending == "_total" or base.endswith(("_seconds", "_bytes"))):
            return base
    return sample_name


def _unknown(name: str, series: Mapping[str, object]) -> Family:
    """A family that a newer or older version counted in this store."""
    text = "Counted by another version of understudy; this one has no description of it."
    if f"{name}_total" in series:
        return Family(name, "counter", text)
    return Family(name, "histogram" if f"{name}_bucket" in series else "gauge", text)


def _metric(family: Family, series: Mapping[str, Mapping[Labels, float]]) -> Metric:
    metric = Metric(PREFIX + family.name, family.help, family.kind)
    if family.kind == "histogram":
        _add_histogram(metric, family, series)
        return metric
    for name, values in series.items():
        for labels, value in sorted(values.items()):
            metric.add_sample(PREFIX + name, dict(labels), value)
    return metric


def _add_histogram(metric: Metric, family: Family, series: Mapping[str, Mapping[Labels, float]]) -> None:
    """The store keeps each bucket by itself; Prometheus wants each to hold those below it."""
    buckets: dict[Labels, dict[str, float]] = {}
    for labels, value in series.get(f"{family.name}_bucket", {}).items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        buckets.setdefault(rest, {})[dict(labels)["le"]] = value
    counts, sums = series.get(f"{family.name}_count", {}), series.get(f"{family.name}_sum", {})
    for labels in sorted({*buckets, *counts}):
        mine = {**{format(bound, "g"): 0.0 for bound in family.buckets}, "+Inf": 0.0, **buckets.get(labels, {})}
        total = 0.0
        for bound in sorted(mine, key=float):
            total += mine[bound]
            le = bound if bound == "+Inf" else str(float(bound))
            metric.add_sample(f"{metric.name}_bucket", {**dict(labels), "le": le}, total)
        metric.add_sample(f"{metric.name}_sum", dict(labels), sums.get(labels, 0.0))
        metric.add_sample(f"{metric.name}_count", dict(labels), counts.get(labels, total))


# --- from families to text -----------------------------------------------------------------------------------------


def encode(metrics: Iterable[Metric], accept: str = "") -> tuple[bytes, str]:
    """The exposition and its content type: OpenMetrics for whoever accepts it, else Prometheus' text format."""
    encoder, content_type = choose_encoder(accept)
    return encoder(_Collected(list(metrics))), content_type


@dataclass(frozen=True)
class _Collected:
    """The part of a registry that an encoder uses."""

    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        return self.metrics


async def read_metrics(store: Store, now: float) -> list[Metric]:
    """Read a store and describe it. Raises StoreUnavailable."""
    counters, counts, beats = await store.counters(), await store.counts(), await store.beats()
    return metrics_of(counters, counts, beats, now)
