"""The exposition: a scraper reads what the store counted, whatever the labels hold, or that the store is away."""

import asyncio
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.processes import find_program
from support.servers import promtool_check_metrics
from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.events import TOOL_BUCKETS_S, histogram, sample
from understudy.actors.memory import MemoryStore
from understudy.actors.records import STATUSES
from understudy.actors.store import Store
from understudy.cluster.exporter import Exporter, patience_of
from understudy.cluster.metrics import FAMILIES, encode, metrics_of, parse_sample, store_away

DEPLOY = Path(__file__).parents[2] / "cluster" / "deploy"
COUNTS = {status: n for n, status in enumerate(STATUSES)}
LABEL = st.text(st.characters(codec="utf-8"), max_size=20)


def text_of(counters: Mapping[str, float], beats: Mapping[str, tuple[float, str]] | None = None) -> str:
    return encode(metrics_of(counters, COUNTS, beats or {}, 100.0))[0].decode()


def samples_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (found.name, tuple(sorted(found.labels.items()))): found.value
        for family in parse_text(text)
        for found in family.samples
    }


def busy_store() -> dict[str, float]:
    counters = {
        sample("runs_started_total", graph="g"): 3.0,
        sample("runs_finished_total", graph="g", status="succeeded"): 2.0,
        sample("run_restarts_total", cause="actor_died", graph="g"): 1.0,
        sample("checkpoint_commits_total", result="ok"): 12.0,
        sample("tool_calls_total", outcome="ok", tool="pay"): 4.0,
        sample("effects_total", name="ask", outcome="ok"): 2.0,
        sample("policy_decisions_total", decision="allow", tool="pay"): 4.0,
        sample("grants_refused_total", reason="replayed"): 1.0,
        sample("sandbox_leftovers_total", kind="processes"): 1.0,
        sample("fence_rejections_total", op="commit"): 1.0,
        sample("node_executions_total", graph="g", node="n", outcome="ok"): 12.0,
    }
    for seconds in (0.004, 0.3, 0.3, 90.0):
        for name, amount in histogram("tool_call_seconds", TOOL_BUCKETS_S, seconds, tool="pay").items():
            counters[name] = counters.get(name, 0.0) + amount
    return counters


@given(st.dictionaries(st.sampled_from(["graph", "node", "tool", "le"]), LABEL, max_size=4))
def test_a_sample_name_is_read_as_it_was_written(labels: dict[str, str]) -> None:
    assert parse_sample(sample("tool_calls_total", **labels)) == ("tool_calls_total", labels)


@given(LABEL)
def test_any_label_value_arrives_at_the_scraper(tool: str) -> None:
    found = samples_of(text_of({sample("tool_calls_total", outcome="ok", tool=tool): 7.0}))
    assert found["understudy_tool_calls_total", (("outcome", "ok"), ("tool", tool))] == 7.0


@pytest.mark.parametrize("name", ["", "{}", "9a", "a{", "a}", 'a{b="c"', "a{b=c}", 'a{b="c"d="e"}', 'a{b="\\"}', "a b"])
def test_what_is_no_sample_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        parse_sample(name)


def test_one_unreadable_counter_does_not_hide_the_others() -> None:
    text = text_of({"?": 1.0, sample("runs_started_total", graph="g"): 3.0})
    assert 'understudy_runs_started_total{graph="g"} 3.0' in text


def test_promtool_is_content() -> None:
    promtool_check_metrics(text_of(busy_store(), {"s": (99.0, json.dumps({"role": "supervisor", "actors": []}))}))
    promtool_check_metrics(text_of({}))
    promtool_check_metrics(text_of({"weather_total": 1.0, **histogram("rain_seconds", (1.0, 2.0), 1.5, city="x")}))
    promtool_check_metrics(encode(store_away())[0].decode())


def test_buckets_add_up() -> None:
    found = samples_of(text_of(busy_store()))
    at = {dict(labels)["le"]: n for (name, labels), n in found.items() if name == "understudy_tool_call_seconds_bucket"}
    assert [at[bound] for bound in ("0.01", "0.25", "0.5", "60.0", "+Inf")] == [1, 1, 3, 3, 4]
    assert found["understudy_tool_call_seconds_count", (("tool", "pay"),)] == 4
    assert found["understudy_tool_call_seconds_sum", (("tool", "pay"),)] == pytest.approx(90.604)


def test_a_histogram_without_labels_is_there_before_it_is_needed() -> None:
    found = samples_of(text_of({}))
    assert found["understudy_run_recovery_seconds_bucket", (("le", "+Inf"),)] == 0
    assert found["understudy_checkpoint_commit_seconds_count", ()] == 0


def test_every_status_has_a_series() -> None:
    found = samples_of(text_of({}))
    assert {status: found["understudy_runs", (("status", status),)] for status in STATUSES} == COUNTS


def test_actors_count_while_their_supervisor_gives_signs() -> None:
    actors = [{"pid": 1, "ready": True, "runs": ["r"]}, {"pid": 0, "ready": False, "runs": []}]
    report = json.dumps({"role": "supervisor", "actors": actors})
    found = samples_of(text_of({}, {"new": (99.0, report), "old": (50.0, report), "other": (100.0, "{}")}))
    assert found["understudy_run_actors", (("state", "busy"),)] == 1
    assert found["understudy_run_actors", (("state", "starting"),)] == 1
    assert found["understudy_run_actors", (("state", "idle"),)] == 0
    assert found["understudy_supervisor_last_tick_timestamp_seconds", ()] == 99.0


def test_each_family_has_its_help_and_type() -> None:
    text = text_of(busy_store(), {"s": (99.0, json.dumps({"role": "supervisor", "actors": []}))})
    for family in FAMILIES.values():
        name = f"understudy_{family.name}" + ("_total" if family.kind == "counter" else "")
        assert f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n" in text


def test_openmetrics_for_whoever_accepts_it() -> None:
    body, content_type = encode(metrics_of(busy_store(), COUNTS, {}, 100.0), "application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["understudy_runs_started"].samples[0].value == 3.0
    assert body.endswith(b"# EOF\n")


# --- the server ---


@contextmanager
def serving(store: Store) -> Iterator[str]:
    async def opened() -> Store:
        return store

    exporter = Exporter(opened)
    url = exporter.start()
    try:
        yield url
    finally:
        exporter.stop()


def get(url: str, accept: str = "") -> tuple[int, str]:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return answer.status, answer.read().decode()


class Away(MemoryStore):
    async def counters(self) -> dict[str, float]:
        raise StoreUnavailable("gone")


class Silent(MemoryStore):
    async def counters(self) -> dict[str, float]:
        await asyncio.sleep(600)
        return {}


class Blocking(MemoryStore):
    async def counters(self) -> dict[str, float]:
        time.sleep(3)  # noqa: ASYNC251 (the point: it holds the loop)
        return {}


def test_it_serves_metrics_and_health() -> None:
    with serving(MemoryStore()) as url:
        status, text = get(url)
        assert status == 200
        assert "understudy_store_up 1.0" in text
        assert get(url, "application/openmetrics-text")[1].endswith("# EOF\n")
        assert get(url.replace("/metrics", "/healthz")) == (200, "ok\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url.replace("/metrics", "/"))


@pytest.mark.parametrize("store", [Away(), Silent(), Blocking()], ids=["away", "silent", "blocking"])
def test_a_store_that_is_away_is_said_soon_and_nothing_else(store: Store) -> None:
    with serving(store) as url:
        began = time.monotonic()
        status, text = get(url)
        assert time.monotonic() - began < 3.0
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["understudy_store_up 0.0"]


@pytest.mark.parametrize(("said", "patience_s"), [(None, 2.0), ("10", 2.0), ("1", 0.6), ("0", 0.1), ("soon", 2.0)])
def test_the_scraper_is_answered_before_it_gives_up(said: str | None, patience_s: float) -> None:
    assert patience_of(said) == pytest.approx(patience_s)


def test_a_store_that_comes_back_is_read_again() -> None:
    class Flaky(MemoryStore):
        up = False

        async def counters(self) -> dict[str, float]:
            if not self.up:
                raise StoreUnavailable("gone")
            return {}

    store = Flaky()
    with serving(store) as url:
        assert "understudy_store_up 0.0" in get(url)[1]
        store.up = True
        assert "understudy_store_up 1.0" in get(url)[1]


def test_a_taken_port_is_named_with_its_remedy() -> None:
    with serving(MemoryStore()) as url:
        port = int(url.rsplit(":", 1)[1].partition("/")[0])

        async def never() -> Store:
            raise AssertionError

        with pytest.raises(CallerError, match=rf"metrics port {port}.*UNDERSTUDY_METRICS_PORT"):
            Exporter(never, port).start()


# --- what is deployed ---


def promtool(*words: str) -> str:
    done = subprocess.run(
        [find_program("promtool", "prometheus"), *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_what_is_deployed() -> None:
    assert "6 rules found" in promtool("check", "config", str(DEPLOY / "prometheus.yaml"))


def test_alerts_name_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    named = set(re.findall(r"understudy_\w+", " ".join(rule["expr"] for rule in rules)))
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    there = {f"understudy_{f.name}{end}" for f in FAMILIES.values() for end in ends[f.kind]}
    assert named
    assert named <= there


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    alert = {"exp_labels": {"severity": "critical"}}
    series = [
        {"series": "understudy_store_up", "values": "1x3 0x10"},
        {"series": "understudy_supervisor_last_tick_timestamp_seconds", "values": "0 30 60 60x10"},
    ]
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    told = {rule["alert"]: rule["annotations"] for rule in rules}
    down, stalled = "UnderstudyStoreDown", "UnderstudySupervisorStalled"
    checks = [
        {"alertname": down, "eval_time": "1m", "exp_alerts": []},
        {"alertname": down, "eval_time": "4m", "exp_alerts": [{**alert, "exp_annotations": told[down]}]},
        {"alertname": stalled, "eval_time": "1m", "exp_alerts": []},
        {"alertname": stalled, "eval_time": "4m", "exp_alerts": [{**alert, "exp_annotations": told[stalled]}]},
    ]
    case = {"interval": "30s", "input_series": series, "alert_rule_test": checks}
    alerts_are(tmp_path, case)


@pytest.mark.parametrize(
    ("up", "counter", "fires"),
    [
        pytest.param("1x80", "_x40 1x40", ["25m"], id="first-of-its-kind"),
        pytest.param("_x40 1x40", "_x40 1x40", [], id="prometheus-is-new"),
        pytest.param("1x20 0x30 1x30", "1x20 stale _x29 1x30", [], id="store-was-away"),
    ],
)
def test_the_first_quarantine_and_the_first_unknown_end_fire(
    up: str, counter: str, fires: list[str], tmp_path: Path
) -> None:
    """A counter with labels is born at 1, in which increase() sees no rise."""
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    checks = []
    quarantined, unknown = {"graph": "g", "status": "quarantined"}, {"tool": "t", "outcome": "unknown"}
    for alert, labels in (("UnderstudyRunsQuarantined", quarantined), ("UnderstudyToolOutcomeUnknown", unknown)):
        told = next(rule["annotations"] for rule in rules if rule["alert"] == alert)
        said = {
            name: re.sub(r"{{ \$labels\.(\w+) }}", lambda m, labels=labels: labels[m[1]], text)
            for name, text in told.items()
        }
        expected = {"exp_labels": {**labels, "severity": "warning"}, "exp_annotations": said}
        checks += [
            {"alertname": alert, "eval_time": at, "exp_alerts": [expected] if at in fires else []}
            for at in ("19m", "25m", "39m")
        ]
    series = [
        {"series": "understudy_store_up", "values": up},
        {"series": 'understudy_runs_finished_total{graph="g",status="quarantined"}', "values": counter},
        {"series": 'understudy_tool_calls_total{tool="t",outcome="unknown"}', "values": counter},
    ]
    alerts_are(tmp_path, {"interval": "30s", "input_series": series, "alert_rule_test": checks})


def alerts_are(tmp_path: Path, case: dict[str, Any]) -> None:
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(DEPLOY / "alerts.yaml")], "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", str(file))
