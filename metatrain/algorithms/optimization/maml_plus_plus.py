"""MAML++ (Antoniou, Edwards & Storkey 2019): MAML that trains more steadily, in parts that can each be turned off."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.engine import Engine, unrolled_gradient
from metatrain.models import Model
from metatrain.types import Context, InnerLoop, MetaGradient, Params
from metatrain.validation import require_not_negative, require_positive
from tasks.types import Episode, Examples, TaskSpec

RATE, NORM = "inner_lr.", "step_norm."
_LEAST = 0.03
"""The least share of 1/K that the loss after a step keeps while losses before the last count: the authors' value."""


@dataclass(frozen=True)
class MAMLPlusPlus:
    """Minimise Σ_t w_t L_Q(φ_t),  φ_{t+1} = φ_t − α_t ∇L_S(φ_t), α_t one rate for each tensor of weights and step.

    learned_rates: α_t are meta-parameters "inner_lr.…" [inner_steps], else α = `inner_lr` (LSLR, §4.4).
    step_norm: scale γ_t and shift β_t of normalisation are meta-parameters of their own in each inner step,
    "step_norm.…" [inner_steps, C] (BNWB and BNRS, §4.3). They never adapt. Statistics are those of the batch of each
    step, as in the authors' code, which keeps running ones and does not read them.
    multi_step_loss: outer steps during which losses before the last count, with w_t from 1/K down to .03/K (MSL,
    §4.1); 0 for never. first_order: outer steps without second derivatives before those with them (DA, §4.2).
    The fifth part, a cosine schedule of the outer rate (CA, §4.5), is `outer.schedule`.
    """

    inner_lr: float = 0.1
    inner_steps: int = 5
    learned_rates: bool = True
    step_norm: bool = True
    multi_step_loss: int = 1000
    first_order: int = 0
    inner_optimizer: InnerOptimizer = gd.SGD

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)
        require_not_negative("algorithm", multi_step_loss=self.multi_step_loss, first_order=self.first_order)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        weights, norms = model.initial(), set(model.norm_names)
        if self.step_norm:
            steps = {NORM + name: weights.pop(name).expand(self.inner_steps, -1).clone() for name in sorted(norms)}
            weights |= steps
        if self.learned_rates:
            adapts = [name for name in weights if gd.is_model_weight(name) and name not in norms]
            weights |= {RATE + name: torch.full((self.inner_steps,), self.inner_lr) for name in adapts}
        return weights

    def inner(self, model: Model, second_order: bool = True) -> InnerLoop:
        norms = frozenset(model.norm_names)

        def rate(params: Params, name: str, t: Tensor) -> float | Tensor:
            return at_step(params[RATE + name], t) if self.learned_rates else self.inner_lr

        return gd.gradient_descent(
            model,
            rate,
            self.inner_steps,
            adapts=lambda name: gd.is_model_weight(name) and name not in norms,
            optimizer=self.inner_optimizer,
            params_at=self.params_at,
            second_order=second_order,
        )

    def params_at(self, params: Params, t: Tensor) -> Params:
        """Return the parameters that the network reads in inner step t: γ_t and β_t under their names there."""
        if not self.step_norm:
            return params
        return params | {name[len(NORM) :]: at_step(p, t) for name, p in params.items() if name.startswith(NORM)}

    def trajectory(self, model: Model, params: Params, support: Examples, context: Context) -> Iterator[gd.Adapted]:
        for t, adapted in enumerate(gd.descend(self, model, params, support, context)):
            read = self.params_at(params, torch.full_like(context.step, max(t - 1, 0)))
            norms = {name: value for name, value in read.items() if name not in params}
            yield gd.Adapted(norms | fast_weights(adapted.fast), adapted.support_x)

    def meta_gradient(
        self, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
    ) -> MetaGradient:
        step = int(context.step)
        inner = self.inner(model, second_order=step >= self.first_order)
        if step < self.multi_step_loss:
            inner = inner._replace(weights=self.loss_weights)
        return unrolled_gradient(inner, params, tasks, context, engine)

    def loss_weights(self, step: Tensor) -> Tensor:
        """Return w_t [inner_steps + 1]: of the loss before any step 0, after the last what the others leave of 1."""
        share = (1 - step.double() / self.multi_step_loss).clamp(min=_LEAST) / self.inner_steps
        before = share.expand(self.inner_steps - 1)
        return torch.cat([torch.zeros_like(share).view(1), before, (1 - before.sum()).view(1)])

    @property
    def phases(self) -> tuple[int, ...]:
        """Return the outer steps from which on another computation is done, each to be compiled."""
        return tuple(sorted({0, self.first_order, self.multi_step_loss}))

    predict = gd.predict_adapted


def at_step(table: Tensor, t: Tensor) -> Tensor:
    """Return row t of a table [steps, ...], the last row for later steps."""
    return table.index_select(0, t.clamp(max=len(table) - 1).view(1)).squeeze(0)
