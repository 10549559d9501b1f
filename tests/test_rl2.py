"""RL²: a memory that lasts for a trial, PPO's loss against a plain loop in float64, and bandits' baselines."""

import math
import os
import signal
from functools import partial

import pytest
import torch
from torch import distributions, nn
from torch.utils._pytree import tree_map

from metatrain.algorithms.reinforcement import bandits
from metatrain.algorithms.reinforcement.rl2 import RL2
from metatrain.algorithms.updates import OLD
from metatrain.engine import Engine, loss_gradient
from metatrain.metrics import METRICS
from metatrain.models.dropout import uniform
from metatrain.models.layers import GRUCell
from metatrain.reinforcement import surrogates
from metatrain.reinforcement.advantages import advantages_in_trial, generalised_advantages
from metatrain.reinforcement.recurrent import RecurrentPolicy
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker
from metatrain.types import Context, Shard, ShardRequest
from tasks.environments.bandit_arms import BanditArms
from tasks.environments.protocol import EnvironmentTask
from tests import faults
from tests.configurations import method, tiny
from tests.test_reinforcement import drawn, flat

CPU = torch.device("cpu")
SMALL = "algorithm={name: rl2, hidden: 6, epochs: 2}"
NAVIGATION = (*method("rl2"), SMALL)
EPISODES = "train: {episodes: 3}, test: {episodes: 2}}"
BANDIT = (*NAVIGATION, f"tasks={{name: bandit_arms, horizon: 4, {EPISODES}", "model={name: identity}")
TABULAR = (*NAVIGATION, f"tasks={{name: tabular_mdp, horizon: 4, {EPISODES}", "model={name: identity}")
KINDS = {"navigation": NAVIGATION, "bandit": BANDIT, "tabular": TABULAR}


def double(tree):
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def setting(kind: str):
    """Return an algorithm, a network, parameters that are not those of step 0, and two tasks, in float64."""
    worker = Worker(tiny(*KINDS[kind]), CPU)
    params = {name: p + 0.3 * drawn(*p.shape, seed=len(name)) for name, p in double(worker.initial()).items()}
    (batch,) = worker.tasks(ShardRequest("gradient", "train", 0), Shard(0, (0, 1)))
    return worker.algorithm, worker.model, params, double(batch.tasks)


CONTEXT, ALONE = (Context(torch.tensor(0), torch.tensor(keys)) for keys in ([5, 6], [6]))


def test_the_cell_is_torchs():
    ours, theirs = GRUCell(4).double(), nn.GRUCell(3, 4).double()
    x, h = drawn(7, 3), drawn(7, 4, seed=1)
    with torch.no_grad():
        ours.state.weight.copy_(theirs.weight_hh)
        ours.state.bias.copy_(theirs.bias_hh)
        given = x @ theirs.weight_ih.T + theirs.bias_ih
        torch.testing.assert_close(ours(given, h), theirs(x, h), rtol=1e-12, atol=1e-12)


def test_advantages_of_a_trial_pass_over_the_steps_after_an_end():
    rewards, values = drawn(9), drawn(9, seed=1)
    mask = torch.tensor([1, 1, 0, 0, 1, 1, 1, 0, 1], dtype=torch.float64)
    rewards, expected, later, following = rewards * mask, torch.zeros(9, dtype=torch.float64), 0.0, 0.0
    for t in reversed(range(9)):
        if mask[t]:
            later = rewards[t] + 0.9 * following - values[t] + 0.9 * 0.7 * later
            expected[t], following = later, values[t]
    found = advantages_in_trial(rewards, values, mask, 0.9, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    whole = torch.ones_like(mask)
    usual = generalised_advantages(rewards[None], values[None], whole[None], 0.9, 0.7)[0]
    torch.testing.assert_close(advantages_in_trial(rewards, values, whole, 0.9, 0.7), usual)


@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(1.1, 2, 1), (1.3, 2, 0), (1.3, -2, 1), (0.7, -2, 0)])
def test_the_clipped_surrogate_has_no_slope_beyond_the_clip_where_it_would_gain(ratio, advantage, slope):
    log_p = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    given = torch.tensor(float(advantage), dtype=torch.float64)
    surrogates.clipped(log_p, torch.zeros((), dtype=torch.float64), given, 0.2).backward()
    assert float(log_p.grad) == pytest.approx(slope * ratio * advantage)


@pytest.mark.parametrize("kind", KINDS)
def test_along_a_trial_a_policy_says_what_it_said_when_it_acted(kind):
    algorithm, model, params, tasks = setting(kind)
    judged = algorithm.collect(model, params, tasks, CONTEXT, Engine("vmap"))
    for j in range(2):
        taken = tree_map(lambda leaf, j=j: leaf[j], judged.trajectories)
        perceived = tree_map(lambda leaf, j=j: leaf[j], judged.perceived)
        said = RecurrentPolicy(model, 6).along(params, perceived, taken.mask)
        for one, other in zip(said.policy, taken.policy.policy, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(said.value, taken.policy.value, rtol=1e-9, atol=1e-12)


def test_the_memory_lasts_for_a_trial_and_no_longer():
    algorithm, model, params, tasks = setting("bandit")
    alone = algorithm.collect(model, params, tree_map(lambda leaf: leaf[1:], tasks), ALONE, Engine("loop"))
    both = algorithm.collect(model, params, tasks, CONTEXT, Engine("loop"))
    torch.testing.assert_close(alone.trajectories.actions[0], both.trajectories.actions[1])
    perceived = tree_map(lambda leaf: leaf[0], both.perceived)
    assert perceived.begins.tolist() == [1, 0, 0, 0] * 3
    changed = perceived._replace(reward=perceived.reward.index_fill(0, torch.tensor([2]), 5.0))
    mask, policy = both.trajectories.mask[0], RecurrentPolicy(model, 6)
    before, after = (policy.along(params, one, mask).policy.logits for one in (perceived, changed))
    assert torch.equal(before[:2], after[:2]), "what comes later is not known"
    assert not torch.isclose(before[4:], after[4:]).any(), "the next episodes remember the reward"


def test_what_happens_after_the_end_of_an_episode_is_forgotten():
    worker = Worker(tiny(*NAVIGATION, "tasks.horizon=30"), CPU)
    at_goal = EnvironmentTask(torch.tensor([[0.001, 0.001]]), torch.tensor([7]))
    still = worker.initial() | {"policy.log_std": torch.full((2,), -3.5)}
    judged = worker.algorithm.collect(worker.model, still, at_goal, ALONE, Engine("loop"))
    mask = judged.trajectories.mask[0]
    assert 0 < int(mask.sum()) < len(mask)
    assert not judged.trajectories.rewards[0][mask == 0].any() and not judged.advantages[0][mask == 0].any()
    perceived = tree_map(lambda leaf: leaf[0], judged.perceived)
    ended = (mask == 0)[:, None]
    other = perceived._replace(observation=torch.where(ended, 9.0, perceived.observation))
    policy, params = RecurrentPolicy(worker.model, 6), worker.initial()
    one, two = (policy.along(params, each, mask).value[mask > 0] for each in (perceived, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
def test_the_gradient_is_that_of_ppo_by_a_plain_loop(vectorize):
    _, model, old, tasks = setting("bandit")
    algorithm = RL2(hidden=6, clip=0.05, entropy_weight=0.1)
    params = {name: p + 0.1 * drawn(*p.shape, seed=3 + len(name)) for name, p in old.items()}
    judged = algorithm.collect(model, old, tasks, CONTEXT, Engine(vectorize))
    found = algorithm.meta_gradient(model, params, judged, CONTEXT, Engine(vectorize))
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    total = sum(plain_loss(algorithm, leaves, judged, j) for j in range(2))
    names = sorted(leaves)
    exact = dict(zip(names, torch.autograd.grad(total, [leaves[name] for name in names]), strict=True))
    torch.testing.assert_close(flat(found.grads), flat(exact), rtol=1e-9, atol=1e-12)
    assert int(found.num_tasks) == 2 and float(found.metrics["loss"]) == pytest.approx(float(total.detach()))


def plain_loss(algorithm, params, judged, j):
    """PPO's loss of one trial by torch's own GRU and distributions, step by step."""
    taken = tree_map(lambda leaf: leaf[j], judged.trajectories)
    perceived = tree_map(lambda leaf: leaf[j], judged.perceived)
    h, terms = torch.zeros(1, 6, dtype=torch.float64), []
    weights = [params[f"recurrent.{name}"] for name in ("input.weight", "cell.state.weight")]
    biases = [params[f"recurrent.{name}"] for name in ("input.bias", "cell.state.bias")]
    for t in range(12):
        before = [float(perceived.action[t] == a) for a in range(5)]
        x = torch.tensor([1.0, *before, perceived.reward[t], perceived.begins[t]], dtype=torch.float64)
        h = torch.gru_cell(x[None], h, *weights, *biases)
        heads = [
            h[0] @ params[f"recurrent.heads.{head}.weight"].T + params[f"recurrent.heads.{head}.bias"]
            for head in ("policy", "value")
        ]
        policy = distributions.Categorical(logits=heads[0])
        acted = distributions.Categorical(logits=taken.policy.policy.logits[t])
        ratio = (policy.log_prob(taken.actions[t]) - acted.log_prob(taken.actions[t])).exp()
        advantage = judged.advantages[j][t]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - algorithm.clip, 1 + algorithm.clip) * advantage)
        error = (heads[1][0] - judged.values[j][t]) ** 2 / 2
        terms.append(-gain + algorithm.value_weight * error - algorithm.entropy_weight * policy.entropy())
    return torch.stack(terms).mean()


def test_the_gradient_of_a_sum_is_the_sum_of_gradients():
    theta, x = {"w": drawn(3)}, drawn(5, 4, 3, seed=1)

    def loss(params, task, context):
        value = (task @ params["w"]).tanh().square().sum()
        return value, {"loss": value, "size": task.norm()}

    context = Context(torch.tensor(0), torch.arange(5))
    each = loss_gradient(loss, theta, x, context, Engine("loop"))
    for chunk in (None, 2):
        whole = loss_gradient(loss, theta, x, context, Engine("vmap", chunk=chunk))
        torch.testing.assert_close(whole, each, rtol=1e-12, atol=1e-12)


def test_a_step_takes_its_epochs_from_one_trial_and_learns(monkeypatch):
    settings = ("outer.lr=0.02", "outer.steps=60", "outer.tasks_per_step=200", "engine.vectorize=vmap")
    few = (
        "tasks={name: bandit_arms, arms: 2, horizon: 8, train: {episodes: 1}, test: {episodes: 1}}",
        "algorithm={name: rl2, hidden: 16}",
    )
    config = tiny(*BANDIT, *few, "executor.shard_size=200", *settings)
    executor = InProcess(Worker(config, CPU))
    state = initial_state(executor.worker.initial(), config.outer)
    found = list(train(state, executor, config.outer, 200, config.algorithm.update))
    first, last = (sum(one["return"] for one in part) / 5 for part in (found[:5], found[-5:]))
    assert last > first + 0.3, "of 4 at random and 5.33 who knows the arms"
    assert all(one["kl"] > 0 for one in found)
    assert "total_return" in METRICS


def test_epochs_after_the_first_use_what_the_first_collected():
    worker = Worker(tiny(*BANDIT), CPU)
    params, shard = worker.initial(), Shard(0, (0, 1))
    moved = {name: 1.01 * value + 0.01 for name, value in params.items()}
    given = moved | {f"{OLD}{name}": value for name, value in params.items()}
    request = ShardRequest("gradient", "train", 0, sent=(OLD,))
    worker.gradient(ShardRequest("gradient", "train", 0), params, shard)
    found, fresh = (one.gradient(request, given, shard) for one in (worker, Worker(worker.config, CPU)))
    assert torch.equal(flat(found.grads), flat(fresh.grads)) and float(found.metrics["kl"]) > 0


@pytest.mark.ray
def test_three_workers_of_which_one_is_killed_find_the_bits_of_one_process(local_ray):
    config = faults.on_ray(tiny(*BANDIT, "outer.steps=100"), 3)
    with faults.running(config) as run:
        run.step(2)
        os.kill(run.executor.pids()[0], signal.SIGKILL)
        run.step(3)
        run.until(lambda: run.count_events("worker-lost") > 0, seconds=60)
        run.check()


def test_draws_of_beta_have_its_distribution():
    numbers = uniform(torch.tensor(3), torch.Size((2, 20_000, 9)), CPU)
    for a, b in ((1, 1), (3, 2), (9, 5)):
        found = bandits.beta(torch.full((20_000,), a), torch.full((20_000,), b), numbers)
        assert float(found.mean()) == pytest.approx(a / (a + b), abs=0.01)
        assert float(found.var()) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=0.05)


def test_ucb1_pulls_what_a_plain_loop_pulls():
    worker = Worker(tiny(*BANDIT), CPU)
    (batch,) = worker.tasks(ShardRequest("gradient", "test", 0), Shard(0, (0,)))
    task = tree_map(lambda leaf: leaf[0], batch.tasks)
    pulls = []
    original = BanditArms.step

    def noted(self, parameters, state, action, numbers):
        after = original(self, parameters, state, action, numbers)
        pulls.append((int(action), float(after.reward)))
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BanditArms, "step", noted)
        found = bandits.UCB1().score(worker.model, {}, task, CONTEXT)
    paid, count = [1.0] * 5, [2.0] * 5
    for number, (arm, reward) in enumerate(pulls):
        bounds = [p / n + 0.2 * math.sqrt(2 * math.log(number + 1) / n) for p, n in zip(paid, count, strict=True)]
        assert arm == bounds.index(max(bounds))
        paid[arm], count[arm] = paid[arm] + reward, count[arm] + 1
    assert len(pulls) == 12
    assert float(found["total_return"][-1]) == sum(reward for _, reward in pulls)
    assert found["return"].shape == (3,)


@pytest.mark.parametrize("learner", [bandits.ThompsonSampling(), bandits.UCB1()])
def test_who_counts_pulls_finds_a_good_arm_but_knows_no_task_before(learner):
    worker = Worker(tiny(*BANDIT, "tasks.horizon=40"), CPU)
    (batch,) = worker.tasks(ShardRequest("gradient", "test", 0), Shard(0, tuple(range(100))))
    context = Context(torch.tensor(0), torch.arange(100))
    found = Engine("vmap").map(partial(learner.score, worker.model), {}, batch.tasks, context)["return"].mean(0)
    assert found[0] > 22 and found[-1] > found[0] + 2 and found[-1] < 40 * 5 / 6
