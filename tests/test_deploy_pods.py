"""The pods of deploy/kubernetes: ports, probes, who may reach them, what they may do, how they are told to leave."""

import configparser
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import deployments as d
from tests.tracking_stack import compose

DASHBOARD, GCS, CLIENT, METRICS, AGENT = 8265, 6379, 10001, 8080, 52365
PROBES = ("readinessProbe", "livenessProbe")
OURS = {"app.kubernetes.io/part-of": "metatrain", "app.kubernetes.io/component": "ray"}
GROUPS, SPECS, PODS = d.ray_groups(), d.ray_specs(), d.pod_templates()
CONTAINERS = d.containers()


@pytest.mark.parametrize("name", GROUPS)
def test_ports_are_the_same_wherever_they_are_named(name: str) -> None:
    group, container = GROUPS[name], CONTAINERS[name]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert group["rayStartParams"]["metrics-export-port"] == str(METRICS)
    assert group["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(METRICS)
    head = {"gcs-server": GCS, "dashboard": DASHBOARD, "client": CLIENT} if name.endswith("head") else {}
    assert ports == head | {"metrics": METRICS}
    asked = {probe: (container[probe]["httpGet"]["port"], container[probe]["httpGet"]["path"]) for probe in PROBES}
    raylet = (AGENT, "/api/local_raylet_healthz")
    assert asked == {"readinessProbe": (DASHBOARD, "/api/gcs_healthz") if head else raylet, "livenessProbe": raylet}
    [monitor] = d.of_kind("PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_probes_ask_what_needs_no_token() -> None:
    """Ray answers these without one, and 401 to all else."""
    package = Path(str(importlib.util.find_spec("ray").origin)).parent / "dashboard"  # type: ignore[union-attr]
    open_at_head = (package / "http_server_head.py").read_text()
    open_at_agent = (package / "http_server_agent.py").read_text()
    for container in CONTAINERS.values():
        for probe in {*PROBES, "startupProbe"} & container.keys():
            asked = container[probe]["httpGet"]
            source = {DASHBOARD: open_at_head, AGENT: open_at_agent}.get(asked["port"])
            assert source is None or f'"{asked["path"]}"' in source


def test_the_network_is_closed_but_for_those_who_have_to_come_in() -> None:
    policies = {at["metadata"]["name"]: at["spec"] for at in d.of_kind("NetworkPolicy")}
    ray = policies["ray-nodes"]
    assert ray["podSelector"]["matchLabels"] == OURS and ray["policyTypes"] == ["Ingress"]
    own, operator, monitoring = ray["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": OURS}}]}
    assert [port["port"] for port in operator["ports"]] == [DASHBOARD]
    assert operator["from"][0].keys() == {"namespaceSelector", "podSelector"}, "the operator alone, not its neighbours"
    assert [port["port"] for port in monitoring["ports"]] == [METRICS]
    assert monitoring["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for name, pod in PODS.items():
        chosen = [
            p for p in policies.values() if p["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1, f"{name} is open to everybody, or chosen twice"
    [rule] = policies["tracking"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": OURS}}] and [p["port"] for p in rule["ports"]] == [5000]


def references(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind of reference, reference) for every secret and configuration map that is named."""
    if isinstance(tree, list):
        for part in tree:
            yield from references(part)
    elif isinstance(tree, dict):
        for key, part in tree.items():
            if key in ("secretKeyRef", "secretRef", "configMapRef", "configMap"):
                yield key, part
            else:
                yield from references(part)


def test_secrets_and_maps_that_are_named_are_in_the_examples() -> None:
    secrets = {at["metadata"]["name"]: at["stringData"] for at in d.of_kind("Secret")}
    maps = {at["metadata"]["name"]: at["data"] for at in d.of_kind("ConfigMap")}
    named = set()
    for path in d.MANIFESTS:
        for kind, reference in references(d.documents(path)):
            kept = maps if kind in ("configMapRef", "configMap") else secrets
            assert reference["name"] in kept, f"{path.name}: {reference['name']}"
            assert "key" not in reference or reference["key"] in kept[reference["name"]], f"{path.name}: {reference}"
            named.add(reference["name"])
    assert named == secrets.keys() | maps.keys()


def test_secrets_are_an_example_and_nothing_else_holds_a_value() -> None:
    [path] = [path for path in d.MANIFESTS if any(at["kind"] == "Secret" for at in d.documents(path))]
    assert path.name == "secrets.example.yaml"
    assert {value for at in d.of_kind("Secret") for value in at["stringData"].values()} == {"REPLACE-ME"}
    for name, container in CONTAINERS.items():
        plain = {variable["name"]: variable["value"] for variable in container.get("env", []) if "value" in variable}
        assert name == "mlflow" or not plain, f"{name}: {plain} come from a secret, or from environment.yaml"
        assert not [variable for variable in plain if re.search("PASSWORD|SECRET|TOKEN|KEY|URI|USERNAME", variable)]


def auth_settings(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return dict(parser["mlflow"])


def test_both_tracking_servers_are_told_the_same() -> None:
    """deploy/tracking and this one: what MLflow lets people do, and what it leaves alone."""
    composed = compose(dict.fromkeys(re.findall(r"\$\{(\w+)", d.COMPOSED["tracking"].read_text()), "x"))
    there = composed["services"]["mlflow"]["environment"]
    here = {variable["name"]: variable.get("value") for variable in CONTAINERS["mlflow"]["env"]}
    by_option = {"MLFLOW_SERVER_ALLOWED_HOSTS": "--allowed-hosts", "MLFLOW_WORKERS": "--workers"}
    said = {word.partition("=")[0] for word in CONTAINERS["mlflow"]["args"]}
    assert set(by_option.values()) <= said
    only_there = {"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"}  # here nobody comes but by port-forward, as localhost
    asked = {name for name in there if name.startswith("MLFLOW_")}
    assert here.keys() == asked - by_option.keys() - only_there
    assert {name: there[name] for name, value in here.items() if value is not None} == {
        name: value for name, value in here.items() if value is not None
    }
    assert here["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false", "seven processes more than the pod has room for"
    [kept] = [at["data"] for at in d.of_kind("ConfigMap") if at["metadata"]["name"] == "metatrain-mlflow-auth"]
    own, other = auth_settings(kept["mlflow-auth.ini"]), auth_settings(composed["configs"]["mlflow-auth"]["content"])
    parted = own.pop("database_uri"), other.pop("database_uri")
    assert own == other and own["default_permission"] == "EDIT"
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINERS["mlflow"]["volumeMounts"]}
    [volume] = [at["name"] for at in PODS["mlflow"]["spec"]["volumes"] if "configMap" in at]
    folder, _, file = here["MLFLOW_AUTH_CONFIG_PATH"].rpartition("/")
    assert mounts[folder] == volume and file in kept
    assert Path(parted[0].removeprefix("sqlite:///")).parent == Path(CONTAINERS["mlflow"]["workingDir"])
    assert mounts[CONTAINERS["mlflow"]["workingDir"]] == "logins"


def test_kubernetes_sets_no_variable_of_mlflows() -> None:
    """By service links, a service called mlflow sets MLFLOW_PORT=tcp://…, which MLflow reads as its own."""
    [service] = d.of_kind("Service")
    package = Path(str(importlib.util.find_spec("mlflow").origin)).parent  # type: ignore[union-attr]
    linked = f"{service['metadata']['name'].upper()}_PORT"
    assert f'"{linked}"' in (package / "utils" / "cli_args.py").read_text()
    assert PODS["mlflow"]["spec"]["enableServiceLinks"] is False


def test_accounts_exist_and_only_the_head_has_a_token() -> None:
    accounts = {at["metadata"]["name"]: at["automountServiceAccountToken"] for at in d.of_kind("ServiceAccount")}
    assert {pod["spec"]["serviceAccountName"] for pod in PODS.values()} == accounts.keys()
    for name, pod in PODS.items():
        mounted = pod["spec"].get("automountServiceAccountToken", accounts[pod["spec"]["serviceAccountName"]])
        assert mounted == name.endswith("head"), name


@pytest.mark.parametrize("name", PODS)
def test_pods_are_what_a_restricted_namespace_lets_in(name: str) -> None:
    [namespace] = d.of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = PODS[name]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}
    target = pod["containers"][0]["image"].rpartition("-")[2]
    user = [rest for word, rest in d.lineage(target) if word == "USER"][-1]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user, "the image's files are another user's"
    besides = [spec["autoscalerOptions"] for spec in SPECS.values()]
    for container in [*pod["containers"], *besides]:
        allowed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == allowed
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("name", GROUPS)
def test_a_node_gets_notice_and_room_for_its_objects(name: str) -> None:
    pod, container = PODS[name]["spec"], CONTAINERS[name]
    command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    notice = re.fullmatch(
        r'timeout (\d+) ray drain-node --address "\$RAY_ADDRESS" --reason (\w+) --reason-message "[^"]+" '
        r"--deadline-remaining-seconds (\d+); sleep (\d+)",
        command,
    )
    assert notice, command
    told, deadline, asleep = int(notice[1]), int(notice[3]), int(notice[4])
    assert notice[2] == "DRAIN_NODE_REASON_PREEMPTION"
    assert deadline <= asleep and told + asleep < pod["terminationGracePeriodSeconds"]
    sizes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    memory, shared = (
        int(size.removesuffix("Gi"))
        for size in (container["resources"]["limits"]["memory"], sizes[mounts["/dev/shm"]]["sizeLimit"])
    )
    assert sizes[mounts["/dev/shm"]]["medium"] == "Memory"
    assert 0.3 * memory <= shared < 0.5 * memory, "Ray's objects take three tenths"
    assert mounts.keys() == {"/dev/shm", d.environment("gpu")["METATRAIN_CACHE"]}


@pytest.mark.parametrize("name", SPECS)
def test_workers_come_from_none_and_bear_the_taints_of_spot_and_gpu_nodes(name: str) -> None:
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "eks.amazonaws.com/capacityType"}
    workers = {group["groupName"]: group for group in SPECS[name]["workerGroupSpecs"]}
    assert {group["minReplicas"] for group in workers.values()} == {0}
    borne = {at: {t["key"] for t in group["template"]["spec"]["tolerations"]} for at, group in workers.items()}
    assert borne == {"gpu": spot | {"nvidia.com/gpu"}, "cpu": spot}
    assert "tolerations" not in SPECS[name]["headGroupSpec"]["template"]["spec"], "the head on a spot node"


def test_a_budget_keeps_each_head() -> None:
    budgets = [at["spec"] for at in d.of_kind("PodDisruptionBudget")]
    chosen = {budget["selector"]["matchLabels"]["app.kubernetes.io/instance"] for budget in budgets}
    assert chosen == SPECS.keys()
    for name, spec in SPECS.items():
        assert spec["headGroupSpec"]["template"]["metadata"]["labels"]["app.kubernetes.io/instance"] == name
    assert all(b["minAvailable"] == 1 and b["selector"]["matchLabels"]["ray.io/node-type"] == "head" for b in budgets)
