"""The `Architecture` protocol: settings that build an `nn.Module` and name its head."""

import math
from typing import Literal, Protocol

from torch import nn

from tasks.types import TaskSpec

Normalization = Literal["transductive", "inductive", "none"]
"""Which statistics of a batch of examples predictions depend on."""
NormalizationSetting = Literal["transductive", "inductive", "group", "none"]
"""The setting `normalization` of an architecture: "group" normalises each example by itself."""

ADDED, NONE = "added", "none"


class Architecture(Protocol):
    """Settings under `model.` in a configuration.

    `head`, the last step from features to predictions: ADDED puts a linear layer on the outputs of the built module,
    NONE uses these outputs as predictions, and any other string names the submodule that is the module's last step.
    """

    @property
    def head(self) -> str: ...
    def build(self, spec: TaskSpec) -> nn.Module: ...


def num_outputs(spec: TaskSpec) -> int:
    """Return the number of outputs per example: one logit per class, or the values of a regressed y."""
    return spec.ways if spec.ways is not None else math.prod(spec.y)
