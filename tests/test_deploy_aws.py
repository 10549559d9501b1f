"""deploy/aws as written: the cluster as Ray's launcher reads it, and who may call what."""

import ast
import fnmatch
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name

from tests import deployments as d

CLUSTER: dict[str, Any] = yaml.safe_load((d.AWS / "cluster.yaml").read_text())
TYPES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]
REGION, ACCOUNT = CLUSTER["provider"]["region"], "111122223333"
POLICIES = {who: json.loads((d.AWS / f"iam-{who}.json").read_text()) for who in ("head", "launcher", "worker")}
ROLES = {"head": "metatrain-worker", "launcher": "metatrain-head"}
"""Whose role each may give to an instance."""


def statements(who: str) -> list[dict[str, Any]]:
    return list(POLICIES[who]["Statement"])


def actions(who: str) -> set[str]:
    return {action for statement in statements(who) for action in statement["Action"]}


def resources(statement: dict[str, Any]) -> list[str]:
    named = statement["Resource"]
    return [named] if isinstance(named, str) else list(named)


def allowing(who: str, action: str, resource: str) -> list[dict[str, Any]]:
    """The statements by which it is allowed, under their conditions."""
    return [
        statement
        for statement in statements(who)
        if action in statement["Action"] and any(fnmatch.fnmatchcase(resource, one) for one in resources(statement))
    ]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """As the launcher completes it, before it asks AWS for anything; checked against Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete: dict[str, Any] = prepare_config(yaml.safe_load((d.AWS / "cluster.yaml").read_text()))
    validate_config(complete)
    return complete


def test_the_launcher_accepts_it(cluster: dict[str, Any]) -> None:
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert cluster["setup_commands"] == [] == cluster["head_setup_commands"], "everything is in the image"


def test_the_head_is_bought_and_workers_are_spot_from_none() -> None:
    head = TYPES[CLUSTER["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"] and head["resources"] == {"CPU": 0}
    workers = {name: at for name, at in TYPES.items() if name != CLUSTER["head_node_type"]}
    assert workers.keys() == {"gpu", "cpu"}
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(worker["max_workers"] for worker in workers.values()) == CLUSTER["max_workers"]
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 15
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", TYPES)
def test_disks_are_encrypted_and_credentials_guarded(name: str) -> None:
    node = TYPES[name]["node_config"]
    assert [disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]] == [True]
    assert node["MetadataOptions"]["HttpTokens"] == "required"
    role = "head" if name == CLUSTER["head_node_type"] else "worker"
    assert node["IamInstanceProfile"] == {"Name": f"metatrain-{role}"}
    assert node["KeyName"] == Path(CLUSTER["auth"]["ssh_private_key"]).stem


def test_images_are_those_of_the_node_types() -> None:
    assert CLUSTER["docker"]["image"] == d.image("gpu")
    assert TYPES["cpu"]["docker"]["worker_image"] == d.image("cpu")
    assert "docker" not in TYPES["gpu"]
    assert f"--env=AWS_REGION={REGION}" in CLUSTER["docker"]["run_options"]


@pytest.mark.parametrize("name", TYPES)
def test_machines_have_an_image_with_a_driver_for_this_cuda(name: str) -> None:
    """Ray's default is one of 2023; its node provider takes an id, and no parameter's name."""
    from ray.autoscaler._private.aws.config import DEFAULT_AMI

    image = TYPES[name]["node_config"]["ImageId"]
    assert re.fullmatch(r"ami-[0-9a-f]{17}", image) and image not in DEFAULT_AMI.values()
    text = (d.AWS / "cluster.yaml").read_text()
    assert "latest_dlami" not in text and "resolve:ssm" not in text
    assert image in (d.ROOT / "deploy" / "README.md").read_text(), "it is among the names to replace"
    assert d.pinned()["cuda-toolkit"].startswith("13."), "CUDA 13 wants a driver of 580 or later: say another, here too"
    assert "580" in text


def options(command: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+)=(\S+)", command))


def test_ray_starts_with_a_token_and_shows_itself_to_nobody() -> None:
    [stop, head], [again, worker, watch] = CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]
    assert stop == again == "ray stop"
    for command in (head, worker):
        assert command.startswith("RAY_AUTH_MODE=token ray start ")
        assert options(command)["metrics-export-port"] == "8080"
    given = options(head)
    assert (given["num-cpus"], given["dashboard-host"], given["dashboard-port"]) == ("0", "127.0.0.1", "8265")
    assert given["autoscaling-config"] == "~/ray_bootstrap_config.yaml"
    assert options(worker)["address"] == f"$RAY_HEAD_IP:{given['port']}"
    script = re.search(r"python (\S+) (\S+)", watch)
    assert script and script[1] in d.in_image("cpu").keys() & d.in_image("gpu").keys()
    assert script[2] == options(worker)["address"]
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert CLUSTER["provider"]["security_group"] == {"GroupName": "metatrain-ray"}, "no port is opened here"


def test_ray_knows_the_options_it_is_started_with() -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for command in CLUSTER["head_start_ray_commands"] + CLUSTER["worker_start_ray_commands"]:
        assert {word for word in re.findall(r"--[\w-]+", command) if "ray start" in command} <= known


NOT_CALLED = {
    "start_instances": "only where stopped nodes are kept",
    "stop_instances": "only where stopped nodes are kept",
    "describe_images": "only where CloudWatch's agent is wanted",
    "describe_launch_template_versions": "only where a LaunchTemplate is named",
    "create_key_pair": "auth.ssh_private_key is named",
    "create_security_group": "provider.security_group names one that exists",
    "authorize_ingress": "that one has rules",
    "create_instance_profile": "IamInstanceProfile is named",
    "create_role": "IamInstanceProfile is named",
}
COLLECTIONS = {"instances": "ec2:DescribeInstances", "subnets": "ec2:DescribeSubnets"}
COLLECTIONS |= {"security_groups": "ec2:DescribeSecurityGroups"}


def calls_in(file: str) -> tuple[set[str], set[str]]:
    """Of a file of Ray's AWS launcher: EC2 and IAM operations that it calls by name, and collections that it reads."""
    package = Path(str(importlib.util.find_spec("ray").origin)).parent  # type: ignore[union-attr]
    tree = ast.parse((package / "autoscaler" / "_private" / "aws" / file).read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    session = botocore.session.Session()
    models = [session.get_service_model(service) for service in ("ec2", "iam")]
    operations = {xform_name(name) for model in models for name in model.operation_names}
    return names & (operations | {"create_instances", "authorize_ingress"}), names & COLLECTIONS.keys()


@pytest.mark.parametrize(
    ("who", "files"), [("head", ["node_provider.py"]), ("launcher", ["node_provider.py", "config.py"])]
)
def test_policies_allow_what_rays_source_calls_and_no_more(who: str, files: list[str]) -> None:
    found = [calls_in(file) for file in files]
    called = set().union(*(operations for operations, _ in found)) - NOT_CALLED.keys()
    if who == "head":
        called.discard("describe_instance_types")  # asked by `ray up`, to fill in resources
    words = {"create_instances": "RunInstances"}
    wanted = {f"ec2:{words.get(name, ''.join(part.title() for part in name.split('_')))}" for name in called}
    wanted |= {COLLECTIONS[name] for _, collections in found for name in collections}
    assert {action for action in actions(who) if action.startswith("ec2:")} == wanted


def arn(kind: str, name: str = "x", account: str = ACCOUNT) -> str:
    return f"arn:aws:ec2:{REGION}:{account}:{kind}/{name}"


@pytest.mark.parametrize("who", ["head", "launcher"])
def test_instances_are_started_and_ended_in_this_cluster_alone(who: str) -> None:
    mine = CLUSTER["cluster_name"]
    [start] = allowing(who, "ec2:RunInstances", arn("instance"))
    conditions = dict(start["Condition"]["StringEquals"])
    kinds = conditions.pop("ec2:InstanceType")
    assert conditions == {"aws:RequestTag/ray-cluster-name": mine, "ec2:MetadataHttpTokens": "required"}
    assert start["Condition"].keys() == {"StringEquals"}
    own = {name for name in TYPES if (name == CLUSTER["head_node_type"]) == (who == "launcher")}
    named = {TYPES[name]["node_config"]["InstanceType"] for name in own}
    assert set([kinds] if isinstance(kinds, str) else kinds) == named, "each that cluster.yaml names, and none dearer"
    [disk] = allowing(who, "ec2:RunInstances", arn("volume"))
    assert disk["Condition"] == {"Bool": {"ec2:Encrypted": "true"}}
    [end] = allowing(who, "ec2:TerminateInstances", arn("instance"))
    assert end["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": mine}}
    tagging = [statement["Condition"]["StringEquals"] for statement in allowing(who, "ec2:CreateTags", arn("instance"))]
    assert tagging == [{"ec2:CreateAction": "RunInstances"}, {"aws:ResourceTag/ray-cluster-name": mine}]
    for kind in ("network-interface", "security-group", "spot-instances-request", "subnet"):
        assert allowing(who, "ec2:RunInstances", arn(kind)), f"an instance cannot start without its {kind}"
    assert allowing(who, "ec2:RunInstances", arn("image", account=""))
    assert allowing(who, "ec2:RunInstances", arn("key-pair", TYPES["gpu"]["node_config"]["KeyName"]))


@pytest.mark.parametrize("who", ["head", "launcher"])
def test_only_the_one_role_is_given_to_instances(who: str) -> None:
    [passing] = [statement for statement in statements(who) if "iam:PassRole" in statement["Action"]]
    assert resources(passing) == [f"arn:aws:iam::{ACCOUNT}:role/{ROLES[who]}"]
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    profile = "gpu" if who == "head" else CLUSTER["head_node_type"]
    assert TYPES[profile]["node_config"]["IamInstanceProfile"] == {"Name": ROLES[who]}


@pytest.mark.parametrize("who", POLICIES)
def test_nothing_is_allowed_everywhere_but_looking(who: str) -> None:
    for statement in statements(who):
        assert statement["Effect"] == "Allow" and isinstance(statement["Action"], list)
        assert not any("*" in action for action in statement["Action"])
        if "*" in resources(statement):
            assert all(action.startswith("ec2:Describe") for action in statement["Action"])
    named = {part for statement in statements(who) for one in resources(statement) for part in one.split(":")[3:5]}
    assert named <= {"", REGION, ACCOUNT}


def test_the_bucket_is_read_and_written_as_far_as_each_needs() -> None:
    bucket = f"arn:aws:s3:::{d.BUCKET}"
    for who in ("head", "worker"):
        assert all(one.startswith(bucket) for at in statements(who) for one in resources(at) if ":s3:" in one)
        assert allowing(who, "s3:ListBucket", bucket)
        for key in ("data/omniglot/images_background.zip", "cache/x"):
            assert allowing(who, "s3:GetObject", f"{bucket}/{key}")
        assert allowing(who, "s3:PutObject", f"{bucket}/cache/x") and allowing(
            who, "s3:DeleteObject", f"{bucket}/cache/x"
        )
    assert allowing("head", "s3:PutObject", f"{bucket}/runs/x")
    for key in ("runs/x", "data/x", "mlflow/x"):
        assert not allowing("worker", "s3:PutObject", f"{bucket}/{key}")
        assert not allowing("worker", "s3:DeleteObject", f"{bucket}/{key}")
    assert {action.partition(":")[0] for action in actions("worker")} == {"s3"}
    assert {action.partition(":")[0] for action in actions("launcher")} == {"ec2", "iam"}
