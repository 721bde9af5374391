"""Prometheus' configuration, rules and the dashboard: by promtool, and by the metrics that there are."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.conftest import DEPLOY

RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "lifecycle.json"
# What the gateway tells, with labels; histograms have _bucket, _sum and _count.
GATEWAY = {
    "lifecycle_requests_waiting": {"model"},
    "lifecycle_requests_running": {"model"},
    "lifecycle_requests_total": {"model", "api", "outcome"},
    "lifecycle_refusals_total": {"reason"},
    "lifecycle_time_to_first_token_seconds": {"model"},
    "lifecycle_inter_token_latency_seconds": {"model"},
    "lifecycle_request_duration_seconds": {"model"},
    "lifecycle_prompt_tokens_total": {"model"},
    "lifecycle_generated_tokens_total": {"model"},
    "lifecycle_version_healthy": {"identity"},
    "lifecycle_version_info": {"identity", "model"},
    "lifecycle_probe_failures_total": {"identity"},
    "lifecycle_version_switches_total": set(),
}
OUTCOMES = {"ok", "failed", "refused", "cancelled", "timeout"}
REASONS = {"unauthorized", "rate_limited", "overloaded", "too_large", "invalid", "unavailable", "not_found"}
# Of the process, of Prometheus itself, and Triton's of GPUs.
OTHERS = {
    "up": set(),
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
    "nv_gpu_power_usage": {"gpu_uuid"},
}
TARGET = {"job", "instance", "namespace", "pod"}  # labels that Prometheus adds


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for note in json.loads(DASHBOARD.read_text())["annotations"]["list"]:
        yield note["name"], note["expr"]
    adapter = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        yield "adapter: series", rule["seriesQuery"]
        filled = {"<<.Series>>": rule["name"]["as"], "<<.LabelMatchers>>": 'pod="a"', "<<.GroupBy>>": "pod"}
        query = rule["metricsQuery"]
        for word, value in filled.items():
            query = query.replace(word, value)
        assert "<<" not in query
        yield "adapter: query", query


EXPRESSIONS = list(expressions())


def plain(expression: str) -> str:
    """Grafana's variables as values of theirs."""
    return expression.replace("$__rate_interval", "1m").replace("$model", "m")


def selectors(text: str) -> Iterator[promql_parser.VectorSelector]:
    """Every series that an expression asks for, by walking the parsed tree."""
    todo: list[Any] = [promql_parser.parse(plain(text))]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield node
            continue
        for name in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                todo += inner
            elif inner is not None and not isinstance(inner, str | int | float):
                todo.append(inner)


def known(name: str) -> set[str] | None:
    """The labels of a metric; None where nobody tells it."""
    recorded = {rule["record"]: {"model", "outcome"} for rule in rules() if "record" in rule}
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base != name and base in GATEWAY:
        return {*GATEWAY[base], "le"}
    return (GATEWAY | OTHERS | recorded).get(name)


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_told(where: str, expression: str) -> None:
    found = list(selectors(expression))
    assert found, where
    for each in found:
        labels = known(each.name)
        assert labels is not None, f"{where}: nobody tells {each.name}"
        for matcher in each.matchers.matchers:
            assert matcher.name in labels | TARGET, f"{where}: {each.name} has no label {matcher.name}"
            values = set(matcher.value.split("|"))
            if matcher.name == "outcome":
                assert values <= OUTCOMES
            elif matcher.name == "reason":
                assert values <= REASONS


def test_the_list_is_the_gateways_own() -> None:
    """By the source of its metrics, whose package is not in this toolchain."""
    found: dict[str, set[str]] = {}
    source = Path(DEPLOY.parent, "pipeline", "gateway", "metrics.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("gauge", "counter", "histogram"):
            assert isinstance(node.func, ast.Name)
            name, _, *labels = [each.value for each in node.args if isinstance(each, ast.Constant)]
            kind = node.func.id
            found[f"lifecycle_{name}{'_total' if kind == 'counter' else ''}"] = (
                {"model"} if kind == "histogram" else set(labels)
            )
    assert found == GATEWAY


def test_an_unknown_metric_would_be_noticed() -> None:
    assert known("lifecycle_requests_waiting_total") is None
    assert known("lifecycle_requests_waiting_bucket") is None or "le" not in GATEWAY
    names = [each.name for each in selectors("sum(rate(a_total[5m])) by (x) / on (y) max(b) > bool 2 * (c)")]
    assert sorted(names) == ["a_total", "b", "c"]


def test_everything_that_the_gateway_tells_is_shown() -> None:
    shown = {each.name for _, text in EXPRESSIONS for each in selectors(text)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert set(GATEWAY) <= shown


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "nemo-lifecycle"
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert variables == {"datasource", "model"}
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"]
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"]))
                assert used <= {"__rate_interval", "model"}


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards" / "lifecycle.yaml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in mounts


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", DEPLOY / "prometheus" / "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", RULES),
        ("test", "rules", Path(__file__).parent / "rules.test.yml"),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_promtool_agrees(promtool: str, words: tuple[Any, ...]) -> None:
    done = subprocess.run([promtool, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((Path(__file__).parent / "rules.test.yml").read_text())["tests"]
    quiet, loud = set(), set()
    for each in itertools.chain.from_iterable(test["alert_rule_test"] for test in tests):
        (loud if each["exp_alerts"] else quiet).add(each["alertname"])
    assert {rule["alert"] for rule in rules() if "alert" in rule} == quiet == loud


def test_prometheus_asks_the_gateways_port() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert (
        jobs["gateway"]["static_configs"]
        == jobs["triton"]["static_configs"]
        == [{"targets": ["address:8002"]}]
    )
    assert jobs["triton"]["metrics_path"] == "/metrics/triton"
