"""deploy/aws as it runs: Ray's launcher and node provider against moto's EC2; the notice that a spot instance gets."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests import deployments as d
from tests.object_store import ObjectStore, object_store
from tests.test_deploy_aws import REGION, actions, allowing, arn

OWN_ADDRESS = "192.0.2.1/32"


class Account:
    """An AWS account as deploy/aws wants it, and what Ray asks of it."""

    def __init__(self, session: boto3.Session) -> None:
        self.ec2: Any = session.client("ec2", region_name=REGION)
        self.group = self._guarded()
        self.ec2.create_key_pair(KeyName="metatrain")
        for who in ("head", "worker"):
            session.client("iam").create_instance_profile(InstanceProfileName=f"metatrain-{who}")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        session.events.register("provide-client-params", self._note)

    def _guarded(self) -> str:
        [vpc] = self.ec2.describe_vpcs()["Vpcs"]
        group = str(
            self.ec2.create_security_group(GroupName="metatrain-ray", Description="x", VpcId=vpc["VpcId"])["GroupId"]
        )
        own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": OWN_ADDRESS}]}
        self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[own, ssh])
        return group

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.calls.append((f"{model.service_model.service_name}:{model.name}", params))

    def taken(self) -> list[tuple[str, dict[str, Any]]]:
        calls, self.calls[:] = list(self.calls), []
        return calls

    def instances(self) -> dict[str, dict[str, Any]]:
        """Those that run, by Ray's name of their type."""
        reservations = self.ec2.describe_instances()["Reservations"]
        running = [at for r in reservations for at in r["Instances"] if at["State"]["Name"] in ("pending", "running")]
        return {tag["Value"]: at for at in running for tag in at["Tags"] if tag["Key"] == "ray-user-node-type"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("aws")) as started:
        yield started


@pytest.fixture
def account(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    for name, value in store.environment().items():
        monkeypatch.setenv(name, REGION if name.endswith("REGION") else value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "metatrain.pem").touch()
    session = boto3.Session(region_name=REGION)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    return Account(session)


def holds(condition: dict[str, dict[str, str | list[str]]], request: dict[str, Any]) -> bool:
    """Whether a policy's condition is met by a request to start instances."""
    tags = {tag["Key"]: tag["Value"] for one in request["TagSpecifications"] for tag in one["Tags"]}
    seen = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
    seen["ec2:InstanceType"] = request["InstanceType"]
    seen["ec2:MetadataHttpTokens"] = request["MetadataOptions"]["HttpTokens"]
    seen["ec2:Encrypted"] = str(all(disk["Ebs"]["Encrypted"] for disk in request["BlockDeviceMappings"])).lower()
    wanted = [(key, value) for each in condition.values() for key, value in each.items()]
    return all(seen.get(key) in ([value] if isinstance(value, str) else value) for key, value in wanted)


def test_ray_starts_this_cluster_within_the_policies(account: Account) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete = prepare_config(yaml.safe_load((d.AWS / "cluster.yaml").read_text()))
    validate_config(complete)
    complete = AWSNodeProvider.bootstrap_config(complete)
    assert {call for call, _ in account.taken()} <= actions("launcher")
    provider = AWSNodeProvider(complete["provider"], complete["cluster_name"])
    for name, kind in complete["available_node_types"].items():
        who = "launcher" if name == complete["head_node_type"] else "head"
        tags = {"ray-node-kind": "head" if who == "launcher" else "worker", "ray-user-node-type": name}
        tags |= {"ray-node-name": name, "ray-node-status": "uninitialized", "ray-launch-config": "x"}
        provider.create_node(kind["node_config"], tags, 1)
        [(call, request)] = account.taken()
        for resource in ("instance", "volume"):
            [allowed] = allowing(who, call, arn(resource))
            assert holds(allowed["Condition"], request), f"the {who} could not start a {name}"
    nodes = provider.non_terminated_nodes({})
    assert len(nodes) == 3
    _check_instances(account)
    account.taken()
    dearer = request | {"InstanceType": "p5.48xlarge"}
    assert not any(holds(at["Condition"], dearer) for at in allowing("head", "ec2:RunInstances", arn("instance")))
    provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(nodes)
    assert provider.non_terminated_nodes({}) == []
    called = {call for call, _ in account.taken()}
    assert {"ec2:CreateTags", "ec2:TerminateInstances"} <= called <= actions("head") & actions("launcher")


def _check_instances(account: Account) -> None:
    instances = account.instances()
    assert instances.keys() == {"head", "gpu", "cpu"}
    assert {name for name, at in instances.items() if at.get("InstanceLifecycle") == "spot"} == {"gpu", "cpu"}
    for name, instance in instances.items():
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [account.group]
        assert instance["IamInstanceProfile"]["Arn"].endswith(
            "/metatrain-head" if name == "head" else "/metatrain-worker"
        )
        volumes = [disk["Ebs"]["VolumeId"] for disk in instance["BlockDeviceMappings"]]
        assert all(volume["Encrypted"] for volume in account.ec2.describe_volumes(VolumeIds=volumes)["Volumes"])
    [group] = account.ec2.describe_security_groups(GroupIds=[account.group])["SecurityGroups"]
    opened = [one["CidrIp"] for rule in group["IpPermissions"] for one in rule["IpRanges"]]
    assert opened == [OWN_ADDRESS], "Ray has opened the group to others"


class Metadata(BaseHTTPRequestHandler):
    """An instance's metadata, version 2: a session first, then what is asked for. `notice` is set by the test."""

    notice: str | None = None

    def _answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        self._answer(200, "session") if known else self._answer(400)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "session":
            self._answer(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice:
            self._answer(200, self.notice)
        else:
            self._answer(404)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def metadata() -> Iterator[tuple[str, type[Metadata]]]:
    handler = type("Metadata", (Metadata,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_notice_of_a_spot_instance_reaches_ray(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "ray").write_text(f'#!/bin/sh\nprintf "%s\\n" "$RAY_ADDRESS" "$@" > {told}\n')
    (tmp_path / "ray").chmod(0o755)
    command = [sys.executable, str(d.AWS / "spot_notice.py"), "10.0.0.1:6379"]
    with metadata() as (url, handler):
        asked = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "SPOT_NOTICE_EVERY_S": "0.1"}
        environment = os.environ | asked | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        watcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            time.sleep(0.5)
            assert watcher.poll() is None and not told.exists(), "no notice was given yet"
            goes = (datetime.now(UTC) + timedelta(seconds=118)).strftime("%Y-%m-%dT%H:%M:%SZ")
            handler.notice = json.dumps({"action": "terminate", "time": goes})
            _, errors = watcher.communicate(timeout=30)
        finally:
            watcher.kill()
            watcher.communicate()
    assert (watcher.returncode, errors) == (0, "")
    address, verb, *words = told.read_text().splitlines()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (address, verb, given["--address"]) == ("10.0.0.1:6379", "drain-node", "10.0.0.1:6379")
    assert given["--reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert 80 <= int(given["--deadline-remaining-seconds"]) <= 118


def test_ray_knows_how_it_is_told() -> None:
    """`ray drain-node` is hidden, and may change: pods and spot_notice.py lean on these of its options."""
    from ray.scripts.scripts import drain_node

    texts = [(d.AWS / "spot_notice.py").read_text(), (d.KUBERNETES / "raycluster.yaml").read_text()]
    [reason] = [one for one in drain_node.params if "--reason" in one.opts]
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
    known = {name for one in drain_node.params for name in one.opts}
    assert {"--address", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= known
    assert all(name in text for text in texts for name in known if name != "--node-id")
