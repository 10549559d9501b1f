"""MAML with TRPO: exact meta-gradients and curvature on a process small enough to enumerate; and its runs."""

import os
import signal

import pytest
import torch
import yaml
from torch.func import grad, jacrev
from torch.utils._pytree import tree_leaves, tree_map

from metatrain.algorithms.reinforcement.adaptation import Experience, policy_part
from metatrain.algorithms.reinforcement.maml_trpo import MAMLTRPO
from metatrain.algorithms.updates import DIRECTION, OLD
from metatrain.engine import Engine
from metatrain.reinforcement import policies, surrogates
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state, train
from metatrain.training.worker import Worker
from metatrain.types import Context, Shard, ShardRequest
from metatrain.yaml_config import apply_overrides
from tasks.types import Episode
from tests import exact_mdp, faults
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import TINY, method, tiny
from tests.exact_mdp import STEPS, enumerate_trajectories, expected_return, tables, tabular_policy, to_go
from tests.test_reinforcement import finite_differences, flat, hessian_of

CPU = torch.device("cpu")
CONTEXT = Context(torch.tensor(0), torch.tensor([-1, -1]))
ALPHA = 2.0


def experience(params, process) -> Experience:
    found = enumerate_trajectories(params, process).trajectories
    return Experience(found, to_go(found.rewards))


def expected_update(params, process):
    """θ + α/T ∇J(θ), by autograd of the expected return alone."""
    slope = grad(lambda p: expected_return(p, process))(params)
    return {name: value + ALPHA / STEPS * slope[name] for name, value in params.items()}


def exact_tasks(params, steps: int) -> Episode:
    """Two tasks whose batches hold all trajectories, weighed by their probabilities."""
    each = []
    for index in range(2):
        process, fast, support = tables(index), params, []
        for _ in range(steps):
            support.append(experience(fast, process))
            fast = expected_update(fast, process)
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *support) if support else ()
        each.append(Episode(stacked, experience(fast, process)))
    return tree_map(lambda *leaves: torch.stack(leaves), *each)


def return_after(params, steps: int):
    total = 0.0
    for index in range(2):
        fast = params
        for _ in range(steps):
            fast = expected_update(fast, tables(index))
        total = total + expected_return(fast, tables(index))
    return total


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_meta_gradient_is_that_of_the_expected_return_after_the_updates(steps, vectorize):
    model, params = tabular_policy()
    algorithm = MAMLTRPO(inner_lr=ALPHA, inner_steps=steps, estimator="dice")
    found = algorithm.meta_gradient(model, params, exact_tasks(params, steps), CONTEXT, Engine(vectorize))
    exact = finite_differences(lambda p: return_after(p, steps), params)
    torch.testing.assert_close(-STEPS * flat(found.grads), flat(exact), rtol=1e-6, atol=1e-8)
    assert int(found.num_tasks) == 2


def test_other_estimators_differ_in_second_order_alone():
    model, params = tabular_policy()
    tasks = exact_tasks(params, 1)
    found = {
        name: flat(
            MAMLTRPO(inner_lr=ALPHA, estimator=name).meta_gradient(model, params, tasks, CONTEXT, Engine()).grads
        )
        for name in surrogates.ESTIMATORS
    }
    error = {name: float((one - found["dice"]).norm() / found["dice"].norm()) for name, one in found.items()}
    assert 1e-3 < error["lvc"] < error["likelihood"]
    plain = [
        flat(MAMLTRPO(inner_lr=1e-9, estimator=name).meta_gradient(model, params, tasks, CONTEXT, Engine()).grads)
        for name in surrogates.ESTIMATORS
    ]
    for one in plain:
        torch.testing.assert_close(one, plain[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_fisher_product_is_the_hessian_of_the_divergence_times_a_direction(steps, vectorize):
    model, params = tabular_policy()
    algorithm, tasks = MAMLTRPO(inner_lr=ALPHA, inner_steps=steps, estimator="dice"), exact_tasks(params, steps)
    inner, context = algorithm.inner(model), Context(torch.tensor(0), torch.tensor(-1))

    def divergence(candidate):
        total = 0.0
        for j in range(2):
            task = tree_map(lambda leaf, j=j: leaf[j], tasks)
            fast = policy_part(candidate)
            for t in range(steps):
                fast = inner.step(candidate, fast, task.support, torch.tensor(t), context)
            taken = task.query.trajectories
            new = policies.action_distribution(model, fast, taken.observations)
            total = total + surrogates.mean_of_steps(policies.divergence(taken.policy, new), taken.mask)
        return total

    generator = torch.Generator().manual_seed(3)
    v = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    sent = params | {f"{DIRECTION}{name}": value for name, value in v.items()}
    found = algorithm.fisher_product(model, sent, tasks, CONTEXT, Engine(vectorize))
    assert found.grads.keys() == params.keys()
    exact = hessian_of(divergence, params) @ flat(v)
    torch.testing.assert_close(flat(found.grads), exact, rtol=1e-8, atol=1e-10)
    assert float(flat(v) @ exact) > 0


def test_candidates_are_judged_by_what_the_old_parameters_experienced():
    model, params = tabular_policy()
    algorithm, tasks = MAMLTRPO(inner_lr=ALPHA, estimator="dice"), exact_tasks(params, 1)
    here = algorithm.surrogate(model, params, tasks, CONTEXT, Engine("vmap"))
    gradient = algorithm.meta_gradient(model, params, tasks, CONTEXT, Engine("vmap"))
    assert here.grads == {} and int(here.num_tasks) == 2
    torch.testing.assert_close(here.metrics["loss"], gradient.metrics["loss"], rtol=1e-12, atol=0)
    assert float(here.metrics["kl"]) == pytest.approx(0, abs=1e-12)
    moved = {name: value - 1e-4 * gradient.grads[name] for name, value in params.items()}
    there = algorithm.surrogate(model, moved, tasks, CONTEXT, Engine("loop"))
    fall = 1e-4 * float(flat(gradient.grads).square().sum())
    assert float(here.metrics["loss"] - there.metrics["loss"]) == pytest.approx(fall, rel=1e-2)
    assert float(there.metrics["kl"]) > 0


def test_collecting_is_replayed_and_each_batch_is_acted_in_by_the_policy_before_it():
    drawn = exact_mdp.distribution()
    tasks = drawn.episodes([0, 1, 2])
    tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)
    model, params = tabular_policy()
    algorithm = MAMLTRPO(inner_lr=0.5, inner_steps=2)
    context = Context(torch.tensor(0), torch.full((3,), -1))
    found = algorithm.collect(model, params, tasks, context, Engine("vmap"))
    for left, right in zip(
        tree_leaves(found), tree_leaves(algorithm.collect(model, params, tasks, context, Engine("loop"))), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    assert found.support.trajectories.rewards.shape == (3, 2, 6, STEPS)
    assert found.query.trajectories.rewards.shape == (3, 6, STEPS)
    inner, fast = algorithm.inner(model), params
    support, query = (tree_map(lambda leaf: leaf[1], part) for part in found)
    taken = support.trajectories
    for t in range(2):
        pi = policies.action_distribution(model, fast, taken.observations[t])
        torch.testing.assert_close(pi.logits, taken.policy.logits[t])
        fast = inner.step(params, fast, support, torch.tensor(t), context)
    pi = policies.action_distribution(model, fast, query.trajectories.observations)
    torch.testing.assert_close(pi.logits, query.trajectories.policy.logits)
    one = tree_map(lambda leaf: leaf[1], tasks)
    scores = algorithm.score(model, params, one, Context(torch.tensor(0), torch.tensor(-1)))
    returns = [*taken.rewards.sum(-1).mean(-1), query.trajectories.rewards.sum(-1).mean()]
    torch.testing.assert_close(scores["return"], torch.stack(returns))
    assert scores["inner_step"].tolist() == [0, 1, 2]


def test_jacobians_of_updates_are_symmetric_as_the_fisher_product_takes_them_to_be():
    model, params = tabular_policy()
    algorithm, process = MAMLTRPO(inner_lr=ALPHA, estimator="lvc"), tables()
    support = tree_map(lambda leaf: leaf[None], experience(params, process))
    inner = algorithm.inner(model)

    def after(fast):
        return inner.step(params, fast, support, torch.tensor(0), CONTEXT)

    names, found = sorted(params), jacrev(after)(params)
    jacobian = torch.cat([torch.cat([found[a][b].reshape(params[a].numel(), -1) for b in names], 1) for a in names])
    torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-10, atol=1e-12)


RUN = method("maml_trpo")


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
def test_what_was_collected_is_kept_for_the_step_and_lost_without_a_trace(vectorize, monkeypatch):
    """Another worker, or one without its cache, finds the same bits."""
    config = tiny(*RUN, f"engine.vectorize={vectorize}", "executor.shard_size=2")
    one, other = Worker(config, CPU), Worker(config, CPU)
    acted = []
    whole = MAMLTRPO.collect

    def counted(self, *given):
        acted.append(1)
        return whole(self, *given)

    monkeypatch.setattr(MAMLTRPO, "collect", counted)
    params, shard = one.initial(), Shard(0, (0, 1))
    direction = {f"{DIRECTION}{name}": value + 1 for name, value in params.items()}
    moved = {name: 1.01 * value for name, value in params.items()}
    calls = {
        "gradient": ((), params),
        "fisher": ((DIRECTION,), params | direction),
        "surrogate": ((OLD,), moved | {f"{OLD}{name}": value for name, value in params.items()}),
    }
    for kind, (sent, given) in calls.items():
        request = ShardRequest(kind, "train", 3, sent=sent)
        found = one.gradient(request, given, shard)
        assert len(acted) == 1, "the same policy acted in the same tasks"
        fresh = Worker(config, CPU).gradient(request, given, shard)
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(found), tree_leaves(fresh), strict=True))
        acted.pop()
    assert float(found.metrics["kl"]) > 0
    for step, given in ((4, params), (4, moved)):
        other.gradient(ShardRequest("gradient", "train", step), given, shard)
    assert len(acted) == 3


def test_a_step_stays_within_the_trust_region_and_gains():
    config = tiny(*RUN, "outer.steps=3", "tasks.horizon=20")
    executor = InProcess(Worker(config, CPU))
    state = initial_state(executor.worker.initial(), config.outer)
    begun = {name: value.clone() for name, value in state.params.items()}
    for metrics in train(state, executor, config.outer, 2, config.algorithm.update):
        assert 0 < metrics["kl"] <= config.algorithm.max_kl and metrics["improvement"] > 0
    assert all(not torch.equal(begun[name], value) for name, value in state.params.items())
    assert executor.report()["workers"] == {str(os.getpid()): 3 * config.outer.tasks_per_step}


@pytest.mark.ray
def test_three_workers_of_which_one_is_killed_find_the_bits_of_one_process(local_ray):
    config = faults.on_ray(tiny(*RUN, "outer.steps=100"), 3)
    with faults.running(config) as run:
        run.step(2)
        os.kill(run.executor.pids()[0], signal.SIGKILL)
        run.step(3)
        run.until(lambda: run.count_events("worker-lost") > 0, seconds=60)
        run.check()


def test_a_run_is_scored_by_update_beside_policies_that_learn_nothing(tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(apply_overrides(TINY, [*RUN, "evaluation.inner_steps=3"])))
    found = last_json(command(tmp_path, "train", "n.yaml", "--json"))
    assert found["test"]["score"] == "return" and found["test"]["curve"]["steps"] == [0, 1, 2, 3]
    assert (tmp_path / found["run_dir"] / "plots" / "test-trajectories.png").stat().st_size > 10_000
    by_name = {one["learner"]: one["return"] for one in found["baselines"]}
    assert by_name.keys() == {"untrained", "random_policy", "optimal_policy"}
    assert by_name["optimal_policy"] > max(by_name["random_policy"], found["test"]["return"])
    for override, message in {
        "algorithm={name: maml}": "maml learns from examples, and tasks of navigation_2d are environments: set maml",
        "tasks={name: sinusoid, train: {ways: null}, test: {ways: null}}": "tasks.name: a policy acts in environments",
        "tasks.train={ways: 5}": "tasks.train.ways: no such setting",
        "tasks.train.episodes=0": "tasks.train.episodes: 0 is none of 1 to 1000000",
        "tasks.horizon=0": "tasks.horizon: 0 is none of 1 to 10000",
        "algorithm.discount=2": "algorithm.discount: 2 is none of 0 to 1",
        "algorithm.shrink=1": "algorithm.shrink: 1 shrinks no step",
        "outer.lr=0.1": "outer.lr: has no effect with maml_trpo, which chooses the length of its steps itself: remove",
        "outer.schedule=cosine": "outer.schedule: has no effect with maml_trpo",
        "algorithm.estimator=best": "algorithm.estimator: input should be 'likelihood', 'lvc' or 'dice'",
    }.items():
        assert message in command(tmp_path, "train", "n.yaml", override, expect=2).err
