"""Embedding a data set: every example, as the network embeds it in place, into a file that is tasks again."""

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from metatrain.embedding import choose_places, embed_all, write_embeddings
from metatrain.models import Custom
from metatrain.training.embedding import reference_examples
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from tasks.few_shot import count_examples, locate_examples
from tasks.sources.features import Features
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import last_json, metatrain
from tests.configurations import tiny

CPU = torch.device("cpu")
COUNT = pictures.COPIES * sum(pictures.SPLIT_SIZES.values())


class Mixing(torch.nn.Module):
    """A network of somebody's own that takes statistics from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3 * 12 * 12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.linear(x.flatten(1))
        return features - features.mean(0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The settings of a folder of pictures in three splits."""
    folder = tmp_path_factory.mktemp("images")
    root = pictures.write(folder / "raw", pictures.split_files())
    shape = "{ways: 3, shots: 1, queries: 2}"
    tasks = f"{{name: image_folder, root: {root}, cache: {folder}/cache, size: 12, train: {shape}, test: {shape}}}"
    return f"tasks={tasks}", "algorithm={name: protonet}", "model={name: mlp, width: 5}"


def worker(*overrides: str) -> Worker:
    return Worker(tiny(*overrides), CPU)


def test_every_example_is_embedded_as_in_place(images):
    one = worker(*images)
    parts = list(embed_all(one, InProcess(one)))
    for split in SPLITS:
        pool = one.pool(split)
        found = torch.cat([part.features for part in parts if part.split == split])
        names = [name for part in parts if part.split == split for name in part.classes]
        classes, members = locate_examples(pool, range(count_examples(pool)))
        expected = one.model.embed(one.initial(), pool.examples(classes, members), torch.tensor(-1))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert names == pool.class_names(classes)
        assert sorted(set(names)) == sorted(pictures.SPLIT_NAMES["val" if split == "validation" else split])


@pytest.mark.parametrize("normalization", ["transductive", "inductive", "none"])
def test_no_example_changes_the_features_of_another(images, monkeypatch, normalization):
    settings = (*images, f"model={{name: conv4, width: 4, depth: 2, normalization: {normalization}}}")
    one = worker(*settings)
    together = torch.cat([part.features for part in embed_all(one, InProcess(one))])
    monkeypatch.setattr("metatrain.embedding.TOGETHER", 3)
    one = worker(*settings)
    apart = torch.cat([part.features for part in embed_all(one, InProcess(one))])
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)
    reference = reference_examples(one.model, one.pool("train"))
    assert (reference is None) == (normalization == "none")
    assert reference is None or len(reference) == pictures.COPIES * pictures.SPLIT_SIZES["train"]


def test_a_file_of_them_gives_the_tasks_that_the_network_gives(images, tmp_path):
    one, path = worker(*images), tmp_path / "e.parquet"
    said = write_embeddings(one, InProcess(one), path, no_progress)
    size = one.model.num_features
    assert said == f"{COUNT} vectors of {size} numbers in 13 classes (5 for train, 4 for validation, 4 for test)"
    assert pq.read_table(path).column_names == ["class", "split", "features"]
    shape = EpisodeShape(3, 1, 2)
    for split in SPLITS:
        theirs = Features(str(path), split="split").distribution(split, shape, 7).episodes(range(5))
        ours = one.config.tasks.source.distribution(split, shape, 7).episodes(range(5))
        embedded = one.model.embed(one.initial(), ours.query.x.flatten(0, 1), torch.tensor(-1))
        torch.testing.assert_close(theirs.query.x.flatten(0, 1), embedded, rtol=1e-5, atol=1e-5)


def test_the_first_of_each_class_are_chosen(images):
    pool = worker(*images).pool("train")
    classes, members = locate_examples(pool, choose_places(pool, 2))
    assert classes.tolist() == np.repeat(np.arange(5), 2).tolist() and members.tolist() == [0, 1] * 5
    assert len(choose_places(pool, 100)) == len(choose_places(pool, None)) == count_examples(pool) == 40


def test_what_cannot_be_embedded_is_refused():
    strokes = worker()
    with pytest.raises(ValueError, match=r"--per-class: .* of strokes, more than 2,000,000: embed fewer"):
        list(embed_all(strokes, InProcess(strokes)))
    waves = worker("tasks={name: sinusoid, train: {ways: null}, test: {ways: null}}", "model={name: mlp}")
    with pytest.raises(ValueError, match=r"tasks\.name: sinusoid has no classes of examples to embed"):
        list(embed_all(waves, InProcess(waves)))


def test_a_network_with_statistics_of_its_own_batch_is_refused(images):
    config = tiny(*images)
    own = dataclasses.replace(config, model=Custom("tests.test_embedding:Mixing"))
    one = Worker(own, CPU)
    with pytest.raises(ValueError, match="cannot be inductive"):
        list(embed_all(one, InProcess(one)))


def test_statistics_of_training_examples_need_some(images):
    model = "model={name: conv4, width: 4, depth: 2}"
    one = worker(*images, model, f"tasks.splits={{test: [{', '.join(pictures.SPLIT_NAMES['test'])}]}}")
    with pytest.raises(ValueError, match=r"the tasks have no training classes: give it some by tasks\.splits, or set"):
        list(embed_all(one, InProcess(one)))


def test_features_may_be_the_inputs(images, tmp_path):
    one = worker(*images, "model={name: identity}")
    (part, *_) = embed_all(one, InProcess(one))
    pool = one.pool("train")
    assert torch.equal(part.features, pool.examples(*locate_examples(pool, range(len(part.features)))).flatten(1))


def test_the_command_writes_a_file_that_a_run_learns_from(images, tmp_path):
    (tmp_path / "images.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, _, value in (i.partition("=") for i in images))
    )
    done = metatrain(tmp_path, "data", "embed", "images.yaml", "executor.name=in_process", "--out", "e.parquet")
    assert "the network is not trained: set model.weights" in done.err
    first, use = done.out.splitlines()
    assert first.startswith(f"e.parquet: {COUNT} vectors of ")
    train, *advised = shlex.split(use.removeprefix("use them: metatrain "))
    assert advised == ["CONFIG", 'tasks={name: features, root: "e.parquet", split: split}', "model={name: mlp}"]
    shape = "{ways: 3, shots: 1, queries: 2}"
    few = ("outer={steps: 2, tasks_per_step: 2}", "evaluation={tasks: 4, validation_tasks: 2, from_scratch_tasks: 0}")
    shapes = (f"tasks.train={shape}", f"tasks.test={shape}", "executor.name=in_process", "tracking.uri=null")
    ran = metatrain(tmp_path, train, "images.yaml", *advised[1:], *shapes, *few, "--json")
    assert last_json(ran)["test"]["tasks"] == 4
    again = metatrain(tmp_path, "data", "embed", "images.yaml", "--out", "e.parquet", expect=2)
    assert again.err == "metatrain: --out: 'e.parquet' is there already: remove it, or write to another file\n"


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("e.csv", (), "--out: 'e.csv' is no Parquet file: use a name that ends in .parquet"),
        ("none/e.parquet", (), "--out: there is no folder 'none': make it, or write to another"),
        ("e.parquet", ("--per-class", "0"), "--per-class: 0 is no number of examples: set 1 or more"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(tmp_path: Path, out, more, message):
    done = metatrain(tmp_path, "data", "embed", "sinusoid-maml", "--out", out, *more, expect=2)
    assert done.err == f"metatrain: {message}\n" and not list(tmp_path.iterdir())
