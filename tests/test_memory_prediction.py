"""Hold the predicted memory of a worker against what its gradient allocates, and against what a run uses."""

import json
import os
import re

import pytest
import torch
import yaml

from benchmarks.peak import peak_bytes
from metatrain.config import room
from metatrain.config.room import require_room
from metatrain.training.memory import compare_memory, predict_memory, resident_bytes
from metatrain.training.worker import Worker
from metatrain.types import Shard, ShardRequest
from metatrain.yaml_config import apply_overrides
from tests.command_line import last_json, metatrain
from tests.configurations import TINY, tiny

CPU = torch.device("cpu")
WIDE = ("model.width=32", "executor.shard_size=3", "tasks.train.queries=8")
SHAPE = "{ways: null, shots: 40, queries: 40}"
SINUSOID = f"tasks={{name: sinusoid, train: {SHAPE}, test: {SHAPE}}}"
BRANCHING = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 5)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return y if y.sum() > 0 else 2 * y
"""


@pytest.mark.parametrize(
    "settings",
    [
        (*WIDE, "engine.vectorize=loop"),
        (*WIDE, "engine.vectorize=vmap"),
        (*WIDE, "engine.vectorize=vmap", "engine.chunk=1"),
        (*WIDE, "engine.activation_checkpointing=on", "model.downsample=pool"),
        (*WIDE, "algorithm={name: protonet}"),
        (SINUSOID, "model={name: mlp, width: 100}", "executor.shard_size=3", "algorithm.inner_steps=20"),
        (SINUSOID, "model={name: mlp, width: 100}", "executor.shard_size=3", "algorithm.inner_steps=150"),
        ("model={name: resnet12, widths: [8, 8, 16, 16]}", "executor.shard_size=2", "tasks.train.queries=8"),
    ],
)
def test_what_a_gradient_allocates_is_predicted(settings):
    worker = Worker(tiny("engine.compile=off", *settings), CPU)
    predicted = predict_memory(worker)
    shard, request = Shard(0, tuple(range(worker.config.executor.shard_size))), ShardRequest("gradient", "train", 0)
    params, tasks = worker.to_device(worker.initial()), worker.tasks(request, shard)
    worker.gradient(request, params, shard, tasks)
    used = peak_bytes(lambda: worker.gradient(request, params, shard, tasks))
    assert (predicted.graph + predicted.fast_weights) / used == pytest.approx(1, abs=0.2)


def test_parts_are_of_the_sizes_that_they_name():
    worker = Worker(tiny("outer.tasks_per_step=6", "executor.shard_size=2", "outer.optimizer=sgd"), CPU)
    predicted, theta = predict_memory(worker), sum(value.nbytes for value in worker.initial().values())
    assert predicted.driver == 2 * theta
    assert predicted.parameters == 4 * theta, "as received, as aligned, and two of the three sums of the tree"
    one = worker.tasks(ShardRequest("gradient", "train", 0), Shard(0, (0,)))[0].tasks
    assert predicted.tasks == 4 * sum(leaf.nbytes for part in one for leaf in part)
    assert predicted.process == pytest.approx(resident_bytes(), rel=0.1)


def test_a_worker_that_this_machine_cannot_hold_is_refused_with_remedies(monkeypatch):
    worker = Worker(tiny("engine.vectorize=vmap", "executor.shard_size=2"), CPU)
    predicted = predict_memory(worker)
    require_room(worker, predicted)
    monkeypatch.setattr(room, "machine_bytes", lambda: 10**8)
    known = "activation_checkpointing=on, or set engine.chunk to fewer tasks, or lower executor.shard_size"
    with pytest.raises(ValueError, match=re.escape(known)):
        require_room(worker, predicted)


def test_only_workers_of_this_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert room.workers_here(tiny()) == 1
    assert room.workers_here(tiny("executor.name=ray", "executor.workers=3")) == 3
    assert room.workers_here(tiny("executor.name=ray", "executor.workers=3", "executor.address=a:6379")) == 0


def test_who_used_the_memory_is_named():
    used = {str(os.getpid()): 100.0, "0": 50.0}
    said = compare_memory(None, True, used)
    assert said == "not predicted; used at most 100 MiB by the driver, 50 MiB by worker 0"
    assert compare_memory(None, False, {"7": 100.0}).endswith("100 MiB by worker 7")


def test_code_that_branches_on_values_is_not_predicted_and_is_trained(tmp_path):
    (tmp_path / "mine.py").write_text(BRANCHING)
    settings = ("model={name: mine:Net}", "engine.vectorize=loop", "evaluation.baselines=false", "outer.steps=1")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, settings)))
    done = metatrain(tmp_path, "train", "tiny.yaml", "--dry-run")
    assert "cannot be computed without values" in done.out
    assert "memory: not predicted; used at most" in metatrain(tmp_path, "train", "tiny.yaml").err


def test_a_dry_run_prints_the_parts_and_makes_no_run(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = metatrain(tmp_path, "train", "tiny.yaml", "--dry-run", "--json")
    assert re.search(r"memory of a worker, predicted: \d+ MiB\n  process +\d", done.out)
    found = last_json(done)
    parts = dict(found["predicted_bytes"])
    assert parts.pop("total") == sum(parts.values()) and found["workers_here"] == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_and_its_report_show_what_was_used_beside_the_prediction(tmp_path):
    settings = ("evaluation.baselines=false", *WIDE, "tasks.train.shots=10")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, settings)))
    result = last_json(metatrain(tmp_path, "train", "tiny.yaml", "--json"))
    lines = [json.loads(line) for line in (tmp_path / result["run_dir"] / "metrics.jsonl").read_text().splitlines()]
    (text,) = [line["text"] for line in lines if line.get("event") == "memory"]
    predicted, used = (float(number) for number in re.findall(r"(?:predicted|used at most) (\d+) MiB", text))
    assert used == pytest.approx(max(result["executor"]["peak_mib"].values()), abs=1)
    assert 0.7 < predicted / used < 1.3
    metatrain(tmp_path, "report", result["run_dir"])
    assert f"Memory of a worker: {text}" in (tmp_path / result["run_dir"] / "report.html").read_text()
