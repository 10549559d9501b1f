"""Environments: what is drawn of them, what their steps do, and episodes that are replayed to the bit."""

import pickle
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.reinforcement.rollout import mean_return, roll_out
from tasks.environments.protocol import Discrete
from tasks.environments.shape import EnvironmentShape
from tasks.registry import TASK_SOURCES
from tasks.sources.bandit_arms import BanditActions
from tasks.sources.gymnasium import Gymnasium
from tasks.sources.navigation_2d import Navigation2D
from tasks.sources.tabular_mdp import TabularMDPs
from tasks.types import no_progress

SOURCES = {
    "navigation_2d": Navigation2D(horizon=12),
    "bandit_arms": BanditActions(arms=3, horizon=6),
    "tabular_mdp": TabularMDPs(states=4, choices=3, horizon=5),
    "gymnasium": Gymnasium("tests.simulators:Line-v0", "set_target", -1, 1, horizon=8),
}
SHAPE = EnvironmentShape(7)
FIRST = torch.tensor(0)


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param]


def test_every_environment_is_here():
    assert SOURCES.keys() == {name for name, one in TASK_SOURCES.items() if hasattr(one, "environment")}


def one_of(tasks, j=0):
    return tree_map(lambda leaf: leaf[j], tasks)


def at_random(environment):
    """Act at random, by the numbers of the rollout; also tell them."""

    def act(observation, state, t, numbers):
        if isinstance(environment.actions, Discrete):
            return (numbers[..., 0] * environment.actions.choices).long(), numbers
        return numbers, numbers

    return act


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_task_is_its_index(source, split):
    drawn = source.distribution(split, SHAPE, 0)
    indices = [5, 0, 2**40, 5, 1]
    together = drawn.episodes(indices)
    for j, index in enumerate(indices):
        assert same(one_of(together, j), one_of(drawn.episodes([index])))
    assert same(pickle.loads(pickle.dumps(drawn)).episodes(indices), together)
    assert len(set(together.key.tolist())) == 4
    for other in (source.distribution(split, SHAPE, 1), source.distribution("train", SHAPE, 2)):
        assert not same(other.episodes([0]), drawn.episodes([0]))
    assert all(len(leaf) == 0 for leaf in tree_leaves(drawn.episodes([])))


def test_episodes_are_addressed_and_replayed(source):
    drawn = source.distribution("train", SHAPE, 0)
    tasks, environment = drawn.episodes([0, 1]), source.environment
    act = at_random(environment)
    first = roll_out(environment, act, one_of(tasks), FIRST, 7)
    assert same(first, roll_out(environment, act, one_of(tasks), FIRST, 7))
    more = roll_out(environment, act, one_of(tasks), FIRST, 9)
    assert same(first, tree_map(lambda leaf: leaf[:7], more)), "an episode does not depend on how many there are"
    together = of_all(environment, lambda task: roll_out(environment, act, task, FIRST, 7), tasks)
    for left, right in zip(tree_leaves(one_of(together)), tree_leaves(first), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    for other in (roll_out(environment, act, one_of(tasks), FIRST + 1, 7), one_of(together, 1)):
        assert not torch.equal(other.policy, first.policy)
    spec = drawn.spec
    assert first.observations.shape == (7, environment.horizon, *spec.x)
    assert (spec.kind, spec.episodes, spec.environment) == ("environment", 7, environment)


def of_all(environment, function, tasks):
    """Apply a function of one task to two tasks, by vmap where it passes through."""
    if not hasattr(environment, "simulated"):
        return torch.vmap(function)(tasks)
    each = [function(one_of(tasks, j)) for j in range(2)]
    return tree_map(lambda *leaves: torch.stack(leaves), *each)


def test_the_best_actions_are_better_than_random_ones(source):
    environment = source.environment
    if not hasattr(environment, "best_action"):
        pytest.skip("nobody knows the best actions of a simulator")
    tasks = source.distribution("test", SHAPE, 0).episodes(range(30))

    def best(task):
        def act(observation, state, t, numbers):
            return environment.best_action(task.parameters, state, t), numbers

        return mean_return(roll_out(environment, act, task, FIRST, 7))

    by_chance = torch.vmap(lambda task: mean_return(roll_out(environment, at_random(environment), task, FIRST, 7)))
    assert float(torch.vmap(best)(tasks).mean()) > float(by_chance(tasks).mean()) + 0.5


def test_navigation_goes_where_it_is_told_and_ends_at_the_goal():
    environment = Navigation2D(horizon=6).environment
    goal = torch.tensor([0.25, -0.1])
    state = environment.reset(goal, torch.empty(2, 0))
    assert state.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    found = environment.step(goal, state, torch.tensor([[5.0, -0.5], [-1.0, 0.0]]), torch.empty(2, 0))
    torch.testing.assert_close(found.state, torch.tensor([[0.1, -0.05], [-0.1, 0.0]]))
    torch.testing.assert_close(found.reward[0], -(torch.tensor([0.15, 0.05]).square().sum().sqrt()))
    assert found.done.tolist() == [False, False]
    task = one_of(Navigation2D().distribution("test", SHAPE, 0).episodes([0]))._replace(parameters=goal)

    def act(observation, state, t, numbers):
        return environment.best_action(goal, state, t), numbers

    trajectories = roll_out(environment, act, task, FIRST, 2)
    assert trajectories.mask[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert trajectories.rewards[0, 3:].tolist() == [0, 0, 0]


def test_goals_arms_and_tables_have_the_distributions_that_are_told():
    goals = Navigation2D(reach=2.0).distribution("train", SHAPE, 0).episodes(range(2000)).parameters
    assert -2 <= float(goals.min()) < -1.9 and 1.9 < float(goals.max()) <= 2
    arms = BanditActions().distribution("train", SHAPE, 0).episodes(range(2000)).parameters
    assert float(arms.mean()) == pytest.approx(0.5, abs=0.02)
    tables = TabularMDPs().distribution("train", SHAPE, 0).episodes(range(200)).parameters
    torch.testing.assert_close(tables.transitions.sum(-1), torch.ones(200, 10, 5))
    # The square of a share of a Dirichlet(1, …, 1) of n parts has the mean 2 / (n (n + 1)).
    assert float(tables.transitions.square().mean()) == pytest.approx(2 / 110, rel=0.03)
    assert float(tables.rewards.mean()) == pytest.approx(1, abs=0.03)
    assert float(tables.rewards.std()) == pytest.approx(1, abs=0.03)


def test_transitions_and_rewards_come_up_as_often_as_the_tables_say():
    source = TabularMDPs(states=3, choices=2, horizon=1, reward_std=0.5)
    tables = one_of(source.distribution("train", SHAPE, 0).episodes([0]).parameters)
    numbers = torch.rand(40000, 3, generator=torch.Generator().manual_seed(0))
    state, action = torch.full((40000,), 1), torch.full((40000,), 1)
    found = source.environment.step(tables, state, action, numbers)
    shares = torch.bincount(found.state, minlength=3) / 40000
    torch.testing.assert_close(shares, tables.transitions[1, 1], rtol=0, atol=0.01)
    assert float(found.reward.mean()) == pytest.approx(float(tables.rewards[1, 1]), abs=0.01)
    assert float(found.reward.std()) == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_is_refused():
    for make, message in {
        lambda: Navigation2D(reach=0): "reach: 0 is no distance: set it above 0",
        lambda: Navigation2D(horizon=0): "horizon: 0 is none of 1 to 10000: set one of these",
        lambda: BanditActions(arms=10**6): "arms: 1000000 is none of 1 to 10000",
        lambda: TabularMDPs(states=0): "states: 0 is none of 1 to 10000",
        lambda: TabularMDPs(states=1000): "states: 1000 with 5 choices take too many draws: lower states",
        lambda: TabularMDPs(reward_std=-1): "reward_std: -1 is no standard deviation: set 0 or more",
        lambda: EnvironmentShape(0): "episodes: 0 is none of 1 to 1000000: set one of these",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            make()
    assert "5 arms to pull" in BanditActions().prepare(no_progress)
