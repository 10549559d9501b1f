"""deploy/monitoring: each metric that a panel or an alert names is one that a real node exports while a run trains."""

import json
import re
import shutil
import subprocess
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
from cluster.events import COUNTED, exported
from cluster.executor import RayExecutor
from metatrain.outer import begin, train
from metatrain.worker import Worker
from tests.configurations import tiny

FOLDER = Path(__file__).parents[1] / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
SCRAPED = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
NAME = re.compile(r"\b(?:ray_\w+|up)\b")
LABEL = re.compile(r'(\w+)(=~|=)"([^"]*)"')
VARIABLES = {"session", "driver"}
"""What the dashboard lets its reader choose."""
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")


class Node(NamedTuple):
    text: str
    """The series that it exports, a line each, without their values."""
    discovered: Path
    """A folder where Ray has written which nodes there are."""
    address: str


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, list[str]]:
    """By the title of a panel, or the name of an alert."""
    shown = {f"{panel['id']} {panel['title']}": [target["expr"] for target in panel["targets"]] for panel in panels()}
    return shown | {rule["alert"]: [rule["expr"]] for rule in RULES}


def named() -> set[str]:
    """All metrics of all expressions; what stands in quotes is a label's value."""
    text = " ".join(re.sub('"[^"]*"', "", expr) for each in expressions().values() for expr in each)
    return set(NAME.findall(text))


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


def while_training(address: str, seconds: float = 90) -> str:
    """The series that the node exports, until every number of a step is there.

    Ray forgets a gauge that was not set twice in a row, so what was seen once is kept.
    """
    config = tiny("outer.steps=100000")
    config = replace(config, executor=replace(config.executor, name="ray", workers=1))
    executor, deadline, seen = RayExecutor(config), time.monotonic() + seconds, set[str]()
    wanted = {exported("bytes"), "metatrain_step", 'part="adapt"', "node_cpu_utilization", 'Name="ShardActor"'}
    state = begin(Worker(config, torch.device("cpu")).initial(), config.outer)
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
def test_every_metric_that_is_named_is_exported(node):
    there = set(samples(node.text))
    counted = {f"ray_{exported(kind)}" for kind in COUNTED}
    gpu = {f"ray_{name}" for name in reporter_agent.METRICS_GAUGES if re.search("gpu|gram", name)}
    assert there >= {name for name in named() if name.startswith("ray_metatrain_")} - counted
    assert named() <= there | counted | gpu | {"up"}
    assert f"ray_{exported('bytes')}" in there, "a counter is exported once it has counted"


@pytest.mark.ray
def test_every_label_that_is_named_is_exported(node):
    there = samples(node.text)
    for each in expressions().values():
        for expr in each:
            for metric, selected in re.findall(r"(ray_\w+)\{([^}]*)\}", expr):
                for label, how, value in LABEL.findall(selected):
                    values = {labels.get(label) for labels in there.get(metric, ())}
                    assert metric not in there or None not in values, f"{metric} has no {label}"
                    assert how == "=~" or metric not in there or value in values, f"{metric} has no {label}={value}"
            metrics = [metric for metric in NAME.findall(expr) if metric in there]
            for grouped in GROUPED.findall(expr):
                for label in grouped.split(", "):
                    assert all(label in labels for metric in metrics for labels in there[metric]), f"{expr}: {label}"
    assert {labels["Name"] for labels in there["ray_actors"]} == {ShardActor.__name__}


@pytest.mark.ray
def test_a_legend_shows_labels_that_are_there(node):
    there = samples(node.text)
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = [name.split(", ") for name in GROUPED.findall(target["expr"])]
                known = {name for metric in NAME.findall(target["expr"]) for name in there.get(metric, [{}])[0]}
                assert label in (kept[0] if kept else known | {"GpuIndex", "ip"}), f"{panel['title']}: {label}"


@pytest.mark.ray
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
    assert any(f'up{{job="{job["job_name"]}"}}' in rule["expr"] for rule in RULES)


def test_everything_that_is_counted_is_shown():
    shown = {metric for panel in panels() for target in panel["targets"] for metric in NAME.findall(target["expr"])}
    ours = {f"ray_{exported(kind)}" for kind in COUNTED}
    assert shown >= ours | {f"ray_metatrain_{name}" for name in ("step", "workers", "tasks_total", "seconds_total")}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything) >= 20
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        grid = panel["gridPos"]
        assert grid["x"] >= 0 and grid["x"] + grid["w"] <= 24 and grid["w"] * grid["h"] > 0
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
        assert "unit" in panel["fieldConfig"]["defaults"]


def test_grafana_finds_prometheus_and_the_dashboard():
    (source,) = yaml.safe_load((FOLDER / "grafana-datasource.yaml").read_text())["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])
    variables = DASHBOARD["templating"]["list"]
    assert {variable["name"] for variable in variables} == VARIABLES
    assert all(variable["datasource"] == wanted for variable in variables)
    services = yaml.safe_load((FOLDER.parent / "tracking" / "compose.yaml").read_text())["services"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert f"http://127.0.0.1:{port}/" in services[host]["healthcheck"]["test"][-1]
    (provider,) = yaml.safe_load((FOLDER / "grafana-dashboards.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("."))
    assert Path(mounted["../monitoring/grafana-dashboard.json"]).parent == Path(provider["options"]["path"])
    inside = {re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[1] for volume in services[host]["volumes"]}
    (config,) = (path for path in inside if path.endswith("prometheus.yaml"))
    assert f"--config.file={config}" in services[host]["command"]
    assert str(Path(config).parent / SCRAPED["rule_files"][0]) in inside
    (file,) = SCRAPED["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert str(Path(file).parent) in inside


def test_every_alert_says_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 4
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        print("no promtool on the path: it comes with Prometheus")
        pytest.skip("no promtool on the path: it comes with Prometheus")
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_its_files(promtool):
    check(promtool, "check", "config", FOLDER / "prometheus.yaml")
    check(promtool, "check", "rules", FOLDER / "alerts.yaml")


def test_every_panel_asks_in_promql(promtool, tmp_path):
    texts = [expr for each in expressions().values() for expr in each]
    chosen = re.compile(rf"\$({'|'.join(VARIABLES)})\b")
    rules = [
        {"record": f"panel:{number}", "expr": chosen.sub(".*", text.replace("$__rate_interval", "1m"))}
        for number, text in enumerate(texts)
    ]
    assert not any("$" in rule["expr"] for rule in rules)
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    check(promtool, "check", "rules", tmp_path / "panels.yaml")


ACTORS = 'ray_actors{SessionName="s",Source="gcs",Name="ShardActor",State="ALIVE"}'
TASKS = 'ray_metatrain_tasks_total{SessionName="s"}'
SERIES: dict[str, tuple[dict[str, str], int, bool]] = {
    "MetatrainNoStep hangs": ({TASKS: "0+6x10 60x50", ACTORS: "2x60"}, 35, True),
    "MetatrainNoStep never began": ({ACTORS: "2x60"}, 20, True),
    "MetatrainNoStep goes on": ({TASKS: "0+6x60", ACTORS: "2x60"}, 30, False),
    "MetatrainNoStep is slow": ({TASKS: "0x8 6x8 12x8 18x8 24x8", ACTORS: "2x60"}, 35, False),
    "MetatrainNoStep has ended": ({TASKS: "0+6x10 60x50", ACTORS: "2x10 _x50"}, 40, False),
    "MetatrainNoStep another goes on": (
        {TASKS: "60x60", TASKS.replace("}", ',WorkerId="2"}'): "0+6x60", ACTORS: "2x60"},
        40,
        False,
    ),
    "MetatrainWorkersLost at once": ({"ray_metatrain_worker_lost_total": "_x9 6x50"}, 12, True),
    "MetatrainWorkersLost few": ({"ray_metatrain_worker_lost_total": "_x9 4x50"}, 12, False),
    "MetatrainWorkersLost long ago": ({"ray_metatrain_worker_lost_total": "9x60"}, 50, False),
    "MetatrainStragglers": ({"ray_metatrain_stragglers_total": "0+5x60"}, 40, True),
    "MetatrainStragglers few": ({"ray_metatrain_stragglers_total": "0+1x60"}, 40, False),
    "MetatrainDriverLeaving": ({"ray_metatrain_driver_leaving_total": "_x9 1x50"}, 11, True),
    "MetatrainDriverLeaving over": ({"ray_metatrain_driver_leaving_total": "_x9 1x50"}, 40, False),
    "RayNodeUnreachable": ({'up{job="ray",instance="n"}': "1x5 0x20"}, 15, True),
    "RayNodeUnreachable short": ({'up{job="ray",instance="n"}': "1x5 0x2 1x20"}, 15, False),
}


def test_alerts_tell_what_they_should_and_nothing_else(promtool, tmp_path):
    shutil.copy(FOLDER / "alerts.yaml", tmp_path)
    cases = [
        {
            "interval": "1m",
            "name": name,
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name.split()[0]}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for name, (given, minute, fires) in SERIES.items()
    ]
    assert {name.split()[0] for name in SERIES} == {rule["alert"] for rule in RULES}
    tests = {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    check(promtool, "test", "rules", tmp_path / "tests.yaml")
