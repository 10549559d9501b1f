"""Refuse overrides of an evaluation that could change nothing."""

from collections.abc import Sequence

from metatrain.yaml_config import apply_overrides, flatten

_WITHOUT_EFFECT = (
    *("outer", "runs", "checkpoint", "tracking.every", "evaluation.every", "evaluation.validation_tasks"),
    *("initialize", "model.weights"),
)
"""Settings, and sections of them, that only training reads."""


def require_effect(overrides: Sequence[str]) -> None:
    """Check that each override can change an evaluation. ValueError: one cannot."""
    for key in flatten(apply_overrides({}, overrides)):
        if any(f"{key}.".startswith(f"{idle}.") for idle in _WITHOUT_EFFECT):
            raise ValueError(
                f"{key}: has no effect on an evaluation: remove it; evaluation.tasks, tasks.*, executor.*, engine.* "
                "and model.normalization can change"
            )
