"""Compiled runs from the command line: what is said, what is kept, what is refused."""

from pathlib import Path

import pytest
import yaml

from tests.command_line import last_json, metatrain
from tests.configurations import TINY

BRANCHING = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 4))

    def forward(self, x):
        y = super().forward(x)
        return y if float(y.detach().sum()) > 1e9 else 2 * y
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"model": {"name": "mlp", "width": 4, "depth": 1}}))
    (tmp_path / "mine.py").write_text(BRANCHING)
    return tmp_path


@pytest.mark.slow
def test_compiling_is_said_timed_and_kept_with_the_run(folder):
    settings = ("engine.compile=on", "algorithm.inner_steps=1", "evaluation.baselines=false")
    done = metatrain(folder, "train", "tiny.yaml", *settings, "--json")
    assert "compiling the inner loop" in done.err
    result = last_json(done)
    assert result["compile_seconds"] > 0
    kept = yaml.safe_load((folder / result["run_dir"] / "config.yaml").read_text())
    engine = {"vectorize": "vmap", "compile": "on", "chunk": None, "precision": "float32", "threads": 1}
    assert kept["engine"] == engine | {"activation_checkpointing": "off"}


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("model={name: mine:Net}", ("engine.compile: ", "set engine.compile to off")),
        ("engine.precision=tf32", ("engine.precision: tf32 needs a GPU", "float32")),
        ("engine.chunk=0", ("engine.chunk", "set it above 0")),
        ("engine.compile=maybe", ("engine.compile", "'on' or 'off'")),
    ],
)
def test_what_cannot_be_computed_so_is_refused_before_a_run_is_made(folder, setting, names):
    compiling = [] if setting.startswith("engine.compile") else ["engine.compile=on"]
    done = metatrain(folder, "train", "tiny.yaml", *compiling, "engine.vectorize=loop", setting, expect=2)
    last = done.err.strip().splitlines()[-1]
    assert all(name in last for name in names)
    assert not (folder / "runs").exists()
