"""A decision process small enough to enumerate: its expected return, exactly, from nothing of ours."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.models import Model, build_model
from metatrain.models.architectures import Identity
from metatrain.models.model import HEAD
from metatrain.reinforcement.policies import Categorical
from metatrain.reinforcement.rollout import Trajectories
from metatrain.types import Params
from tasks.environments.distribution import EnvironmentTasks
from tasks.environments.shape import EnvironmentShape
from tasks.environments.tabular_mdp import Tables
from tasks.sources.tabular_mdp import TabularMDPs

STATES, CHOICES, STEPS = 3, 2, 3
SOURCE = TabularMDPs(STATES, CHOICES, STEPS)


def distribution(episodes: int = 6) -> EnvironmentTasks:
    return SOURCE.distribution("train", EnvironmentShape(episodes), 0)


def tables(index: int = 0) -> Tables:
    found = distribution().episodes([index]).parameters
    transitions = found.transitions[0].double()
    return Tables(transitions / transitions.sum(-1, keepdim=True), found.rewards[0].double())


def tabular_policy(seed: int = 0) -> tuple[Model, Params]:
    """A linear layer on one-hot observations: logits of a table, and a bias that every state shares."""
    model = build_model(Identity(), distribution().spec, seed).to(torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in model.initial().items()
    }
    return model, params


def logits(params: Params) -> Tensor:
    """The logits [S, A] of `tabular_policy`."""
    return params[f"{HEAD}weight"].T + params[f"{HEAD}bias"]


def expected_return(params: Params, process: Tables) -> Tensor:
    """Σ_t E r_t by the probabilities of states, step by step."""
    policy = logits(params).softmax(-1)
    where, total = torch.eye(STATES, dtype=torch.float64)[0], torch.zeros((), dtype=torch.float64)
    for _ in range(STEPS):
        both = where[:, None] * policy
        total = total + (both * process.rewards).sum()
        where = torch.einsum("sa,sax->x", both, process.transitions)
    return total


class Enumerated(NamedTuple):
    """All trajectories, the probability of each [E], and log π_old of each action [E, T]."""

    trajectories: Trajectories
    probability: Tensor


def enumerate_trajectories(params: Params, process: Tables) -> Enumerated:
    """Every trajectory there is, with rewards at their means; a mask of its probability weighs it in any mean."""
    table = logits(params).detach()
    policy = table.softmax(-1)
    rows = []
    for choice in itertools.product(range(CHOICES), repeat=STEPS):
        for visited in itertools.product(range(STATES), repeat=STEPS - 1):
            states = torch.tensor((0, *visited))
            actions = torch.tensor(choice)
            p = policy[states, actions].prod() * process.transitions[states[:-1], actions[:-1], states[1:]].prod()
            rows.append((states, actions, process.rewards[states, actions], p))
    states, actions, rewards, p = (torch.stack(parts) for parts in zip(*rows, strict=True))
    observations = torch.eye(STATES, dtype=torch.float64)[states]
    mask = p[:, None].expand(-1, STEPS).clone()
    return Enumerated(Trajectories(observations, actions, rewards, mask, Categorical(table[states])), p)


def to_go(rewards: Tensor) -> Tensor:
    return rewards.flip(-1).cumsum(-1).flip(-1)
