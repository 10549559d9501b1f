"""Small configurations for tests: seconds, not minutes."""

import platform
import zlib
from pathlib import Path
from typing import Any

from metatrain.algorithms import ALGORITHMS
from metatrain.config.load import read_config
from metatrain.runs import describe_environment
from metatrain.settings import Config
from metatrain.yaml_config import apply_overrides

CONFIGS = Path(__file__).parents[1] / "configs"
SEARCHES = sorted(CONFIGS.glob("search-*.yaml"))
SHIPPED = sorted(set(CONFIGS.glob("*.yaml")) - set(SEARCHES))

TINY: dict[str, Any] = {
    "tasks": {
        "name": "strokes",
        "train": {"ways": 3, "shots": 1, "queries": 2},
        "test": {"ways": 3, "shots": 1, "queries": 3},
    },
    "model": {"name": "conv4", "width": 8, "downsample": "stride"},
    "algorithm": {"name": "maml", "inner_lr": 0.1, "inner_steps": 2},
    "outer": {"steps": 6, "tasks_per_step": 6, "lr": 1e-2},
    "executor": {"shard_size": 1},
    "evaluation": {"every": 3, "tasks": 8, "validation_tasks": 4, "from_scratch_tasks": 2},
    "checkpoint": {"every": 2, "keep": 2},
    "tracking": {"uri": None},
}


def tiny(*overrides: str) -> Config:
    return read_config(apply_overrides(TINY, overrides))


NEURAL_PROCESSES = [name for name, one in ALGORITHMS.items() if ".neural_processes." in one.__module__]
"""The methods that predict densities of values, from support sets that may be padded."""
ON_TABLES = ["in_context_table"]
"""The methods that read rows of numbers, and classes that differ from task to task."""
ON_SEQUENCES = [name for name, one in ALGORITHMS.items() if getattr(one, "reads_sequences", False)]
"""The methods that read a task example by example."""
ON_DESCRIPTIONS = [name for name, one in ALGORITHMS.items() if getattr(one, "separate_support", False)]
"""The methods that read descriptions of classes."""
ON_ENVIRONMENTS = [name for name, one in ALGORITHMS.items() if getattr(one, "acts", False)]
"""The methods that act in environments."""
_OTHERS = (*NEURAL_PROCESSES, *ON_TABLES, *ON_SEQUENCES, *ON_DESCRIPTIONS, *ON_ENVIRONMENTS)
ON_PICTURES = [name for name in ALGORITHMS if name not in _OTHERS]
ENVIRONMENTS = "tasks={name: navigation_2d, horizon: 5, train: {episodes: 4}, test: {episodes: 3}}"
TABLES = (
    "tasks={name: causal_tables, features: [1, 4], classes: [2, 3], fewest: 3, train: {shots: 6, queries: 2}, "
    "test: {shots: 6, queries: 3}}"
)
RAGGED_TRAINING = "tasks.train={ways: {min: 2, max: 4}, shots: imbalanced, queries: 3}"
"""Tasks of many sizes."""
MIXTURE = (
    "tasks={name: mixture, sources: {tidy: {name: strokes, settings: {jitter: 0.2, classes: 20}}, "
    "wild: {name: strokes, settings: {classes: 20}}}, "
    "train: {ways: {min: 2, max: 3}, shots: 1, queries: 2}, test: {ways: 3, shots: 1, queries: 3}}"
)
FUNCTIONS = "tasks={name: gaussian_process, fewest: 0, train: {shots: 3, queries: 2}, test: {shots: 3, queries: 3}}"


def method(name: str) -> tuple[str, ...]:
    """Return the overrides that choose a method by its defaults; one that tells all classes apart gets few.

    They come last: a method that is not for pictures gets other tasks and no network.
    """
    if name in ON_DESCRIPTIONS:
        described = [f"tasks.{part}={{descriptions: own, shots: 0}}" for part in ("train", "test")]
        return (f"algorithm={{name: {name}}}", *described, "model.normalization=group")
    if name in ON_ENVIRONMENTS:
        own = () if getattr(ALGORITHMS[name], "uses_optimizer", True) else ("outer.lr=1e-3",)
        return (f"algorithm={{name: {name}}}", ENVIRONMENTS, "model={name: mlp, width: 8, activation: tanh}", *own)
    if name in ON_SEQUENCES:
        return (f"algorithm={{name: {name}}}", "model.normalization=none")
    if name not in ON_PICTURES:
        tasks = TABLES if name in ON_TABLES else FUNCTIONS
        no_ways = ("tasks.train.ways=null", "tasks.test.ways=null")
        return (f"algorithm={{name: {name}}}", tasks, *no_ways, "model={name: identity}")
    few = ("tasks.classes=20",) if getattr(ALGORITHMS[name], "trains_on_classes", False) else ()
    return (f"algorithm={{name: {name}}}", *few)


def cpu_kind() -> str:
    """The CPU's model and a digest of what it can do, which decides what kernels torch picks."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    lines = [line for line in facts.splitlines() if line.startswith(("model", "cpu family", "flags", "Features"))]
    return f"{describe_environment()['cpu']['model']} {zlib.crc32(chr(10).join(sorted(set(lines))).encode()):08x}"
