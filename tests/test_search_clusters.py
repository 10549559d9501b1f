"""A search where its trials are elsewhere: on nodes that go away, and kept in object storage."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from metatrain.runs import checkpoints
from metatrain.runs.locations import open_run
from tests.object_store import ObjectStore, object_store
from tests.person import until
from tests.searches import TINY_SEARCH, Tracked, journal, tiny_search
from tune.runner import search
from tune.search_dir import open_search

pytestmark = pytest.mark.ray
S3 = ("runs.root=s3://searches/team", "search.trials=3", "search.method=random")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for trials."""
    short = TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)  # as socket names have to be
    with short as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)  # its address is noted in a folder of its own: nobody else is to join it
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_the_node_of_a_trial_is_lost(cluster, tmp_path, capsys):
    """In mid-trial; another one comes later. The same trials, decisions and observations as where nothing happened."""
    lost = cluster.add_node(num_cpus=1)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    told = ("search.trials=4", f"tracking.uri={uri}", "search.method=random")
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search, tiny_search(f"runs.root={tmp_path}/lost", *told), say=said.append)
        until(
            lambda: any(path.read_text().count("\n") >= 5 for path in tmp_path.glob("lost/*/trials/0001/metrics.jsonl"))
        )
        cluster.remove_node(lost, allow_graceful=False)
        until(lambda: any("no room for a trial" in text for text in said))
        cluster.add_node(num_cpus=1)
        outcome = searching.result(timeout=200)
    assert any("there is room again" in text for text in said)
    calm = search(tiny_search(f"runs.root={tmp_path}/calm", *told))
    assert journal(Path(outcome.place)) == journal(Path(calm.place))
    tracked = Tracked(tmp_path / "mlflow.db")
    assert tracked.count == 2 * (1 + 4) and tracked.doubled == []
    assert set(tracked.runs.values()) == {"FINISHED"}


@pytest.mark.slow
def test_a_cluster_without_room_is_given_up(cluster, tmp_path):
    lost = cluster.add_node(num_cpus=1)
    with ThreadPoolExecutor(1) as pool:
        patience = ("search.trials=100", "search.method=random", "executor.deadline=5")
        searching = pool.submit(search, tiny_search(f"runs.root={tmp_path}", *patience))
        until(lambda: list(tmp_path.glob("*/trials/0001/metrics.jsonl")))
        cluster.remove_node(lost, allow_graceful=False)
        outcome = searching.result(timeout=200)
    assert outcome.failed and "executor.deadline" in outcome.ended and outcome.trials < 100


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[ObjectStore]:
    with object_store(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        store.make_bucket("searches")
        yield store


@pytest.mark.slow
def test_a_search_is_kept_in_object_storage(store, tmp_path, monkeypatch):
    """Its journal and its trials; killed, and gone on with by a driver that has nothing else."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_SEARCH, "runs": {"heartbeat": 1.0}}))
    command = [sys.executable, "-m", "metatrain", "search", "tiny.yaml", *S3]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not any("trials/0001/checkpoints" in key for key in store.keys("searches")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (place,) = {f"s3://searches/{'/'.join(key.split('/')[:2])}" for key in store.keys("searches")}
    home, document = open_search(place)
    assert (home.path / "tasks.json").exists()
    assert sum(event["event"] == "result" for event in journal(home.path)) >= 1, "durable before it was acted on"
    time.sleep(5)  # until the heart of the one that was killed has been still for long enough
    more = replace(document, search=replace(document.search, trials=4))
    outcome = search(more, home)
    assert outcome.place == place and outcome.trials == 4 and (home.path / "best.yaml").exists()
    for number in range(4):  # none of them swept away by another, or by the search
        assert checkpoints.newest(open_run(f"{place}/trials/{number:04d}").checkpoints).step == 27
    seen = [(event["trial"], event["budget"]) for event in journal(home.path) if event["event"] == "result"]
    assert seen == [(number, 27) for number in range(4)]
