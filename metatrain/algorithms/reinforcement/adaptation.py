"""Adapt a policy to a task by policy gradients: what meta-reinforcement learning by gradients shares.

Two phases for a task. First it is acted in, without a gradient:

    τ_0 ~ π_θ,   θ_1 = θ − α ∇L(τ_0; θ),   τ_1 ~ π_{θ_1},   …,   τ_K ~ π_{θ_K}

Then what was collected is all that the meta-gradient and its like depend on: τ_0 … τ_{K−1} are the support set and
τ_K the query set of an inner loop, as the examples of any other task.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from metatrain.engine import Engine
from metatrain.models import Model
from metatrain.reinforcement import advantages, policies, surrogates
from metatrain.reinforcement.rollout import Trajectories, mean_return, roll_out
from metatrain.types import Context, InnerLoop, Params
from tasks.environments.protocol import EnvironmentTask, State
from tasks.types import Episode, Examples, TaskSpec, Tree


class Experience(NamedTuple):
    """The trajectories of a batch of episodes, and how good each action was [E, T]."""

    trajectories: Trajectories
    advantages: Tensor


class AdaptsPolicies(Protocol):
    """The settings of a method that adapts a policy by K = `inner_steps` policy gradients of rate α = `inner_lr`."""

    @property
    def inner_lr(self) -> float: ...
    @property
    def inner_steps(self) -> int: ...
    @property
    def estimator(self) -> surrogates.Estimator: ...
    @property
    def discount(self) -> float: ...
    @property
    def trace(self) -> float: ...


def init_policy(self: object, model: Model, spec: TaskSpec, seed: int) -> Params:
    """Return θ: the network's initial parameters, and log σ. ValueError: it reads several observations at once."""
    policies.require_alone(model)
    return policies.initial_policy(model)


def policy_part(params: Params) -> Params:
    """Return the parameters of the policy, which adapt."""
    return {name: value for name, value in params.items() if policies.is_of_policy(name)}


def act_by(model: Model, params: Params) -> Callable[[Tensor, State, int, Tensor], tuple[Tensor, Tree]]:
    """Return how the policy at `params` acts."""

    def act(observation: Tensor, state: State, t: int, numbers: Tensor) -> tuple[Tensor, Tree]:
        policy = policies.action_distribution(model, params, observation)
        return policies.sample(policy, numbers), policy

    return act


def judge(self: AdaptsPolicies, trajectories: Trajectories) -> Experience:
    """Return trajectories with advantages over a linear baseline, fitted to their own discounted returns."""
    observations, rewards, mask = trajectories.observations, trajectories.rewards, trajectories.mask
    values = advantages.linear_baseline(observations, mask, advantages.discounted_sums(rewards, self.discount))
    found = advantages.generalised_advantages(rewards, values, mask, self.discount, self.trace)
    return Experience(trajectories, advantages.normalised(found, mask))


def surrogate_loss(model: Model, terms: surrogates.Terms, params: Params, experience: Experience) -> Tensor:
    """Return minus the mean of `terms` over steps: where `params` acted, its gradient is a policy gradient."""
    taken = experience.trajectories
    policy = policies.action_distribution(model, params, taken.observations)
    log_p, acted = (policies.log_probability(one, taken.actions) for one in (policy, taken.policy))
    return -surrogates.mean_of_steps(terms(log_p, acted, experience.advantages, taken.rewards), taken.mask)


def policy_descent(self: AdaptsPolicies, model: Model) -> InnerLoop:
    """Build the inner loop θ_{t+1} = θ_t − α ∇L(τ_t; θ_t), whose loss is minus the mean of π / π_old A over τ_K."""

    def start(params: Params, support: Examples, context: Context) -> Tree:
        return policy_part(params)

    def step(params: Params, fast: Params, support: Tree, t: Tensor, context: Context) -> Tree:
        experience = tree_map(lambda leaf: leaf.index_select(0, t.view(1)).squeeze(0), support)
        return descend(self, model, fast, experience)

    def loss(
        params: Params, fast: Params, support: Tree, query: Tree, t: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = surrogate_loss(model, surrogates.importance, fast, query)
        return found, {"loss": found, "return": mean_return(query.trajectories)}

    return InnerLoop(start, step, loss, self.inner_steps)


def descend(self: AdaptsPolicies, model: Model, fast: Params, experience: Experience) -> Params:
    """Return θ − α ∇L(τ; θ)."""
    slope = grad(partial(surrogate_loss, model, surrogates.ESTIMATORS[self.estimator]))(fast, experience)
    return {name: value - self.inner_lr * slope[name] for name, value in fast.items()}


def batches(self: AdaptsPolicies, model: Model, params: Params, task: EnvironmentTask) -> list[Experience]:
    """Return τ_0 … τ_K of ONE task, each collected by the policy that the ones before it led to."""
    environment, episodes = policies.environment_of(model), model.spec.episodes
    fast = policy_part(params)
    found: list[Experience] = []
    for t in range(self.inner_steps + 1):
        if found:
            fast = descend(self, model, fast, found[-1])
        number = torch.full_like(task.key, t)
        found.append(judge(self, roll_out(environment, act_by(model, fast), task, number, episodes)))
    return found


def collect(
    self: AdaptsPolicies, model: Model, params: Params, tasks: EnvironmentTask, context: Context, engine: Engine
) -> Episode:
    """Act in every task: support is τ_0 … τ_{K−1}, [B, K, E, T, ...], and query τ_K, [B, E, T, ...]."""

    def one(params: Params, task: EnvironmentTask, context: Context) -> Episode:
        *support, query = batches(self, model, params, task)
        stacked: Tree = tree_map(lambda *leaves: torch.stack(leaves), *support) if support else ()
        return Episode(stacked, query)  # type: ignore[arg-type]

    found: Episode = engine.for_acting(model.spec).map(one, params, tasks, context)
    return found


def return_by_update(
    self: AdaptsPolicies, model: Model, params: Params, task: EnvironmentTask, context: Context
) -> dict[str, Tensor]:
    """Return the mean return of ONE task's episodes after 0, 1, … K updates, as scores."""
    found = torch.stack([mean_return(one.trajectories) for one in batches(self, model, params, task)])
    return {"inner_step": torch.arange(len(found)), "return": found}
