"""Embed a task as the Fisher information of a trained network's weights: Task2Vec (Achille et al. 2019).

    head    W, b = argmin ½ ‖W‖² + Σ_i CE(z_iᵀW + b, y_i),  z = f_w(x) / s,  s² = the variance of the features
    Fisher  F_k = 1/(n |k|) Σ_i Σ_c p(c|x_i) Σ_{w in k} (∂ log p(c|x_i) / ∂w)²,  p(·|x) = softmax(zᵀW + b)

f_w is the body of a trained network, the probe; k one of its filters: the weights of one output channel of a
convolution, or of one output of a linear layer, |k| of them. Biases and normalisation's scales are left out. The sums
are over all examples of the task, support and query, and over its classes: the expectation under the network's own
predictions, in which the labels count through the head alone.

Of the paper's two estimators this is the direct one, which its code calls Monte Carlo, but exact in the expectation
over classes, where that draws one; the other, variational one learns the precision of noise on the weights. Layers that
normalise have the statistics of the task's examples, held constant. s makes the penalty free of the features' scale.
"""

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn import functional as F

from metatrain.algorithms.pretrained.logistic_regression import fit
from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.models.fixed_norm import with_fixed_statistics
from metatrain.models.memory_format import default_memory_format
from metatrain.models.model import BODY
from metatrain.types import Params
from metatrain.validation import require
from tasks.types import Episode

_PENALTY = 1.0
_NEWTON_STEPS = 30
_NUMBERS = 2**25
"""Derivatives that are held at a time: so many examples are computed together."""

Head = tuple[Tensor, Tensor]
"""W [D, N] and b [N], of features as the body gives them."""


def filters_of(params: Params) -> Params:
    """Return the body's weights that have filters: those of convolutions and linear layers, [out, ...].

    ValueError: there are none.
    """
    found = {name: value for name, value in params.items() if name.startswith(BODY) and value.dim() > 1}
    require(bool(found), "model: its body has no weights to embed tasks by: use a run with a network such as conv4")
    return found


def embed_task(model: Model, params: Params, task: Episode, ways: int) -> Tensor:
    """Return the Fisher information of each filter [M] of one task, its tensors without a batch dimension.

    params: of a trained network, those of its body are read. ways: N, the number of classes. ValueError: the body has
    no filters, or its outputs depend on the whole batch.
    """
    x, y = (torch.cat([getattr(part, name) for part in (task.support, task.query)]) for name in ("x", "y"))
    with default_memory_format():  # vmap has no channels-last format
        fixed = with_fixed_statistics(model, params, x)
        with torch.no_grad():
            features = fixed.embed(params, x, torch.tensor(NO_NOISE, device=x.device))
        return fisher_information(fixed, params, fit_head(features, y, ways), x)


def fit_head(features: Tensor, y: Tensor, ways: int) -> Head:
    """Return the head of the equation above, of features [n, D] and labels [n]. The minimum is the only one."""
    z = features.double()
    scale = (z - z.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)
    weight, bias = fit(z / scale, F.one_hot(y, ways).to(z.dtype), _PENALTY, _NEWTON_STEPS)
    return (weight / scale).to(features.dtype), bias.to(features.dtype)


def fisher_information(model: Model, params: Params, head: Head, x: Tensor) -> Tensor:
    """Return F [M] of the equation above over examples x [n, *x]; `model` has no statistics of batches."""
    assert model.normalization == "none"
    weights = filters_of(params)
    rest = {name: value for name, value in params.items() if name not in weights}
    noise = torch.tensor(NO_NOISE, device=x.device)

    def log_probabilities(given: Params, one: Tensor) -> Tensor:
        features = model.embed(rest | given, one[None], noise)[0]
        return (features @ head[0] + head[1]).log_softmax(0)

    def of_example(one: Tensor) -> Tensor:
        slopes, log_p = jacrev(lambda w: (log_probabilities(w, one),) * 2, has_aux=True)(weights)
        expected = [_expected_square(slopes[name], log_p.exp()) for name in weights]
        return torch.cat([square.flatten(1).mean(1) for square in expected])

    together = max(1, _NUMBERS // (head[1].numel() * sum(value.numel() for value in weights.values())))
    each: Tensor = vmap(of_example, chunk_size=together)(x)
    return each.mean(0)


def _expected_square(slopes: Tensor, p: Tensor) -> Tensor:
    """Return Σ_c p_c g_c², of g [N, ...] and p [N]."""
    return torch.einsum("n,n...->...", p, slopes.square())
