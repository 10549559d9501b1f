"""Test episodes whose classes are described, the method that reads descriptions, and the scores of seen and unseen."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

import metatrain
from metatrain.algorithms.baselines import BASELINES
from metatrain.algorithms.metric.described_protonet import DescribedProtoNet
from metatrain.metrics import METRICS, measure
from metatrain.models.architectures import Conv4
from metatrain.models.model import build_model
from metatrain.types import Context
from tasks.described_shape import DescribedShape
from tasks.opening import open_tasks
from tasks.registry import TASK_SOURCES
from tasks.sources.features import Features
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.strokes import Strokes, render
from tasks.transformed import Resize, TransformedSource
from tests import pictures
from tests.command_line import last_json
from tests.command_line import metatrain as command
from tests.configurations import CONFIGS
from tests.miniatures import ATTRIBUTES, animal_files, bird_files

SOURCE = Strokes(classes=40)


def tasks_of(split="test", source=SOURCE, seed=0, **shape):
    return open_tasks(source, "strokes", split, DescribedShape(**{"ways": 3, "queries": 2} | shape), seed)


@given(
    indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=4),
    ways=st.integers(2, 6),
    shots=st.integers(0, 2),
    noise=st.sampled_from([0.0, 0.5]),
    seen=st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_a_task_is_the_same_whatever_is_asked_with_it(indices, ways, shots, noise, seen):
    found = tasks_of(ways=ways, shots=shots, noise=noise, seen=seen, held_out=0.1)
    together = found.episodes(indices)
    for row, index in enumerate(indices):
        alone = found.episodes([index])
        for a, b in zip(tree_leaves(together), tree_leaves(alone), strict=True):
            assert torch.equal(a[row], b[0])
    spec, support = found.spec, together.support
    given = support.x if shots == 0 else support.x["description"]
    assert given.shape == (len(indices), ways * max(shots, 1), 36)
    assert together.query.x.shape == (len(indices), ways * 2, *spec.x)
    assert together.query.y.tolist() == [np.arange(ways).repeat(2).tolist()] * len(indices)
    assert support.y.tolist() == [np.arange(ways).repeat(max(shots, 1)).tolist()] * len(indices)


def test_a_description_is_that_of_the_class_whose_examples_are_asked():
    found = tasks_of(source=Strokes(classes=40, jitter=0.0))
    task = found.episodes([3])
    told = task.support.x[0].view(3, 4, 9).double().numpy()
    drawn = render(told[:, :, 1:].reshape(3, 4, 4, 2) * 9.2 + 14, told[:, :, 0], np.full(3, 0.56))
    shown = task.query.x[0, ::2, 0].numpy()  # one of two of each class, drawn without any jitter
    assert np.abs(drawn - shown).max() < 0.02
    assert np.abs(drawn[[1, 2, 0]] - shown).max() > 0.5


def test_support_examples_are_of_their_class_and_none_is_a_query():
    task = tasks_of(shots=2, queries=3).episodes(range(20))
    shown, asked = task.support.x["example"].flatten(2), task.query.x.flatten(2)
    assert torch.cdist(shown, asked).min() > 0
    described = task.support.x["description"]
    assert torch.equal(described[:, ::2], described[:, 1::2])  # both examples of a class beside its one description


def test_noise_is_always_the_same_for_a_class_and_of_the_size_that_is_set():
    plain, noisy = (tasks_of(ways=40, noise=noise) for noise in (0.0, 2.0))
    a, b = (one.episodes([0, 1]) for one in (plain, noisy))
    classes = plain.task_classes([0, 1])
    where = [np.argsort(row) for row in classes]
    moved = [(b.support.x[t] - a.support.x[t])[where[t]] for t in (0, 1)]
    torch.testing.assert_close(moved[0], moved[1])
    numbers = np.arange(40)
    scale = torch.as_tensor(SOURCE.pool("train").descriptions(numbers)).std(0)
    varying = scale > 0
    assert 1.8 < float((moved[0] / scale)[:, varying].std()) < 2.2
    assert not moved[0][:, ~varying].any()


def test_seen_classes_are_training_classes_by_examples_that_training_leaves_out(monkeypatch):
    monkeypatch.setattr("tasks.sources.strokes.DRAWINGS", 20)
    monkeypatch.setattr("tasks.sources.strokes.StrokePool.min_class_size", 20)
    train = tasks_of("train", held_out=0.25, queries=10)
    test = tasks_of(ways=4, seen=2, held_out=0.25, queries=5)
    members = np.concatenate([part[1].ravel() for part in drawn_by(train, range(50), 10)])
    assert members.max() == 14
    names = test.class_names(7)
    pool = SOURCE.pool("train")
    task = test.episodes([7])
    classes = test.task_classes([7])[0]
    assert (classes[:2] < 40).all() and (classes[2:] >= 40).all()
    assert names[2:] == pool.class_names(classes[2:] - 40)
    torch.testing.assert_close(task.support.x[0, 2:], pool.descriptions(classes[2:] - 40))
    held_out = [pool.examples(np.full(5, one - 40), np.arange(15, 20)) for one in classes[2:]]
    for label, images in zip((2, 3), held_out, strict=True):
        found = task.query.x[0][task.query.y[0] == label]
        assert torch.cdist(found.flatten(1), images.flatten(1)).min(1).values.max() == 0
    assert test.spec.seen == 2 and test.num_classes == 80


def drawn_by(found, indices, each):
    from tasks.few_shot import draw_examples

    return [draw_examples(pool, 0, found._stream(what), indices, (ways, each)) for what, pool, ways, _ in found._parts]


def test_vectors_of_a_file_describe_classes_by_name(tmp_path):
    names = [f"character {number}" for number in range(40)]
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    columns = {"class": names[::-1], **{f"v{k}": x[::-1, k] for k in range(5)}}
    pq.write_table(pa.table(columns), tmp_path / "words.parquet")
    found = tasks_of(descriptions=str(tmp_path / "words.parquet"))
    assert found.spec.support == (5,)
    classes = found.task_classes([4])[0]
    torch.testing.assert_close(found.episodes([4]).support.x[0], torch.from_numpy(x[classes]))
    pq.write_table(pa.table({key: value[1:] for key, value in columns.items()}), tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"few\.parquet has no row of the class character 39: add it"):
        tasks_of(descriptions=str(tmp_path / "few.parquet"), ways=40).episodes([0])
    pq.write_table(pa.table({"class": ["a", "a"], "v": [1.0, 2.0]}), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"describes a twice: leave one row of each"):
        _ = tasks_of(descriptions=str(tmp_path / "twice.parquet")).spec


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"shots": -1}, "shots: -1 is no number"),
        ({"seen": 3}, "seen: 3 of 3 ways leave no unseen class"),
        ({"noise": -1.0}, "noise: -1"),
        ({"held_out": 1.0}, "held_out: 1"),
        ({"ways": 41}, r"tasks.test.ways: 41 classes of a task; strokes has 40"),
    ],
)
def test_sizes_that_cannot_be_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tasks_of(**shape)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm={name: protonet}", "algorithm.name: protonet reads support examples"),
        ("model.normalization=inductive", "set model.normalization=group"),
        ("tasks.train={ways: 3} tasks.test={ways: 3}", "these tasks have none: set descriptions"),
        ("tasks.train={ways: 3, shots: 0}", "for zero-shot beside descriptions=own"),
        ("tasks.train.held_out=0", "tasks.train.held_out: 0, and tasks.test.seen"),
        ("tasks.train.seen=2", "tasks.train.seen: seen classes are for tests"),
        ("tasks.test.held_out=0.5", "tasks.test.held_out: 0.5, and training leaves out 0.2: set tasks.train.held_out"),
        ("tasks.train.shots=1", "tasks.test: support sets are of (36,), and those of tasks.train of {"),
        ("tasks.train.descriptions=words.csv", "descriptions: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, override, message):
    done = command(tmp_path, "train", *small(), *re.split(r" (?=tasks)", override), expect=2)
    assert message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_sources_whose_classes_have_no_descriptions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tasks\.test\.descriptions: sinusoid has no classes of examples"):
        open_tasks(Sinusoid(), "sinusoid", "test", DescribedShape(), 0)
    columns = {"class": [f"c{number}" for number in range(40)], "v": np.arange(40.0)}
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    source = Features(root=str(tmp_path / "vectors.parquet"))
    with pytest.raises(ValueError, match=r"the classes of features have no descriptions of their own: set a file"):
        open_tasks(source, "features", "test", DescribedShape(), 0)


def test_seen_and_unseen_accuracy_and_their_harmonic_mean():
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 3, 2, 2, 3, 3])].double() * 5
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 2])
    scores = measure([logits], y, seen=2)
    assert float(scores["unseen_accuracy"]) == 0.75 and float(scores["seen_accuracy"]) == 0.75
    other = measure([logits.roll(1, 1)], y, seen=2)
    pooled = scores["harmonic_mean"] + other["harmonic_mean"]
    u, s = (3 + float(other["unseen_accuracy"]) * 4) / 8, (3 + float(other["seen_accuracy"]) * 4) / 8
    of_sums = METRICS["harmonic_mean"].of_sums
    assert float(of_sums(pooled)) == pytest.approx(2 * u * s / (u + s))
    assert float(of_sums(torch.zeros(2, 2))) == 0
    assert "harmonic_mean" not in measure([logits], y)


@pytest.mark.parametrize("shots", [0, 2])
def test_the_gradient_is_that_of_the_equations_written_apart(shots):
    found = tasks_of(shots=shots)
    model = build_model(Conv4(width=8, downsample="stride", normalization="group"), found.spec, 0)
    method = DescribedProtoNet(hidden=6)
    params = {name: value.double().requires_grad_() for name, value in method.init(model, found.spec, 0).items()}
    drawn = found.episodes([2])
    task = tree_map(lambda leaf: leaf[0].to(torch.float64 if leaf.is_floating_point() else leaf.dtype), drawn)
    context = Context(torch.tensor(0), torch.tensor(-1))
    (adapted,) = method.trajectory(model, params, task.support, context)
    logits = method.predict(model, params, adapted, task.query.x, context)

    def linear(name, x):
        return x @ params[f"description.{name}.weight"].T + params[f"description.{name}.bias"]

    centres = []
    for label in range(3):
        a = (task.support.x if not shots else task.support.x["description"])[task.support.y == label][0]
        g = linear("embed.3", linear("embed.1", a).relu())
        centre = params["description.length"] * g / g.norm()
        if shots:
            weight = torch.sigmoid(linear("weight.3", linear("weight.1", a).relu()))
            images = task.support.x["example"][task.support.y == label]
            mean = torch.stack([model.embed(params, one[None], context.noise)[0] for one in images]).mean(0)
            centre = weight * mean + (1 - weight) * centre
        centres.append(centre)
    asked = [model.embed(params, x[None], context.noise)[0] for x in task.query.x]
    expected = torch.stack([torch.stack([-(x - centre).square().sum() for centre in centres]) for x in asked])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    names = [name for name in params if shots or ".weight." not in name]
    leaves = [params[name] for name in names]
    losses = (F.cross_entropy(one, task.query.y) for one in (logits, expected))
    slopes = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def small():
    """Arguments of a run of seconds."""
    return [
        str(CONFIGS / "strokes-zero-shot.yaml"),
        *("tasks.train={descriptions: own, ways: 4, queries: 2, held_out: 0.2}", "tasks.classes=100"),
        *("tasks.test={descriptions: own, ways: 4, queries: 4, seen: 2}", "algorithm.hidden=32", "model.width=8"),
        *("outer.steps=40", "outer.tasks_per_step=4", "evaluation.tasks=20", "evaluation.validation_tasks=4"),
        *("evaluation.every=40", "tracking.uri=null", "executor.name=in_process"),
    ]


def test_a_run_tells_seen_from_unseen_and_its_learner_adapts_to_descriptions(tmp_path):
    result = last_json(command(tmp_path, "train", *small(), "--json"))
    scores = result["test"]["metrics"]
    assert scores.keys() >= {"unseen_accuracy", "seen_accuracy", "harmonic_mean"}
    learner = metatrain.load(tmp_path / result["run_dir"])
    task = tasks_of(ways=4).episodes([0])
    adapted = learner.adapt((task.support.x[0].numpy(), ["a", "b", "c", "d"]))
    assert set(adapted.predict(task.query.x[0].numpy())) <= {"a", "b", "c", "d"}
    told = command(tmp_path, "evaluate", result["run_dir"], "evaluation.tasks=4").out
    assert re.search(r"\n  accuracy on unseen classes: +\d+\.\d\d ± .*\n  accuracy on seen .*\n  harmonic mean", told)
    for override, message in (
        ("model.normalization=transductive", "model.normalization: the run was trained with 'group'"),
        ("tasks.train.held_out=0.5", "the run left out 0.2 of each class, which cannot change"),
        ("tasks.seed=9", "tasks.test.seen: seen classes are those of the run, and these tasks have others"),
        ("tasks.test.shots=1", "their support sets are of {'description': (36,), 'example': (1, 28, 28)}"),
    ):
        refused = command(tmp_path, "evaluate", result["run_dir"], override, expect=2)
        assert message in refused.err and len(refused.err.strip().splitlines()) == 1
    (tmp_path / "same.yaml").write_text("{name: strokes, classes: 100, test: {descriptions: own, ways: 4, seen: 2}}")
    again = last_json(command(tmp_path, "evaluate", result["run_dir"], "tasks=same.yaml", "--json"))
    assert again["test"]["metrics"].keys() >= {"harmonic_mean"}


def test_examples_beside_descriptions_are_what_the_nearest_neighbour_reads():
    found, baseline = tasks_of(shots=2), BASELINES["nearest_neighbour"]
    assert baseline.refusal(found.spec) is None and "another kind" in baseline.refusal(tasks_of().spec)
    task = tree_map(lambda leaf: leaf[0], found.episodes([1]))
    model = build_model(Conv4(width=4, downsample="stride", normalization="group"), found.spec, 0)
    logits = baseline.predict(model, {}, task.support, task.query.x, Context(torch.tensor(0), torch.tensor(-1)))
    distances = torch.cdist(task.query.x.flatten(1), task.support.x["example"].flatten(1))
    assert torch.equal(logits.argmax(1), task.support.y[distances.argmin(1)])


def test_a_file_of_descriptions_is_found_again_and_its_changes_are_noticed(tmp_path):
    names = [f"{split}{number}" for split in ("train", "validation", "test") for number in range(4)]
    features = {"class": np.repeat(names, 6), "split": np.repeat([name.rstrip("0123") for name in names], 6)}
    rows = np.random.default_rng(0).normal(size=(72, 4))
    pq.write_table(pa.table(features | {f"x{k}": rows[:, k] for k in range(4)}), tmp_path / "x.parquet")
    words = {"class": names, **{f"v{k}": np.arange(12.0) ** k for k in range(3)}}
    pq.write_table(pa.table(words), tmp_path / "words.parquet")
    shape = "descriptions: words.parquet, ways: 2, shots: 0, queries: 2"
    (tmp_path / "run.yaml").write_text(
        f"tasks: {{name: features, root: x.parquet, split: split, train: {{{shape}}}, test: {{{shape}}}}}\n"
        "model: {name: mlp}\nalgorithm: {name: described_protonet, hidden: 4}\n"
        "outer: {steps: 4, tasks_per_step: 2}\nexecutor: {name: in_process}\ntracking: {uri: null}\n"
        "evaluation: {every: 4, tasks: 4, validation_tasks: 2}\n"
    )
    run = last_json(command(tmp_path, "train", "run.yaml", "--json"))["run_dir"]
    (tmp_path / "elsewhere").mkdir()
    command(tmp_path / "elsewhere", "evaluate", f"../{run}")
    pq.write_table(pa.table({key: value[:-1] for key, value in words.items()}), tmp_path / "words.parquet")
    gone = command(tmp_path, "train", "run.yaml", expect=2)
    assert "words.parquet has no row of the class test3" in gone.err and "Traceback" not in gone.err
    pq.write_table(pa.table(words | {"v0": np.full(12, 9.0)}), tmp_path / "words.parquet")
    resumed = command(tmp_path, "train", "--resume", run, "outer.steps=6", expect=2)
    assert "12 classes" in resumed.err or "changed" in resumed.err


@pytest.mark.parametrize(("name", "files", "size"), [("cub", bird_files, ATTRIBUTES), ("awa2", animal_files, 5)])
def test_attributes_of_birds_and_of_animals_describe_them(tmp_path, name, files, size):
    root = pictures.write(tmp_path / "raw", files())
    source = TASK_SOURCES[name](root=str(root), cache=str(tmp_path / "cache"), size=pictures.SIDE)
    for split in ("train", "test"):
        found = open_tasks(source, name, split, DescribedShape(ways=2, queries=2), 0)
        task, classes = found.episodes([0]), found.task_classes([0])[0]
        assert found.spec.support == task.support.x.shape[2:] == (size,)
        torch.testing.assert_close(task.support.x[0], source.pool(split).descriptions(classes))
    changed = TransformedSource(source, Resize((1, 8, 8)))
    small = open_tasks(changed, name, "test", DescribedShape(ways=2, queries=2), 0).episodes([0])
    assert torch.equal(small.support.x, task.support.x) and small.query.x.shape[2:] == (1, 8, 8)
