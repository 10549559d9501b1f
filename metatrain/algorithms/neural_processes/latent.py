"""Latent paths of neural processes: a variable z that all queries of a task share, for functions that are coherent."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.algorithms.neural_processes import networks
from metatrain.densities import log_density
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.models.dropout import fold, normal
from metatrain.models.transformer import FeedForward
from metatrain.types import Context, Gaussian, GaussianMixture, MetaGradient, Params
from tasks.types import Episode, Examples, Tree, members

_LATENT = 2
"""Under which number the noise of z is folded; 0 and 1 are those of the network's two passes."""
_KEY = 0x5EED
"""The noise of z where there is none, in evaluation: fixed, so that predictions are reproducible."""


class Read(NamedTuple):
    """A support set that was read: the deterministic path's result, and the distribution of z [L]."""

    path: Tree
    z: Gaussian


class HasLatent(Protocol):
    """A neural process with a latent path; `read_path` and `follow_path` are its deterministic one."""

    @property
    def width(self) -> int: ...
    @property
    def encoder_depth(self) -> int: ...
    @property
    def decoder_depth(self) -> int: ...
    @property
    def latents(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def min_std(self) -> float: ...

    def read_path(self, model: Model, params: Params, features: Tensor, y: Tensor, mask: Tensor) -> Tree:
        """Return what the deterministic path keeps of the support set."""

    def follow_path(self, model: Model, params: Params, path: Any, features: Tensor) -> Tensor:
        """Return the deterministic representation of each query [n, width]."""


def initial(method: HasLatent, model: Model, seed: int) -> Params:
    """Return the parameters of the latent encoder and the decoder."""
    return _encoder(method, model).initial(seed) | _decoder(method, model).initial(seed)


def read(self: HasLatent, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Read]:
    """Yield the support set as both paths read it."""
    features = networks.embed(model, params, support.x, context, networks.SUPPORT)
    mask = members(support)
    path = self.read_path(model, params, features, support.y, mask)
    yield Read(path, _latent(self, model, params, features, support.y, mask))


def predict(self: HasLatent, model: Model, params: Params, adapted: Read, x: Tree, context: Context) -> GaussianMixture:
    """Return the mixture of the densities given each of `samples` draws of z: [n, samples, d]."""
    noise = torch.where(context.noise < 0, torch.full_like(context.noise, _KEY), context.noise)
    features = networks.embed(model, params, x, context, networks.QUERY)
    return _decode(self, model, params, adapted, draw(adapted.z, noise, self.samples), features)


def negative_elbo(
    method: HasLatent, model: Model, params: Params, task: Episode, context: Context
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return −(1/n) E_{q(z | S ∪ Q)} Σ log p(y_q | z) + KL(q(z | S ∪ Q) ‖ q(z | S))/n, by one draw of z, and metrics.

    (Kim et al. 2019, eq. 3, S the support set and Q the queries, of which there are n.)
    """
    (adapted,) = read(method, model, params, task.support, context)
    features = [
        networks.embed(model, params, part.x, context, which)
        for which, part in ((networks.SUPPORT, task.support), (networks.QUERY, task.query))
    ]
    y, mask = torch.cat([task.support.y, task.query.y]), members(task.support)
    everyone = torch.cat([mask, members(task.query)])
    posterior = _latent(method, model, params, torch.cat(features), y, everyone)
    z = draw(posterior, context.noise, 1)
    prediction = _decode(method, model, params, adapted, z, features[1])
    metrics = task_loss(prediction, task.query.y)[1]
    loss = -log_density(prediction, task.query.y).mean() + divergence(posterior, adapted.z) / len(task.query.y)
    return loss, metrics | {"loss": loss}


def meta_gradient(
    self: HasLatent, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Sum over tasks the gradient of the negative evidence lower bound."""
    return loss_gradient(partial(negative_elbo, self, model), params, tasks, context, engine)


def draw(z: Gaussian, noise: Tensor, samples: int) -> Tensor:
    """Return draws of z [samples, L], determined by the key `noise`."""
    shape = torch.Size((samples, z.mean.shape[-1]))
    return z.mean + z.std * normal(fold(noise, _LATENT), shape, z.mean.device).to(z.mean.dtype)


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """Return KL(q ‖ p) of independent normal distributions, in nats."""
    ratio = (q.std / p.std).square()
    return 0.5 * (ratio + ((q.mean - p.mean) / p.std).square() - 1 - ratio.log()).sum()


def _latent(method: HasLatent, model: Model, params: Params, features: Tensor, y: Tensor, mask: Tensor) -> Gaussian:
    encoded = _encoder(method, model)(params, networks.pairs_of(features, y))
    mean, raw = networks.masked_mean(encoded, mask).chunk(2, -1)
    return Gaussian(mean, 0.1 + 0.9 * raw.sigmoid())


def _decode(
    method: HasLatent, model: Model, params: Params, adapted: Read, z: Tensor, features: Tensor
) -> GaussianMixture:
    """Return the density of each query given each z [S, L]."""
    known = torch.cat([features, method.follow_path(model, params, adapted.path, features)], -1)
    n, samples = len(features), len(z)
    both = [known[:, None].expand(n, samples, -1), z[None].expand(n, samples, -1)]
    outputs = _decoder(method, model)(params, torch.cat(both, -1))
    return GaussianMixture(*networks.gaussian_of(outputs, method.min_std))


def _encoder(method: HasLatent, model: Model) -> Part:
    sizes = (model.num_features + model.spec.y[0], method.width, 2 * method.latents, method.encoder_depth)
    return Part("latent_encoder.", partial(FeedForward, *sizes))


def _decoder(method: HasLatent, model: Model) -> Part:
    inputs = model.num_features + method.width + method.latents
    return Part("decoder.", partial(FeedForward, inputs, method.width, 2 * model.spec.y[0], method.decoder_depth))
