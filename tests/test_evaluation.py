"""Test evaluation: intervals, held-out tasks, and the fields of a result."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatrain.evaluation.evaluate import evaluate, format_results, make_shards, mean_and_ci95
from metatrain.settings import Config
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Context, ShardRequest
from tasks.types import Examples
from tests.configurations import tiny

TEST = ShardRequest("score", "test", 0)
NEAREST = ShardRequest("score", "test", 0, "nearest_neighbour")


def executor_of(config: Config) -> InProcess:
    return InProcess(Worker(config, torch.device("cpu")))


def evaluated(config: Config, request: ShardRequest = TEST, tasks: int = 7, shard_size: int = 3):
    executor = executor_of(config)
    params = {} if request.learner == "nearest_neighbour" else executor.worker.initial()
    return evaluate(executor, request, params, tasks, shard_size, executor.worker.transductive(request.learner))


def test_interval_is_the_mean_and_196_standard_errors():
    # 1 … 5: mean 3, sample variance 10/4.
    mean, ci95 = mean_and_ci95(torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [4.0, 7.0], [5.0, 7.0]]).double())
    assert mean.tolist() == [3.0, 7.0]
    assert ci95.tolist() == pytest.approx([1.96 * (2.5 / 5) ** 0.5, 0.0])


@given(first=st.integers(0, 10**9), count=st.integers(1, 200), size=st.integers(1, 50))
def test_shards_cover_every_index_once_in_order(first, count, size):
    shards = make_shards(first, count, size)
    assert [index for shard in shards for index in shard.indices] == list(range(first, first + count))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(len(shard.indices) == size for shard in shards[:-1])
    assert 1 <= len(shards[-1].indices) <= size


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
@pytest.mark.parametrize("shard_size", [1, 2, 7, 50])
def test_scores_do_not_depend_on_the_size_of_shards(algorithm, shard_size):
    config = tiny(f"algorithm={{name: {algorithm}}}", "engine.vectorize=loop")
    assert evaluated(config, shard_size=shard_size) == evaluated(config, shard_size=3)


def test_runs_of_any_seed_are_evaluated_on_the_same_tasks():
    def scores(*overrides: str) -> list[float]:
        (found,) = executor_of(tiny(*overrides)).map(NEAREST, {}, make_shards(0, 20, 20))
        return found.values["accuracy"].flatten().tolist()

    assert scores("seed=0") == scores("seed=1")
    assert scores("evaluation.seed=1") != scores("evaluation.seed=0")


def test_validation_tasks_are_not_test_tasks():
    means = [evaluated(tiny(), NEAREST._replace(split=split), 20).curve.mean for split in ("validation", "test")]
    assert means[0] != means[1]


def test_nearest_neighbour_equals_a_naive_search():
    config = tiny("algorithm={name: protonet}", "tasks.test={ways: 4, shots: 3, queries: 2}")
    worker = Worker(config, torch.device("cpu"))
    (scores,) = InProcess(worker).map(NEAREST, {}, make_shards(0, 12, 12))
    tasks = config.tasks.source.distribution("test", config.tasks.test, config.evaluation.seed).episodes(range(12))
    for task in range(12):
        right = 0
        for x, y in zip(tasks.query.x[task], tasks.query.y[task], strict=True):
            apart = [float(((x.double() - s.double()) ** 2).sum()) for s in tasks.support.x[task]]
            right += int(tasks.support.y[task][apart.index(min(apart))] == y)
        assert float(scores.values["accuracy"][task, 0]) == pytest.approx(right / 8)
    assert 0.25 < float(scores.values["accuracy"].mean()) < 1, "neither chance nor certainty, or nothing was tested"


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("algorithm={name: maml, inner_steps: 3}",), 3),
        (("algorithm={name: maml, inner_steps: 1}", "evaluation.inner_steps=4"), 4),
        (("algorithm={name: protonet}",), 0),
    ],
)
def test_the_curve_goes_from_before_the_first_inner_step_to_after_the_last(overrides, steps):
    found = evaluated(tiny(*overrides))
    assert found.curve.steps == list(range(steps + 1))
    assert len(found.curve.mean) == len(found.curve.ci95) == steps + 1
    assert (found.value, found.ci95) == (found.curve.mean[-1], found.curve.ci95[-1])
    assert found.tasks == 7


def test_inner_steps_of_a_learner_without_any_are_refused():
    with pytest.raises(ValueError, match=r"^evaluation\.inner_steps: ProtoNet has no inner steps: remove it$"):
        executor_of(tiny("algorithm={name: protonet}", "evaluation.inner_steps=2"))


def test_one_more_inner_step_in_evaluation_continues_the_same_curve():
    shorter, longer = (evaluated(tiny(f"evaluation.inner_steps={steps}")) for steps in (2, 3))
    assert longer.curve.mean[:3] == shorter.curve.mean


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
@pytest.mark.parametrize(
    ("normalization", "transductive"), [("transductive", True), ("inductive", False), ("none", False)]
)
def test_transductive_says_whether_queries_influence_each_other(algorithm, normalization, transductive):
    config = tiny(f"algorithm={{name: {algorithm}}}", f"model.normalization={normalization}")
    found = evaluated(config, tasks=2)
    assert found.transductive is transductive

    worker = Worker(config, torch.device("cpu"))
    params, context = worker.initial(), Context(torch.tensor(0), torch.tensor(-1))
    task = config.tasks.source.distribution("test", config.tasks.test, 0).episodes([0])
    *_, adapted = worker.algorithm.trajectory(
        worker.model, params, Examples(task.support.x[0], task.support.y[0]), context
    )

    def predict(x):
        with torch.no_grad():
            return worker.algorithm.predict(worker.model, params, adapted, x, context)

    together, alone = predict(task.query.x[0])[:1], predict(task.query.x[0][:1])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-5) is not transductive


@pytest.mark.parametrize("normalization", ["transductive", "inductive", "none"])
def test_a_baseline_on_pixels_is_never_transductive_and_an_untrained_network_is_as_the_trained(normalization):
    worker = Worker(tiny(f"model.normalization={normalization}"), torch.device("cpu"))
    assert not worker.transductive("nearest_neighbour")
    assert worker.transductive("untrained") == worker.transductive("trained") == (normalization == "transductive")


def test_results_format_as_text_and_as_plain_values():
    found = replace(evaluated(tiny(), tasks=4), value=0.98765, ci95=0.00214)
    assert list(format_results([found])) == ["trained  test accuracy  98.77 ± 0.21 %  (4 tasks, transductive)"]
    plain = found.as_dict()
    assert (plain["score"], plain["accuracy"], plain["ci95"], plain["tasks"]) == ("accuracy", 0.98765, 0.00214, 4)
    assert plain["curve"]["steps"] == [0, 1, 2]


@pytest.mark.parametrize("learner", ["trained", "from_scratch", "nearest_neighbour"])
def test_methods_without_a_head_evaluate_on_more_ways_than_trained(learner):
    config = tiny("algorithm={name: protonet}", "tasks.test.ways=5", "tasks.test.shots=2")
    result = evaluated(config, TEST._replace(learner=learner), tasks=3)
    assert 0 <= result.value <= 1
