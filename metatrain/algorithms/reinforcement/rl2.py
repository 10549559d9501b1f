"""RL²: a recurrent policy whose memory is the adaptation (Duan et al. 2016; Wang et al. 2016), trained by PPO."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.reinforcement.baselines import score_trial
from metatrain.algorithms.updates import NO_PARAMS, OLD, Compute, Descend, Update
from metatrain.engine import Engine, loss_gradient
from metatrain.models import Model
from metatrain.reinforcement import advantages, policies, surrogates
from metatrain.reinforcement.policies import environment_of
from metatrain.reinforcement.recurrent import RecurrentPolicy
from metatrain.reinforcement.rollout import Perceived, Trajectories, Trial, roll_out_trial
from metatrain.types import Context, MetaGradient, Metrics, Params
from metatrain.validation import require, require_not_negative, require_positive
from tasks.environments.protocol import EnvironmentTask
from tasks.types import TaskSpec


class Judged(NamedTuple):
    """The N steps of a trial in one row, how good each action was, and what V should have said: [N, ...]."""

    perceived: Perceived
    trajectories: Trajectories
    advantages: Tensor
    values: Tensor


@dataclass(frozen=True)
class RL2:
    """Maximise the discounted sum of rewards over a trial: all episodes in one task, with a memory of `hidden` numbers.

    A step takes `epochs` steps of the outer optimiser along the gradient of the mean over a trial's steps of

        −min(ρ A, clip(ρ, 1 ± clip) A) + value_weight (V − R)² / 2 − entropy_weight H(π)

    (Schulman et al. 2017, eq. 9), with A of generalised advantage estimation over the whole trial, R = A + V of the
    policy that acted, and ρ = π / π_old. discount, trace: γ and λ. The number of episodes of a trial is
    tasks.train.episodes. Scores are returns of each episode, and their sum so far.
    """

    hidden: int = 64
    epochs: int = 4
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    discount: float = 0.99
    trace: float = 0.3

    transductive = False
    acts = True
    adapts_by = "episodes"

    def __post_init__(self) -> None:
        require_positive("algorithm", hidden=self.hidden, epochs=self.epochs, clip=self.clip)
        weights = {"value_weight": self.value_weight, "entropy_weight": self.entropy_weight}
        require_not_negative("algorithm", **weights)
        for name in ("discount", "trace"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"algorithm.{name}: {value:g} is none of 0 to 1: set one of these")

    def init(self, model: Model, spec: TaskSpec, seed: int) -> Params:
        policies.require_alone(model)
        slow = "algorithm.name: rl2 acts in one episode at a time, and simulators in several: set maml_trpo"
        require(not getattr(environment_of(model), "simulated", False), slow)
        return self._policy(model).initial(seed)

    def collect(self, model: Model, params: Params, tasks: EnvironmentTask, context: Context, engine: Engine) -> Judged:
        """Act in one trial of every task, and judge what was done: [B, N, ...]."""

        def one(params: Params, task: EnvironmentTask, context: Context) -> Judged:
            return self._judge(self._trial(model, params, task))

        found: Judged = engine.for_acting(model.spec).map(one, params, tasks, context)
        return found

    def meta_gradient(
        self, model: Model, params: Params, tasks: Judged, context: Context, engine: Engine
    ) -> MetaGradient:
        """Differentiate the loss of what was collected. tasks: as `collect` returns them."""
        return loss_gradient(partial(self._loss, model), params, tasks, context, engine)

    def update(self, params: Params) -> Update:
        """Take `epochs` steps of the optimiser on one trial in each task."""
        old = {name: value.clone() for name, value in params.items()}
        first: Metrics = {}
        for _ in range(self.epochs):
            # The first gradient is taken where the policy acted: there is no other to be sent.
            gradient = yield Compute("gradient", params, {OLD: old} if first else NO_PARAMS)
            last: Metrics = yield Descend(gradient)
            first = first or last
        return {**first, "kl": last["kl"]}

    def score(self, model: Model, params: Params, task: EnvironmentTask, context: Context) -> dict[str, Tensor]:
        """Return the return of each episode of ONE trial, and of all until then."""
        policy = self._policy(model)
        return score_trial(model, policy.act_by(params), policy.start(params), task)

    def behaviour(self, model: Model, params: Params, task: EnvironmentTask) -> list[Trajectories]:
        """Return how the policy acts in each episode of ONE trial, for pictures."""
        taken = self._trial(model, params, task).trajectories
        return [tree_map(lambda leaf, e=e: leaf[e : e + 1], taken) for e in range(model.spec.episodes)]

    def _policy(self, model: Model) -> RecurrentPolicy:
        return RecurrentPolicy(model, self.hidden)

    def _trial(self, model: Model, params: Params, task: EnvironmentTask) -> Trial:
        policy, number = self._policy(model), torch.zeros_like(task.key)
        act, start = policy.act_by(params), policy.start(params)
        return roll_out_trial(environment_of(model), act, start, task, number, model.spec.episodes)

    def _judge(self, trial: Trial) -> Judged:
        row: Trial = tree_map(lambda leaf: leaf.flatten(0, 1), trial)
        taken = row.trajectories
        values = taken.policy.value
        found = advantages.advantages_in_trial(taken.rewards, values, taken.mask, self.discount, self.trace)
        return Judged(row.perceived, taken, found, found + values)

    def _loss(self, model: Model, params: Params, task: Judged, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        taken = task.trajectories
        told = self._policy(model).along(params, task.perceived, taken.mask)
        log_p, acted = (policies.log_probability(one, taken.actions) for one in (told.policy, taken.policy.policy))
        gains = surrogates.clipped(log_p, acted, task.advantages, self.clip)
        errors, entropies = (told.value - task.values).square() / 2, policies.entropy(told.policy)
        terms = -gains + self.value_weight * errors - self.entropy_weight * entropies
        kinds = {"loss": terms, "value_loss": errors, "entropy": entropies}
        kinds["kl"] = policies.divergence(taken.policy.policy, told.policy)
        found = {name: surrogates.mean_of_steps(one, taken.mask) for name, one in kinds.items()}
        whole = taken.rewards.sum() / model.spec.episodes
        return found["loss"], found | {"return": whole}
