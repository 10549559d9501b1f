"""Define policies: distributions of actions given observations, whose parameters the network gives.

Box actions        N(μ(o), diag σ²), log σ a parameter of its own that depends on no observation
Discrete actions   a categorical distribution with the network's outputs as logits
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE, normal, uniform
from metatrain.types import Params
from metatrain.validation import require
from tasks.environments.protocol import Actions, Discrete, Environment

LOG_STD = "policy.log_std"
"""The name of log σ [size]: 0 at first."""
_LEAST_LOG_STD = math.log(1e-6)


class Normal(NamedTuple):
    """Independent normal distributions of each part of an action, [..., size]."""

    mean: Tensor
    log_std: Tensor


class Categorical(NamedTuple):
    """A distribution over the numbers of actions: logits [..., choices]."""

    logits: Tensor


ActionDistribution = Normal | Categorical


def environment_of(model: Model) -> Environment:
    """Return the environment that the network's tasks share. ValueError: they are no environments."""
    found = model.spec.environment
    if found is None:
        raise ValueError("tasks.name: a policy acts in environments, and these are none: set navigation_2d")
    return found


def initial_policy(model: Model) -> Params:
    """Return a policy's parameters before the first step: the network's, head included, and log σ."""
    actions = environment_of(model).actions
    if isinstance(actions, Discrete):
        return model.initial()
    return model.initial() | {LOG_STD: torch.zeros(actions.size)}


def require_alone(model: Model) -> None:
    """Check that the network reads one observation at a time. ValueError: it reads statistics of batches."""
    alone = "model: a policy may not read other observations, as statistics of batches do: set model.normalization=none"
    require(model.normalization == "none", alone)


def is_of_policy(name: str) -> bool:
    """Return whether a parameter belongs to the policy: then it adapts."""
    return name.startswith(("model.", "policy."))


def action_distribution(model: Model, params: Params, observations: Tensor) -> ActionDistribution:
    """Return the distributions of actions given observations [..., O]."""
    leading = observations.shape[:-1]
    silent = torch.full((), NO_NOISE, device=observations.device)
    outputs = model.predict(params, observations.reshape(-1, observations.shape[-1]), silent)
    outputs = outputs.view(*leading, outputs.shape[-1])
    if isinstance(environment_of(model).actions, Discrete):
        return Categorical(outputs)
    return normal_policy(outputs, params)


def normal_policy(mean: Tensor, params: Params) -> Normal:
    """Return normal distributions around `mean` [..., size], of the deviation that `params` have."""
    return Normal(mean, params[LOG_STD].clamp(min=_LEAST_LOG_STD).expand_as(mean))


def log_probability(policy: ActionDistribution, action: Tensor) -> Tensor:
    """Return log π(a) [...] of actions [..., size], or of their numbers [...]."""
    if isinstance(policy, Categorical):
        return policy.logits.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)
    z = (action - policy.mean) * (-policy.log_std).exp()
    return -(z.square() / 2 + policy.log_std + math.log(2 * math.pi) / 2).sum(-1)


def entropy(policy: ActionDistribution) -> Tensor:
    """Return −E log π(a) [...], in nats."""
    if isinstance(policy, Categorical):
        log_p = policy.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
    return (policy.log_std + (1 + math.log(2 * math.pi)) / 2).sum(-1)


def divergence(old: ActionDistribution, new: ActionDistribution) -> Tensor:
    """Return KL(old ‖ new) [...], in nats."""
    if isinstance(old, Categorical):
        assert isinstance(new, Categorical), "policies of one kind"
        log_p, log_q = old.logits.log_softmax(-1), new.logits.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    assert isinstance(new, Normal), "policies of one kind"
    ratio = (2 * (old.log_std - new.log_std)).exp()
    away = ((old.mean - new.mean) * (-new.log_std).exp()).square()
    return (new.log_std - old.log_std + (ratio + away - 1) / 2).sum(-1)


def action_numbers(actions: Actions, key: Tensor, *leading: int) -> Tensor:
    """Return the numbers that actions are drawn by, determined by `key`: normal, or uniform; [*leading, n]."""
    if isinstance(actions, Discrete):
        return uniform(key, torch.Size((*leading, 1)), key.device)
    return normal(key, torch.Size((*leading, actions.size)), key.device)


def sample(policy: ActionDistribution, numbers: Tensor) -> Tensor:
    """Return the actions that `numbers` draw: μ + σ n, or the first whose cumulative probability passes u."""
    if isinstance(policy, Normal):
        return policy.mean + policy.log_std.exp() * numbers
    below = policy.logits.softmax(-1).cumsum(-1) <= numbers
    return below.sum(-1).clamp(max=policy.logits.shape[-1] - 1)
