"""Join and leave a Ray cluster, start and stop one, and refuse wrong addresses, tokens and versions."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.connection import connect_ray
from metatrain.settings import ExecutorSettings

# Joined from a fresh process: what another test did to this one's Ray must not matter, nor the user's own token.
JOIN = """
import os
import sys
import ray
from cluster.connection import connect_ray
from metatrain.settings import ExecutorSettings, WorkerRange

def pid():
    import os
    return os.getpid()

address = os.environ["RAY_ADDRESS"] = sys.argv[1]
for named in (address, None):  # a job's cluster is named by RAY_ADDRESS
    with connect_ray(ExecutorSettings(name="ray", address=named)):
        assert ray.get(ray.remote(pid).remote()) > 0
        print("cores", ray.cluster_resources()["CPU"])
    assert not ray.is_initialized()
try:
    with connect_ray(ExecutorSettings(name="ray", address=address, workers=2, gpus_per_worker=0.5)):
        print("entered")
except ValueError as error:
    print("refused", error)
assert not ray.is_initialized()
growing = WorkerRange(min=1, max=4)
with connect_ray(ExecutorSettings(name="ray", address=address, workers=growing, gpus_per_worker=1)):
    print("may grow")
"""


@pytest.fixture
def token(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef0123456789abcdef")
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def cluster(tmp_path: Path, token: dict[str, str]) -> Iterator[str]:
    """Yield the address of a cluster of three logical cores that another process started."""
    ports = tmp_path / "port"
    begin = (
        "import sys, time; from pathlib import Path; from ray.cluster_utils import Cluster;"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 3, 'include_dashboard': False});"
        "Path(sys.argv[1]).write_text(cluster.address); sys.stdin.read(); cluster.shutdown()"
    )
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", begin, str(ports)], env=token, stdin=subprocess.PIPE, stdout=log, stderr=log
    )
    until = time.monotonic() + 60
    while not (ports.exists() and ports.read_text()):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    yield ports.read_text()
    alive = process.poll() is None
    process.communicate(timeout=60)
    log.close()
    assert alive, "a process that joined it has stopped it"


@pytest.mark.slow
def test_a_cluster_that_was_joined_is_left_running(cluster, token):
    done = subprocess.run(
        [sys.executable, "-c", JOIN, cluster],
        env=token | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, refused, grows = done.stdout.splitlines()
    assert first == second == "cores 3.0"
    assert refused.startswith("refused executor.gpus_per_worker: 1 GPUs asked for, the cluster has 0: lower it")
    assert grows == "may grow"


BARRED = """
import sys
from cluster.connection import connect_ray
from metatrain.settings import ExecutorSettings
try:
    with connect_ray(ExecutorSettings(name="ray", address=sys.argv[1])):
        print("entered")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "login",
    [
        pytest.param({"RAY_AUTH_TOKEN": "f" * 32}, id="wrong"),
        pytest.param({"RAY_AUTH_MODE": "disabled"}, id="none", marks=pytest.mark.slow),
    ],
)
def test_a_token_that_a_cluster_does_not_take_is_told_at_once(cluster, token, login):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BARRED, cluster],
        env=token | {"PYTHONPATH": str(Path(__file__).parents[1])} | login,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - began < 30
    assert done.stdout.startswith(f"executor.address: the cluster at '{cluster}' does not accept this token")
    assert len(done.stdout.splitlines()) == 1


OTHER = """
import sys, ray
ray.__version__ = "2.9.3"  # what this process, but not the cluster, takes itself to be
from cluster.connection import connect_ray
from metatrain.settings import ExecutorSettings
try:
    with connect_ray(ExecutorSettings(name="ray", address=sys.argv[1])):
        print("entered")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_cluster_of_other_versions_is_refused_in_one_line(cluster, token):
    done = subprocess.run(
        [sys.executable, "-c", OTHER, cluster],
        env=token | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"executor.address: the cluster at '{cluster}' runs Ray {ray.__version__} on Python 3."), (
        line
    )
    assert "and this is Ray 2.9.3" in line
    assert line.endswith("use the cluster's versions here, or its image")


def test_a_cluster_started_here_has_a_core_for_every_worker_and_is_stopped():
    workers = (os.cpu_count() or 1) + 3
    with connect_ray(ExecutorSettings(name="ray", workers=workers)):
        assert ray.cluster_resources()["CPU"] == workers
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_an_address_where_nothing_listens_is_refused_at_once(address):
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=r"^executor.address: no Ray cluster answers at .*`ray start") as refused,
        connect_ray(ExecutorSettings(name="ray", address=address)),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 30
    assert not ray.is_initialized()
