"""Test evaluation: intervals, held-out tasks, and the fields of a result."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatrain.evaluation.evaluate import evaluate, format_results, make_shards
from metatrain.evaluation.intervals import mean_and_ci95, over_classes, student_t
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
    worker = executor.worker
    classes = worker.task_classes("test", tasks) if request.split == "test" else None
    return evaluate(executor, request, params, tasks, shard_size, worker.is_transductive(request, params), classes)


def test_interval_over_tasks_is_by_students_t():
    # 1 … 5: mean 3, sample variance 10/4, and 2.776 the 97.5 % quantile with four degrees of freedom.
    mean, ci95 = mean_and_ci95(torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0], [4.0, 7.0], [5.0, 7.0]]).double())
    assert mean.tolist() == [3.0, 7.0]
    assert ci95.tolist() == pytest.approx([2.7764451 * (2.5 / 5) ** 0.5, 0.0])
    assert student_t(1) == pytest.approx(12.7062047)
    assert student_t(30) == pytest.approx(2.0422725) and student_t(31) == pytest.approx(2.0395134)
    assert student_t(10**6) == pytest.approx(1.9599664, abs=3e-6)


@pytest.mark.parametrize("tasks", [2, 5])
def test_intervals_over_few_tasks_cover_the_truth_as_often_as_they_say(tasks):
    drawn = torch.randn(4000, tasks, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, ci95 = mean_and_ci95(drawn.T)
    assert float((mean.abs() <= ci95).double().mean()) == pytest.approx(0.95, abs=0.012)


def test_a_single_task_has_no_interval():
    found = evaluated(tiny(), tasks=1)
    (line,) = format_results([found])
    assert "± n/a over tasks" in line
    plain = found.as_dict()
    assert plain["ci95"] is None and plain["curve"]["ci95"] == [None, None, None]


@pytest.mark.parametrize(("count", "spread"), [(12, 0.1), (28, 0.1), (28, 0.0), (600, 0.1)])
def test_intervals_over_classes_cover_the_truth(count, spread):
    """Each class has an effect of its own, each task of five classes their mean and its own noise; the truth is 0."""
    chance = np.random.default_rng(0)
    covered, over_tasks, repetitions = 0, 0, 200 if count < 600 else 60
    for _ in range(repetitions):
        effects = chance.normal(0, spread, count)
        classes = chance.random((300, count)).argsort(1)[:, :5]
        scores = torch.from_numpy(effects[classes].mean(1) + chance.normal(0, 0.1, 300))
        found = over_classes(scores, classes)
        half = found.ci95
        mean, of_tasks = mean_and_ci95(scores)
        covered += abs(float(mean)) <= half
        over_tasks += abs(float(mean)) <= float(of_tasks)
        assert found.classes <= count
        assert half >= float(of_tasks) * 0.99
    assert 0.91 <= covered / repetitions <= 1
    if count < 600 and spread:
        assert over_tasks / repetitions < 0.6, "the interval over tasks is not about other classes"


def test_too_few_classes_have_no_interval():
    scores = torch.tensor([0.1, 0.5, 0.3, 0.2]).double()
    classes = np.array([[0, 1], [1, 2], [2, 0], [0, 1]])
    assert (over_classes(scores, classes).ci95, over_classes(scores, classes).classes) == (None, 3)
    assert over_classes(scores[:1], classes[:1]).ci95 is None
    always = np.array([[0, 1], [0, 2], [0, 3], [0, 4]])
    assert over_classes(scores, always).ci95 is None, "no task is without class 0"
    found = over_classes(scores, np.array([[0, 1], [2, 3], [4, 5], [0, 2]]))
    assert found.ci95 > 0 and found.classes == 6


def test_over_classes_a_mixture_is_the_mean_of_its_sources():
    """The sources have means far apart, and few classes: without them each class seems to decide all tasks."""
    chance = np.random.default_rng(0)
    covered, repetitions, names = 0, 200, ["easy", "hard"] * 150
    for _ in range(repetitions):
        effects = chance.normal(0, 0.1, 40)
        classes = chance.random((300, 20)).argsort(1)[:, :5] + 20 * (np.arange(300) % 2)[:, None]
        scores = torch.from_numpy(effects[classes].mean(1) + chance.normal(0, 0.1, 300) + 5.0 * (np.arange(300) % 2))
        found = over_classes(scores, classes, names)
        covered += abs(float(scores.mean()) - 2.5) <= found.ci95
        assert found.classes == 40 and 19 <= found.degrees <= 38.01
        assert found.ci95 < 0.1 * over_classes(scores, classes).ci95
    assert 0.91 <= covered / repetitions <= 1
    few = np.where(classes < 20, classes, 20 + classes % 5)
    assert over_classes(scores, few, names).ci95 is None, "a source of five classes cannot tell"
    assert over_classes(scores, classes, ["one"] * 300) == over_classes(scores, classes)


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
    assert not worker.is_transductive(NEAREST, {})
    for learner, params in (("trained", worker.initial()), ("untrained", worker.initial()), ("from_scratch", {})):
        seen = worker.is_transductive(TEST._replace(learner=learner), params)
        assert seen == (normalization == "transductive"), learner
    assert worker.other_normalization == {"transductive": "inductive", "inductive": "transductive"}.get(normalization)


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
@pytest.mark.parametrize(
    ("module", "transductive"), [("FunctionalBatchNorm", True), ("ByHand", True), ("EachByItself", False)]
)
def test_statistics_of_the_batch_are_seen_in_whatever_way_a_module_takes_them(algorithm, module, transductive):
    config = tiny(f"algorithm={{name: {algorithm}}}", f"model={{name: 'tests.batch_statistics:{module}'}}")
    worker = Worker(config, torch.device("cpu"))
    assert worker.is_transductive(TEST, worker.initial()) is transductive
    assert worker.other_normalization is None


def test_an_algorithm_that_looks_at_all_queries_is_transductive():
    config = tiny("algorithm={name: 'tests.batch_statistics:Centred'}", "model.normalization=none")
    worker = Worker(config, torch.device("cpu"))
    assert worker.is_transductive(TEST, worker.initial())


def test_both_ways_of_normalising_are_scored_at_the_same_parameters():
    executor = executor_of(tiny("algorithm={name: protonet}"))
    params = executor.worker.initial()
    other = TEST._replace(normalization="inductive")
    found = evaluate(executor, other, params, 7, 3, executor.worker.is_transductive(other, params))
    inductive = evaluated(tiny("algorithm={name: protonet}", "model.normalization=inductive"))
    assert not found.transductive
    assert found.curve == inductive.curve
    assert found.curve != evaluated(tiny("algorithm={name: protonet}")).curve


def test_results_format_as_text_and_as_plain_values():
    found = replace(evaluated(tiny(), tasks=4), value=0.98765, ci95=0.00214, ci95_classes=0.0124, classes=9)
    assert list(format_results([found])) == [
        "trained  test accuracy  98.77 ± 0.21 % over tasks, ± 1.24 % over classes  (4 tasks of 9 classes, transductive)"
    ]
    (line,) = format_results([replace(found, ci95_classes=None, classes=None)])
    assert line == "trained  test accuracy  98.77 ± 0.21 %  (4 tasks, transductive)"
    (line,) = format_results([replace(found, ci95_classes=None, classes=5)])
    assert "± n/a over classes  (4 tasks of 5 classes" in line
    plain = found.as_dict()
    assert (plain["score"], plain["accuracy"], plain["ci95"], plain["tasks"]) == ("accuracy", 0.98765, 0.00214, 4)
    assert plain["curve"]["steps"] == [0, 1, 2]


@pytest.mark.parametrize("learner", ["trained", "from_scratch", "nearest_neighbour"])
def test_methods_without_a_head_evaluate_on_more_ways_than_trained(learner):
    config = tiny("algorithm={name: protonet}", "tasks.test.ways=5", "tasks.test.shots=2")
    result = evaluated(config, TEST._replace(learner=learner), tasks=3)
    assert 0 <= result.value <= 1
