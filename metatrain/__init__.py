"""Distributed meta-training, from one core to a Ray cluster: `metatrain.run` trains, `metatrain.load` loads a run.

Reading order: `types.py`, `algorithms/maml.py`, `engine`, `training/outer_loop.py`, `training/worker.py`, `trainer.py`.
"""

from typing import TYPE_CHECKING, Any

from metatrain.own_packages import claim

if TYPE_CHECKING:
    from metatrain.cli.python import train
    from metatrain.inference import load
    from metatrain.trainer import run

__all__ = ["load", "run", "train"]


claim()


def __getattr__(name: str) -> Any:
    """Import `load` and `run` on first use: they need pydantic and yaml, which the core does without."""
    if name == "load":
        from metatrain.inference import load

        return load
    if name == "run":
        from metatrain.trainer import run

        return run
    if name == "train":
        from metatrain.cli.python import train

        return train
    raise AttributeError(f"module 'metatrain' has no attribute '{name}'")
