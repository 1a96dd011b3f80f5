"""Metrics are read from the store when somebody scrapes: the exporter keeps nothing, so it loses nothing.

Counters move in the same transaction as what they count (law 2, `understudy.actors.events`); here they only get a
prefix, a help text and their type. Gauges are counted at the scrape. When the store is away, `understudy_store_up 0`
is all there is: a stale number would be believed.
"""

import asyncio
import contextlib
import json
import logging
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import TimeoutError as ResultTimeout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Literal

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.events import COMMIT_BUCKETS_S, RECOVERY_BUCKETS_S, TOOL_BUCKETS_S
from understudy.actors.open import OpenStore
from understudy.actors.records import Status
from understudy.actors.store import Store
from understudy.cluster.version import __version__

log = logging.getLogger(__name__)

PREFIX = "understudy_"
STORE_TIMEOUT_S = 2.0
"""A store that has not answered a scrape after this long is away."""
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
            "Seconds that a commit took, as its run actor saw it.",
            COMMIT_BUCKETS_S,
            labelled=False,
        ),
        Family("tool_calls", "counter", "Ends of tool calls, by tool and outcome."),
        Family("tool_call_seconds", "histogram", "Seconds that a tool executed, by tool.", TOOL_BUCKETS_S),
        Family("policy_decisions", "counter", "Decisions on tool calls, by tool and decision (allow, ask or deny)."),
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


# --- the server ----------------------------------------------------------------------------------------------------


class Exporter:
    """`/metrics` and `/healthz` on loopback, in threads of its own, with a store connection of its own."""

    def __init__(self, open_store: OpenStore, port: int = 0, clock: Callable[[], float] = time.time) -> None:
        self._open_store = open_store
        self._clock = clock
        self._port = port
        self._store: Store | None = None
        self._reading = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        """Serve; the URL of the metrics. Raises CallerError if the port is taken."""
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        except OSError as error:
            raise CallerError(
                f"metrics port {self._port} of 127.0.0.1 cannot be used: {error.strerror}; choose another one with "
                f"UNDERSTUDY_METRICS_PORT, or 0 for any free one"
            ) from None
        self._server.daemon_threads = True
        threading.Thread(target=self._loop.run_forever, name="metrics-store", daemon=True).start()
        threading.Thread(target=self._server.serve_forever, name="metrics-http", daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/metrics"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(STORE_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)

    def scrape(self, patience_s: float = STORE_TIMEOUT_S) -> list[Metric]:
        """What the store says now, or that it is away. Called from any thread."""
        reading = asyncio.run_coroutine_threadsafe(self._read(patience_s), self._loop)
        try:
            # Twice bounded: a store that blocks the loop itself would not let the inner limit pass.
            return reading.result(patience_s + 0.25)
        except ResultTimeout:
            reading.cancel()
            log.warning("the store did not answer within %s s", patience_s)
        except (StoreUnavailable, CallerError) as error:
            log.warning("the store is away: %s", error)
        except Exception:
            log.exception("the store cannot be read")
        return store_away()

    async def _read(self, patience_s: float) -> list[Metric]:
        async with asyncio.timeout(patience_s):
            async with self._reading:
                try:
                    self._store = self._store or await self._open_store()
                    return await read_metrics(self._store, self._clock())
                except BaseException:
                    # Whatever state the connection is in: the next scrape starts with a new one.
                    self._store, broken = None, self._store
                    if broken is not None:
                        self._closing = self._loop.create_task(_close(broken))
                    raise

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    metrics = exporter.scrape(patience_of(self.headers.get("X-Prometheus-Scrape-Timeout-Seconds")))
                    body, content_type = encode(metrics, self.headers.get("Accept", ""))
                    self._answer(200, body, content_type)
                elif path == "/healthz":
                    self._answer(200, b"ok\n", "text/plain; charset=utf-8")
                else:
                    self._answer(404, b"there are /metrics and /healthz\n", "text/plain; charset=utf-8")

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        return Handler


def patience_of(scrape_timeout: str | None) -> float:
    """How long the store may take: the scraper says how long it waits, and has to be told in time that it is away."""
    try:
        return min(STORE_TIMEOUT_S, max(0.1, 0.6 * float(scrape_timeout or "inf")))
    except ValueError:
        return STORE_TIMEOUT_S


async def _close(store: Store) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(store.close(), STORE_TIMEOUT_S)
