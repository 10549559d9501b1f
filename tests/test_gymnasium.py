"""Environments of Gymnasium as tasks: their bits, their rewards, and what is said of those at fault."""

import math
import os
import signal

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from metatrain.training.worker import Worker
from metatrain.types import Shard, ShardRequest
from metatrain.yaml_config import apply_overrides
from tasks.environments import gymnasium_env
from tasks.environments.gymnasium_env import GymnasiumEnvironment
from tasks.environments.protocol import Box
from tasks.sources.gymnasium import Gymnasium
from tests import faults
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY, method, tiny
from tests.test_reinforcement import flat

CPU = torch.device("cpu")
LINE = (
    "tasks={name: gymnasium, environment_id: 'tests.simulators:Line-v0', task: target, low: -1, high: 1, horizon: 6, "
    "train: {episodes: 4}, test: {episodes: 3}}"
)
RUN = (*method("maml_trpo"), LINE)


@pytest.fixture(autouse=True)
def no_simulators_kept():
    gymnasium_env._kept.simulators.clear()


def gradient(*overrides: str, indices=(0, 1, 2), worker=None):
    worker = worker or Worker(tiny(*RUN, *overrides), CPU)
    return worker.gradient(ShardRequest("gradient", "train", 0), worker.initial(), Shard(0, indices))


def test_a_lost_shard_is_found_again_to_the_bit_whatever_the_simulators_did_before():
    first = flat(gradient().grads)
    worker = Worker(tiny(*RUN), CPU)
    gradient(indices=(7, 8), worker=worker)
    assert torch.equal(flat(gradient(worker=worker).grads), first)
    assert not torch.equal(flat(gradient(indices=(3, 4, 5), worker=worker).grads), first)
    looped, mapped = (flat(gradient(f"engine.vectorize={how}").grads) for how in ("loop", "vmap"))
    torch.testing.assert_close(looped, mapped, rtol=1e-3, atol=1e-6)


def test_episodes_that_have_ended_are_not_stepped_and_earn_nothing():
    environment = GymnasiumEnvironment("tests.simulators:Line-v0", "set_target", 30)
    assert (environment.observation_size, environment.actions) == (2, Box(1))
    goal, numbers = torch.tensor([0.7]), torch.rand(2, 1, generator=torch.Generator().manual_seed(0))
    state = environment.reset(goal, numbers)
    assert all(one.unwrapped.target == pytest.approx(0.7) for one in state.each)
    actions, found = torch.tensor([[9.0], [0.0]]), []
    for _ in range(9):
        before = environment.observe(goal, state)[:, 0]
        state, reward, done = environment.step(goal, state, actions, torch.zeros(2, 0))
        after = environment.observe(goal, state)[:, 0]
        found.append((done.tolist(), [one.unwrapped.steps for one in state.each]))
        torch.testing.assert_close(reward[1], -(after[1] - 0.7).abs())
        assert float(after[0] - before[0]) < 0.55, "actions are clipped to the bounds"
    ended = [done[0] for done, _ in found].index(True)
    assert all(steps == [ended + 1, t + 1] for t, (_, steps) in enumerate(found) if t >= ended)
    assert not any(done[1] for done, _ in found) and float(reward[0]) == 0


@pytest.mark.parametrize(("task", "value"), [("velocity", 1.5), ("direction", -1.0), ("direction", 1.0)])
def test_half_cheetah_is_rewarded_for_the_velocity_or_direction_of_its_task(task, value):
    pytest.importorskip("mujoco", reason="HalfCheetah needs mujoco: pip install 'metatrain[rl]'")
    environment = GymnasiumEnvironment("HalfCheetah-v5", task, 5)
    assert (environment.observation_size, environment.actions) == (17, Box(6))
    goal, numbers = torch.tensor([value]), torch.tensor([[0.25]])
    state = environment.reset(goal, numbers)
    plain = gymnasium.make("HalfCheetah-v5")
    plain.reset(seed=int(0.25 * 2**31))
    for t in range(5):
        action = torch.linspace(-2, 2, 6)[None] * (t + 1) / 5
        _, reward, _ = environment.step(goal, state, action, torch.zeros(1, 0))
        clipped = np.clip(action[0].numpy(), -1, 1)
        velocity = plain.step(clipped)[4]["x_velocity"]
        moved = -abs(velocity - value) if task == "velocity" else math.copysign(1, value) * velocity
        assert float(reward) == pytest.approx(moved - 0.05 * float(np.square(clipped).sum()), rel=1e-5)


def test_tasks_are_drawn_from_a_range_or_from_choices():
    drawn = np.linspace(0, 0.999, 50)[:, None]
    plain = Gymnasium("Pendulum-v1", task="g", low=5, high=15).parameters(drawn)
    assert plain.shape == (50, 1) and float(plain.min()) == 5 and 14.9 < float(plain.max()) < 15
    chosen = Gymnasium("HalfCheetah-v5", task="direction", choices=(-1, 1)).parameters(drawn)
    assert chosen.flatten().tolist() == [-1.0] * 25 + [1.0] * 25


@pytest.mark.ray
def test_three_workers_of_which_one_is_killed_find_the_bits_of_one_process(local_ray):
    config = faults.on_ray(tiny(*RUN, "outer.steps=100"), 3)
    with faults.running(config) as run:
        run.step(2)
        os.kill(run.executor.pids()[0], signal.SIGKILL)
        run.step(3)
        run.until(lambda: run.count_events("worker-lost") > 0, seconds=60)
        run.check()


def test_what_cannot_be_acted_in_is_told_in_one_line_before_a_run_begins(tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, RUN)))
    for override, message in {
        "tasks.environment_id=Nowhere-v0": "tasks.environment_id: Nowhere-v0: Environment `Nowhere` doesn't exist",
        "tasks.environment_id=''": "tasks.environment_id: which environment is not said: set it",
        "tasks.task=goal": "tasks.task: tests.simulators:Line-v0 has no attribute or method 'goal' to set a task by",
        "tasks.task=velocity": "tasks.task: tests.simulators:Line-v0 tells no x_velocity: name an attribute or method",
        "tasks.settings={harm: actions}": "takes a MultiDiscrete([2 2]), not a Box or Discrete: wrap it",
        "tasks.settings={harm: observations}": "observes a Discrete(3), not a Box: wrap it",
        "tasks.settings={colour: red}": "unexpected keyword argument 'colour'",
        "tasks.task=direction & tasks.low=0": "tasks.choices: [0.0, 1.0] are not two directions: set [-1, 1]",
        "tasks.low=3": "tasks.low: 3 to 1 is no range: set low below high",
        "algorithm={name: rl2}": "algorithm.name: rl2 acts in one episode at a time",
    }.items():
        said = command(tmp_path, "train", "n.yaml", *override.split(" & "), expect=2).err
        assert message in said and len(said.strip().splitlines()) == 1, said
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("harm", "message"), [("nan", "gave reward nan"), ("raise", "RuntimeError: the solver did not converge")]
)
def test_a_simulator_at_fault_ends_the_run_with_one_line(harm, message, tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, [*RUN, f"tasks.settings={{harm: {harm}}}"])))
    said = command(tmp_path, "train", "n.yaml", expect=1).err
    assert message in said and "go on with `metatrain train --resume" in said and "Traceback" not in said


def test_a_run_tells_returns_beside_random_actions(tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, RUN)))
    found = last_json(command(tmp_path, "train", "n.yaml", "--json"))
    assert {one["learner"] for one in found["baselines"]} == {"untrained", "random_policy"}
    assert found["test"]["score"] == "return"
