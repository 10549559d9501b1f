"""Where runs on ranks of Ray Train are kept: object storage, and MLflow, which learns how they end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from mlflow import MlflowClient

from metatrain.errors import RunFailed
from metatrain.runs.locations import open_run
from metatrain.tracking.jsonl import read_lines
from tests.chaos.drivers import recorded
from tests.object_store import ObjectStore, object_store
from tests.test_ray_train import configured, on_ranks, once_at, pids, train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A store whose variables the ranks inherit: it is asked for before `local_ray`."""
    folder = tmp_path_factory.mktemp("store")
    with object_store(folder) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in (store.environment() | {"METATRAIN_CACHE": str(folder / "cache")}).items():
            patch.setenv(name, value)
        store.make_bucket("runs")
        yield store


def test_a_run_that_lost_its_ranks_too_often_is_failed_in_mlflow_too(store, local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.train_ranks.MOST_FAILURES", 0)
    root, uri = tmp_path / "runs", f"sqlite:///{tmp_path}/mlflow.db"

    def kill() -> None:
        os.kill(pids(root)[0][1], signal.SIGKILL)

    with once_at(root, 8, kill), pytest.raises(RunFailed, match=r"^the ranks failed more than 0 times.*\n") as failed:
        train(on_ranks(root, 2, f"tracking.uri={uri}"))
    assert len(str(failed.value).splitlines()) == 2
    (home,) = root.iterdir()
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'metatrain'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    monkeypatch.undo()
    found = train(on_ranks(root, 2, f"tracking.uri={uri}"), resume=str(home))
    assert found.result.finished
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_run_in_object_storage_outlives_its_rank_0(store, local_ray, tmp_path):
    alone = train(configured(tmp_path / "alone"))
    cache = Path(os.environ["METATRAIN_CACHE"])

    with once_at(cache / "runs", 8, lambda: os.kill(pids(cache / "runs")[0][0], signal.SIGKILL)) as killed:
        found = train(on_ranks(tmp_path, 2, "runs.root=s3://runs/here"))
    assert killed.is_set()
    assert found.result.params_sha256 == alone.result.params_sha256
    where = urlparse(found.home.where)
    keys = store.keys(where.netloc, where.path.strip("/"))
    assert any("checkpoints/00000024" in key for key in keys)
    again = open_run(found.home.where)
    assert len([line for line in read_lines(again.metrics) if line.get("event") == "ranks"]) == 2
    assert recorded(found.home.where) == recorded(alone.result.run_dir), "no step lost or recorded twice"
