"""One task shown whole: what the learner was given, what it was asked, what it said after each inner step."""

from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.base import Algorithm
from metatrain.models import Model
from metatrain.types import Context, Params
from tasks.types import Episode


class TaskPredictions(NamedTuple):
    """A task without a batch dimension, and the predictions for its queries after 0, 1, … inner steps.

    predictions: [steps + 1, n, ways] logits of classes, [steps + 1, n, *y] for regression.
    """

    episode: Episode
    predictions: Tensor

    @property
    def classes(self) -> Tensor:
        """What each query is taken for in the end: labels [n]."""
        return self.predictions[-1].argmax(1)


def predict_task(
    algorithm: Algorithm, model: Model, params: Params, task: Episode, context: Context
) -> TaskPredictions:
    """`task` as the learner at `params` meets it: adapted on its support set, asked its queries all at once."""
    with torch.no_grad():
        by_step = [
            algorithm.predict(model, params, adapted, task.query.x, context)
            for adapted in algorithm.trajectory(model, params, task.support, context)
        ]
    return TaskPredictions(task, torch.stack(by_step))
