"""The `Algorithm` protocol: what a meta-learning method must implement."""

from collections.abc import Iterator
from typing import Any, Protocol

from metatrain.engine import Engine
from metatrain.models import Model
from metatrain.types import Context, MetaGradient, Params, Prediction
from tasks.types import Examples, TaskSpec, Tree


class Algorithm(Protocol):
    """A meta-learning method: pure functions for ONE task, beside the settings they close over.

    Implementations are frozen dataclasses; their fields are the settings under `algorithm.` in a configuration.
    """

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        """Return the meta-parameters before the first step."""

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Tree]:
        """Yield what is adapted after 0, 1, ... inner steps, each a tree of tensors; one if there are no steps."""

    def predict(self, model: Model, params: Params, adapted: Tree, x: Tree, context: Context) -> Prediction:
        """Return the predictions of the adapted learner for `x` [n, *spec.x]."""

    def meta_gradient(self, model: Model, params: Params, tasks: Any, context: Context, engine: Engine) -> MetaGradient:
        """Sum over a batch of tasks the gradient of each one's query loss with respect to `params`."""
