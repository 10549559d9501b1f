"""Adapt by gradient descent from meta-learned weights: the parts that MAML and its variants share.

A method of this family defines its inner loop (`inner`); the functions at the end are the methods of its `Algorithm`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from metatrain.algorithms.optimization.inner_optimizers import InnerOptimizer, fast_weights
from metatrain.engine import Engine, unrolled_gradient
from metatrain.metrics import task_loss
from metatrain.models import Model
from metatrain.models.dropout import fold
from metatrain.types import Context, InnerLoop, MetaGradient, Params, Prediction
from metatrain.validation import require
from tasks.types import Episode, Examples, TaskSpec, Tree


class Adapted(NamedTuple):
    """The result of an inner loop, and the support inputs whose statistics an inductive normalisation needs."""

    fast: Tree
    support_x: Tensor


SGD = InnerOptimizer()

Rate = Callable[[Params, str, Tensor], float | Tensor]
"""(params, name, t) -> α of the parameter of that name at inner step t: a number, or a tensor of its shape."""

ParamsAt = Callable[[Params, Tensor], Params]
"""(params, t) -> the parameters that the network reads in inner step t, where some of them differ by step."""

Transform = Callable[[Params, Params], Params]
"""(params, ∇L_S) -> the direction that φ moves against, by name as the gradient is."""

QueryLoss = Callable[[Params, Tree, Examples, Examples, Tensor, Context], tuple[Tensor, dict[str, Tensor]]]


class HasInnerLoop(Protocol):
    """A method defined by its inner loop."""

    def inner(self, model: Model) -> InnerLoop: ...


def is_model_weight(name: str) -> bool:
    """Return whether a parameter belongs to the network: then it adapts."""
    return name.startswith("model.")


def constant_rate(inner_lr: float) -> Rate:
    """Return the rate that is α = `inner_lr` for every parameter."""
    return lambda params, name, t: inner_lr


def at_every_step(params: Params, t: Tensor) -> Params:
    """Return the parameters unchanged: the network reads the same ones in every inner step."""
    return params


def gradient_itself(params: Params, slope: Params) -> Params:
    """Return the gradient as it is: φ moves against ∇L_S."""
    return slope


def gradient_descent(
    model: Model,
    rate: Rate,
    inner_steps: int,
    adapts: Callable[[str], bool] = is_model_weight,
    optimizer: InnerOptimizer = SGD,
    params_at: ParamsAt = at_every_step,
    second_order: bool = True,
    transform: Transform = gradient_itself,
) -> InnerLoop:
    """Build the inner loop φ_0 = θ,  φ_{t+1} = φ_t − α ∇L_S(φ_t)  (Finn et al. 2017, eq. 1), with the loss L_Q(φ_t).

    φ are the parameters whose names `adapts` accepts; the others stay at their θ. `optimizer`: moves φ along ∇L_S,
    in other ways than by this equation. Without `second_order` ∇L_S counts as a constant in meta-gradients, which
    learned rates get nevertheless. `transform`: learns another direction from ∇L_S.
    """

    def start(params: Params, support: Examples, context: Context) -> Tree:
        return optimizer.start({name: value for name, value in params.items() if adapts(name)})

    def support_loss(fast: Params, params: Params, support: Examples, noise: Tensor) -> Tensor:
        return task_loss(model.predict(params | fast, support.x, noise), support.y)[0]

    def step(params: Params, fast: Tree, support: Examples, t: Tensor, context: Context) -> Tree:
        at = fast_weights(fast), params_at(params, t)
        if not second_order:
            at = tree_map(torch.Tensor.detach, at)
        slope = grad(support_loss)(*at, support, fold(context.noise, t))
        return optimizer.step(fast, transform(params, slope), lambda name: rate(params, name, t), t)

    return InnerLoop(start, step, query_loss(model, inner_steps, params_at=params_at), inner_steps)


def query_loss(
    model: Model,
    inner_steps: int,
    weights: Callable[[Tree], Params] = fast_weights,
    params_at: ParamsAt = at_every_step,
) -> QueryLoss:
    """Return the function for L_Q(φ_t) and its metrics; `weights` selects the parameters within the fast weights.

    After t steps the network reads what it read in step t − 1, the last one (in step 0 before it).
    """

    def loss(
        params: Params, fast: Tree, support: Examples, query: Examples, t: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Inner steps fold 0 … K − 1 into the task's key; the query loss uses K and above.
        noise = fold(context.noise, inner_steps + t)
        read = params_at(params, (t - 1).clamp(min=0)) | weights(fast)
        return task_loss(model.predict(read, query.x, noise, reference=support.x), query.y)

    return loss


def first_order(inner: InnerLoop) -> InnerLoop:
    """Return the same loop with the Jacobian of its step replaced by the identity: without second derivatives."""

    def identity(
        params: Params, fast: Tree, support: Examples, t: Tensor, context: Context, adjoint: Tree
    ) -> tuple[Params, Tree]:
        return {name: torch.zeros_like(value) for name, value in params.items()}, adjoint

    return inner._replace(transpose=identity)


def init_weights(self: HasInnerLoop, model: Model, spec: TaskSpec, seed: int) -> Params:
    """Return θ: the network's initial parameters, head included."""
    return model.initial()


def init_weights_with_head(self: HasInnerLoop, model: Model, spec: TaskSpec, seed: int) -> Params:
    """Return θ, for methods that treat head and body differently. ValueError: the model has no head."""
    name = type(self).__name__.lower()
    none = f"algorithm.name: {name} tells head and body apart, and this model has no head"
    require(model.head is not None, f"{none}: name it by model.head, or set maml")
    return model.initial()


def descend(self: HasInnerLoop, model: Model, params: Params, support: Examples, context: Context) -> Iterator[Adapted]:
    """Yield the fast weights after 0, 1, … inner steps."""
    inner = self.inner(model)
    fast = inner.start(params, support, context)
    yield Adapted(fast, support.x)
    for t in range(inner.length):
        fast = inner.step(params, fast, support, torch.full_like(context.step, t), context)
        yield Adapted(fast, support.x)


def predict_adapted(
    self: HasInnerLoop, model: Model, params: Params, adapted: Adapted, x: Tree, context: Context
) -> Prediction:
    """Return the predictions of the fast weights for `x` [n, *x]."""
    return model.predict(params | fast_weights(adapted.fast), x, context.noise, reference=adapted.support_x)


def unrolled_meta_gradient(
    self: HasInnerLoop, model: Model, params: Params, tasks: Episode, context: Context, engine: Engine
) -> MetaGradient:
    """Differentiate the query loss through every inner step."""
    return unrolled_gradient(self.inner(model), params, tasks, context, engine)
