"""Episodes of many sizes: drawn by index, by the rules of Meta-Dataset, and grouped by size."""

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metatrain.config.load import as_plain, read_config
from metatrain.evaluation.intervals import over_classes
from metatrain.training.worker import Worker
from metatrain.types import Shard, ShardRequest
from tasks.few_shot import ClassGroups
from tasks.opening import open_tasks
from tasks.ragged import RaggedFewShot, sample_batches
from tasks.ragged_shape import RaggedShape, Range, describe_shape
from tasks.random import Integers
from tasks.sources.image_folder import ImageFolder
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.wordnet import classes_below
from tests import pictures
from tests.configurations import RAGGED_TRAINING, TINY, method, tiny
from tests.test_few_shot import Numbered

META_DATASET = RaggedShape(sampler="meta_dataset")
RAGGED = (RAGGED_TRAINING, "tasks.test={sampler: meta_dataset}")
NUMBER = st.integers(1, 3)
RANGE = st.tuples(NUMBER, NUMBER).map(lambda ends: Range(min(ends), max(ends)))
SHAPE = st.builds(
    RaggedShape, st.integers(2, 5) | st.just(Range(2, 9)), st.just("imbalanced") | NUMBER | RANGE, NUMBER | RANGE
)


class Many(Numbered):
    """Thirty classes of 6 to 209 examples, in two groups."""

    num_classes = 30
    min_class_size = 6

    def sizes(self, classes: Integers) -> Integers:
        return 6 + 7 * classes

    def examples(self, classes: Integers, members: Integers) -> torch.Tensor:
        assert (members < self.sizes(classes)).all()
        return torch.from_numpy(1000.0 * classes + members).float().reshape(-1, 1, 1, 1)

    def groups(self) -> ClassGroups:
        return ClassGroups((np.arange(0, 30, 2), np.arange(1, 30, 2)), whole=False)


class Nested(Many):
    """The same with a hierarchy: three classes, and all of them."""

    def groups(self) -> ClassGroups:
        return ClassGroups((np.arange(7), np.arange(30)), whole=True)


def drawn(shape: RaggedShape, seed: int = 0, pool: Numbered | None = None) -> RaggedFewShot:
    return RaggedFewShot(pool or Many(), shape, seed, "train")


@given(shape=SHAPE, seed=st.integers(0, 2**63), indices=st.lists(st.integers(0, 2**50), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_batches_hold_the_tasks_that_were_asked_for(shape, seed, indices):
    distribution = drawn(shape, seed)
    batches = sample_batches(distribution, indices)
    assert sorted(place for batch in batches for place in batch.places) == list(range(len(indices)))
    firsts = [batch.places[0] for batch in batches]
    assert firsts == sorted(firsts)
    for tasks, places, spec in batches:
        assert list(places) == sorted(places)
        for row, place in enumerate(places):
            alone = pickle.loads(pickle.dumps(distribution)).episodes([indices[place]])
            for one, part in zip(alone, tasks, strict=True):
                assert torch.equal(one.x[0], part.x[row]) and torch.equal(one.y[0], part.y[row])
            plan = distribution.plan(indices[place])
            assert spec.ways == len(plan.classes) <= distribution.spec.ways
            assert tasks.support.y[row].bincount().tolist() == plan.shots.tolist()
            assert tasks.query.y[row].bincount().tolist() == [plan.queries] * len(plan.classes)
            support, query = (part.x[row].flatten() for part in tasks)
            owners = torch.from_numpy(plan.classes)
            assert torch.equal((support // 1000).long(), owners[tasks.support.y[row]])
            assert torch.equal((query // 1000).long(), owners[tasks.query.y[row]])
            together = torch.cat([support, query])
            assert len(together.unique()) == len(together), "support and query are disjoint"
            assert distribution.class_names(indices[place]) == [str(number) for number in plan.classes]


def test_ranges_are_drawn_to_both_ends_equally_often():
    plans = [drawn(RaggedShape(Range(3, 6), Range(1, 3), Range(1, 2)), 1).plan(index) for index in range(3000)]
    for found, ends in (
        ([len(plan.classes) for plan in plans], range(3, 7)),
        ([int(plan.shots[0]) for plan in plans], range(1, 4)),
        ([plan.queries for plan in plans], range(1, 3)),
    ):
        counts = np.bincount(found)[ends.start :]
        assert len(counts) == len(ends) and stats.chisquare(counts).pvalue > 1e-3
    assert all(len(set(plan.shots.tolist())) == 1 for plan in plans), "one number for all classes of a task"


def expected_sizes(random: np.random.Generator, groups: list[Integers]) -> tuple[int, int, Integers, Integers]:
    """Draw ways, queries, shots and classes by the formulas of Meta-Dataset, as they are written there."""
    group = groups[random.integers(len(groups))]
    ways = random.integers(5, min(50, len(group)) + 1)
    classes = random.permutation(group)[:ways]
    n = 6 + 7 * classes
    q = min(10, (n // 2).min())
    beta = random.random()
    support = min(500, sum(int(beta * min(100, size - q) + 1) for size in n))
    a = random.uniform(np.log(0.5), np.log(2), ways)
    r = n * np.exp(a) / (n * np.exp(a)).sum()
    k = np.array([min(int(share * (support - ways)) + 1, size - q) for share, size in zip(r, n, strict=True)])
    return ways, q, k, classes


def check_against_formulas(episodes: int) -> None:
    """Check ways, queries, shots and support sizes against the formulas by two-sample tests, classes by chi-square."""
    random, groups = np.random.default_rng(0), list(Many().groups().members)
    distribution = drawn(META_DATASET)
    found = [distribution.plan(index) for index in range(episodes)]
    expected = [expected_sizes(random, groups) for _ in range(episodes)]
    pairs = {
        "ways": ([len(plan.classes) for plan in found], [ways for ways, _, _, _ in expected]),
        "queries": ([plan.queries for plan in found], [q for _, q, _, _ in expected]),
        "support": ([plan.shots.sum() for plan in found], [k.sum() for _, _, k, _ in expected]),
        "most": ([plan.shots.max() for plan in found], [k.max() for _, _, k, _ in expected]),
        "least": ([plan.shots.min() for plan in found], [k.min() for _, _, k, _ in expected]),
        "ratio": (
            [plan.shots.max() / plan.shots.mean() for plan in found],
            [k.max() / k.mean() for _, _, k, _ in expected],
        ),
    }
    for name, (ours, theirs) in pairs.items():
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3, name
        assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=5 * np.std(theirs) * np.sqrt(2 / episodes)), name
    counts = np.bincount(np.concatenate([plan.classes for plan in found]), minlength=30)
    theirs = np.bincount(np.concatenate([classes for *_, classes in expected]), minlength=30)
    assert stats.chi2_contingency([counts, theirs]).pvalue > 1e-3
    assert all(len(set(plan.classes % 2)) == 1 for plan in found), "of one group"


def test_sizes_are_those_of_the_formulas_of_meta_dataset():
    check_against_formulas(1500)


@pytest.mark.slow
def test_sizes_of_twenty_thousand_episodes_are_those_of_the_formulas():
    check_against_formulas(20_000)


def test_of_a_hierarchy_all_classes_below_a_node_are_drawn_up_to_the_most():
    distribution = drawn(RaggedShape(Range(5, 20), sampler="meta_dataset"), pool=Nested())
    plans = [distribution.plan(index) for index in range(200)]
    assert {len(plan.classes) for plan in plans} == {7, 20}
    assert {tuple(sorted(plan.classes)) for plan in plans if len(plan.classes) == 7} == {tuple(range(7))}
    assert len({tuple(plan.classes) for plan in plans}) > 190, "in random order"
    assert len({number for plan in plans for number in plan.classes}) == 30


def test_groups_with_too_few_classes_are_left_out():
    plans = [drawn(RaggedShape(Range(10, 12), sampler="meta_dataset"), pool=Nested()).plan(index) for index in range(9)]
    assert {len(plan.classes) for plan in plans} == {12}
    with pytest.raises(
        ValueError, match=re.escape("31-way needs 31 classes; 'train' of numbered has 30: lower tasks.train.ways")
    ):
        drawn(RaggedShape(Range(31, 40)), pool=Nested())
    with pytest.raises(ValueError, match="16-way needs 16 classes of a group; 'train' of numbered has none so large"):
        drawn(RaggedShape(Range(16, 20), sampler="meta_dataset"))


def test_classes_of_tasks_are_padded_with_minus_one_and_an_interval_over_them_reads_that():
    found = drawn(RaggedShape(Range(2, 4), 1, 1)).task_classes(range(40))
    assert found.shape == (40, 4) and set((found >= 0).sum(1)) == {2, 3, 4}
    scores, whole = torch.rand(40, generator=torch.Generator().manual_seed(0)), np.arange(80).reshape(40, 2) % 20
    padded = np.concatenate([whole, np.full((40, 1), -1)], 1)
    assert over_classes(scores, padded) == over_classes(scores, whole)


# Configurations.


@pytest.mark.parametrize(
    ("test", "shape"),
    [
        ({"ways": {"min": 5, "max": 9}}, RaggedShape(Range(5, 9), 1, 3)),
        ({"ways": 4, "shots": "imbalanced"}, RaggedShape(4, "imbalanced", 3)),
        ({"queries": {"min": 2, "max": 3}, "sampler": "uniform"}, RaggedShape(3, 1, Range(2, 3))),
    ],
)
def test_a_range_or_a_rule_in_place_of_a_number_makes_tasks_of_many_sizes(test, shape):
    config = tiny(*(f"tasks.test.{key}={value}" for key, value in test.items()))
    assert config.tasks.test == shape
    assert read_config(as_plain(config)) == config


def test_the_sampler_of_meta_dataset_brings_its_own_sizes():
    config = tiny("tasks.test={sampler: meta_dataset}")
    assert config.tasks.test == META_DATASET == RaggedShape(Range(5, 50), "imbalanced", 10, "meta_dataset")
    assert describe_shape(META_DATASET) == (
        "5 to 50-way imbalanced-shot, 10 queries a class, by the sampler meta_dataset"
    )
    assert describe_shape(config.tasks.train) == "3-way 1-shot, 2 queries a class"
    assert read_config(as_plain(config)) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("tasks.test.ways={min: 5, max: 2}", "tasks.test.ways.max: 2 is below min, 5: set it to 5 or more"),
        ("tasks.test.ways={min: 0, max: 2}", "tasks.test.ways.min: 0 is below 1: set it to 1 or more"),
        ("tasks.test.ways={min: 1, max: 2}", "tasks.test.ways: 1-way classification has nothing to tell apart"),
        ("tasks.test.shots=balanced", "tasks.test.shots: input should be a valid integer or 'imbalanced', not 'bal"),
        ("tasks.test.sampler=meta_dataset", "tasks.test.sampler: meta_dataset draws imbalanced shots, and shots is 1"),
        ("tasks.test.sampler=mine", "tasks.test.sampler: input should be 'uniform' or 'meta_dataset', not 'mine'"),
        ("tasks.test={ways: 501, shots: imbalanced}", "ways: 501 classes share 500 support examples"),
    ],
)
def test_sizes_that_cannot_be_are_refused(setting, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        tiny(setting)


def test_tasks_that_have_one_size_or_too_few_examples_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("tasks.test: tasks of sinusoid have one size: set numbers for tasks.test.wa")
    ):
        open_tasks(Sinusoid(), "sinusoid", "test", META_DATASET, 0)
    with pytest.raises(ValueError, match="shots and queries need 9 examples of a class; the smallest in 'train' of"):
        drawn(RaggedShape(Range(2, 3), Range(1, 5), 4))
    with pytest.raises(ValueError, match="tasks of 2 sizes cannot be stacked: use sample_batches"):
        distribution = drawn(RaggedShape(Range(2, 3), 1, 1))
        distribution.episodes(range(30))
    with pytest.raises(ValueError, match=re.escape("tasks.train: tasks of many sizes are no sequences of one length")):
        Worker(tiny(*method("lstm"), *RAGGED), torch.device("cpu"))
    with pytest.raises(ValueError, match=re.escape("engine.compile: on compiles for each size of a task")):
        Worker(tiny(*RAGGED, "engine.compile=on"), torch.device("cpu"))


# Training and scoring.


@pytest.mark.parametrize("name", ["maml", "protonet", "simple_shot", "in_context"])
def test_a_shard_is_the_sum_of_its_tasks(name):
    worker = Worker(tiny(*method(name), *RAGGED, "tasks.test={ways: 4, shots: imbalanced}"), torch.device("cpu"))
    params, indices = worker.initial(), (0, 1, 2, 3, 4)
    request = ShardRequest("gradient", "train", 0)
    whole = worker.gradient(request, params, Shard(0, indices))
    alone = [worker.gradient(request, params, Shard(0, (index,))) for index in indices]
    assert int(whole.num_tasks) == 5
    for key, value in whole.grads.items():
        torch.testing.assert_close(value, sum(one.grads[key] for one in alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learner", ["trained", "nearest_neighbour", "from_scratch"])
def test_scores_come_in_the_order_of_tasks(learner):
    worker = Worker(tiny(*RAGGED, "tasks.test={ways: {min: 2, max: 4}, shots: {min: 1, max: 2}}"), torch.device("cpu"))
    request = ShardRequest("score", "test", 0, learner)
    assert len(worker.tasks(request, Shard(0, tuple(range(8))))) > 2
    together = worker.score(request, worker.initial(), Shard(0, tuple(range(8))))
    for index in range(8):
        alone = worker.score(request, worker.initial(), Shard(0, (index,)))
        for name, value in alone.values.items():
            torch.testing.assert_close(together.values[name][index], value[0], rtol=1e-5, atol=1e-6)


def test_the_tiny_configuration_has_tasks_of_one_size():
    assert read_config(TINY).tasks.train.ways == 3


def test_classes_below_a_node_of_a_hierarchy_are_drawn_together(tmp_path):
    """Of animal > (dog > (terrier, hound > (beagle, whippet)), cat > tabby), and a node with one child."""
    edges = "animal dog\nanimal cat\ndog terrier\ndog hound\nhound beagle\nhound whippet\ncat tabby\nentity animal\n"
    (tmp_path / "is_a.txt").write_text(edges)
    names = ["beagle", "tabby", "terrier", "whippet"]
    assert classes_below(str(tmp_path / "is_a.txt"), names) == ((0, 1, 2, 3), (0, 2, 3), (0, 3))
    root = pictures.write(tmp_path / "raw", pictures.class_files(names))
    source = ImageFolder(str(root), str(tmp_path / "cache"), 12, splits="test", hierarchy=str(tmp_path / "is_a.txt"))
    shape = RaggedShape(Range(2, 9), sampler="meta_dataset")
    plans = [open_tasks(source, "image_folder", "test", shape, 0).plan(index) for index in range(60)]
    assert {tuple(sorted(plan.classes)) for plan in plans} == {(0, 1, 2, 3), (0, 2, 3), (0, 3)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b c\n", "line 1: no PARENT CHILD: fix that line"),
        ("animal cat\n", "has no line for dog: add PARENT CHILD for each class"),
        (None, "No such file or directory: use a file of lines PARENT CHILD"),
    ],
)
def test_hierarchies_that_cannot_be_read_are_refused(tmp_path, text, says):
    if text is not None:
        (tmp_path / "is_a.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)):
        classes_below(str(tmp_path / "is_a.txt"), ["cat", "dog"])
