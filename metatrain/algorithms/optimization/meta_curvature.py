"""Meta-Curvature (Park & Oliva 2019): learn to transform the inner gradient by a small matrix for each mode."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metatrain.algorithms.optimization import gradient_descent as gd
from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer
from metatrain.models import Model
from metatrain.types import InnerLoop, Params
from metatrain.validation import require_positive
from tasks.types import TaskSpec

CURVATURE = "curvature."


@dataclass(frozen=True)
class MetaCurvature:
    """Adapt by φ = θ − α MC(∇L_S(θ)), MC(G) = G ×₃ M_f ×₂ M_i ×₁ M_o (eq. 11); minimise L_Q(φ) over θ and all M.

    The matrices of one weight [O, I, …] are parameters "curvature.NAME.out" M_o [O, O], "….in" M_i [I, I] and, where it
    is a kernel of h·w positions, "….position" M_f [h·w, h·w]; those of a bias "….out" [O], elementwise. They begin as
    identities, so that training begins as MAML does. `outer.groups.curvature` sets their optimiser.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    inner_optimizer: InnerOptimizer = field(default_factory=InnerOptimizer)

    def __post_init__(self) -> None:
        require_positive("algorithm", inner_lr=self.inner_lr, inner_steps=self.inner_steps)

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        weights = model.initial()
        matrices = {CURVATURE + name + end: m for name, g in weights.items() for end, m in identities(g).items()}
        return weights | matrices

    def inner(self, model: Model) -> InnerLoop:
        return gd.gradient_descent(
            model,
            gd.constant_rate(self.inner_lr),
            self.inner_steps,
            optimizer=self.inner_optimizer,
            transform=transform_gradients,
        )

    trajectory, predict, meta_gradient = gd.descend, gd.predict_adapted, gd.unrolled_meta_gradient


def identities(weight: Tensor) -> Params:
    """Return the matrices by which MC leaves the gradient of `weight` as it is, by the ends of their names."""
    if weight.dim() < 2:
        return {".out": torch.ones_like(weight)}
    sizes = {".out": weight.shape[0], ".in": weight.shape[1]}
    if weight.dim() > 2:
        sizes[".position"] = weight[0, 0].numel()
    return {end: torch.eye(size, dtype=weight.dtype, device=weight.device) for end, size in sizes.items()}


def transform_gradients(params: Params, slope: Params) -> Params:
    """Return MC(G) of every gradient G."""
    return {name: transform_gradient(params, CURVATURE + name, g) for name, g in slope.items()}


def transform_gradient(params: Params, name: str, g: Tensor) -> Tensor:
    """Return G ×₃ M_f ×₂ M_i ×₁ M_o, [O, I, …] as G is; (G ×_n M) sums M[j, i] G[…, i, …] over mode n."""
    if g.dim() < 2:
        return params[name + ".out"] * g
    modes = g.flatten(2) if g.dim() > 2 else g[..., None]
    if g.dim() > 2:
        modes = modes @ params[name + ".position"].T
    modes = params[name + ".in"] @ modes
    return (params[name + ".out"] @ modes.flatten(1)).view(g.shape)
