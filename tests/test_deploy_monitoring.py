"""deploy/monitoring: each metric that a panel or an alert names is one that a real node exports while a run trains."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch
import yaml
from ray._common.utils import get_default_ray_temp_dir
from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard import consts
from ray.dashboard.modules.reporter import reporter_agent

from cluster.actor import ShardActor
from cluster.events import COUNTED, prometheus_name
from cluster.executor import RayExecutor
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker
from tests import deployments as d
from tests.configurations import tiny

LABEL = re.compile(r'(\w+)(=~|=)"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")
SCRAPED = yaml.safe_load((d.MONITORING / "prometheus.yaml").read_text())


class Node(NamedTuple):
    text: str
    """The series that it exports, a line each, without their values."""
    discovered: Path
    """A folder where Ray has written which nodes there are."""
    address: str


def named() -> set[str]:
    """All metrics of all expressions, where what stands in quotes is a label's value, and of what is to be chosen."""
    text = " ".join(re.sub('"[^"]*"', "", expr) for each in d.expressions().values() for expr in each)
    return set(d.METRIC.findall(text + json.dumps(d.DASHBOARD["templating"])))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real one, a second into a training of one worker."""
    often = {"metrics_report_interval_ms": 1000}
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "WARNING"}
    ray.init("local", num_cpus=2, _system_config=often, **quiet)
    try:
        described = ray.nodes()[0]
        address = f"{described['NodeManagerAddress']}:{described['MetricsExportPort']}"
        folder = tmp_path_factory.mktemp("discovered")
        (folder / "session").mkdir()
        gcs = ray.get_runtime_context().gcs_address
        PrometheusServiceDiscoveryWriter(gcs, str(folder / "session"), str(folder)).write()
        yield Node(while_training(address), folder, address)
    finally:
        ray.shutdown()


def while_training(address: str, seconds: float = 300) -> str:
    """The series that the node exports, until every number of a step is there.

    Ray forgets a gauge that was not set twice in a row, so what was seen once is kept. The first step waits for a
    worker, which is minutes on a machine that others use as well.
    """
    config = tiny("outer.steps=100000", "engine.compile=off")  # which so many steps would be worth a minute
    config = replace(config, executor=replace(config.executor, name="ray", workers=1))
    executor, deadline, seen = RayExecutor(config), time.monotonic() + seconds, set[str]()
    wanted = {prometheus_name("bytes"), "metatrain_step", 'part="adapt"', "node_cpu_utilization", 'Name="ShardActor"'}
    state = initial_state(Worker(config, torch.device("cpu")).initial(), config.outer)
    for _ in train(state, executor, config.outer, config.executor.shard_size):
        seen |= {line.rpartition(" ")[0] for line in fetched(address).splitlines()}
        if all(any(name in line for line in seen) for name in wanted) or time.monotonic() > deadline:
            break
    executor.close()
    return "\n".join(seen)


def fetched(address: str) -> str:
    """Without a login, whatever Ray's settings."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/metrics", timeout=30) as answer:
        return answer.read().decode()


def samples(text: str) -> dict[str, list[dict[str, str]]]:
    """The labels of every sample, by metric."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in text.splitlines():
        if match := re.match(r"(ray_\w+)\{(.*)\}$", line):
            labels = {name: value for name, _, value in LABEL.findall(match[2])}
            found.setdefault(match[1], []).append(labels)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_every_metric_that_is_named_is_exported(node):
    there = set(samples(node.text))
    counted = {f"ray_{prometheus_name(kind)}" for kind in COUNTED}
    gpu = {f"ray_{name}" for name in reporter_agent.METRICS_GAUGES if re.search("gpu|gram", name)}
    assert there >= {name for name in named() if name.startswith("ray_metatrain_")} - counted
    assert named() <= there | counted | gpu | {"up"}
    assert f"ray_{prometheus_name('bytes')}" in there, "a counter is exported once it has counted"


@pytest.mark.ray
@pytest.mark.slow
def test_every_label_that_is_named_is_exported(node):
    there = samples(node.text)
    for each in d.expressions().values():
        for expr in each:
            for metric, selected in re.findall(r"(ray_\w+)\{([^}]*)\}", expr):
                for label, how, value in LABEL.findall(selected):
                    values = {labels.get(label) for labels in there.get(metric, ())}
                    assert metric not in there or None not in values, f"{metric} has no {label}"
                    assert how == "=~" or metric not in there or value in values, f"{metric} has no {label}={value}"
            metrics = [metric for metric in d.METRIC.findall(expr) if metric in there]
            for group_names in GROUPED.findall(expr):
                for label in group_names.split(", "):
                    assert all(label in labels for metric in metrics for labels in there[metric]), f"{expr}: {label}"
    assert {labels["Name"] for labels in there["ray_actors"]} == {ShardActor.__name__}


@pytest.mark.ray
@pytest.mark.slow
def test_a_legend_shows_labels_that_are_there(node):
    there = samples(node.text)
    for panel in d.panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = [name.split(", ") for name in GROUPED.findall(target["expr"])]
                known = {name for metric in d.METRIC.findall(target["expr"]) for name in there.get(metric, [{}])[0]}
                assert label in (kept[0] if kept else known | {"GpuIndex", "ip"}), f"{panel['title']}: {label}"


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_looks_where_ray_writes_its_nodes(node):
    (job,) = SCRAPED["scrape_configs"]
    (place,) = job["file_sd_configs"]
    (file,) = place["files"]
    assert Path(file).parent == Path(get_default_ray_temp_dir())
    (found,) = json.loads((node.discovered / Path(file).name).read_text())
    assert found["labels"] == {"job": job["job_name"]}
    dropped = re.compile(next(each["regex"] for each in job["relabel_configs"] if each["action"] == "drop"))
    assert [target for target in found["targets"] if not dropped.fullmatch(target)] == [node.address]
    others = {AUTOSCALER_METRIC_PORT, consts.DASHBOARD_METRIC_PORT}
    assert all(dropped.fullmatch(f"10.0.0.1:{port}") for port in others)
    assert any(f'up{{job="{job["job_name"]}"}}' in rule["expr"] for rule in d.RULES)
