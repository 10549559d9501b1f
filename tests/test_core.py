"""The core runs on a bare image: torch, numpy and pyarrow are all that training needs."""

import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import find_packages

BARE = """
import sys
REFUSED = {"boto3", "matplotlib", "mlflow", "PIL", "pydantic", "ray", "rich", "torchvision", "typer", "yaml"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not on a bare image", name=name)

sys.meta_path.insert(0, Refuse())

import torch
from metatrain.runs import checkpoints
from metatrain.algorithms import MAML
from metatrain.evaluation.evaluate import evaluate
from metatrain.training.in_process import InProcess
from metatrain.models import Conv4
from metatrain.training.outer_loop import initial_state, restore, train
from metatrain.settings import Config, ExecutorSettings, OuterSettings, PartNames, Tasks
from metatrain.types import ShardRequest
from metatrain.training.worker import Worker
from pathlib import Path
from tasks.sources.strokes import Strokes
from tasks.types import EpisodeShape

config = Config(
    tasks=Tasks(Strokes(), train=EpisodeShape(3, 1, 2), test=EpisodeShape(3, 1, 2)),
    model=Conv4(width=4, downsample="stride"),
    algorithm=MAML(inner_lr=0.1, inner_steps=2),
    names=PartNames("strokes", "conv4", "maml"),
    outer=OuterSettings(steps=3, tasks_per_step=2),
    executor=ExecutorSettings(shard_size=1),
)
executor = InProcess(Worker(config, torch.device("cpu")))
state = initial_state(executor.worker.initial(), config.outer)
steps = 0
for metrics in train(state, executor, config.outer, config.executor.shard_size):
    steps += 1
    checkpoints.save(Path(sys.argv[1]), state.step, state.snapshot())
assert restore(checkpoints.newest(Path(sys.argv[1])).snapshot, config.outer).step == 3
result = evaluate(executor, ShardRequest("score", "test", 0), state.params, 4, 2, transductive=True)
print(steps, result.tasks, sorted(REFUSED & set(sys.modules)))
"""


def test_training_needs_neither_ray_nor_mlflow_nor_any_reader_of_configurations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "4", "[]"]


def test_every_package_is_installed_with_the_project():
    root = Path(__file__).parents[1]
    include = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    listed = set(find_packages(str(root), include=include))
    tops = ("cluster", "metatrain", "tasks", "tune")
    folders = {file.parent.relative_to(root) for top in tops for file in root.glob(f"{top}/**/__init__.py")}
    assert listed == {".".join(folder.parts) for folder in folders}
