"""Conditional neural processes (Garnelo et al. 2018, "Conditional neural processes")."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metatrain.algorithms.metric.comparison import query_gradient
from metatrain.algorithms.neural_processes import networks
from metatrain.models import Model, Part
from metatrain.models.transformer import FeedForward
from metatrain.types import Context, Gaussian, Params
from metatrain.validation import require_positive
from tasks.types import Examples, TaskSpec, Tree, members


@dataclass(frozen=True)
class CNP:
    """Predict N(μ, σ²) = d(r, f(x)) from the support set's r = mean_i e(f(x_i), y_i)  (eq. 1 to 3).

    f is the run's network (`model.name=identity`: the inputs themselves), e and d are layers of `width` with ReLU, of
    parameters "encoder.…" and "decoder.…". min_std: the least standard deviation predicted.
    """

    width: int = 128
    encoder_depth: int = 4
    decoder_depth: int = 4
    min_std: float = 0.01

    reads_masks = True

    def __post_init__(self) -> None:
        require_positive("algorithm", width=self.width, min_std=self.min_std)
        require_positive("algorithm", encoder_depth=self.encoder_depth, decoder_depth=self.decoder_depth)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        networks.require_densities("cnp", model, spec)
        return model.initial(head=False) | self._encoder(model).initial(seed) | self._decoder(model).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Tensor]:
        features = networks.embed(model, params, support.x, context, networks.SUPPORT)
        encoded = self._encoder(model)(params, networks.pairs_of(features, support.y))
        yield networks.masked_mean(encoded, members(support))

    def predict(self, model: Model, params: Params, adapted: Tensor, x: Tree, context: Context) -> Gaussian:
        features = networks.embed(model, params, x, context, networks.QUERY)
        both = torch.cat([features, adapted.expand(len(features), -1)], -1)
        return networks.gaussian_of(self._decoder(model)(params, both), self.min_std)

    meta_gradient = query_gradient

    def _encoder(self, model: Model) -> Part:
        sizes = (model.num_features + model.spec.y[0], self.width, self.width, self.encoder_depth)
        return Part("encoder.", partial(FeedForward, *sizes))

    def _decoder(self, model: Model) -> Part:
        sizes = (model.num_features + self.width, self.width, 2 * model.spec.y[0], self.decoder_depth)
        return Part("decoder.", partial(FeedForward, *sizes))
