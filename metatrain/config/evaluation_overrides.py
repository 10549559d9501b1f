"""Refuse overrides of an evaluation that could change nothing."""

import re
from collections.abc import Sequence

from metatrain.yaml_config import apply_overrides, flatten

_WITHOUT_EFFECT = (
    *("outer", "runs", "checkpoint", "tracking.every", "evaluation.every", "evaluation.validation_tasks"),
    *("initialize", "model.weights"),
)
"""Settings, and sections of them, that only training reads."""


IN_COMPARISON = ("tracking", "evaluation.baselines", "evaluation.from_scratch_tasks", "model.normalization")
"""Settings that change nothing in a comparison, beside those that only training reads."""


def require_effect(
    overrides: Sequence[str],
    what: str = "an evaluation",
    idle: Sequence[str] = (),
    free: str = "evaluation.tasks, tasks.*, executor.*, engine.* and model.normalization",
) -> None:
    """Check that each override can change `what`, in which the settings `idle` have no effect. ValueError: one cannot.

    free: settings that can change, for the message.
    """
    for key in flatten(apply_overrides({}, split_tasks_file(overrides)[1])):
        if any(f"{key}.".startswith(f"{one}.") for one in (*_WITHOUT_EFFECT, *idle)):
            raise ValueError(f"{key}: has no effect on {what}: remove it; {free} can change")


def split_tasks_file(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the configuration whose tasks an override tasks=FILE.yaml chooses, and the other overrides."""
    chosen = [override for override in overrides if re.fullmatch(r"tasks=[^{].*", override)]
    others = [override for override in overrides if override not in chosen]
    return (chosen[-1].partition("=")[2] if chosen else None), others
