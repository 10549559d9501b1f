"""Tasks whose support examples describe the classes: attributes as support, pictures as queries (zero-shot)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.types import Context, MetaGradient, Params
from tasks.random import stream, uniforms
from tasks.types import Episode, EpisodeShape, Examples, Split, TaskSpec

ATTRIBUTES, SIDE = 6, 3


@dataclass(frozen=True)
class Described:
    """Classes with attributes a ∈ [-1, 1]^6; a picture shows tanh(W a), W fixed, and noise.

    tree: support examples are dicts.
    """

    tree: bool = False

    def prepare(self, progress) -> str:
        return "described classes"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "DescribedTasks":
        return DescribedTasks(self, split, episode, seed)


@dataclass(frozen=True)
class DescribedTasks:
    source: Described
    split: Split
    episode: EpisodeShape
    seed: int

    @property
    def spec(self) -> TaskSpec:
        support = {"attributes": (ATTRIBUTES,)} if self.source.tree else (ATTRIBUTES,)
        return TaskSpec("classification", self.episode.ways, (1, SIDE, SIDE), (), support)

    def episodes(self, indices: Sequence[int]) -> Episode:
        ways, queries = self.episode.ways, self.episode.queries
        numbers = uniforms(self.seed, stream("described", self.split), indices, ways * (ATTRIBUTES + queries * SIDE**2))
        given, noise = np.split(2 * numbers - 1, [ways * ATTRIBUTES], axis=1)
        shown = np.cos(np.arange(ATTRIBUTES * SIDE**2)).reshape(ATTRIBUTES, SIDE**2)
        given = given.reshape(len(indices), ways, ATTRIBUTES)
        pictures = np.tanh(given @ shown)[:, :, None] + noise.reshape(len(indices), ways, queries, -1) / 4
        attributes = torch.from_numpy(given).float()
        x = torch.from_numpy(pictures).float().view(len(indices), ways * queries, 1, SIDE, SIDE)
        labels = torch.arange(ways).expand(len(indices), -1)
        support = {"attributes": attributes} if self.source.tree else attributes
        return Episode(Examples(support, labels), Examples(x, labels.repeat_interleave(queries, 1)))


@dataclass(frozen=True)
class DescribedPrototypes:
    """Predict by the cosine of a picture's embedding and that of each class's attributes, which "encoder." gives."""

    scale: float = 10.0
    separate_support = True

    def encoder(self, model: Model) -> Part:
        return Part("encoder.", partial(nn.Linear, ATTRIBUTES, model.feature_shape[0]))

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return model.initial(head=False) | self.encoder(model).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Tensor]:
        attributes = support.x["attributes"] if isinstance(support.x, dict) else support.x
        yield normalize(self.encoder(model)(params, attributes), dim=1)[support.y.argsort()]

    def predict(self, model: Model, params: Params, adapted: Tensor, x: Tensor, context: Context) -> Tensor:
        return self.scale * normalize(model.embed(params, x, context.noise), dim=1) @ adapted.T

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            (prototypes,) = self.trajectory(model, params, task.support, context)
            return task_loss(self.predict(model, params, prototypes, task.query.x, context), task.query.y)

        return loss_gradient(loss, params, tasks, context, engine)
