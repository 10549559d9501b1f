"""deploy/monitoring as data: the dashboard and its Prometheus, what is mounted where, and the alerts by promtool."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.events import COUNTED, prometheus_name
from tests import deployments as d

SCRAPED = yaml.safe_load((d.MONITORING / "prometheus.yaml").read_text())
VARIABLES = {"session", "driver"}
"""What the dashboard lets its reader choose, besides the Prometheus to ask."""


def test_everything_that_is_counted_is_shown():
    shown = {
        metric for panel in d.panels() for target in panel["targets"] for metric in d.METRIC.findall(target["expr"])
    }
    ours = {f"ray_{prometheus_name(kind)}" for kind in COUNTED}
    assert shown >= ours | {f"ray_metatrain_{name}" for name in ("step", "workers", "tasks_total", "seconds_total")}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    everything = d.DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything) >= 20
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        grid = panel["gridPos"]
        assert grid["x"] >= 0 and grid["x"] + grid["w"] <= 24 and grid["w"] * grid["h"] > 0
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in d.panels():
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
        assert "unit" in panel["fieldConfig"]["defaults"]


def test_a_dashboard_asks_the_prometheus_that_its_reader_chooses():
    """Ours is the first choice; in another Grafana, which has no such source, it is that Grafana's own."""
    (source,) = yaml.safe_load((d.MONITORING / "grafana-datasource.yaml").read_text())["datasources"]
    choice, *variables = d.DASHBOARD["templating"]["list"]
    assert (choice["type"], choice["query"]) == ("datasource", source["type"])
    assert choice["current"] == {"text": source["name"], "value": source["uid"]}
    chosen = {"type": source["type"], "uid": f"${{{choice['name']}}}"}
    for panel in d.panels():
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
    assert {variable["name"] for variable in variables} == VARIABLES
    assert all(variable["datasource"] == chosen for variable in variables), "asked of the source chosen before them"
    assert json.dumps(d.DASHBOARD).count(source["uid"]) == 1


def test_grafana_and_prometheus_are_given_their_files():
    (source,) = yaml.safe_load((d.MONITORING / "grafana-datasource.yaml").read_text())["datasources"]
    services = yaml.safe_load(d.COMPOSED["monitoring"].read_text())["services"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert f"http://127.0.0.1:{port}/" in services[host]["healthcheck"]["test"][-1]
    (provider,) = yaml.safe_load((d.MONITORING / "grafana-dashboards.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("."))
    assert Path(mounted["./grafana-dashboard.json"]).parent == Path(provider["options"]["path"])
    inside = {re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[1] for volume in services[host]["volumes"]}
    (config,) = (path for path in inside if path.endswith("prometheus.yaml"))
    assert f"--config.file={config}" in services[host]["command"]
    assert str(Path(config).parent / SCRAPED["rule_files"][0]) in inside
    (file,) = SCRAPED["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert str(Path(file).parent) in inside


def test_the_head_of_ec2_shows_prometheus_the_folder_where_ray_writes():
    """Ray's launcher starts containers, and what is written in one is seen by no other."""
    cluster = yaml.safe_load((d.AWS / "cluster.yaml").read_text())
    (file,) = SCRAPED["scrape_configs"][0]["file_sd_configs"][0]["files"]
    folder = Path(file).parent
    assert cluster["docker"]["head_run_options"] == [f"--volume={folder}:{folder}"]
    assert cluster["initialization_commands"] == [f"mkdir -p {folder}"], "Docker would make it as root's"
    assert not any("--volume" in option for option in cluster["docker"]["run_options"])


def test_the_alerts_find_the_job_wherever_nodes_are_scraped():
    (job,) = {re.search(r'job="(\w+)"', rule["expr"])[1] for rule in d.RULES if "job=" in rule["expr"]}
    assert {scraped["job_name"] for scraped in SCRAPED["scrape_configs"]} == {job}
    [monitor] = d.of_kind("PodMonitor")
    labels = [group["template"]["metadata"]["labels"] for group in d.ray_groups().values()]
    assert {each[monitor["spec"]["jobLabel"]] for each in labels} == {job}
    assert monitor["metadata"]["labels"].keys() == {"release"}, "kube-prometheus-stack passes over others"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert all(wanted.items() <= each.items() | {("ray.io/is-ray-node", "yes")} for each in labels)


def test_every_alert_says_what_to_do():
    assert len({rule["alert"] for rule in d.RULES}) == len(d.RULES) >= 4
    for rule in d.RULES:
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
    check(promtool, "check", "config", d.MONITORING / "prometheus.yaml")
    check(promtool, "check", "rules", d.MONITORING / "alerts.yaml")


def test_every_panel_asks_in_promql(promtool, tmp_path):
    texts = [expr for each in d.expressions().values() for expr in each]
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
    shutil.copy(d.MONITORING / "alerts.yaml", tmp_path)
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
    assert {name.split()[0] for name in SERIES} == {rule["alert"] for rule in d.RULES}
    tests = {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    check(promtool, "test", "rules", tmp_path / "tests.yaml")
