"""Find out whether the queries of a task influence each other's predictions, by changing one and looking."""

from itertools import islice

import torch
from torch import Tensor

from metatrain.algorithms.base import Algorithm, predicts
from metatrain.densities import mean_of
from metatrain.models import Model
from metatrain.models.normalization import mixes_examples
from metatrain.types import Context, Params
from tasks.types import Episode


def is_transductive(algorithm: Algorithm, model: Model, params: Params, task: Episode, context: Context) -> bool:
    """Return True if changing one query of `task`, which has no batch dimension, moves the predictions of others.

    One inner step is enough to see it, and an untrained head may be all zeros before it. What is predicted are
    queries and support examples together, since there may be a single query; queries alone where support examples
    are of another kind. An algorithm that predicts no single examples reads a task as a whole, its queries
    together, unless it says `transductive = False`.
    """
    if not predicts(algorithm):
        return bool(getattr(algorithm, "transductive", True))
    trees = not isinstance(task.query.x, Tensor)  # of which only the user's own network knows what they may hold
    if trees or (model.spec.support is not None and len(task.query.y) < 2):
        return model.normalization == "transductive"
    with torch.no_grad():
        *_, adapted = islice(algorithm.trajectory(model, params, task.support, context), 2)
        x = task.query.x if model.spec.support is not None else torch.cat([task.query.x, task.support.x])
        return mixes_examples(lambda x: mean_of(algorithm.predict(model, params, adapted, x, context)), x)
