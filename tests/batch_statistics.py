"""Modules and an algorithm of a user, by whose statistics of the batch queries influence each other, or do not."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.algorithms import ProtoNet


class EachByItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class ByHand(EachByItself):
    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return (h - h.mean(0)) / (h.std(0) + 1e-5)


class FunctionalBatchNorm(EachByItself):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(super().forward(x), None, None, training=True)


@dataclass(frozen=True)
class Centred:
    """Prototypical networks whose predictions for the queries sum to zero over all of them."""

    init, trajectory, meta_gradient = ProtoNet.init, ProtoNet.trajectory, ProtoNet.meta_gradient

    def predict(self, *arguments) -> Tensor:
        predictions = ProtoNet.predict(self, *arguments)
        return predictions - predictions.mean(0)
