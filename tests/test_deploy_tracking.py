"""deploy/tracking: its services as real processes, real runs recorded by them, and who may do what."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from metatrain.tracking.mlflow_connection import preflight
from metatrain.tracking.mlflow_recorder import MLflowRecorder
from tests.configurations import TINY
from tests.tracking_stack import COMPOSE, OURS, TrackingStack, tracking_stack

FOLDER = COMPOSE.parent
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


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


@pytest.fixture
def team(stack: TrackingStack) -> Iterator[dict[str, tuple[str, str]]]:
    """The logins of two people whom the administrator lets in, by their names."""
    admin, users = (stack.user, stack.password), stack.uri + "/api/2.0/mlflow/users"
    logins = {name: (name, f"{name}'s own password") for name in ("grace", "alan")}
    for name, login in logins.items():
        made = json.dumps({"username": name, "password": login[1]}).encode()
        assert asked(f"{users}/create", admin, made) == 200
    yield logins
    for name in logins:
        assert asked(f"{users}/delete", admin, json.dumps({"username": name}).encode(), "DELETE") == 200


def asked(
    uri: str, login: tuple[str, str] | None = None, body: bytes | None = None, method: str | None = None, **headers: str
) -> int:
    """The status of the answer."""
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    request = urllib.request.Request(uri, body, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.slow
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


@pytest.mark.slow
def test_artifacts_of_a_run_lie_in_the_bucket_though_its_driver_has_no_key(stack, trained):
    query = "SELECT artifact_uri FROM runs WHERE name = %s"
    ((uri,),) = stack.rows(query, trained["run_id"])
    assert uri.startswith("mlflow-artifacts:/")
    keys = stack.s3.keys("mlflow", uri.removeprefix("mlflow-artifacts:/").lstrip("/"))
    names = {key.partition("/artifacts/")[2] for key in keys}
    assert names >= {"config.yaml", "environment.json", "plots/curves.png"}


@pytest.mark.slow
def test_who_has_not_logged_in_learns_nothing(stack):
    artifacts = "/api/2.0/mlflow-artifacts/artifacts"
    assert asked(stack.uri + "/health") == 200, "health checks and load balancers have no login"
    for login in (None, (stack.user, "another password"), ("admin", "password1234"), (stack.user, "password1234")):
        assert asked(stack.uri + SEARCH, login) == asked(stack.uri + artifacts, login) == 401
    assert asked(stack.uri + SEARCH, (stack.user, stack.password)) == 200
    assert stack.rows("SELECT username, is_admin FROM users") == [(stack.user, True)]


def made(stack: TrackingStack, login: tuple[str, str], experiment: str) -> str:
    """The id of an experiment of somebody's own."""
    body = json.dumps({"name": experiment}).encode()
    assert asked(stack.uri + "/api/2.0/mlflow/experiments/create", login, body) == 200
    ((found,),) = stack.rows("SELECT experiment_id FROM experiments WHERE name = %s", experiment)
    return str(found)


@pytest.mark.slow
def test_a_second_person_records_into_an_experiment_that_another_made(stack, team, tmp_path, monkeypatch):
    """As metatrain records: a run, its parameters, metrics and tags, an artifact."""
    experiment = made(stack, team["grace"], "shared")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", team["alan"][0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team["alan"][1])
    run = MLflowRecorder(stack.uri, experiment="shared", run_id="run-of-alan", params={"seed": 3}, tags={"who": "alan"})
    run.start(0, 1)
    run.record(1, {"train/loss": 0.5})
    (tmp_path / "curves.png").write_bytes(b"png")
    run.artifact(tmp_path / "curves.png", "plots")
    run.close("finished")
    query = (
        "SELECT runs.name, status, params.value, metrics.value, artifact_uri FROM runs "
        "JOIN params USING (run_uuid) JOIN metrics USING (run_uuid) WHERE experiment_id = %s"
    )
    ((*row, uri),) = stack.rows(query, int(experiment))
    assert row == ["run-of-alan", "FINISHED", "3", 0.5]
    (key,) = stack.s3.keys("mlflow", uri.removeprefix("mlflow-artifacts:/").lstrip("/"))
    assert key.endswith("/artifacts/plots/curves.png")


@pytest.mark.slow
def test_a_second_person_neither_deletes_nor_gives_rights_away(stack, team):
    experiment = made(stack, team["grace"], "grace's")
    grant = {"resource_type": "experiment", "resource_id": experiment, "permission": "MANAGE"}
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "3.0/mlflow/users/permissions/grant", {"username": "alan", **grant}),
        ("POST", "2.0/mlflow/users/create", {"username": "mallory", "password": "twelve characters"}),
        ("PATCH", "2.0/mlflow/users/update-admin", {"username": "alan", "is_admin": True}),
        ("PATCH", "2.0/mlflow/users/update-password", {"username": "grace", "password": "twelve characters"}),
        ("DELETE", "2.0/mlflow/users/delete", {"username": "grace"}),
        ("POST", "2.0/mlflow/experiments/delete", {"experiment_id": experiment}),
    ]
    for method, path, body in refused:
        status = asked(f"{stack.uri}/api/{path}", team["alan"], json.dumps(body).encode(), method)
        assert status == 403, f"{method} {path}: {status}"
    assert {name for (name,) in stack.rows("SELECT username FROM users")} == {stack.user, "grace", "alan"}
    assert stack.rows("SELECT username FROM users WHERE is_admin") == [(stack.user,)]
    owner = json.dumps({"username": "alan", **grant}).encode()
    assert asked(f"{stack.uri}/api/3.0/mlflow/users/permissions/grant", team["grace"], owner) == 200


@pytest.mark.slow
def test_other_names_and_foreign_pages_are_refused(stack):
    login, body = (stack.user, stack.password), json.dumps({"name": "made by a page"}).encode()
    assert asked(stack.uri + SEARCH, login, Host="elsewhere.example.org") == 403
    create = stack.uri + "/api/2.0/mlflow/experiments/create"
    assert asked(create, login, body, Origin="https://elsewhere.example.org") == 403
    assert asked(create, login, body, Origin="https://mlflow.example.org") == 200


@pytest.mark.slow
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
        buckets.check_conditional_writes(Careless(looks), "runs")


def test_stores_are_tried_when_buckets_are_made(buckets, monkeypatch):
    monkeypatch.setattr(buckets.boto3, "client", lambda *service, **config: Careless(True))
    monkeypatch.setattr(buckets, "create_bucket", lambda store, bucket: None)
    with pytest.raises(SystemExit, match="cannot hold runs"):
        buckets.main(["runs"])


@pytest.mark.slow
def test_a_store_that_ignores_only_if_match_is_refused(buckets, stack):
    client = stack.s3.client()

    class Forgetful(Careless):
        def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> None:
            kept = {name: value for name, value in condition.items() if name == "IfNoneMatch"}
            client.put_object(Bucket=Bucket, Key=Key, Body=Body, **kept)

        head_object, delete_object = client.head_object, client.delete_object

    with pytest.raises(SystemExit, match="with IfMatch 8 were taken"):
        buckets.check_conditional_writes(Forgetful(False), "runs")
    assert stack.s3.keys("runs") == []


@pytest.mark.slow
def test_buckets_can_be_made_twice_and_anywhere(buckets, stack, monkeypatch):
    for name, value in stack.s3.environment().items():
        monkeypatch.setenv(name, value)
    for region in ("us-east-1", "eu-central-1"):
        monkeypatch.setenv("AWS_REGION", region)
        buckets.create_bucket(boto3.client("s3", region_name=region), f"again-{region}")
        buckets.create_bucket(boto3.client("s3", region_name=region), f"again-{region}")
    monkeypatch.setattr(sys, "argv", ["buckets.py"])
    with pytest.raises(SystemExit, match="usage"):
        buckets.main([])


@pytest.mark.slow
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
