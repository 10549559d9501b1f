"""Baselines for bandits that know no task: Thompson sampling and UCB1, over the pulls of all episodes of a trial."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.reinforcement.baselines import no_params, nothing_to_learn, score_trial
from metatrain.models import Model
from metatrain.models.dropout import fold, uniform
from metatrain.reinforcement.policies import environment_of
from metatrain.reinforcement.rollout import Perceived
from metatrain.types import Context, Params
from tasks.environments.bandit_arms import BanditArms
from tasks.environments.protocol import EnvironmentTask
from tasks.types import TaskSpec, Tree

_UCB_WIDTH = 0.2
"""The best c of Duan et al. 2016, appendix B."""


class Counts(NamedTuple):
    """How often each arm paid, and did not: [arms]."""

    paid: Tensor
    unpaid: Tensor


def counted(before: Counts, perceived: Perceived) -> Counts:
    """Return the counts with the pull before."""
    arm = torch.arange(len(before.paid), device=before.paid.device) == perceived.action
    paid = perceived.reward > 0
    return Counts(before.paid + (arm & paid), before.unpaid + (arm & ~paid))


def _in_bandits(self: object, spec: TaskSpec) -> bool:
    return isinstance(spec.environment, BanditArms)


def _no_counts(model: Model, task: EnvironmentTask) -> Counts:
    zeros = torch.zeros_like(task.parameters, dtype=torch.int64)
    return Counts(zeros, zeros)


@dataclass(frozen=True)
class ThompsonSampling:
    """Pull the arm whose probability is largest in a draw from the posterior, of a uniform prior (Thompson 1933)."""

    transductive = False
    acts = True
    offered, init, meta_gradient = _in_bandits, no_params, nothing_to_learn

    def score(self, model: Model, params: Params, task: EnvironmentTask, context: Context) -> dict[str, Tensor]:
        pulls = environment_of(model).horizon * model.spec.episodes
        key = fold(task.key, 1)

        def act(counts: Counts, perceived: Perceived, number: int, _: Tensor) -> tuple[Tensor, Tree, Counts]:
            counts = counted(counts, perceived)
            numbers = uniform(fold(key, number), torch.Size((2, len(counts.paid), pulls + 1)), key.device)
            return beta(counts.paid + 1, counts.unpaid + 1, numbers).argmax(-1), (), counts

        return score_trial(model, act, _no_counts(model, task), task)


def beta(a: Tensor, b: Tensor, numbers: Tensor) -> Tensor:
    """Return draws [n] of Beta(a, b), for whole a and b [n] that are at most m, by uniform numbers [2, n, m].

    It is G_a / (G_a + G_b), where G_k is a sum of k exponentials.
    """
    sums = -(1 - numbers).log().cumsum(-1)
    of_a, of_b = (sum_.gather(-1, count[:, None] - 1).squeeze(-1) for sum_, count in zip(sums, (a, b), strict=True))
    drawn: Tensor = of_a / (of_a + of_b)
    return drawn


@dataclass(frozen=True)
class UCB1:
    """Pull the arm of the largest μ + c √(2 log t / n), c = 0.2, at pull t (Auer et al. 2002).

    With a prior of one pull that paid and one that did not (Duan et al. 2016): n = 2 and μ = 1/2 at first.
    """

    transductive = False
    acts = True
    offered, init, meta_gradient = _in_bandits, no_params, nothing_to_learn

    def score(self, model: Model, params: Params, task: EnvironmentTask, context: Context) -> dict[str, Tensor]:
        def act(counts: Counts, perceived: Perceived, number: int, _: Tensor) -> tuple[Tensor, Tree, Counts]:
            counts = counted(counts, perceived)
            n = counts.paid + counts.unpaid + 2
            bound = (counts.paid + 1) / n + _UCB_WIDTH * (2 * math.log(number + 1) / n).sqrt()
            return bound.argmax(-1), (), counts

        return score_trial(model, act, _no_counts(model, task), task)
