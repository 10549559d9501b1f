"""A recurrent learner: an LSTM whose state is all that it keeps of a task (Hochreiter, Younger & Conwell 2001)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from metatrain.algorithms.memory import sequences
from metatrain.models import Model, Part
from metatrain.models.layers import LSTMCell
from metatrain.types import Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec


@dataclass(frozen=True)
class LSTMLearner:
    """Predict y_t by a linear layer from h_t, (h_t, c_t) = LSTM([f(x_t), y_{t−1}], (h_{t−1}, c_{t−1})).

    The weights are parameters "recurrent.…".
    """

    hidden: int = 200

    prefix = "recurrent."
    reads_sequences = True
    transductive = False

    def __post_init__(self) -> None:
        require_positive("algorithm", hidden=self.hidden)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        sequences.require_sequences("lstm", model, spec)
        return model.initial(head=False) | self.network(model.num_features, spec.ways or 0).initial(seed)

    logits = sequences.logits_of_offset_labels
    score = sequences.sequence_score
    meta_gradient = sequences.sequence_gradient

    def network(self, features: int, labels: int) -> Part:
        sizes = (features + labels, self.hidden, labels)
        return Part(self.prefix, partial(Recurrent, *sizes))


class Recurrent(nn.Module):
    """An LSTM cell, step by step, and a linear layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell = LSTMCell(inputs + hidden, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [T, outputs] of inputs [T, n]."""
        h = c = inputs.new_zeros(self.output.in_features)
        states = []
        for x in inputs:
            h, c = self.cell(x, h, c)
            states.append(h)
        logits: Tensor = self.output(torch.stack(states))
        return logits
