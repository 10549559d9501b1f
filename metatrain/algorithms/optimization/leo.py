"""LEO, latent embedding optimisation (Rusu et al. 2019): adapt in a latent space from which the head is generated."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad

from metatrain.algorithms.base import predict_embedded
from metatrain.algorithms.metric import comparison
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.models.dropout import fold, normal
from metatrain.types import Context, MetaGradient, Params, Prediction
from metatrain.validation import require, require_not_negative, require_positive
from tasks.types import Episode, Examples, TaskSpec, Tree

LATENT_RATE, HEAD_RATE = "inner_lr.latent", "inner_lr.classifier"

_QUERY, _LATENT, _HEAD = 1, 2, 3
"""Numbers that are folded into the task's key: of the queries' dropout, and of the two kinds of samples."""


class Gaussians(NamedTuple):
    """Means and standard deviations of independent normal variables; one row per class."""

    mean: Tensor
    std: Tensor


class Generated(NamedTuple):
    """A head without bias, the latents it came from, and the support inputs for an inductive normalisation."""

    head: Tensor
    """[N, D]"""
    latent: Tensor
    """z' after the steps so far [N, L]."""
    start: Tensor
    """z before the first step [N, L]."""
    posterior: Gaussians
    """What z was drawn from."""
    support_x: Tensor


@dataclass(frozen=True)
class LEO:
    """Draw z from q(z | support), step z ← z − α ∘ ∇_z L_S(w), w ~ p(w | z), then w ← w − β ∘ ∇_w L_S (algorithm 1).

    f are the network's features [n, D], learned with the rest, or from `model.weights` at a small rate. With codes
    c_i = E f(x_i), q of class n is the normal distribution whose mean and log std are the mean over its examples i, and
    over all examples j, of the relation network g(c_i, c_j) (eq. 1 and 2). The decoder gives mean and log std of a row
    of the head from z (eq. 3); logits are f(x) · w_n. Without noise (key −1) means are used.
    The loss is L_Q + `kl_weight` KL(q ‖ N(0, 1)) + `encoder_penalty_weight` ‖stop(z') − z‖² + `orthogonality_weight`
    ‖C − I‖², C the correlations of the decoder's columns (eq. 6 and 7), each a mean; its ℓ2 term is
    `outer.weight_decay`.

    inner_lr, finetuning_lr: the initial α [L] and β [D], of a loss that is a mean over examples; learned, as parameters
    "inner_lr.…". Others: "encoder.…", "relation.…", "decoder.…", each a group of `outer.groups`.
    latent_std: the standard deviation of q at a log std of zero.
    """

    inner_lr: float = 0.1
    inner_steps: int = 5
    finetuning_lr: float = 0.001
    finetuning_steps: int = 5
    latents: int = 64
    latent_std: float = 0.1
    kl_weight: float = 1e-3
    encoder_penalty_weight: float = 1e-9
    orthogonality_weight: float = 1e-3

    def __post_init__(self) -> None:
        sizes = {"inner_steps": self.inner_steps, "latents": self.latents}
        rates = {"inner_lr": self.inner_lr, "finetuning_lr": self.finetuning_lr, "latent_std": self.latent_std}
        require_positive("algorithm", **sizes, **rates)
        require_not_negative(
            "algorithm",
            finetuning_steps=self.finetuning_steps,
            kl_weight=self.kl_weight,
            encoder_penalty_weight=self.encoder_penalty_weight,
            orthogonality_weight=self.orthogonality_weight,
        )
        unused = "algorithm.finetuning_lr: has no effect without steps: remove it, or set finetuning_steps above 0"
        require(self.finetuning_steps > 0 or self.finetuning_lr == type(self).finetuning_lr, unused)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("leo", spec)
        rates = {LATENT_RATE: torch.full((self.latents,), self.inner_lr)}
        if self.finetuning_steps:
            rates[HEAD_RATE] = torch.full((math.prod(model.feature_shape),), self.finetuning_lr)
        parts = (self._encoder(model), self._relation, self._decoder(model))
        initial = {
            name: value for number, part in enumerate(parts) for name, value in part.initial(seed + number).items()
        }
        return model.initial(head=False) | initial | rates

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Generated]:
        features = comparison.embed_support(model, params, support, context)

        def decode(z: Tensor, t: int) -> Tensor:
            """Return the head of z as drawn before step t."""
            mean, log_std = self._decoder(model)(params, z).chunk(2, 1)
            std = math.sqrt(2 / (mean.shape[0] + mean.shape[1])) * log_std.exp()
            return draw(Gaussians(mean, std), fold(fold(context.noise, _HEAD), t))

        def support_loss(w: Tensor) -> Tensor:
            return task_loss(features @ w.T, support.y)[0]

        q = self._posterior(model, params, features, support.y)
        start = z = draw(q, fold(context.noise, _LATENT))
        w = decode(z, 0)
        yield Generated(w, z, start, q, support.x)
        for t in range(self.inner_steps):
            z = z - params[LATENT_RATE] * grad(lambda z, t=t: support_loss(decode(z, t)))(z)
            w = decode(z, t + 1)
            yield Generated(w, z, start, q, support.x)
        for _ in range(self.finetuning_steps):
            w = w - params[HEAD_RATE] * grad(support_loss)(w)
            yield Generated(w, z, start, q, support.x)

    def embed_queries(self, model: Model, params: Params, adapted: Generated, x: Tree, context: Context) -> Tensor:
        return comparison.embed_queries(model, params, x, adapted.support_x, context)

    def predict_features(self, model: Model, adapted: Generated, features: Tensor) -> Prediction:
        return features @ adapted.head.T

    predict = predict_embedded

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        def loss(params: Params, task: Episode, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            *_, adapted = self.trajectory(model, params, task.support, context)
            prediction = self.predict(model, params, adapted, task.query.x, context)
            of_queries, metrics = task_loss(prediction, task.query.y)
            penalty = (adapted.latent.detach() - adapted.start).square().mean()
            return (
                of_queries
                + self.kl_weight * divergence(adapted.posterior)
                + self.encoder_penalty_weight * penalty
                + self.orthogonality_weight * correlation(params["decoder.weight"])
            ), metrics

        return loss_gradient(loss, params, tasks, context, engine)

    def _posterior(self, model: Model, params: Params, features: Tensor, y: Tensor) -> Gaussians:
        """Return q(z | support) of every class [N, L]."""
        codes = self._encoder(model)(params, features)
        n = len(codes)
        pairs = torch.cat([codes[:, None].expand(n, n, -1), codes[None].expand(n, n, -1)], 2)
        of_examples = self._relation(params, pairs).mean(1)
        members = comparison.one_hot(y, model.spec.ways or 0, codes.dtype)
        mean, log_std = (members.T @ of_examples / members.sum(0)[:, None]).chunk(2, 1)
        return Gaussians(mean, self.latent_std * log_std.exp())

    def _encoder(self, model: Model) -> Part:
        return Part("encoder.", partial(linear, math.prod(model.feature_shape), self.latents))

    @property
    def _relation(self) -> Part:
        return Part("relation.", partial(relation_network, self.latents))

    def _decoder(self, model: Model) -> Part:
        return Part("decoder.", partial(linear, self.latents, 2 * math.prod(model.feature_shape)))


def draw(q: Gaussians, noise: Tensor) -> Tensor:
    """Return a sample of `q`, determined by the key `noise`; its mean without noise."""
    return q.mean + q.std * normal(noise, q.mean.shape, q.mean.device).to(q.mean.dtype)


def divergence(q: Gaussians) -> Tensor:
    """Return the mean over all variables of KL(q ‖ N(0, 1)) = ½ (μ² + σ² − 1) − log σ."""
    return (0.5 * (q.mean.square() + q.std.square() - 1) - q.std.log()).mean()


def correlation(weight: Tensor) -> Tensor:
    """Return the mean of (C − I)², C_ij the cosine of columns i and j of `weight` [2D, L], one for each latent."""
    columns = nn.functional.normalize(weight, dim=0)
    return (columns.T @ columns - torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)).square().mean()


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a map without bias, initialised as by Glorot & Bengio (2010)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def relation_network(latents: int) -> nn.Sequential:
    """Return g, from pairs of codes [..., 2L] to mean and log std [..., 2L]."""
    width = 2 * latents
    return nn.Sequential(linear(width, width), nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, width))
