"""metatrain: models that learn to learn, trained on one core or on a Ray cluster.

Reading order: `types.py`, `algorithms/maml.py`, `engine.py`, `outer.py`, `worker.py`, `driver.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metatrain.inference import load
    from metatrain.trainer import run

__all__ = ["load", "run"]


def __getattr__(name: str) -> Any:
    """`load` and `run` on first use: they need pydantic and yaml, which the core does without."""
    if name == "load":
        from metatrain.inference import load

        return load
    if name == "run":
        from metatrain.trainer import run

        return run
    raise AttributeError(f"module 'metatrain' has no attribute '{name}'")
