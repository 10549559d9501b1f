"""SNAIL (Mishra et al. 2018): convolutions over time and attention to earlier steps, in turn."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metatrain.algorithms.memory import sequences
from metatrain.models import Model, Part
from metatrain.types import Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec


@dataclass(frozen=True)
class SNAIL:
    """Predict y_t by blocks over [f(x_t), y_{t−1}] that look at no later step.

    An attention block appends softmax(q_t · k_s / √d) v_s over s ≤ t. A temporal block is a stack of gated convolutions
    of two steps, dilated by 1, 2, 4, … until a sequence of `length` is covered; each appends `filters` channels (figure
    2 of the paper). Order: attention, temporal, attention, temporal, attention, a linear layer; the paper's
    sizes are key 64, 256, 512, value 32, 128, 256, and 128 filters. The weights are parameters "snail.…".
    """

    length: int = 50
    filters: int = 64
    keys: tuple[int, int, int] = (64, 128, 128)
    values: tuple[int, int, int] = (32, 64, 64)

    prefix = "snail."
    reads_sequences = True
    transductive = False

    def __post_init__(self) -> None:
        require_positive("algorithm", length=self.length, filters=self.filters)
        require_positive("algorithm", keys=min(self.keys), values=min(self.values))

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        sequences.require_sequences("snail", model, spec)
        return model.initial(head=False) | self.network(model.num_features, spec.ways or 0).initial(seed)

    score = sequences.sequence_score
    meta_gradient = sequences.sequence_gradient

    def network(self, features: int, labels: int) -> Part:
        sizes = (features + labels, labels, self.length, self.filters, self.keys, self.values)
        return Part(self.prefix, partial(Blocks, *sizes))


class Blocks(nn.Module):
    """Attention and temporal blocks in turn, and a linear layer."""

    def __init__(
        self, inputs: int, outputs: int, length: int, filters: int, keys: tuple[int, ...], values: tuple[int, ...]
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        size = inputs
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            blocks.append(CausalAttention(size, key, value))
            size += value
            for power in range(math.ceil(math.log2(max(length, 2))) if number < len(keys) - 1 else 0):
                blocks.append(TemporalConvolution(size, filters, 2**power))
                size += filters
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(size, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [T, outputs] of inputs [T, n]."""
        logits: Tensor = self.output(self.blocks(inputs))
        return logits


class CausalAttention(nn.Module):
    """Append to each step what it reads of itself and of earlier steps."""

    def __init__(self, inputs: int, key: int, value: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(inputs, key), nn.Linear(inputs, key), nn.Linear(inputs, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, inputs + value] of [T, inputs]."""
        scores = self.query(x) @ self.key(x).T / math.sqrt(self.key.out_features)
        later = torch.ones(scores.shape, dtype=torch.bool, device=x.device).triu(1)
        return torch.cat([x, scores.masked_fill(later, -torch.inf).softmax(1) @ self.value(x)], 1)


class TemporalConvolution(nn.Module):
    """Append tanh(a) σ(b), with a and b linear in this step and the one `dilation` before; zeros before the first."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.linear = nn.Linear(2 * inputs, 2 * filters)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, inputs + filters] of [T, inputs]."""
        before = torch.cat([torch.zeros_like(x[: self.dilation]), x])[: len(x)]
        a, b = self.linear(torch.cat([x, before], 1)).chunk(2, 1)
        return torch.cat([x, a.tanh() * b.sigmoid()], 1)
