"""deploy/tracking: its services as real processes, a real run recorded by them, and what its files promise."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from metatrain.preflight import preflight
from tests.configurations import TINY
from tests.tracking_stack import COMPOSE, OURS, VARIABLE, TrackingStack, compose, tracking_stack

FOLDER = COMPOSE.parent
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
KEPT = [name for name in SERVICES if name != "buckets"]
"""Services that stay; one ends when its work is done."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingStack]:
    with tracking_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def trained(stack: TrackingStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of a run on this machine's disk, recorded with a login and without a key of the S3 store."""
    folder = tmp_path_factory.mktemp("trained")
    tracking = {"uri": stack.uri, "experiment": "deployed"}
    few = {"outer": TINY["outer"] | {"steps": 3}, "tracking": tracking}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | few))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment = clean | stack.environment() | {"METATRAIN_CACHE": str(folder / "cache")}
    program = "from metatrain.cli import main; main()"
    command = [sys.executable, "-c", program, "train", "tiny.yaml", "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def buckets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("buckets", FOLDER / "buckets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(uri: str, login: tuple[str, str] | None = None, body: bytes | None = None, **headers: str) -> int:
    """The status of the answer."""
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    request = urllib.request.Request(uri, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_metrics_and_params_of_a_run_lie_in_postgresql(stack, trained):
    ((run, status),) = stack.rows(
        "SELECT runs.run_uuid, runs.status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE tags.key = 'metatrain.run_id' AND tags.value = %s",
        trained["run_id"],
    )
    assert status == "FINISHED"
    steps = stack.rows("SELECT step FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step", run)
    assert steps == [(1,), (2,), (3,)]
    params = dict(stack.rows("SELECT key, value FROM params WHERE run_uuid = %s", run))
    assert params["algorithm.inner_steps"] == "2" and params["outer.steps"] == "3"


def test_artifacts_of_a_run_lie_in_the_bucket_though_its_driver_has_no_key(stack, trained):
    query = "SELECT artifact_uri FROM runs WHERE name = %s"
    ((uri,),) = stack.rows(query, trained["run_id"])
    assert uri.startswith("mlflow-artifacts:/")
    keys = stack.s3.keys("mlflow", uri.removeprefix("mlflow-artifacts:/").lstrip("/"))
    names = {key.partition("/artifacts/")[2] for key in keys}
    assert names >= {"config.yaml", "environment.json", "plots/curves.png"}


def test_who_has_not_logged_in_learns_nothing(stack):
    artifacts = "/api/2.0/mlflow-artifacts/artifacts"
    assert asked(stack.uri + "/health") == 200, "health checks and load balancers have no login"
    for login in (None, (stack.user, "another password"), ("admin", "password1234"), (stack.user, "password1234")):
        assert asked(stack.uri + SEARCH, login) == asked(stack.uri + artifacts, login) == 401
    assert asked(stack.uri + SEARCH, (stack.user, stack.password)) == 200
    assert stack.rows("SELECT username, is_admin FROM users") == [(stack.user, True)]


def test_other_names_and_foreign_pages_are_refused(stack):
    login, body = (stack.user, stack.password), json.dumps({"name": "made by a page"}).encode()
    assert asked(stack.uri + SEARCH, login, Host="elsewhere.example.org") == 403
    create = stack.uri + "/api/2.0/mlflow/experiments/create"
    assert asked(create, login, body, Origin="https://elsewhere.example.org") == 403
    assert asked(create, login, body, Origin="https://mlflow.example.org") == 200


def test_the_s3_store_was_tried_before_mlflow_started(stack):
    assert stack.made == "mlflow, runs: made; of 8 conditional writes at once, one is taken\n"
    assert stack.s3.keys("runs") == []


class Careless:
    """An S3 store that ignores conditions, or `looks` first and writes later."""

    def __init__(self, looks: bool) -> None:
        self.versions: dict[str, bytes] = {}
        self._looked = threading.Barrier(8) if looks else None

    def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> None:
        if self._looked is not None:
            there = self.versions.get(Key)
            with suppress(threading.BrokenBarrierError):
                self._looked.wait(5)
            if condition.get("IfNoneMatch") == "*" and there is not None:
                raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
        self.versions[Key] = Body

    def head_object(self, Bucket: str, Key: str) -> dict[str, str]:
        return {"ETag": self.versions[Key].hex()}

    def delete_object(self, Bucket: str, Key: str) -> None:
        self.versions.pop(Key, None)


@pytest.mark.parametrize("looks", [False, True])
def test_a_store_where_two_drivers_could_own_a_run_is_refused(buckets, looks):
    with pytest.raises(SystemExit, match=r"of 8 writes at once with IfNoneMatch 8 were taken.*cannot hold runs"):
        buckets.check(Careless(looks), "runs")


def test_a_store_that_ignores_only_if_match_is_refused(buckets, stack):
    client = stack.s3.client()

    class Forgetful(Careless):
        def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> None:
            kept = {name: value for name, value in condition.items() if name == "IfNoneMatch"}
            client.put_object(Bucket=Bucket, Key=Key, Body=Body, **kept)

        head_object, delete_object = client.head_object, client.delete_object

    with pytest.raises(SystemExit, match="with IfMatch 8 were taken"):
        buckets.check(Forgetful(False), "runs")
    assert stack.s3.keys("runs") == []


def test_buckets_can_be_made_twice_and_anywhere(buckets, stack, monkeypatch):
    for name, value in stack.s3.environment().items():
        monkeypatch.setenv(name, value)
    for region in ("us-east-1", "eu-central-1"):
        monkeypatch.setenv("AWS_REGION", region)
        buckets.make(boto3.client("s3", region_name=region), f"again-{region}")
        buckets.make(boto3.client("s3", region_name=region), f"again-{region}")
    monkeypatch.setattr(sys, "argv", ["buckets.py"])
    with pytest.raises(SystemExit, match="usage"):
        buckets.main([])


def variables() -> dict[str, str]:
    """Every variable of compose.yaml, and what follows its name."""
    text = "\n".join(line for line in COMPOSE.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, str] = {}
    for match in VARIABLE.finditer(text):
        found[match["name"]] = max(found.get(match["name"], ""), (match["how"] or "") + match["rest"])
    return found


def example() -> dict[str, str]:
    """Those that may be left out stand behind a #."""
    return dict(re.findall(r"^(#?\w+)=(.*)$", (FOLDER / ".env.example").read_text(), re.MULTILINE))


def test_the_example_names_every_variable_and_gives_none_away():
    required = {name for name, how in variables().items() if how.startswith(":?")}
    optional = {f"#{name}": how.removeprefix(":-") for name, how in variables().items() if name not in required}
    assert example().keys() == required | optional.keys()
    assert not any(example()[name] for name in required)  # which Compose refuses, until they are filled in
    assert {name: example()[name] for name in optional} == optional
    assert compose_secrets() <= required, "a secret has no default"


def compose_secrets() -> set[str]:
    return {name for name in variables() if re.search("PASSWORD|SECRET|KEY", name)}


def test_what_has_to_be_set_is_asked_for_with_a_remedy():
    given = dict.fromkeys(variables(), "x")
    compose(given)
    required = [name for name, how in variables().items() if how.startswith(":?")]
    assert len(required) >= 8
    for name in required:
        with pytest.raises(LookupError, match=rf"{name}: .{{15,}}\.env"):
            compose({**given, name: ""})


def test_no_secret_stands_in_the_files():
    for name, described in SERVICES.items():
        for variable, value in (described.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|URI$", variable):
                assert "${" in str(value), f"{name}: {variable}"
    text = COMPOSE.read_text() + (FOLDER / "buckets.py").read_text()
    assert not re.search(r"://[^/\s:@]+:(?!\$\{)[^/\s@]+@", text), "a password in an address"
    assert not re.search(r"\b[0-9a-f]{24,}\b", text)
    assert "${" not in " ".join(" ".join(described.get("command", ())) for described in SERVICES.values())


@pytest.mark.parametrize("name", list(SERVICES))
def test_images_are_pinned_or_built_here(name):
    described = SERVICES[name]
    tag = described["image"].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+[\w.-]*", tag), described["image"]
    if "build" in described:
        build = described["build"]
        context = (FOLDER / build["context"]).resolve()
        assert (context / "pyproject.toml").exists()
        dockerfile = context / build["dockerfile"]
        if dockerfile.exists():
            targets = re.findall(r"^FROM \S+ AS (\S+)", dockerfile.read_text(), re.MULTILINE | re.IGNORECASE)
            assert build["target"] in targets


def test_only_mlflow_and_grafana_are_published_and_to_this_machine_alone():
    published = {name: described["ports"] for name, described in SERVICES.items() if "ports" in described}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "grafana": ["127.0.0.1:3000:3000"]}
    assert not any("network_mode" in described or described.get("privileged") for described in SERVICES.values())
    networks = yaml.safe_load(COMPOSE.read_text())["networks"]
    for name in ("postgres", "store", "buckets"):
        assert all(networks[network]["internal"] for network in SERVICES[name]["networks"])
    assert set(SERVICES["postgres"]["networks"]).isdisjoint(SERVICES["store"]["networks"])


@pytest.mark.parametrize("name", KEPT)
def test_a_service_that_stays_is_watched_started_again_and_limited(name):
    described = SERVICES[name]
    assert described["restart"] == "unless-stopped"
    assert described["healthcheck"]["test"][0] == "CMD" and described["healthcheck"]["retries"] >= 3
    assert described["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_each_waits_for_what_it_needs():
    assert SERVICES["mlflow"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "buckets": {"condition": "service_completed_successfully"},
    }
    assert SERVICES["buckets"]["depends_on"] == {"store": {"condition": "service_healthy"}}
    assert SERVICES["buckets"]["restart"] == "no"
    assert SERVICES["buckets"]["command"] == ["mlflow", "runs"]


def test_volumes_are_named_and_files_that_are_mounted_exist():
    document = yaml.safe_load(COMPOSE.read_text())
    used = set()
    for described in SERVICES.values():
        for volume in described.get("volumes", ()):
            source = VARIABLE.sub(lambda match: match["rest"], volume).partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).is_file() and volume.endswith(":ro")
            elif not source.startswith("/"):
                used.add(source)
    assert used == document["volumes"].keys() == {"postgres", "store", "prometheus", "grafana"}


def test_mlflow_knows_every_variable_that_it_is_given():
    """One that it does not know it would pass over in silence."""
    folder = Path(importlib.util.find_spec("mlflow").origin).parent
    known = "".join((folder / name).read_text() for name in ("environment_variables.py", "cli/__init__.py"))
    known += "".join((folder / "utils" / name).read_text() for name in ("cli_args.py",))
    known += (folder / "telemetry" / "utils.py").read_text()
    given = [name for name in SERVICES["mlflow"]["environment"] if name.startswith("MLFLOW_")]
    assert [name for name in given if not re.search(rf"\b{name}\b", known)] == []
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_login_that_is_missing_or_wrong_is_told_before_a_run_is_made(stack, monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(ValueError, match=r"wants a login \(401.*set MLFLOW_TRACKING_USERNAME"):
        preflight(stack.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", stack.user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    with pytest.raises(ValueError, match=f"does not accept the login of '{stack.user}'"):
        preflight(stack.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.password)
    preflight(stack.uri)
