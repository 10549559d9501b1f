"""What an architecture is: settings that build an `nn.Module`, and where in it the head is found."""

import math
from typing import Literal, Protocol

from torch import nn

from tasks.types import TaskSpec

Normalization = Literal["transductive", "inductive", "none"]

ADDED, NONE = "added", "none"


class Architecture(Protocol):
    """Settings under `model.` in a configuration.

    `head`, the last step from features to predictions, is ADDED (a linear one, to what `build` gives), NONE (what
    `build` gives are the predictions), or the name of the submodule that is the last step of what `build` gives.
    """

    @property
    def head(self) -> str: ...
    def build(self, spec: TaskSpec) -> nn.Module: ...


def num_outputs(spec: TaskSpec) -> int:
    """How many numbers predict one example: a logit a class, or the values of a regressed y."""
    return spec.ways if spec.ways is not None else math.prod(spec.y)
