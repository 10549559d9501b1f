"""What learners that read labels share: a fixed number of them, of which a task uses some."""

import torch
from torch import Tensor

from metatrain.algorithms.metric.comparison import one_hot
from metatrain.models import Model
from metatrain.validation import require
from tasks.types import Examples, members

_ABSENT = -1e4
"""The logit of a class that no support example has: its probability is zero, and it is finite."""


def require_labels(model: Model, labels: int) -> None:
    """Check that tasks have at most as many classes as there are labels. ValueError: they have more."""
    most = f"ways: {model.spec.ways} classes, and the network was trained for {labels} at most"
    require((model.spec.ways or 0) <= labels, f"{most}: leave out classes, or train with more")


def seen_classes(support: Examples, labels: int) -> Tensor:
    """Return which classes a support set shows [labels]."""
    return (one_hot(support.y, labels, torch.bool) & members(support)[:, None]).any(0)


def without_unseen(logits: Tensor, seen: Tensor, ways: int | None) -> Tensor:
    """Return the logits [n, ways] with those of classes that were not seen [labels] so low that they never win."""
    return torch.where(seen, logits, _ABSENT)[:, :ways]
