"""Signatures of task distributions, and how far they are apart."""

import json
import math
import time
from typing import Any

import pytest
import torch

from metatrain.config.load import as_plain, read_config
from tasks.types import Episode, Examples
from tests import pictures
from tests.compared_runs import tiny_run
from tests.configurations import TINY
from tune.transfer.task_similarity import signature, signature_from_settings, similarity, task_distance


def drawn(ways: int = 5, shots: int = 1, **settings: Any) -> dict[str, Any]:
    shape = {"ways": ways, "shots": shots, "queries": 5}
    return signature(read_config({**TINY, "tasks": {"name": "strokes", "train": shape, "test": shape, **settings}}))


def curves(shots: int = 10, **settings: Any) -> dict[str, Any]:
    shape = {"ways": None, "shots": shots, "queries": 10}
    return signature(read_config({**TINY, "tasks": {"name": "sinusoid", "train": shape, "test": shape, **settings}}))


def coloured(monkeypatch: pytest.MonkeyPatch, side: int = 28, strength: float = 1.0, grain: int = 4) -> dict[str, Any]:
    """Photographs, near enough: `grain` by `grain` patches of colour, a mean for each class and noise about it."""

    def images(distribution: Any, indices: list[int]) -> Episode:
        generator = torch.Generator().manual_seed(indices[0])
        means = torch.randn(5, 1, 3, grain, grain, generator=generator)
        every = means + strength * torch.randn(5, 6, 3, grain, grain, generator=generator)
        big = torch.nn.functional.interpolate(
            every.flatten(0, 1), size=side, mode="bilinear" if grain == 4 else "nearest"
        ).unflatten(0, (5, 6))
        labels = torch.arange(5)
        support = Examples(big[:, :1].flatten(0, 1)[None], labels[None])
        return Episode(support, Examples(big[:, 1:].flatten(0, 1)[None], labels.repeat_interleave(5)[None]))

    with monkeypatch.context() as patched:
        patched.setattr("tasks.few_shot.FewShot.episodes", images)
        return {**drawn(), "source": "photographs"}


SIGNATURES = {
    "5-way": drawn(),
    "20-way": drawn(20),
    "5-shot": drawn(shots=5),
    "another alphabet": drawn(seed=9),
    "sinusoids": curves(),
    "large sinusoids": curves(amplitude=[5.0, 50.0]),
    "by its configuration alone": signature_from_settings(
        {"name": "strokes", "train": {"ways": 5, "shots": 1}, "seed": 0}
    ),
    "mini-imagenet": signature_from_settings({"name": "mini_imagenet", "train": {"ways": 5, "shots": 1}}),
}


@pytest.mark.parametrize("one", SIGNATURES)
@pytest.mark.parametrize("other", SIGNATURES)
def test_a_distance_is_symmetric_and_zero_for_equals_alone(one, other):
    a, b = SIGNATURES[one], SIGNATURES[other]
    assert task_distance(a, b) == task_distance(b, a)
    assert (task_distance(a, b) == 0) == (one == other)
    assert task_distance(a, b) >= 0 and 0 <= similarity(task_distance(a, b)) <= 1


def test_a_signature_is_plain_json_and_the_same_each_time():
    assert json.loads(json.dumps(SIGNATURES["5-way"])) == SIGNATURES["5-way"] == drawn()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The place of a short run on strokes, by whose network tasks are embedded."""
    return str(tiny_run(tmp_path_factory.mktemp("probe"), "probe", "model={name: conv4, width: 8, depth: 3}"))


def embedded(probe: str, ways: int = 5, **settings: Any) -> dict[str, Any]:
    shape = {"ways": ways, "shots": 1, "queries": 5}
    tasks = {"name": "strokes", "train": shape, "test": shape, **settings}
    return signature(read_config({**TINY, "tasks": tasks}), probe)


def test_with_a_probe_embeddings_tell_in_place_of_source_and_statistics(probe, tmp_path):
    strokes, others = embedded(probe), embedded(probe, seed=9)
    assert json.loads(json.dumps(strokes)) == strokes and task_distance(strokes, strokes) == 0
    root = pictures.write(tmp_path / "raw", pictures.split_files())
    far = embedded(probe, 3, name="image_folder", root=str(root), cache=str(tmp_path / "cache"), size=12)
    near = task_distance(strokes, others)
    assert near == task_distance(others, strokes) < 0.3
    assert task_distance(strokes, {**far, "ways": 5}) > 3 * near
    # Ways and shots still count, and are all that tells apart what is embedded alike.
    assert task_distance(strokes, embedded(probe, 4)) == pytest.approx(math.log(5 / 4) / math.log(20))
    assert task_distance(strokes, {**strokes, "source": "other", "statistics": {}}) == 0


def test_embeddings_by_different_probes_are_not_compared(probe):
    strokes, plain = embedded(probe), SIGNATURES["5-way"]
    other = {**strokes, "embedding": {**strokes["embedding"], "probe": "of another"}}
    photographs = {**plain, "source": "photographs"}
    assert task_distance(strokes, photographs) == task_distance(plain, photographs)
    assert task_distance({**other, "source": "photographs"}, strokes) == task_distance(plain, photographs)


def test_embeddings_that_are_all_alike_are_at_most_so_far_apart():
    def alike(value: float) -> dict[str, Any]:
        return {**SIGNATURES["5-way"], "embedding": {"probe": "p", "tasks": [[value, 1.0], [value, 1.0]]}}

    assert task_distance(alike(1.0), alike(1.0)) == 0 and task_distance(alike(1.0), alike(5.0)) == 3


CURVES = {"name": "sinusoid", "train": {"ways": None, "shots": 5, "queries": 5}}


@pytest.mark.parametrize(
    ("place", "tasks", "says"),
    [
        ("no/such/run", {}, r"search\.probe: .*no/such/run.*, or remove search\.probe"),
        (
            None,
            {"name": "sinusoid", "train": {"ways": None, "shots": 5, "queries": 5}},
            r"search\.probe: tasks: .*class",
        ),
    ],
)
def test_tasks_that_a_probe_cannot_embed_are_told_in_one_line(probe, place, tasks, says):
    shape = {"ways": 5, "shots": 1, "queries": 5}
    config = read_config({**TINY, "tasks": {"name": "strokes", "train": shape, "test": shape} | tasks})
    with pytest.raises(ValueError, match=says) as error:
        signature(config, place or probe)
    assert "\n" not in str(error.value)


def test_the_seed_of_a_run_is_no_part_of_its_tasks():
    shape = {"ways": 3, "shots": 1, "queries": 5}
    tasks = {"name": "strokes", "train": shape, "test": shape}
    assert signature(read_config({**TINY, "tasks": tasks, "seed": 8})) == signature(
        read_config({**TINY, "tasks": tasks})
    )


def test_ways_alone_count_as_the_equation_says():
    assert task_distance(SIGNATURES["5-way"], SIGNATURES["20-way"]) == pytest.approx(math.log(4) / math.log(20))
    assert task_distance(SIGNATURES["5-way"], SIGNATURES["5-shot"]) == pytest.approx(math.log(5) / math.log(20))


def test_regression_is_infinitely_far_from_classification_and_weighs_nothing():
    assert task_distance(SIGNATURES["5-way"], SIGNATURES["sinusoids"]) == math.inf
    assert similarity(math.inf) == 0 and similarity(0) == 1 and similarity(1) == pytest.approx(math.exp(-1))


def test_characters_of_more_ways_are_nearer_than_photographs(monkeypatch):
    photographs = coloured(monkeypatch)
    assert photographs["statistics"]["colour"] > 0.5 and SIGNATURES["5-way"]["statistics"]["colour"] == 0
    near = task_distance(SIGNATURES["5-way"], SIGNATURES["20-way"])
    assert near < 0.6 * task_distance(SIGNATURES["5-way"], photographs)
    assert task_distance(SIGNATURES["5-way"], SIGNATURES["another alphabet"]) < 0.5 * near


def test_resolution_is_no_difference(monkeypatch):
    low, high = coloured(monkeypatch, side=28), coloured(monkeypatch, side=84)
    assert low != high and task_distance(low, high) < 0.1
    fine, finer = (coloured(monkeypatch, side=side, grain=14) for side in (28, 84))
    assert task_distance(fine, finer) < 0.01
    assert task_distance(low, coloured(monkeypatch, strength=3.0)) > 0.4, "harder classes are"


def test_the_scale_of_targets_and_the_spread_of_tasks_are_seen():
    far = task_distance(SIGNATURES["sinusoids"], SIGNATURES["large sinusoids"])
    assert task_distance(SIGNATURES["sinusoids"], curves(amplitude=[0.1, 5.5])) < 0.3 < far


def test_what_has_no_statistics_is_compared_by_the_rest():
    whole, bare = SIGNATURES["5-way"], SIGNATURES["by its configuration alone"]
    assert task_distance(whole, bare) == task_distance({**whole, "statistics": {}}, bare) < 1
    assert task_distance({**whole, "source": "omniglot"}, bare) >= math.sqrt(6)
    assert task_distance(bare, SIGNATURES["mini-imagenet"]) == pytest.approx(math.sqrt(0.25 + 6))
    assert task_distance(bare, {**bare, "ways": 20}) == pytest.approx(math.log(4) / math.log(20))


def test_the_coarse_signature_is_that_of_the_whole_one_without_statistics():
    shape = {"ways": 5, "shots": 1, "queries": 5}
    config = read_config({**TINY, "tasks": {"name": "strokes", "train": shape, "test": shape}})
    whole = signature(config)
    assert signature_from_settings(as_plain(config)["tasks"]) == {
        key: whole[key] for key in whole if key != "statistics"
    }


def test_where_files_lie_is_no_part_of_it():
    tasks = {"name": "omniglot", "train": {"ways": 5, "shots": 1}, "splitting": "characters"}
    assert signature_from_settings({**tasks, "root": "a", "cache": "b"}) == signature_from_settings(
        {**tasks, "root": "s3://c/d", "cache": None}
    )


def test_tasks_whose_x_is_a_tree_have_a_signature_too(monkeypatch):
    def trees(distribution: Any, indices: list[int]) -> Episode:
        x, y = {"tokens": torch.zeros(1, 5, 7)}, torch.zeros(1, 5)
        return Episode(Examples(x, y), Examples(x, y))

    monkeypatch.setattr("tasks.few_shot.FewShot.episodes", trees)
    assert "statistics" not in drawn() and drawn()["kind"] == "classification"


def test_it_is_cheap():
    began = time.process_time()
    drawn(20, shots=5)
    assert time.process_time() - began < 3


def test_few_examples_are_enough():
    shape = {"ways": 2, "shots": 1, "queries": 1}
    found = signature(read_config({**TINY, "tasks": {"name": "strokes", "train": shape, "test": shape}}))
    assert all(math.isfinite(value) for value in found["statistics"].values())
