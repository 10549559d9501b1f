"""`metatrain evaluate RUN tasks=FILE.yaml`: a run on other tasks, whose images are brought to those trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from metatrain.config.best_params import best_params
from metatrain.config.load import load_config
from metatrain.config.run_data import match_images, read_evaluation_config
from metatrain.runs.locations import open_run
from tasks.sources.strokes import Strokes
from tasks.transformed import TransformedSource, resize
from tasks.types import EpisodeShape
from tests import pictures
from tests.command_line import metatrain
from tests.compared_runs import tiny_run
from tests.configurations import TINY

FEW = ("evaluation.tasks=4", "evaluation.baselines=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of strokes and of photographs, and a run on each."""
    folder = tmp_path_factory.mktemp("others")
    root = pictures.write(folder / "raw", pictures.split_files())
    photographs = {"name": "image_folder", "root": str(root), "cache": str(folder / "cache"), "size": 12, "mean": [0.5]}
    shape = {"ways": 3, "shots": 1, "queries": 2}
    photographs |= {"train": shape, "test": shape}
    for name, tasks in (("photographs", photographs), ("strokes", TINY["tasks"])):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(TINY | {"tasks": tasks}))
        network = ("model={name: mlp, width: 8, depth: 1}", "model.width=8")
        (folder / name).write_text(str(tiny_run(folder, name, f"tasks={json.dumps(tasks)}", *network)))
    return folder


def run_of(folder: Path, name: str) -> str:
    return (folder / name).read_text()


@pytest.mark.parametrize(
    ("trained", "tested", "shapes"),
    [
        ("photographs", "strokes", ([1, 28, 28], [3, 12, 12])),
        ("strokes", "photographs", ([3, 12, 12], [1, 28, 28])),
    ],
)
def test_a_run_is_tested_on_another_source(folder, trained, tested, shapes):
    done = metatrain(folder, "evaluate", run_of(folder, trained), f"tasks={tested}.yaml", *FEW)
    name = {"photographs": "image_folder"}.get(tested, tested)
    assert f"images of {name} {shapes[0]} are brought to those trained on, {shapes[1]}" in done.err
    assert "(4 tasks" in done.out
    kept = [
        json.loads(path.read_text()) for path in (Path(run_of(folder, trained)) / "evaluations").glob("test-*.json")
    ]
    assert f"tasks={tested}.yaml" in [override for one in kept for override in one["overrides"]]


def test_images_have_the_shape_and_the_normalisation_of_those_trained_on(folder):
    home = open_run(run_of(folder, "photographs"))
    trained = load_config(home.config)
    _, _, noted = best_params(home)
    settings = read_evaluation_config(trained, [f"tasks={folder}/strokes.yaml", "tasks.test.ways=2"])
    assert settings.tasks.source == Strokes() and settings.tasks.test == EpisodeShape(2, 1, 3)
    matched, _ = match_images(settings, trained, noted["spec"])
    assert isinstance(matched.tasks.source, TransformedSource)
    found = matched.tasks.source.distribution("test", settings.tasks.test, 0)
    drawn = Strokes().distribution("test", settings.tasks.test, 0).episodes([0]).query.x[0]
    expected = resize(drawn, (3, 12, 12)) - 0.5
    assert torch.equal(found.episodes([0]).query.x[0], expected)
    torch.testing.assert_close(found.denormalize(expected), resize(drawn, (3, 12, 12)))
    assert match_images(trained, trained, noted["spec"]) == (trained, None)
    larger = replace(trained, tasks=replace(trained.tasks, source=replace(trained.tasks.source, size=14)))
    assert match_images(larger, trained, noted["spec"]) == (larger, None), "a setting of the run's own data is a choice"


def test_a_mean_over_training_tasks_is_not_taken_over_other_tasks(folder):
    run, setting = run_of(folder, "strokes"), "algorithm.name=simple_shot"
    done = metatrain(folder, "evaluate", run, "tasks=photographs.yaml", "tasks.test.ways=2", setting, expect=2)
    assert "simple_shot reads" in done.err and "evaluate on the run's own data" in done.err


def test_what_cannot_be_matched_is_refused_in_a_line(folder):
    (folder / "curves.yaml").write_text(yaml.safe_dump(TINY | {"tasks": {"name": "sinusoid", "test": {"ways": None}}}))
    run = run_of(folder, "strokes")
    done = metatrain(folder, "evaluate", run, "tasks=curves.yaml", expect=2)
    assert "tasks: their examples are of (1,), and the run was trained on (1, 28, 28): use tasks of the" in done.err
    done = metatrain(folder, "evaluate", run, "tasks=nowhere.yaml", expect=2)
    assert len(done.err.splitlines()) == 1 and "nowhere.yaml" in done.err


def test_compare_brings_them_to_each_run(folder):
    runs = [run_of(folder, name) for name in ("strokes", "photographs")]
    also = ("--also", "photographs.yaml")
    done = metatrain(folder, "compare", *runs, "evaluation.tasks=4", *also, "--json")
    contrast = ("evaluation.tasks=4", "evaluation.corruption=contrast", "--split", "validation")
    corrupted = metatrain(folder, "compare", runs[0], *contrast)
    assert "images corrupted by contrast 3, 4 validation tasks" in corrupted.out
    assert [one["name"] for one in json.loads(done.out.splitlines()[-1])["also"]] == ["photographs"]
    labels = [run["label"] for run in json.loads(done.out.splitlines()[-1])["runs"]]
    assert sorted(labels) == ["photographs", "strokes"]
