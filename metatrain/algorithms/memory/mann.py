"""Memory-augmented neural networks (Santoro et al. 2016): an LSTM that reads and writes an external memory."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metatrain.algorithms.memory import sequences
from metatrain.models import Model, Part
from metatrain.models.layers import LSTMCell
from metatrain.types import Params
from metatrain.validation import require, require_positive
from tasks.types import TaskSpec

_NOTHING = 1e-6
"""What an empty slot holds: not zero, whose cosine is undefined."""
STRENGTH = 5.0
"""What β begins at, less one: a slot that equals the key outweighs some hundred others."""


@dataclass(frozen=True)
class MANN:
    """Predict y_t from [h_t, r_t], h_t the state of an LSTM that reads [f(x_t), y_{t−1}, r_{t−1}], r_t what it recalls.

    Each of `heads` heads has a key k_t and a strength β_t of h_t. It reads r_t = w^r M by its content, with
    w^r = softmax(β_t cos(k_t, M)) (Graves et al. 2014, whose β Santoro et al. leave out), and writes k_t by
    w^w = σ(α) w^r_{t−1} + (1 − σ(α)) w^lu_{t−1}: where it read last, or into the slot used least, which is erased
    before. Use decays by `decay`, w^u = γ w^u + Σ w^r + Σ w^w (least recently used access, equations 5 to 8). The
    memory has `slots` rows of `slot_width`. The weights are parameters "memory.…".
    """

    hidden: int = 200
    slots: int = 128
    slot_width: int = 40
    heads: int = 4
    decay: float = 0.99

    prefix = "memory."
    reads_sequences = True
    transductive = False

    def __post_init__(self) -> None:
        require_positive("algorithm", hidden=self.hidden, slots=self.slots, slot_width=self.slot_width)
        require_positive("algorithm", heads=self.heads)
        require(self.heads <= self.slots, f"algorithm.heads: {self.heads} heads and {self.slots} slots: lower it")
        require(0 <= self.decay < 1, f"algorithm.decay: {self.decay:g} is no share: set a number from 0 to below 1")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        sequences.require_sequences("mann", model, spec)
        return model.initial(head=False) | self.network(model.num_features, spec.ways or 0).initial(seed)

    logits = sequences.logits_of_offset_labels
    score = sequences.sequence_score
    meta_gradient = sequences.sequence_gradient

    def network(self, features: int, labels: int) -> Part:
        sizes = (features + labels, self.hidden, labels)
        return Part(self.prefix, partial(MemoryNetwork, *sizes, self.slots, self.slot_width, self.heads, self.decay))


class MemoryNetwork(nn.Module):
    """A controller with a memory that begins empty."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, slots: int, slot_width: int, heads: int, decay: float
    ) -> None:
        super().__init__()
        self.slots, self.slot_width, self.heads, self.decay = slots, slot_width, heads, decay
        self.controller = LSTMCell(inputs + heads * slot_width + hidden, hidden)
        self.keys = nn.Linear(hidden, heads * slot_width)
        self.strengths = nn.Linear(hidden, heads)
        nn.init.constant_(self.strengths.bias, STRENGTH)
        self.gate = nn.Parameter(torch.zeros(heads, 1))
        self.output = nn.Linear(hidden + heads * slot_width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [T, outputs] of inputs [T, n]."""
        h = c = inputs.new_zeros(self.keys.in_features)
        memory = inputs.new_full((self.slots, self.slot_width), _NOTHING)
        used, read = inputs.new_zeros(self.slots), inputs.new_zeros(self.heads, self.slots)
        recalled, states = inputs.new_zeros(self.heads * self.slot_width), []
        for x in inputs:
            h, c = self.controller(torch.cat([x, recalled]), h, c)
            keys = self.keys(h).tanh().view(self.heads, self.slot_width)
            least = least_used(used, self.heads)
            write = self.gate.sigmoid() * read + (1 - self.gate.sigmoid()) * least
            memory = memory * (1 - least.sum(0))[:, None] + write.T @ keys
            read = recall(keys, memory, 1 + F.softplus(self.strengths(h)))
            used = self.decay * used + read.sum(0) + write.sum(0)
            recalled = (read @ memory).flatten()
            states.append(torch.cat([h, recalled]))
        logits: Tensor = self.output(torch.stack(states))
        return logits


def least_used(used: Tensor, heads: int) -> Tensor:
    """Return rows with a one at the least used slot, the second least, … [heads, slots]; no gradient passes.

    Of equally used slots the first come first.
    """
    numbers = used.detach().argsort(stable=True)[:heads]
    return (numbers[:, None] == torch.arange(len(used), device=used.device)).to(used.dtype)


def recall(keys: Tensor, memory: Tensor, strengths: Tensor) -> Tensor:
    """Return softmax over slots of β_i cos(k_i, m_s), keys k [heads, width], slots m [slots, width], β [heads]."""
    return (strengths[:, None] * (F.normalize(keys, dim=1) @ F.normalize(memory, dim=1).T)).softmax(1)
