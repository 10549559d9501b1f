"""Pretrain features by classifying all training classes: what the baselines that adapt at test time alone share.

A method that says `trains_on_classes` gets "tasks" whose labels number the classes of the whole training split, C of
them, support and query alike: each task is a minibatch of N of them, and `spec.ways` is C.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.models.dropout import fold
from metatrain.types import Context, MetaGradient, Params
from metatrain.validation import require, require_positive
from tasks.types import Episode, Examples, TaskSpec

CLASSIFIER = "classifier."
"""Prefix of the parameters of the classifier over all training classes, which adapting never reads."""


@dataclass(frozen=True)
class Classifier:
    """The classifier of the training classes: linear, W f + b; or cosine, `scale` · cos(f, w_c) (Chen et al. 2019).

    centred: f is taken minus its mean over the minibatch. Features after a ReLU are positive, so that all of them point
    the same way: on Omniglot, classifying them as they are learns many times slower.
    """

    head: Literal["linear", "cosine"] = "linear"
    scale: float = 20.0
    centred: bool = True

    def __post_init__(self) -> None:
        require_positive("algorithm.classifier", scale=self.scale)
        unused = "algorithm.classifier.scale: has no effect with a linear head: remove it, or set head to cosine"
        require(self.head == "cosine" or self.scale == 20.0, unused)

    def initial(self, model: Model, classes: int, seed: int) -> Params:
        """Return W [C, D], and b [C] of a linear head, as torch initialises a linear layer."""
        layer = partial(nn.Linear, math.prod(model.feature_shape), classes, bias=self.head == "linear")
        return Part(CLASSIFIER, layer).initial(seed)

    def scores(self, params: Params, features: Tensor) -> Tensor:
        """Return the scores [n, C] of a minibatch's features [n, D]."""
        weight = params[CLASSIFIER + "weight"]
        features = features - features.mean(0) if self.centred else features
        if self.head == "linear":
            return features @ weight.T + params[CLASSIFIER + "bias"]
        return self.scale * F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T


LINEAR, COSINE = Classifier(), Classifier(head="cosine")


class Pretrains(Protocol):
    """A method that pretrains by its `classifier`."""

    @property
    def classifier(self) -> Classifier: ...


def init_classifier(self: Pretrains, model: Model, spec: TaskSpec, seed: int) -> Params:
    """Return θ: the body's initial weights, and those of the classifier. ValueError: the tasks have no classes."""
    name = type(self).__name__
    require(spec.ways is not None, f"algorithm.name: {name} needs classes, and these tasks have none: set maml")
    return model.initial(head=False) | self.classifier.initial(model, spec.ways or 0, seed)


def classification_gradient(
    self: Pretrains, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Sum over minibatches ∇_θ of the mean cross-entropy over all training classes, support and query as one batch."""

    def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        support, query = task
        features = model.embed(params, torch.cat([support.x, query.x]), fold(context.noise, 0))
        return task_loss(self.classifier.scores(params, features), torch.cat([support.y, query.y]))

    return loss_gradient(loss, params, tasks, context, engine)


class Embedded(NamedTuple):
    """Features of the support set [n, D] and their labels; the inputs whose statistics inductive queries need."""

    features: Tensor
    y: Tensor
    support_x: Tensor


def embed_support(model: Model, params: Params, support: Examples, context: Context) -> Embedded:
    """Return the support set's features at θ."""
    return Embedded(model.embed(params, support.x, fold(context.noise, 0)), support.y, support.x)


def embed_queries(model: Model, params: Params, x: Tensor, support_x: Tensor, context: Context) -> Tensor:
    """Return the features of queries at θ: [n, D]."""
    return model.embed(params, x, fold(context.noise, 1), reference=support_x)


def one_hot(y: Tensor, ways: int, like: Tensor) -> Tensor:
    """Return labels [n] as [n, N] zeros and ones of the type of `like`."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)


def class_means(features: Tensor, y: Tensor, ways: int) -> Tensor:
    """Return the mean feature of each class: [N, D]."""
    members = one_hot(y, ways, features)
    return members.T @ features / members.sum(0)[:, None]
