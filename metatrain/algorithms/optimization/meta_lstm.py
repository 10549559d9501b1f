"""Meta-LSTM (Ravi & Larochelle 2017): learn the update rule of the inner loop as an LSTM that all weights share."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.utils._pytree import tree_map

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.metrics import task_loss
from metatrain.models import Model, Part
from metatrain.models.dropout import fold
from metatrain.types import Context, InnerLoop, Params
from metatrain.validation import require, require_positive
from tasks.types import Examples, TaskSpec

_P = 10
"""Gradients and losses above e^−p are given to the LSTM by the logarithm of their size."""


class Learning(NamedTuple):
    """Weights θ_t, and the update rule's state for each of all P weights, in the order of their names."""

    weights: Params
    hidden: Tensor
    """Hidden state h_t of the LSTM [P, H]."""
    cell: Tensor
    """Its cell state [P, H]."""
    gates: Tensor
    """The two gates f_t and i_t before their sigmoids [P, 2]."""


@dataclass(frozen=True)
class MetaLSTM:
    """Adapt by θ_t = f_t ∘ θ_{t−1} − i_t ∘ ∇L_S(θ_{t−1}) (eq. 2 to 4); minimise L_Q(θ_K) over θ_0 and the rule.

    i_t = σ(W_I [h_t, θ_{t−1}, i_{t−1}] + b_I) and f_t likewise, h_t of an LSTM of `hidden` units that reads the
    preprocessed gradient and loss, the same one for every weight (§3.2). Parameters "update_rule.…";
    `outer.groups.update_rule` sets their optimiser.

    inner_lr, forget: the values of i_t and f_t at first.
    second_order: differentiate through ∇L_S and L_S; the paper holds them constant (§3.1).
    """

    inner_lr: float = 0.1
    inner_steps: int = 5
    hidden: int = 20
    forget: float = 0.999
    second_order: bool = False

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps, hidden=self.hidden)
        for name, gate in (("inner_lr", self.inner_lr), ("forget", self.forget)):
            require(0 < gate < 1, f"algorithm.{name}: {gate:g} is not between 0 and 1, as a gate is: set 0.1 or 0.999")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        return model.initial() | self._rule.initial(seed)

    def inner(self, model: Model) -> InnerLoop:
        rule = self._rule

        def start(params: Params, support: Examples, context: Context) -> Learning:
            weights = {name: value for name, value in params.items() if gd.is_model_weight(name)}
            theta = flatten(weights)
            nothing = theta.new_zeros(len(theta), self.hidden)
            return Learning(weights, nothing, nothing, theta.new_zeros(len(theta), 2))

        def support_loss(weights: Params, params: Params, support: Examples, noise: Tensor) -> Tensor:
            return task_loss(model.predict(params | weights, support.x, noise), support.y)[0]

        def step(params: Params, fast: Learning, support: Examples, t: Tensor, context: Context) -> Learning:
            at = fast.weights, params
            if not self.second_order:
                at = tree_map(Tensor.detach, at)
            slope, loss = grad_and_value(support_loss)(*at, support, fold(context.noise, t))
            theta, *state = rule(params, flatten(fast.weights), flatten(slope), loss, *fast[1:])
            return Learning(unflatten(theta, fast.weights), *state)

        return InnerLoop(start, step, gd.query_loss(model, self.inner_steps), self.inner_steps)

    trajectory, predict, meta_gradient = gd.descend, gd.predict_adapted, gd.unrolled_meta_gradient

    @property
    def _rule(self) -> Part:
        return Part("update_rule.", partial(UpdateRule, self.hidden, self.inner_lr, self.forget))


class UpdateRule(nn.Module):
    """Map weights, gradients [P] and the loss [] to the next weights, with a state for each weight."""

    def __init__(self, hidden: int, inner_lr: float, forget: float) -> None:
        super().__init__()
        self.lstm = nn.Linear(4 + hidden, 4 * hidden)
        self.forget_gate, self.input_gate = nn.Linear(hidden + 2, 1), nn.Linear(hidden + 2, 1)
        for value in self.parameters():
            nn.init.uniform_(value, -0.01, 0.01)
        # The rule begins as gradient descent.
        nn.init.constant_(self.forget_gate.bias, math.log(forget / (1 - forget)))
        nn.init.constant_(self.input_gate.bias, math.log(inner_lr / (1 - inner_lr)))

    def forward(
        self, theta: Tensor, slope: Tensor, loss: Tensor, hidden: Tensor, cell: Tensor, gates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (θ_t, h_t, c_t, (f_t, i_t) before their sigmoids)."""
        seen = torch.cat([preprocess(slope), preprocess(loss).expand(len(theta), 2)], 1)
        i, f, g, o = self.lstm(torch.cat([seen, hidden], 1)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        read = torch.cat([hidden, theta[:, None]], 1)
        forgets = self.forget_gate(torch.cat([read, gates[:, :1]], 1))
        takes = self.input_gate(torch.cat([read, gates[:, 1:]], 1))
        theta = forgets[:, 0].sigmoid() * theta - takes[:, 0].sigmoid() * slope
        return theta, hidden, cell, torch.cat([forgets, takes], 1)


def preprocess(x: Tensor) -> Tensor:
    """Return (log|x| / p, sgn x) where |x| ≥ e^−p, else (−1, e^p x), as [..., 2] (Andrychowicz et al. 2016, app. A)."""
    size = x.abs()
    large = size >= math.exp(-_P)
    # clamp: the branch that is not taken must have a finite gradient.
    first = size.clamp(min=math.exp(-_P)).log() / _P
    return torch.stack([first, torch.where(large, x.sign(), math.exp(_P) * x)], -1)


def flatten(weights: Params) -> Tensor:
    """Return all weights as one vector [P]."""
    return torch.cat([value.reshape(-1) for value in weights.values()])


def unflatten(theta: Tensor, like: Params) -> Params:
    """Return the weights in `theta` [P], named and shaped as `like`."""
    parts = torch.split(theta, [value.numel() for value in like.values()])
    return {name: part.view(value.shape) for part, (name, value) in zip(parts, like.items(), strict=True)}
