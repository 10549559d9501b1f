"""Runs on ranks of Ray Train: the bits of one process, whatever becomes of the ranks on the way."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.executors import open_executor
from metatrain.cli.training import Trained, train_run
from metatrain.config.load import read_config
from metatrain.errors import RunFailed
from metatrain.runs.locations import open_run
from metatrain.runs.lock import find_owner, lock_run
from metatrain.settings import Config
from metatrain.training.worker import driver_worker
from metatrain.yaml_config import apply_overrides
from tests.chaos.drivers import CONFIG, recorded

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]

STEPS = 24


def configured(folder: Path, *overrides: str) -> Config:
    few = (f"outer.steps={STEPS}", "evaluation.every=12", f"runs.root={folder}", "executor.shard_size=1")
    return read_config(apply_overrides(CONFIG, [*few, *overrides]))


def on_ranks(folder: Path, ranks: int | str, *overrides: str) -> Config:
    return configured(folder, "executor.name=ray_train", f"executor.workers={ranks}", *overrides)


def train(config: Config, resume: str | None = None) -> Trained:
    return train_run(config, None if resume is None else open_run(resume), False, show=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(configured(tmp_path_factory.mktemp("alone")))


def lines(folder: Path) -> list[dict[str, Any]]:
    """What the only run in a folder has recorded."""
    paths = list(folder.glob("*/metrics.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.endswith("}")]


def pids(folder: Path) -> list[list[int]]:
    """The processes of the ranks, at each of their starts."""
    texts = [line["text"] for line in lines(folder) if line.get("event") == "ranks"]
    return [[int(one.split()[0]) for one in text.split(": ")[1].split(", ")] for text in texts]


@contextmanager
def once_at(folder: Path, step: int, act: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `act` once the run in `folder` has recorded `step`, while the block runs."""
    ended, acted = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if any(line["step"] >= step and "train/loss" in line for line in lines(folder)):
                act()
                acted.set()
                ended.wait()  # processes of a node that it has started end with their thread
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield acted
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_ends_with_the_bits_of_one_process(local_ray, alone, tmp_path, ranks):
    found = train(on_ranks(tmp_path, ranks))
    assert found.result.params_sha256 == alone.result.params_sha256
    assert found.result.finished
    assert len(found.result.executor["workers"]) == ranks
    assert set(found.result.executor["workers"].values()) == {STEPS * 4 // ranks}
    plain, expected = (one.result.results[0].as_dict() for one in (found, alone))
    assert plain == expected, "the test tasks are scored alike"
    assert recorded(found.result.run_dir) == recorded(alone.result.run_dir)
    files = {path.relative_to(found.home.path) for path in found.home.path.rglob("*") if path.is_file()}
    assert files == {path.relative_to(alone.home.path) for path in alone.home.path.rglob("*") if path.is_file()}
    assert find_owner(found.home) is None


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_changes_no_bit(local_ray, alone, tmp_path, victim):
    with once_at(tmp_path, 8, lambda: os.kill(pids(tmp_path)[0][victim], signal.SIGKILL)) as killed:
        found = train(on_ranks(tmp_path, 2))
    assert killed.is_set()
    assert found.result.params_sha256 == alone.result.params_sha256
    assert recorded(found.result.run_dir) == recorded(alone.result.run_dir), "no step lost or recorded twice"
    first, second = pids(tmp_path)
    assert not set(first) & set(second), "all ranks were started again"


@pytest.mark.slow
def test_a_signal_stops_the_ranks_after_a_step_and_another_number_of_them_goes_on(local_ray, alone, tmp_path):
    with once_at(tmp_path, 5, lambda: os.kill(os.getpid(), signal.SIGINT)):
        stopped = train(on_ranks(tmp_path, 2, "checkpoint.every=100"))
    assert (stopped.signal, stopped.result.finished) == (signal.SIGINT, False)
    assert 5 <= stopped.result.steps < STEPS
    assert [path.name for path in stopped.home.checkpoints.iterdir()] == [f"{stopped.result.steps:08d}"]
    found = train(on_ranks(tmp_path, 3), resume=stopped.home.where)
    assert found.result.params_sha256 == alone.result.params_sha256
    assert len(found.result.executor["workers"]) == 3


@pytest.mark.slow
def test_a_task_that_raises_ends_all_ranks_in_one_line_and_the_run_is_kept(local_ray, tmp_path):
    tasks = ("tasks.name=tests.faults:Harmful", "tasks.harm=raise", "tasks.at=22", "checkpoint.every=100")
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"^train task 22 at step 5: KeyError: 'no such task'.*\n.*--resume") as failed:
        train(on_ranks(tmp_path, 2, *tasks, "evaluation.baselines=false", "evaluation.every=100"))
    assert time.monotonic() - began < 60
    assert len(str(failed.value).splitlines()) == 2
    (home,) = tmp_path.iterdir()
    assert [path.name for path in (home / "checkpoints").iterdir()] == ["00000005"], "what was computed is kept"
    assert len(pids(tmp_path)) == 1, "nothing was tried again"


@pytest.mark.slow
def test_a_range_of_workers_is_as_many_ranks_as_there_is_room_for(local_ray, alone, tmp_path):
    found = train(on_ranks(tmp_path, "{min: 1, max: 3}"))
    assert found.result.params_sha256 == alone.result.params_sha256
    assert 1 <= len(found.result.executor["workers"]) <= 3


@pytest.mark.slow
def test_a_run_that_another_driver_owns_is_refused(local_ray, tmp_path):
    home = train(configured(tmp_path, "outer.steps=1", "evaluation.baselines=false")).home
    with lock_run(home), pytest.raises(ValueError, match="is being trained by another process"):
        train(on_ranks(tmp_path, 1, "outer.steps=2"), resume=home.where)


def test_other_commands_compute_as_with_ray(local_ray, tmp_path):
    with open_executor(driver_worker(on_ranks(tmp_path, 2))) as executor:
        assert type(executor).__name__ == "RayExecutor"
