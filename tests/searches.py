"""A search of seconds, and what can be asked of its folder."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from metatrain.yaml_config import apply_overrides
from tune.config.search_config import SearchConfig, read_search_config

TINY_SEARCH: dict[str, Any] = {
    "tasks": {"name": "sinusoid", "train": {"ways": None, "shots": 5, "queries": 5}, "test": {"ways": None}},
    "model": {"name": "mlp", "width": 8},
    "algorithm": {"name": "maml", "inner_lr": 0.01},
    "outer": {"steps": 27, "tasks_per_step": 4},
    "executor": {"shard_size": 4},
    "evaluation": {"every": 100, "validation_tasks": 8, "baselines": False, "tasks": 8},
    "checkpoint": {"every": 2, "keep": 2},
    "tracking": {"uri": None},
    "search": {
        "metric": "validation/mse",
        "trials": 6,
        "at_once": 1,
        "method": {"name": "bohb", "min_budget": 3, "startup": 3},
    },
    "space": {
        "algorithm.inner_lr": "loguniform(1e-4, 1e-1)",
        "algorithm.inner_steps": "int(1, 3)",
        "outer.lr": "loguniform(1e-4, 1e-1)",
    },
}


def tiny_search(*overrides: str, **sections: Any) -> SearchConfig:
    return read_search_config(apply_overrides({**TINY_SEARCH, **sections}, overrides))


def journal(folder: Path) -> list[dict[str, Any]]:
    """The events of a search."""
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]


class Tracked:
    """What MLflow's database holds."""

    def __init__(self, database: Path) -> None:
        with sqlite3.connect(database) as connection:
            runs = connection.execute("SELECT run_uuid, name, status FROM runs").fetchall()
            tags = connection.execute("SELECT run_uuid, key, value FROM tags").fetchall()
            points = connection.execute("SELECT run_uuid, key, step FROM metrics").fetchall()
        self.runs = {name: status for _, name, status in runs}
        self.count = len(runs)
        names = {run: name for run, name, _ in runs}
        self.tags: dict[str, dict[str, str]] = {name: {} for name in self.runs}
        for run, key, value in tags:
            self.tags[names[run]][key] = value
        self.ids = {name: run for run, name, _ in runs}
        self.doubled = [point for point, times in Counter(points).items() if times > 1]
        self.points = Counter((names[run], key) for run, key, _ in points)
