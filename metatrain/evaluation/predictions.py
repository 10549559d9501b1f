"""Predict the queries of one task after each inner step, for figures and examples."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.base import Algorithm, predictor
from metatrain.models import Model
from metatrain.types import Context, Params
from tasks.types import Episode, OracleEpisode


class TaskPredictions(NamedTuple):
    """A task without a batch dimension, and the predictions for its queries after 0, 1, … inner steps.

    predictions: [steps + 1, n, ways] logits of classes, [steps + 1, n, *y] for regression; or densities of these.
    """

    episode: Episode | OracleEpisode
    predictions: Any

    @property
    def classes(self) -> Tensor:
        """Return the class predicted for each query after the last inner step [n]."""
        logits: Tensor = self.predictions[-1]
        return logits.argmax(1)


def predict_task(
    algorithm: Algorithm, model: Model, params: Params, task: Episode, context: Context
) -> TaskPredictions:
    """Adapt to the support set of `task` and predict all its queries together, after each inner step."""
    predict = predictor(algorithm, model, params, task.query.x, context)
    with torch.no_grad():
        by_step = [predict(adapted) for adapted in algorithm.trajectory(model, params, task.support, context)]
    return TaskPredictions(task, tree_map(lambda *steps: torch.stack(steps), *by_step))
