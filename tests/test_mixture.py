"""`tasks.name=mixture`: tasks of several sources, resized, drawn by weight, and told by source."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from metatrain.config.load import as_plain, read_config, resolve_paths
from metatrain.evaluation.by_source import average_ranks, estimate_by_source
from metatrain.metrics import METRICS
from metatrain.runs.data_record import find_overlap
from metatrain.training.worker import Worker
from metatrain.trust import unchosen_places
from metatrain.types import Shard, ShardRequest
from tasks.few_shot import EmptySplit, FewShot
from tasks.joined_pool import JoinedPool
from tasks.opening import open_tasks
from tasks.ragged import sample_batches
from tasks.ragged_shape import RaggedShape, Range
from tasks.sources.mixture import MixedSource, Mixture
from tasks.sources.strokes import Strokes
from tasks.transformed import Resize, TransformedPool, resize
from tasks.types import EpisodeShape
from tests import conformance_distributions as conformance
from tests import pictures
from tests.command_line import last_json, metatrain
from tests.compared_runs import tiny_run
from tests.configurations import MIXTURE, tiny

SHAPE = EpisodeShape(3, 1, 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Strokes, photographs with three splits, and further photographs for testing alone."""
    folder = tmp_path_factory.mktemp("mixed")
    split = pictures.write(folder / "split", pictures.split_files())
    whole = pictures.write(folder / "whole", pictures.class_files([f"class {number}" for number in range(6)]))
    at = {"cache": str(folder / "cache")}
    return Mixture(
        {
            "drawn": MixedSource("strokes", weight=3.0),
            "photographs": MixedSource("image_folder", str(split), settings={"size": 12, "mean": [0.5]}, **at),
            "others": MixedSource("image_folder", str(whole), settings={"size": 10, "splits": "test"}, **at),
        },
        size=8,
        channels="rgb",
    )


def test_it_conforms_and_a_source_without_classes_in_a_split_has_no_tasks_there(source):
    for split in ("train", "validation", "test"):
        distribution = source.distribution(split, SHAPE, 3)
        conformance.check_law(distribution)
        assert distribution.spec.x == (3, 8, 8) and not distribution.spec.ragged
        x = distribution.episodes(range(9)).query.x
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        assert list(distribution.tasks) == ["drawn", "photographs", *(["others"] if split == "test" else [])]


def test_a_task_is_that_of_its_source(source):
    distribution = source.distribution("test", SHAPE, 3)
    assert distribution.sources(range(7)) == [*["drawn", "photographs", "others"] * 2, "drawn"]
    alone = FewShot(TransformedPool(Strokes().pool("test"), Resize((3, 8, 8))), SHAPE, 3, "test")
    assert torch.equal(distribution.episodes([3]).support.x, alone.episodes([3]).support.x)
    assert distribution.class_names(3) == alone.class_names(3)
    classes = distribution.task_classes(range(6))
    first, second = alone.num_classes, alone.num_classes + pictures.SPLIT_SIZES["test"]
    assert (classes[[0, 3]] < first).all() and (classes[[2, 5]] >= second).all()
    assert (classes[[1, 4]] >= first).all() and (classes[[1, 4]] < second).all()
    assert classes.max() < distribution.num_classes == second + 6


@pytest.mark.parametrize("size", [8, None], ids=["resized", "as they are"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_drawn_together_are_those_of_each_source(source, split, size):
    """Of strokes and stores alike, with classes of their own and images that a store may normalise."""
    photographs = replace(source.sources["photographs"], settings={"size": 28, "channels": "grey"})
    sources = {"drawn": MixedSource("strokes"), "photographs": photographs, "again": replace(photographs, weight=2.0)}
    distribution = Mixture(sources, size).distribution(split, SHAPE, 5)
    together, names = distribution.episodes(range(20)), distribution.sources(range(20))
    assert set(names) == set(sources)
    for index, name in enumerate(names):
        pool = sources[name].source().pool(split)
        alone = FewShot(TransformedPool(pool, Resize((1, size or 28, size or 28))), SHAPE, 5, split).episodes([index])
        for part, expected in zip((*together.support, *together.query), (*alone.support, *alone.query), strict=True):
            assert torch.equal(part[index], expected[0])


@pytest.mark.parametrize("mean", [(), (0.3,)])
def test_classes_of_joined_pools_are_those_of_each_in_turn(source, mean):
    settings = {"size": 12, "mean": mean, "std": mean}
    store = replace(source.sources["photographs"], settings=settings).source().pool("train")
    other = TransformedPool(store, Resize((3, 12, 12)))
    joined = JoinedPool((store, other, store))
    classes = np.array([14, 0, 1, 7, 7, 2, 3, 12])
    members = np.arange(8) % pictures.COPIES
    found = joined.examples(classes, members)
    for row, (kind, member) in enumerate(zip(classes, members, strict=True)):
        pool = joined.pools[kind // 5]
        assert torch.equal(found[row], pool.examples(np.array([kind % 5]), np.array([member]))[0])
    assert joined.num_classes == 15 and joined.min_class_size == pictures.COPIES
    assert joined.sizes(classes).tolist() == [pictures.COPIES] * 8
    assert joined.class_names(classes) == [store.class_names(np.array([kind % 5]))[0] for kind in classes]


@pytest.mark.parametrize("means", [((), ()), ((0.5,), (0.5,)), ((0.5,), (0.25,))])
def test_stores_are_joined_as_they_are_one_by_one(source, means):
    """Of stores that are normalised alike, images go into their places before that is done, all together."""
    stores = [
        replace(source.sources["photographs"], settings={"size": 12, "mean": mean, "std": mean}).source().pool("train")
        for mean in means
    ]
    pools = stores[0], replace(stores[1], turns=4)
    classes, members = np.array([3, 24, 24, 5, 0, 1, 4, 19, 9, 2]), np.arange(10) % pictures.COPIES
    found = JoinedPool(pools).examples(classes, members)
    for row, (kind, member) in enumerate(zip(classes, members, strict=True)):
        pool, own = (pools[0], kind) if kind < 5 else (pools[1], kind - 5)
        assert torch.equal(found[row], pool.examples(np.array([own]), np.array([member]))[0])


def test_training_tasks_are_drawn_by_weight(source):
    drawn = source.distribution("train", SHAPE, 0).sources(range(4000))
    counts = [drawn.count("drawn"), drawn.count("photographs")]
    assert sum(counts) == 4000 and stats.chisquare(counts, [3000, 1000]).pvalue > 1e-3
    assert drawn != source.distribution("train", SHAPE, 1).sources(range(4000))


def test_tasks_of_many_sizes_come_in_batches_of_one_source_and_size(source):
    distribution = open_tasks(source, "mixture", "test", RaggedShape(Range(2, 4), Range(1, 2), 1), 0)
    batches = sample_batches(distribution, range(30))
    assert sorted(place for batch in batches for place in batch.places) == list(range(30))
    assert [batch.places[0] for batch in batches] == sorted(batch.places[0] for batch in batches)
    for batch in batches:
        assert len({place % 3 for place in batch.places}) == 1
        for row, place in enumerate(batch.places):
            (alone,) = sample_batches(distribution, [place])
            assert torch.equal(alone.tasks.support.x[0], batch.tasks.support.x[row])
    padded = distribution.task_classes(range(30))
    assert padded.shape == (30, 4) and padded.min() == -1
    with pytest.raises(ValueError, match="tasks of several sizes cannot be stacked: use sample_batches"):
        distribution.episodes(range(30))


def test_images_are_resized_by_the_stated_rules():
    grey = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    three = resize(grey, (3, 6, 6))
    assert all(torch.equal(three[:, channel], grey[:, 0]) for channel in range(3))
    coloured = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = 0.299 * coloured[:, 0] + 0.587 * coloured[:, 1] + 0.114 * coloured[:, 2]
    torch.testing.assert_close(resize(coloured, (1, 6, 6))[:, 0], expected)
    for side in (3, 11):
        found = resize(coloured, (3, side, side))
        assert found.shape == (5, 3, side, side) and float(found.min()) >= 0 and float(found.max()) <= 1
        torch.testing.assert_close(found.mean((2, 3)), coloured.mean((2, 3)), atol=0.05, rtol=0)
        assert torch.equal(resize(coloured[2:3], (3, side, side))[0], found[2]), "whatever else is asked for"
    torch.testing.assert_close(resize(torch.full((1, 1, 7, 5), 0.3), (1, 4, 9)), torch.full((1, 1, 4, 9), 0.3))


def test_what_is_drawn_from_is_told_by_source(source):
    data = source.data()
    assert [len(data.classes[split]) for split in ("train", "validation", "test")] == [1 + 5, 1 + 4, 1 + 4 + 6]
    assert data.classes["train"][0] == "drawn/train" and data.classes["test"][-1] == "others/class 5"
    assert set(data.contents) == {name for names in data.classes.values() for name in names}
    assert source.prepare(lambda done, total: None).splitlines()[0] == "mixture of 3 sources"
    assert find_overlap(data, data).trained_on == 0, "drawn characters of one split are none of another"


def test_classes_of_each_split_can_be_chosen(source):
    kept = {"train": ["drawn/train"], "test": ["drawn/test", "photographs/train_1", "others/class 2", "others/class 4"]}
    chosen = source.with_splits(kept)
    data = chosen.data()
    assert list(data.classes["test"]) == kept["test"] and list(data.classes["train"]) == ["drawn/train"]
    assert source.with_splits(source.data().classes).data() == source.data()
    whole = replace(source, sources=dict.fromkeys(("one", "two"), source.sources["others"]))
    assert isinstance(whole.distribution("train", SHAPE, 0), EmptySplit)
    assert isinstance(whole.ragged("train", RaggedShape(Range(2, 3), 1, 1), 0), EmptySplit)
    assert whole.distribution("test", SHAPE, 0).num_classes == 12


def test_channels_alone_can_be_matched(source):
    grey = replace(source, size=None, channels="grey", sources={n: source.sources[n] for n in ("drawn", "photographs")})
    with pytest.raises(ValueError, match="examples differ in shape"):
        grey.distribution("test", SHAPE, 0)
    others = replace(source.sources["others"], settings={"size": 12, "splits": "test"})
    same = {"a": source.sources["photographs"], "b": others}
    assert replace(source, size=None, channels="grey", sources=same).distribution("test", SHAPE, 0).spec.x == (
        1,
        12,
        12,
    )


# Configurations.


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("{name: mixture, sources: {}}", "tasks.sources: 0 are no mixture: set tasks.sources to two or more, by name"),
        (
            "{name: mixture, sources: {a: {name: strokes}, b: {name: sinusoid}}}",
            "tasks.sources.b.name: no source of classes is called 'sinusoid': set one of aircraft, ",
        ),
        (
            "{name: mixture, sources: {a: {name: strokes}, b: {name: strokes, weight: 0.0}}}",
            "tasks.sources.b.weight: 0 is no share of tasks: set more than 0, or remove the source",
        ),
        (
            "{name: mixture, sources: {a: {name: strokes}, b: {name: strokes, settings: {jiter: 1}}}}",
            "tasks.sources.b.settings.jiter: no such setting (did you mean jitter?): it may be classes, jitter, seed",
        ),
        (
            "{name: mixture, sources: {a: {name: strokes}, b: {name: strokes, settings: {seed: x}}}}",
            "tasks.sources.b.settings.seed: input should be a valid integer, not 'x'",
        ),
        (
            "{name: mixture, sources: {a: {name: strokes}, b: {name: omniglot, settings: {root: x}}}}",
            "tasks.sources.b.settings.root: stands beside the settings of a source: set root there",
        ),
        ("{name: mixture, size: 0, sources: {a: {name: strokes}, b: {name: strokes}}}", "size: 0 is no side of an im"),
        ("{name: mixture, sources: {a: {name: strokes}, b: 3}}", "tasks.sources.b: 3 is not a section"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(tasks, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        tiny(f"tasks={tasks}")


def test_examples_of_several_shapes_and_too_few_classes_are_refused(source):
    shapes = "size: examples differ in shape (drawn (1, 28, 28), photographs (3, 12, 12), others (3, 10, 10)): set"
    with pytest.raises(ValueError, match=re.escape(shapes)):
        Mixture(source.sources).distribution("test", SHAPE, 0)
    few = "tasks.sources.others: 7-way needs 7 classes; 'test' of image_folder has 6: lower tasks.test.ways"
    two = Mixture({name: source.sources[name] for name in ("drawn", "others")}, 8, "rgb")
    with pytest.raises(ValueError, match=re.escape(few)):
        two.distribution("test", EpisodeShape(7, 1, 1), 0)
    many = (
        "a class; the smallest in 'test' of image_folder has 8: lower tasks.test.shots or tasks.test.queries, or set "
    )
    with pytest.raises(ValueError, match=re.escape(f"{many}tasks.sources.others.settings.min_examples=9")):
        two.ragged("test", RaggedShape(Range(2, 3), 8, 1), 0)
    nowhere = Mixture({"a": MixedSource("strokes"), "b": MixedSource("omniglot", "/nowhere")})
    with pytest.raises(ValueError, match=r"sources.b: /nowhere is not a folder: set tasks.sources.b.root=FOLDER"):
        nowhere.prepare(lambda done, total: None)


def test_its_paths_are_expanded_made_absolute_and_those_of_a_strangers_run_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    config = tiny("tasks={name: mixture, sources: {a: {name: omniglot, root: ~/x}, b: {name: omniglot, root: y}}}")
    sources = resolve_paths(config).tasks.source.sources
    assert [sources["a"].root, sources["b"].root] == ["/somewhere/x", str(tmp_path / "y")]
    listed = "{name: image_folder, root: z, settings: {hierarchy: is_a.txt, splits: ~/lists, mean: [0.5]}}"
    typed = resolve_paths(tiny(f"tasks={{name: mixture, sources: {{a: {listed}, b: {{name: strokes}}}}}}"))
    settings = typed.tasks.source.sources["a"].settings
    assert [settings["hierarchy"], settings["splits"]] == [str(tmp_path / "is_a.txt"), "/somewhere/lists"]
    assert read_config(as_plain(typed)) == typed
    assert read_config(as_plain(config)) == config
    plain = {"tasks.sources.a.root": "s3://data/x?endpoint_override=evil", "tasks.sources.a.cache": "s3://mine"}
    assert unchosen_places(plain, ()) == plain
    assert unchosen_places(plain, ["tasks.sources.a.root=here"]).keys() == {"tasks.sources.a.cache"}
    assert not unchosen_places(plain, ["tasks.sources={}"])


# Training, testing, comparing.


def test_scores_by_source_and_ranks():
    values = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.0, 1.0]).double()
    found = estimate_by_source(METRICS["accuracy"], values, ["a", "b"] * 3)
    assert [(name, one.value, one.tasks) for name, one in found.items()] == [("a", 0.5, 3), ("b", 0.5, 3)]
    assert found["a"].ci95 == pytest.approx(stats.t.ppf(0.975, 2) * 0.5 / np.sqrt(3))
    scores = [{"a": 0.9, "b": 0.5}, {"a": 0.8, "b": 0.5}, {"a": 0.7, "b": 0.6}]
    assert average_ranks(scores, 1) == [(1 + 2.5) / 2, (2 + 2.5) / 2, (3 + 1) / 2]
    assert average_ranks(scores, -1) == [(3 + 1.5) / 2, (2 + 1.5) / 2, (1 + 3) / 2]
    assert average_ranks([], 1) == []


def test_a_shard_is_the_sum_of_its_tasks():
    worker = Worker(tiny(MIXTURE, "algorithm={name: protonet}"), torch.device("cpu"))
    request, params = ShardRequest("gradient", "train", 0), worker.initial()
    whole = worker.gradient(request, params, Shard(0, (0, 1, 2, 3, 4)))
    alone = [worker.gradient(request, params, Shard(0, (index,))) for index in range(5)]
    for key, value in whole.grads.items():
        torch.testing.assert_close(value, sum(one.grads[key] for one in alone), rtol=1e-4, atol=1e-6)


def test_results_are_told_by_source_and_runs_are_ranked(tmp_path: Path):
    names = ("protonet", "simple_shot")
    runs = [tiny_run(tmp_path, name, MIXTURE, f"algorithm={{name: {name}}}") for name in names]
    told = json.loads((runs[0] / "evaluations" / "test.json").read_text())["test"]["by_source"]
    assert {name: one["tasks"] for name, one in told.items()} == {"tidy": 3, "wild": 3}
    few = "evaluation.tasks=8"
    done = metatrain(tmp_path, "evaluate", str(runs[0]), few, "evaluation.baselines=false", "--json")
    assert [line.split(":")[0] for line in done.out.splitlines() if "(4 tasks)" in line] == ["  tidy", "  wild"] * 2
    compared = metatrain(tmp_path, "compare", *map(str, runs), few, "--json")
    found = last_json(compared)
    by_source = {run["label"]: run["results"][found["kind"]]["by_source"] for run in found["runs"]}
    assert last_json(done)["test"]["by_source"] in by_source.values()
    values = [{name: one["value"] for name, one in one.items()} for one in by_source.values()]
    assert [run["average_rank"] for run in found["runs"]] == average_ranks(values, 1)
    assert "average rank" in compared.out
    assert "average rank" in (tmp_path / "compare.html").read_text()
    metatrain(tmp_path, "report", str(runs[0]))
    page = (runs[0] / "report.html").read_text()
    assert "By source" in page and "tidy" in page
