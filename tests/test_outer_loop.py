"""The outer loop against closed forms and torch.optim; wherever it is restored, it ends with the same bits."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from metatrain.errors import Diverged
from metatrain.runs import checkpoints
from metatrain.settings import GroupSettings, OuterSettings
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import (
    Best,
    TrainState,
    apply,
    clip,
    group_names,
    initial_state,
    learning_rate,
    restore,
    train,
)
from metatrain.training.worker import Worker
from metatrain.types import MetaGradient, Params, Shard, ShardRequest
from tests.configurations import tiny

STEPS = 6


def gradient_of(params: Params, num_tasks: int, seed: int) -> MetaGradient:
    generator = torch.Generator().manual_seed(seed)
    grads = {name: torch.randn(value.shape, generator=generator) for name, value in params.items()}
    metrics = {"loss": torch.tensor(3.0 * num_tasks), "accuracy": torch.tensor(0.25 * num_tasks)}
    return MetaGradient(grads, metrics, torch.tensor(num_tasks))


def some_params() -> Params:
    return {"model.b": torch.linspace(-1, 1, 5), "model.a": torch.linspace(0, 2, 6).view(2, 3)}


class Quadratic:
    """Task i pulls w towards i: Σ ½(w − i)², its gradient summed over tasks."""

    def __init__(self) -> None:
        self.asked: list[tuple[ShardRequest, list[Shard]]] = []

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        self.asked.append((request, list(shards)))
        goals = torch.tensor([float(i) for shard in shards for i in shard.indices])
        apart = params["w"] - goals
        return MetaGradient({"w": apart.sum()}, {"loss": (apart**2 / 2).sum()}, torch.tensor(len(goals)))


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.4),
        ("constant", 99, 0.4),
        ("linear", 0, 0.4),
        ("linear", 25, 0.325),
        ("linear", 50, 0.25),
        ("linear", 100, 0.1),
        ("cosine", 0, 0.4),
        ("cosine", 50, 0.25),
        ("cosine", 25, 0.1 + 0.15 * (1 + math.sqrt(0.5))),
        ("cosine", 100, 0.1),
        ("halving", 29, 0.4),
        ("halving", 30, 0.2),
        ("halving", 59, 0.2),
        ("halving", 60, 0.1),
        ("halving", 99, 0.05),
    ],
)
def test_schedules(schedule, step, expected):
    unused = {"constant": {}, "halving": {"halve_every": 30}}
    settings = OuterSettings(lr=0.4, steps=100, schedule=schedule, **unused.get(schedule, {"final_lr": 0.1}))
    assert learning_rate(settings, step) == pytest.approx(expected, rel=1e-12)


def test_rates_rise_in_proportion_during_the_first_steps():
    settings = OuterSettings(lr=0.4, steps=100, warmup=3, groups={"a": GroupSettings(lr=2.0)})
    assert [learning_rate(settings, step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert learning_rate(settings, 0, "a") == pytest.approx(0.5)
    falling = OuterSettings(lr=0.4, steps=100, warmup=3, schedule="cosine")
    assert learning_rate(falling, 1) == pytest.approx(0.5 * 0.2 * (1 + math.cos(math.pi / 100)))
    with pytest.raises(ValueError, match=r"outer\.warmup"):
        OuterSettings(warmup=-1)


def test_weight_decay_of_adamw_is_apart_from_the_gradient():
    """θ ← θ − λ·w·θ, whatever the gradient's moments (Loshchilov & Hutter 2019)."""
    settings = OuterSettings(optimizer="adamw", lr=0.1, weight_decay=0.5, steps=1)
    state = initial_state({"w": torch.tensor(2.0)}, settings)
    apply(state, MetaGradient({"w": torch.zeros(())}, {}, torch.tensor(1)), settings)
    assert float(state.params["w"]) == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_the_rate_of_each_step_is_the_one_that_it_is_taken_with():
    settings = OuterSettings(optimizer="sgd", lr=0.5, schedule="halving", halve_every=1, steps=3)
    state = initial_state({"w": torch.zeros(())}, settings)
    for expected in (-0.5, -0.75, -0.875):
        metrics = apply(state, MetaGradient({"w": torch.ones(())}, {}, torch.tensor(1)), settings)
        assert state.params["w"] == expected
        assert metrics["lr"] == learning_rate(settings, state.step)
        state.step += 1


GROUPS = {"a": GroupSettings(optimizer="sgd", lr=2.0, final_lr=1.0), "a.b": GroupSettings(lr=0.3)}


def test_groups_have_optimisers_of_their_own_and_share_the_schedule():
    params = {name: torch.zeros(2) for name in ("a.b.c", "a.c", "ab", "d")}
    settings = OuterSettings(optimizer="sgd", lr=1.0, schedule="linear", steps=2, groups=GROUPS)
    assert group_names(params, settings) == {"rest": ["ab", "d"], "a": ["a.c"], "a.b": ["a.b.c"]}
    state = initial_state(params, settings)
    gradient = MetaGradient({name: torch.ones(2) for name in params}, {}, torch.tensor(1))
    for step, expected in enumerate([{"ab": -1.0, "a.c": -2.0, "a.b.c": -0.3}, {"ab": -1.5, "a.c": -3.5}]):
        state.step = step
        metrics = apply(state, gradient, settings)
        assert {name: float(state.params[name][0]) for name in expected} == pytest.approx(expected)
        assert (metrics["lr"], metrics["lr.a"]) == (1.0 - step / 2, 2.0 - step / 2)
    again = restore(state.snapshot(), settings)
    for one in (state, again):
        apply(one, gradient, settings)
    assert all(torch.equal(state.params[name], again.params[name]) for name in params)
    assert again.optimizers["a.b"].state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_going_on_with_other_settings_moves_as_they_say(optimizer):
    before, now = (OuterSettings(optimizer=optimizer, weight_decay=decay) for decay in (0.9, 0.1))
    if optimizer == "sgd":
        before, now = replace(before, momentum=0.9), replace(now, momentum=0.1)
    state = initial_state({"w": torch.ones(2)}, before)
    apply(state, MetaGradient({"w": torch.ones(2)}, {}, torch.tensor(1.0)), before)
    (leaves,) = restore(state.snapshot(), now).optimizers["rest"].param_groups
    assert leaves["weight_decay"] == 0.1 and leaves.get("momentum", 0.1) == 0.1
    (leaves,) = restore(state.snapshot(), before).optimizers["rest"].param_groups
    assert leaves["weight_decay"] == 0.9 and leaves.get("momentum", 0.9) == 0.9


def test_a_group_without_parameters_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"groups.a: no parameter begins with 'a\.': they begin with ab, model.w"):
        initial_state({"ab": torch.zeros(1), "model.w": torch.zeros(1)}, OuterSettings(groups={"a": GroupSettings()}))


# Gradient (3, -4) in one parameter and 12 in another: norm 13.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3.0, -4.0, 12.0]),
        ({"clip_value": 3.5}, [3.0, -3.5, 3.5]),
        ({"clip_norm": 6.5}, [1.5, -2.0, 6.0]),
        ({"clip_norm": 14.0}, [3.0, -4.0, 12.0]),
        ({"clip_value": 4.0, "clip_norm": math.sqrt(41) / 2}, [1.5, -2.0, 2.0]),
    ],
)
def test_clipping_is_elementwise_first_and_then_by_norm(settings, expected):
    params = {"b": torch.zeros(2), "a": torch.zeros(())}
    params["b"].grad, params["a"].grad = torch.tensor([3.0, -4.0]), torch.tensor(12.0)
    assert clip(params, OuterSettings(**settings)) == pytest.approx(13.0), "the norm before"
    found = torch.cat([params["b"].grad, params["a"].grad[None]])
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ({"optimizer": "adam", "weight_decay": 0.3}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3)),
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.3},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3),
        ),
    ],
)
def test_a_step_is_torchs_own_along_the_mean(settings, reference):
    outer = OuterSettings(lr=0.1, steps=9, **settings)
    state, given = initial_state(some_params(), outer), some_params()
    optimizer = reference([given[name] for name in sorted(given)])
    for step in range(4):
        gradient = gradient_of(given, num_tasks=7, seed=step)
        metrics = apply(state, gradient, outer)
        for name, value in given.items():
            value.grad = gradient.grads[name] / 7
        norm = math.sqrt(sum(float((value.grad**2).sum()) for value in given.values()))
        optimizer.step()
        assert metrics == {
            "loss": 3.0,
            "accuracy": 0.25,
            "gradient_norm": pytest.approx(norm, rel=1e-5),
            "lr": 0.1,
        }
    assert all(torch.equal(state.params[name], given[name]) for name in given)


def test_beginning_copies_what_it_is_given():
    given = some_params()
    state = initial_state(given, OuterSettings(lr=0.1))
    apply(state, gradient_of(given, 1, 0), OuterSettings(lr=0.1))
    assert all(torch.equal(value, some_params()[name]) for name, value in given.items())
    assert (state.best.step, state.best.score) == (-1, -math.inf)


def test_every_task_is_asked_for_once_and_each_step_names_itself():
    settings = OuterSettings(optimizer="sgd", lr=1.0, steps=3, tasks_per_step=5)
    executor, state = Quadratic(), initial_state({"w": torch.tensor(9.0)}, settings)
    losses = [metrics["loss"] for metrics in train(state, executor, settings, shard_size=2)]
    asked = [[i for shard in shards for i in shard.indices] for _, shards in executor.asked]
    assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert [request for request, _ in executor.asked] == [ShardRequest("gradient", "train", step) for step in range(3)]
    assert float(state.params["w"]) == 12.0, "with rate 1, w lands on the mean of the last step's goals"
    assert losses == [pytest.approx(1 + 7**2 / 2), pytest.approx(1 + 5**2 / 2), pytest.approx(1 + 5**2 / 2)]
    assert (state.step, state.next_task) == (3, 15)
    assert list(train(state, executor, settings, shard_size=2)) == [], "a finished run has nothing left to do"


@pytest.fixture(scope="module", params=["adam", "sgd"])
def undisturbed(request: pytest.FixtureRequest) -> tuple[InProcess, OuterSettings, list[dict], TrainState]:
    """A run with what it was at each step, copied by ourselves."""
    config = tiny(
        f"outer={{optimizer: {request.param}, lr: 0.02, steps: {STEPS}, tasks_per_step: 3}}",
        "outer.schedule=cosine",
        f"outer.momentum={0.9 if request.param == 'sgd' else 0.0}",
    )
    executor = InProcess(Worker(config, torch.device("cpu")))
    state = initial_state(executor.worker.initial(), config.outer)
    state.best = Best(1, 0.5)
    trail = [copy.deepcopy(state.snapshot())]
    for _ in train(state, executor, config.outer, shard_size=2):
        trail.append(copy.deepcopy(state.snapshot()))
    return executor, config.outer, trail, state


def finished(snapshot: dict, executor: InProcess, settings: OuterSettings) -> TrainState:
    state = restore(snapshot, settings)
    for _ in train(state, executor, settings, shard_size=2):
        pass
    return state


def same(a: TrainState, b: TrainState) -> bool:
    assert (a.step, a.next_task, a.best) == (b.step, b.next_task, b.best)
    return all(torch.equal(a.params[name], b.params[name]) for name in a.params | b.params)


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_restored_at_any_step_it_ends_with_the_same_bits(undisturbed, step):
    executor, settings, trail, end = undisturbed
    assert same(finished(copy.deepcopy(trail[step]), executor, settings), end)


def test_restored_from_disk_it_ends_with_the_same_bits(undisturbed, tmp_path):
    executor, settings, trail, end = undisturbed
    checkpoints.save(tmp_path, 4, trail[4])
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert same(finished(found.snapshot, executor, settings), end)


def test_the_order_in_which_parameters_are_listed_does_not_matter(undisturbed):
    executor, settings, trail, end = undisturbed
    snapshot = copy.deepcopy(trail[2])
    snapshot["params"] = dict(reversed(snapshot["params"].items()))
    assert same(finished(snapshot, executor, settings), end)


def test_a_snapshot_is_a_copy_that_may_be_restored_again_and_again(undisturbed):
    executor, settings, trail, end = undisturbed
    state = restore(copy.deepcopy(trail[2]), settings)
    steps = train(state, executor, settings, shard_size=2)
    next(steps)
    kept = state.snapshot()
    for _ in steps:
        pass
    assert kept["step"] == 3
    assert same(finished(kept, executor, settings), end)
    assert same(finished(kept, executor, settings), end)


def test_a_loss_that_is_no_longer_a_number_stops_the_run_and_names_step_and_tasks():
    config = tiny("algorithm.inner_lr=1e30", "model={name: mlp}", "outer.tasks_per_step=4")
    executor = InProcess(Worker(config, torch.device("cpu")))
    state = initial_state(executor.worker.initial(), config.outer)
    state.step, state.next_task = 2, 8
    before = {name: value.clone() for name, value in state.params.items()}
    with pytest.raises(Diverged, match=r"at step 2, tasks 8 to 11: lower outer\.lr or algorithm\.inner_lr, or set"):
        next(train(state, executor, config.outer, shard_size=2))
    assert all(torch.equal(value, state.params[name]) for name, value in before.items()), "the last good state stays"
    assert state.step == 2


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_either_a_loss_or_a_gradient_that_is_no_number_is_enough(broken, value):
    class Executor(Quadratic):
        def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
            bad = torch.tensor(value)
            found = super().sum(request, params, shards)
            return found._replace(grads={"w": bad}) if broken == "gradient" else found._replace(metrics={"loss": bad})

    settings = OuterSettings(steps=3)
    with pytest.raises(Diverged, match="at step 0"):
        next(train(initial_state({"w": torch.zeros(())}, settings), Executor(), settings, 4))
