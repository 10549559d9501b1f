"""What every result is held against: learners that learned nothing beforehand, as algorithms without parameters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from metatrain.algorithms.protonet import squared_distances
from metatrain.engine import Engine
from metatrain.models import Model
from metatrain.types import Algorithm, Context, MetaGradient, Params, Prediction
from tasks.types import Episode, Examples, TaskSpec, Tree


@dataclass(frozen=True)
class NearestNeighbour:
    """The class of the support example that is nearest in raw pixels (squared Euclidean distance)."""

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return {}

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Examples]:
        yield support

    def predict(self, model: Model, params: Params, adapted: Examples, x: Tree, context: Context) -> Prediction:
        distances = squared_distances(x.flatten(1), adapted.x.flatten(1))
        of_class = adapted.y[None, :] == torch.arange(model.spec.ways or 0, device=x.device)[:, None]
        far = torch.where(of_class[None], distances[:, None, :], torch.inf)
        return -far.amin(2)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        raise ValueError("algorithm.name: nearest_neighbour has nothing to learn: evaluate it, or train another")


BASELINES: dict[str, Algorithm] = {"nearest_neighbour": NearestNeighbour()}
"""Learners without parameters; the untrained network is the run's own algorithm at its initial parameters."""
