"""Run `metatrain train` as a driver process, and read its progress."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from metatrain.runs.locations import open_run
from metatrain.tracking.jsonl import read_lines

STEPS = 200
CONFIG: dict[str, Any] = {
    "tasks": {
        "name": "strokes",
        "train": {"ways": 3, "shots": 1, "queries": 2},
        "test": {"ways": 3, "shots": 1, "queries": 2},
    },
    "model": {"name": "conv4", "width": 8, "downsample": "stride"},
    "algorithm": {"name": "maml", "inner_lr": 0.1, "inner_steps": 2},
    "engine": {"compile": "off"},
    "outer": {"steps": STEPS, "tasks_per_step": 4, "lr": 1e-2},
    "executor": {"shard_size": 2},
    "evaluation": {"every": 100, "tasks": 8, "validation_tasks": 4, "baselines": False},
    "checkpoint": {"every": 5, "keep": 2},
    "tracking": {"uri": None},
}
LOCAL_RAY = ["executor.name=ray", "executor.workers=2"]
"""Settings with which a run starts Ray on this machine."""


class Driver:
    """One process of `metatrain train`, whose cache and output lie in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: dict[str, str],
        largest_file: int | None = None,
        group: bool = False,
    ) -> None:
        """Start it. largest_file: a quota in bytes; group: in a process group of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chaos.yaml").write_text(yaml.safe_dump(CONFIG))
        self.folder = folder

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metatrain", "train", *arguments, "--json"],
                cwd=folder,
                env=os.environ | environment | {"METATRAIN_CACHE": str(folder / "cache")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=limit,
                process_group=0 if group else None,
            )

    def step(self) -> int:
        """Return the outer step that it recorded last; 0 before the first."""
        steps = [0]
        for path in (*self.folder.glob("cache/runs/*/metrics.jsonl"), *self.folder.glob("runs/*/metrics.jsonl")):
            try:
                steps += [line["step"] for line in read_lines(path)][-1:]
            except (OSError, ValueError):
                continue  # the folder goes away with its process
        return max(steps)

    def wait(self, seconds: float) -> int:
        """Return the exit code."""
        return self.process.wait(seconds)

    def outcome(self) -> dict[str, Any]:
        """Return the last line of its output."""
        return dict(json.loads((self.folder / "out").read_text().splitlines()[-1]))

    def said(self) -> str:
        """Return the end of its standard error."""
        return (self.folder / "err").read_text()[-1500:]

    def advance(self, steps: int, seconds: float) -> bool:
        """Wait until it has recorded so many more steps; False if it ended first, or the time was up."""
        goal, end = self.step() + steps, time.monotonic() + seconds
        while self.step() < goal:
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def recorded(place: str) -> dict[int, float]:
    """Return the training loss of every step of the run at `place`. AssertionError: a step is doubled or missing."""
    lines = read_lines(open_run(place).metrics)
    points = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    steps = [step for step, _ in points]
    assert steps == list(range(1, len(steps) + 1)), f"steps lost or recorded twice: {steps}"
    return dict(points)
