"""deploy/kubernetes against the code and against schemas: Kubernetes's own, and KubeRay's where they are given."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from metatrain.config.load import load_config
from metatrain.settings import Config
from tests import deployments as d
from tests.object_store import ObjectStore, object_store

KUBERNETES = "1.34"
"""The schemas come with kubernetes-validate."""
SPECS = d.ray_specs()


def entrypoint() -> list[str]:
    [job] = d.of_kind("RayJob")
    return str(job["spec"]["entrypoint"]).split()


def configured() -> Config:
    """The entry point's configuration, with exactly its overrides."""
    words = entrypoint()
    path = words[words.index("train") + 1]
    local = d.in_image("gpu")[str(Path(path).parent)] / Path(path).name
    return load_config(local, words[words.index("train") + 2 :])


def test_kustomization_builds_and_holds_all_but_the_choices(tmp_path: Path) -> None:
    text = yaml.safe_load((d.KUBERNETES / "kustomization.yaml").read_text())
    apart = {"kustomization.yaml", "podmonitor.yaml", "rayjob.yaml", "secrets.example.yaml"}
    assert set(text["resources"]) == {path.name for path in d.MANIFESTS} - apart
    built = [document for name in text["resources"] for document in d.documents(d.KUBERNETES / name)]
    if shutil.which("kubectl") is not None:
        command = ["kubectl", "kustomize", str(d.KUBERNETES)]
        told = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"HOME": str(tmp_path)}
        )
        assert told.returncode == 0, told.stderr
        assert sorted(map(repr, map(in_order, yaml.safe_load_all(told.stdout)))) == sorted(
            map(repr, map(in_order, built))
        )
    assert {at["metadata"].get("namespace", at["metadata"]["name"]) for at in built} == {"metatrain"}


def in_order(tree: Any) -> Any:
    """The tree with its keys sorted: kustomize sorts them its own way."""
    if isinstance(tree, dict):
        return {key: in_order(tree[key]) for key in sorted(tree)}
    return [in_order(part) for part in tree] if isinstance(tree, list) else tree


def core_objects() -> list[dict[str, Any]]:
    found = [at for path in d.MANIFESTS for at in d.documents(path)]
    found = [at for at in found if at["kind"] not in ("Kustomization", "PodMonitor", "RayCluster", "RayJob")]
    pods = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": n}, "template": p}
        for n, p in d.pod_templates().items()
    ]
    return found + pods


@pytest.mark.parametrize("document", core_objects(), ids=lambda at: f"{at['kind']} {at['metadata']['name']}")
def test_objects_and_pods_are_what_kubernetes_takes(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        pytest.fail(f"{'/'.join(map(str, error.path))}: {error.message[:500]}")


def refusing_unknown(schema: Any) -> Any:
    """The schema, with every field refused that it does not name."""
    if isinstance(schema, list):
        return [refusing_unknown(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: refusing_unknown(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_ray_objects_are_what_kuberay_takes(kind: str) -> None:
    folder = os.environ.get("METATRAIN_KUBERAY_CRDS")
    if folder is None:
        pytest.skip(
            "set METATRAIN_KUBERAY_CRDS to KubeRay's helm-chart/kuberay-operator/crds to check against its schemas"
        )
    definition = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    [version] = [at for at in definition["spec"]["versions"] if at["name"] == "v1"]
    schema = refusing_unknown(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    [document] = d.of_kind(kind)
    assert document["apiVersion"] == "ray.io/v1"
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document["spec"])
    told = [f"{'/'.join(map(str, error.path))}: {error.message[:300]}" for error in errors]
    assert not told, "\n".join(told)


def test_the_entry_point_is_a_command_that_exists_with_settings_that_hold() -> None:
    from metatrain.cli import app

    words = entrypoint()
    assert words[0] == "python" and words[1] in d.in_image("gpu")
    assert words[2] in d.project()["scripts"]
    assert words[3] in set(typer.main.get_command(app).commands)
    configured()


def test_the_job_uses_the_cluster_that_is_made_for_it() -> None:
    settings = configured()
    assert (settings.executor.name, settings.executor.address) == ("ray", "auto")
    spec = SPECS["omniglot-maml"]
    [gpu] = [group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu"]
    per_pod = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    wanted = settings.executor.max_workers * settings.executor.gpus_per_worker
    assert wanted == gpu["maxReplicas"] * per_pod, "as many GPUs as the group may have"
    first = settings.executor.min_workers * settings.executor.gpus_per_worker
    assert first <= gpu["replicas"] * per_pod, "metatrain refuses GPUs that are not there when it starts"
    shards = settings.outer.tasks_per_step / settings.executor.shard_size
    assert shards >= settings.executor.max_workers, "some workers would never have a shard"


def test_the_job_waits_until_a_node_has_come_with_its_image() -> None:
    assert configured().executor.deadline >= 1800


def test_the_job_keeps_everything_where_a_retry_finds_it() -> None:
    settings = configured()
    [job] = d.of_kind("RayJob")
    assert settings.runs.root.startswith(f"s3://{d.BUCKET}/")
    assert settings.runs.root.endswith(f"/{job['metadata']['name']}"), "resumable.py takes any run in there for its own"
    assert entrypoint()[1].endswith("/resumable.py"), "a retry would begin anew"
    assert job["spec"]["backoffLimit"] > 0
    assert "activeDeadlineSeconds" not in job["spec"], "it would end a healthy run, and KubeRay would not try again"
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["ttlSecondsAfterFinished"] > 0
    assert settings.tasks.source.root.startswith(f"s3://{d.BUCKET}/data/")
    assert set(yaml.safe_load(job["spec"]["runtimeEnvYAML"])) <= {"env_vars", "working_dir", "pip"}
    assert job["spec"]["submissionMode"] == "K8sJobMode"


def test_the_tracking_server_is_the_one_that_runs_here() -> None:
    [service], [deployment] = d.of_kind("Service"), d.of_kind("Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    host, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert configured().tracking.uri == f"http://{host}.metatrain.svc:{port}"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert container["ports"][0]["containerPort"] == port and f"--port={port}" in container["args"]
    [hosts] = [word.partition("=")[2].split(",") for word in container["args"] if word.startswith("--allowed-hosts=")]
    assert f"{host}.metatrain.svc:{port}" in hosts, "MLflow would refuse the name it is asked by"
    assert any(word == f"--artifacts-destination=s3://{d.BUCKET}/mlflow" for word in container["args"])


def test_mlflow_knows_the_options_and_variables_it_is_given() -> None:
    package = Path(str(importlib.util.find_spec("mlflow").origin)).parent  # type: ignore[union-attr]
    options = "".join(path.read_text() for path in [*package.glob("cli/*.py"), package / "utils" / "cli_args.py"])
    container = d.containers()["mlflow"]
    for word in container["args"]:
        assert f'"{word.partition("=")[0]}"' in options, word
    variables = (package / "environment_variables.py").read_text() + options
    for name in (at["name"] for at in container["env"] + d.containers()["metatrain head"]["env"]):
        assert f'"{name}"' in variables, name


@pytest.mark.parametrize("name", SPECS)
def test_ray_is_of_the_pinned_version_with_tokens_and_an_autoscaler(name: str) -> None:
    spec = SPECS[name]
    assert spec["rayVersion"] == d.pinned()["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] >= 60
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    used = [
        container["image"] for group in d.groups(spec).values() for container in group["template"]["spec"]["containers"]
    ]
    assert used == [d.image("gpu"), d.image("gpu"), d.image("cpu")], "head, gpu, cpu"


def test_both_clusters_are_alike() -> None:
    cluster, job = (json.loads(json.dumps(spec)) for spec in SPECS.values())  # parted where YAML's aliases share
    for spec in (cluster, job):
        for group in d.groups(spec).values():
            del group["template"]["metadata"]["labels"]["app.kubernetes.io/instance"]
            group.pop("replicas", None)
    assert cluster == job


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        yield started


def resumable(store: ObjectStore, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """resumable.py as the job runs it, with a `metatrain` that says what it was asked."""
    folder.mkdir(exist_ok=True)
    (folder / "metatrain").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "metatrain").chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(d.ROOT)}
    command = [sys.executable, str(d.KUBERNETES / "resumable.py"), *words]
    environment = os.environ | store.environment() | path
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_retry_goes_on_with_the_newest_run(store: ObjectStore, tmp_path: Path) -> None:
    from metatrain.runs.remote import HEAD

    words = entrypoint()[2:]
    root = configured().runs.root
    store.make_bucket(d.BUCKET)
    first = resumable(store, tmp_path / "bin", *words)
    assert first.stdout.split() == words[1:], first.stderr
    for run in ("20261121-100000-omniglot-maml-5w1s-aaaaaa", "20261121-110000-omniglot-maml-5w1s-bbbbbb"):
        store.client().put_object(Bucket=d.BUCKET, Key=f"runs/omniglot-maml/{run}/{HEAD}", Body=b"{}")
    store.client().put_object(Bucket=d.BUCKET, Key="runs/omniglot-maml/20261121-120000-no-run/x", Body=b"")
    again = resumable(store, tmp_path / "bin", *words)
    newest = f"{root}/20261121-110000-omniglot-maml-5w1s-bbbbbb"
    assert again.stdout.split() == ["train", "--resume", newest, "--take-over", "--trust"], again.stderr


def test_a_retry_that_cannot_look_does_not_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.kubernetes.resumable import choose_command

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        choose_command(entrypoint()[2:])
    with pytest.raises(ValueError, match=r"runs\.root=s3://BUCKET/JOB"):
        choose_command(["metatrain", "train", "x.yaml"])
