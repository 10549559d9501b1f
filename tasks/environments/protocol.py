"""Define what an environment is: pure functions of a task's parameters, a state, an action and given numbers.

An environment draws nothing by itself. The random numbers of an episode are given to it, each by the address of its
task, its batch of episodes, its episode and its step, so that episodes can be replayed to the bit.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

State = Any
"""A tensor, or a tree of them, with leading dimensions of episodes."""
Parameters = Any
"""What tells one task of a family from another: a tensor, or a tree of them, without leading dimensions."""


class Box(NamedTuple):
    """Actions of `size` real numbers [..., size], of which 1 is meant to be large; beyond ±1 some environments clip."""

    size: int


class Discrete(NamedTuple):
    """Actions 0 to `choices` − 1, int64 [...]."""

    choices: int


Actions = Box | Discrete


class Transition(NamedTuple):
    """The result of one action: the state after it, its reward [...], and whether the episode ends with it [...]."""

    state: State
    reward: Tensor
    done: Tensor


class Environment(Protocol):
    """A family of Markov decision processes: a frozen value, the same for all tasks of a distribution.

    Its functions are for one episode or for any leading dimensions of episodes of one task, and pass through vmap.
    Numbers are uniform in [0, 1), of the type of the parameters. One of simulators says `simulated = True`: its
    functions are called for a leading dimension of episodes, of one task at a time, outside of vmap, and a state may
    change in place. One whose best actions can be computed has `best_action(parameters, state, t)`.
    """

    @property
    def horizon(self) -> int:
        """Return the most steps of an episode."""

    @property
    def observation_size(self) -> int:
        """Return how many numbers an observation has."""

    @property
    def actions(self) -> Actions:
        """Return what actions there are."""

    @property
    def reset_draws(self) -> int:
        """Return how many numbers the first state takes."""

    @property
    def step_draws(self) -> int:
        """Return how many numbers a step takes."""

    def reset(self, parameters: Parameters, numbers: Tensor) -> State:
        """Return the first state. numbers: [..., reset_draws]."""

    def observe(self, parameters: Parameters, state: State) -> Tensor:
        """Return what a policy sees of a state [..., observation_size]."""

    def step(self, parameters: Parameters, state: State, action: Tensor, numbers: Tensor) -> Transition:
        """Return what follows from an action. numbers: [..., step_draws]."""


class EnvironmentTask(NamedTuple):
    """One task: what tells its process from others, and the key of all its episodes' numbers, an int64 scalar.

    A batch of tasks is the same type, every tensor with a leading task dimension [B, ...].
    """

    parameters: Parameters
    key: Tensor
