"""The files for Docker Compose, deploy/tracking and deploy/monitoring: what they ask for, promise and keep closed."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import deployments as d
from tests.tracking_stack import VARIABLE, compose

COMPOSED: dict[str, dict[str, Any]] = {name: yaml.safe_load(path.read_text()) for name, path in d.COMPOSED.items()}
SERVICES = {(name, service): at for name, file in COMPOSED.items() for service, at in file["services"].items()}
TRACKING = COMPOSED["tracking"]["services"]
DONE = {"buckets", "backup"}
"""Services that end when their work is done."""
EVERY = pytest.mark.parametrize("name", list(d.COMPOSED))


def variables(name: str) -> dict[str, str]:
    """Every variable of a file, and what follows its name."""
    lines = d.COMPOSED[name].read_text().splitlines()
    found: dict[str, str] = {}
    for match in VARIABLE.finditer("\n".join(line for line in lines if not line.lstrip().startswith("#"))):
        found[match["name"]] = max(found.get(match["name"], ""), (match["how"] or "") + match["rest"])
    return found


def required(name: str) -> set[str]:
    return {variable for variable, how in variables(name).items() if how.startswith(":?")}


def example(name: str) -> dict[str, str]:
    """Those that may be left out stand behind a #."""
    text = (d.COMPOSED[name].parent / ".env.example").read_text()
    return dict(re.findall(r"^(#?\w+)=(.*)$", text, re.MULTILINE))


@EVERY
def test_the_example_names_every_variable_and_gives_none_away(name):
    wanted, given = required(name), example(name)
    optional = {f"#{one}": how.removeprefix(":-") for one, how in variables(name).items() if one not in wanted}
    assert given.keys() == wanted | optional.keys()
    assert not any(given[one] for one in wanted)  # which Compose refuses, until they are filled in
    assert {one: given[one] for one in optional} == optional
    secret = {one for one in variables(name) if re.search("PASSWORD|SECRET|KEY", one)}
    assert secret and secret <= wanted, "a secret has no default"


@EVERY
def test_what_has_to_be_set_is_asked_for_with_a_remedy(name):
    given = dict.fromkeys(variables(name), "x")
    compose(given, d.COMPOSED[name])
    assert len(required(name)) >= {"tracking": 8, "monitoring": 1}[name]
    for one in required(name):
        with pytest.raises(LookupError, match=rf"{one}: .{{15,}}\.env"):
            compose({**given, one: ""}, d.COMPOSED[name])


def test_monitoring_starts_without_a_secret_of_the_tracking_server():
    """One file for both would ask for all of them, whichever services are named."""
    assert required("monitoring") == {"GRAFANA_ADMIN_PASSWORD"}
    assert required("monitoring").isdisjoint(variables("tracking"))
    assert set(COMPOSED["monitoring"]["services"]) == {"prometheus", "grafana"}
    assert COMPOSED["monitoring"]["name"] != COMPOSED["tracking"]["name"], "volumes and networks would be shared"


@EVERY
def test_what_is_filled_in_stays_out_of_git(name):
    filled = d.COMPOSED[name].parent / ".env"
    if not (d.ROOT / ".git").exists():
        pytest.skip("not a checkout")
    told = subprocess.run(["git", "check-ignore", filled], cwd=d.ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, f"git would take {filled}"


def test_no_secret_stands_in_the_files():
    for (_, name), described in SERVICES.items():
        for variable, value in (described.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|URI$", variable):
                assert "${" in str(value), f"{name}: {variable}"
    paths = [*d.COMPOSED.values(), d.COMPOSED["tracking"].parent / "buckets.py"]
    text = "".join(path.read_text() for path in paths)
    assert not re.search(r"://[^/\s:@]+:(?!\$\{)[^/\s@]+@", text), "a password in an address"
    assert not re.search(r"\b[0-9a-f]{24,}\b", text)
    assert "${" not in " ".join(" ".join(described.get("command", ())) for described in SERVICES.values())


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_images_are_pinned_or_built_here(name, service):
    described = SERVICES[name, service]
    tag = described["image"].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+[\w.-]*", tag), described["image"]
    if "build" in described:
        build = described["build"]
        context = (d.COMPOSED[name].parent / build["context"]).resolve()
        assert context / build["dockerfile"] == d.DOCKERFILE and build["target"] in d.stages()


def test_only_mlflow_and_grafana_are_published_and_to_this_machine_alone():
    published = {service: at["ports"] for (_, service), at in SERVICES.items() if "ports" in at}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "grafana": ["127.0.0.1:3000:3000"]}
    assert not any("network_mode" in described or described.get("privileged") for described in SERVICES.values())
    networks = COMPOSED["tracking"]["networks"]
    for service in ("postgres", "store", "buckets", "backup"):
        assert all(networks[network]["internal"] for network in TRACKING[service]["networks"])
    assert set(TRACKING["postgres"]["networks"]).isdisjoint(TRACKING["store"]["networks"])


@pytest.mark.parametrize(("name", "service"), [both for both in SERVICES if both[1] not in DONE])
def test_a_service_that_stays_is_watched_started_again_and_limited(name, service):
    described = SERVICES[name, service]
    assert described["restart"] == "unless-stopped"
    assert described["healthcheck"]["test"][0] == "CMD" and described["healthcheck"]["retries"] >= 3
    assert described["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert "profiles" not in described, "it would not start with the others"


def test_each_waits_for_what_it_needs():
    assert TRACKING["mlflow"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "buckets": {"condition": "service_completed_successfully"},
    }
    assert TRACKING["buckets"]["depends_on"] == {"store": {"condition": "service_healthy"}}
    assert TRACKING["buckets"]["restart"] == "no"
    assert TRACKING["buckets"]["command"] == ["mlflow", "runs"]


def test_a_backup_reaches_the_store_and_copies_every_bucket():
    backup, store = TRACKING["backup"], TRACKING["store"]
    assert "ports" not in store and set(backup["networks"]) == set(store["networks"])
    assert backup["environment"] == TRACKING["buckets"]["environment"], "its keys and its address"
    assert backup["profiles"] == ["backup"], "it would start with the others"
    (script,), (volume,) = backup["command"], backup["volumes"]
    kept = volume.rpartition(":")[2]
    copies = [f"aws s3 sync s3://{bucket} {kept}/{bucket}" for bucket in TRACKING["buckets"]["command"]]
    assert script.split(" && ") == copies, "one that fails is told by the exit code"
    folder = VARIABLE.sub(lambda match: match["rest"], volume).rpartition(":")[0]
    told = (d.ROOT / "docs" / "cluster.md").read_text()
    assert "docker compose run --rm backup" in told and folder in told
    assert Path(folder).is_absolute(), "a checkout is no place for it"


@EVERY
def test_volumes_are_named_and_files_that_are_mounted_exist(name):
    used = set()
    for described in COMPOSED[name]["services"].values():
        for volume in described.get("volumes", ()):
            source = VARIABLE.sub(lambda match: match["rest"], volume).partition(":")[0]
            if source.startswith("."):
                assert (d.COMPOSED[name].parent / source).is_file() and volume.endswith(":ro")
            elif not source.startswith("/"):
                used.add(source)
    kept = {"tracking": {"postgres", "store"}, "monitoring": {"prometheus", "grafana"}}
    assert used == COMPOSED[name]["volumes"].keys() == kept[name]


def test_mlflow_knows_every_variable_that_it_is_given():
    """One that it does not know it would pass over in silence."""
    folder = Path(importlib.util.find_spec("mlflow").origin).parent
    known = "".join((folder / name).read_text() for name in ("environment_variables.py", "cli/__init__.py"))
    known += "".join((folder / "utils" / name).read_text() for name in ("cli_args.py",))
    known += (folder / "telemetry" / "utils.py").read_text()
    given = [name for name in TRACKING["mlflow"]["environment"] if name.startswith("MLFLOW_")]
    assert [name for name in given if not re.search(rf"\b{name}\b", known)] == []
    assert TRACKING["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
