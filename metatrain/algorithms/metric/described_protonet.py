"""Prototypes from descriptions of classes (Snell et al. 2017, section 2.7), beside examples if there are some (AM3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metatrain.algorithms.metric import comparison
from metatrain.algorithms.metric.protonet import Prototypes, squared_distances
from metatrain.models import Model, Part
from metatrain.types import Context, Params, Prediction
from metatrain.validation import require, require_positive
from tasks.described import DESCRIPTION, EXAMPLE
from tasks.types import Examples, TaskSpec, Tree, is_shape

PREFIX = "description."


@dataclass(frozen=True)
class DescribedProtoNet:
    """Predict p(y = n | x) ∝ exp(−‖f(x) − c_n‖²), c_n computed from the description a_n of class n.

    Zero-shot, c_n = s g(a_n) / ‖g(a_n)‖, with g a network of one hidden layer and s a number, learned too. With
    examples, c_n = λ_n m_n + (1 − λ_n) s g(a_n) / ‖g(a_n)‖, m_n the mean of f over the examples of class n and λ_n a
    sigmoid of another network of a_n (adaptive cross-modal few-shot learning: Xing et al. 2019). The networks are
    parameters "description.…".
    """

    hidden: int = 256

    separate_support = True

    def __post_init__(self) -> None:
        require_positive("algorithm", hidden=self.hidden)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        comparison.require_classes("described_protonet", spec)
        described = spec.support is not None and (is_shape(spec.support) or DESCRIPTION in spec.support)
        lacking = "algorithm.name: described_protonet reads descriptions of classes, and these tasks have none"
        require(described, f"{lacking}: set descriptions in tasks.train and tasks.test, or protonet")
        alone = "model: zero-shot tasks have no examples whose statistics would normalise queries: set"
        plain = not is_shape(spec.support) or model.normalization == "none"
        require(plain, f"{alone} model.normalization=group, or shots=1 in tasks.train and tasks.test")
        return model.initial(head=False) | self._network(model, spec).initial(seed)

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Prototypes]:
        members = comparison.one_hot(support.y, model.spec.ways or 0, next(iter(params.values())).dtype)
        share = members / members.sum(0)
        network, given = self._network(model, model.spec), support.x
        if isinstance(given, Tensor):
            yield Prototypes(share.T @ network(params, given)[0], given)
            return
        described, weight = network(params, given[DESCRIPTION])
        shown = comparison.embed_support(model, params, Examples(given[EXAMPLE], support.y), context)
        yield Prototypes(share.T @ (weight * shown + (1 - weight) * described), given[EXAMPLE])

    def predict(self, model: Model, params: Params, adapted: Prototypes, x: Tree, context: Context) -> Prediction:
        embedded = comparison.embed_queries(model, params, x, adapted.support_x, context)
        return -squared_distances(embedded, adapted.centres)

    meta_gradient = comparison.query_gradient

    def _network(self, model: Model, spec: TaskSpec) -> Part:
        shape = spec.support if is_shape(spec.support) else spec.support[DESCRIPTION]
        return Part(PREFIX, partial(DescriptionNetwork, shape, self.hidden, model.num_features))


class DescriptionNetwork(nn.Module):
    """Map descriptions [n, *shape] to centres of one length [n, D], and to the weight of examples [n, 1]."""

    def __init__(self, shape: tuple[int, ...], hidden: int, features: int) -> None:
        super().__init__()
        inputs = torch.Size(shape).numel()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, features))
        self.weight = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.length = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.length * normalize(self.embed(x), dim=1), self.weight(x).sigmoid()
