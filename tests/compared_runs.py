"""Tiny runs to compare: two steps on strokes, made in this process."""

from pathlib import Path

import torch

from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from tests.configurations import tiny

FEW = ("evaluation={tasks: 6, validation_tasks: 2, baselines: false}", "outer.steps=2", "model.width=4")


def tiny_run(root: Path, name: str, *overrides: str) -> Path:
    """A finished run."""
    config = tiny(*FEW, f"runs={{root: {root}, name: {name}}}", *overrides)
    home, worker = new_run(config), Worker(config, torch.device("cpu"))
    run(worker, InProcess(worker), CompositeRecorder(), home)
    return home.path
