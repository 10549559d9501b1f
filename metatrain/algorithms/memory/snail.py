"""SNAIL (Mishra et al. 2018): convolutions over time and attention to earlier steps, in turn."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metatrain.algorithms.attention import begin_alike
from metatrain.algorithms.memory import sequences
from metatrain.models import Model, Part
from metatrain.types import Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec


@dataclass(frozen=True)
class SNAIL:
    """Predict y_t by blocks over [f(x_s), y_s] of all steps s < t and [f(x_t), 0] after them, as in the paper.

    All steps are predicted at once: a step is read twice, with its label by those after it, and without for its own
    prediction. An attention block appends softmax(q_t · k_s / √d) v_s over s < t, beside a score of 0 for nothing. A
    temporal block is a stack of gated convolutions of two steps, dilated by 1, 2, 4, … until a sequence of `length` is
    covered; each appends `filters` channels (figure 2 of the paper). Order: attention, temporal, attention, temporal,
    attention, a linear layer; the paper's sizes are key 64, 256, 512, value 32, 128, 256, and 128 filters. Keys begin
    as queries (`attention.begin_alike`). The weights are parameters "snail.…".
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
        network = self.network(model.num_features, spec.ways or 0)
        return model.initial(head=False) | begin_alike(network.initial(seed))

    def logits(self, params: Params, features: Tensor, labels: Tensor) -> Tensor:
        told, asked = (torch.cat([features, one], 1) for one in (labels, torch.zeros_like(labels)))
        found: Tensor = self.network(features.shape[1], labels.shape[1])(params, told, asked)
        return found

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
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(size, outputs)

    def forward(self, told: Tensor, asked: Tensor) -> Tensor:
        """Return logits [T, outputs] of the steps with their labels, and without [T, n]."""
        for block in self.blocks:
            told, asked = block(told, told), block(told, asked)
        logits: Tensor = self.output(asked)
        return logits


class CausalAttention(nn.Module):
    """Append to each step what it reads of earlier steps."""

    def __init__(self, inputs: int, key: int, value: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(inputs, key), nn.Linear(inputs, key), nn.Linear(inputs, value)

    def forward(self, told: Tensor, x: Tensor) -> Tensor:
        """Return [T, inputs + value] of steps x, which read the steps before them in `told` [T, inputs]."""
        before = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).tril(-1)
        scores = self.query(x) @ self.key(told).T / math.sqrt(self.key.out_features)
        # Beside earlier steps a score of 0 for nothing: the first step has none to read.
        scores = torch.cat([scores.masked_fill(~before, -torch.inf), torch.zeros_like(scores[:, :1])], 1)
        return torch.cat([x, scores.softmax(1)[:, :-1] @ self.value(told)], 1)


class TemporalConvolution(nn.Module):
    """Append tanh(a) σ(b), with a and b linear in this step and the one `dilation` before; zeros before the first."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.linear = nn.Linear(2 * inputs, 2 * filters)

    def forward(self, told: Tensor, x: Tensor) -> Tensor:
        """Return [T, inputs + filters] of steps x, which read the steps before them in `told` [T, inputs]."""
        before = torch.cat([torch.zeros_like(told[: self.dilation]), told])[: len(x)]
        a, b = self.linear(torch.cat([x, before], 1)).chunk(2, 1)
        return torch.cat([x, a.tanh() * b.sigmoid()], 1)
