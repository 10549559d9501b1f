"""Test tasks whose support examples are of another kind than queries, from training to prediction."""

from pathlib import Path

import numpy as np
import pytest

import metatrain
from metatrain.config.load import read_config
from tasks.types import EpisodeShape
from tests.descriptions import ATTRIBUTES, Described


def configured(folder: Path, tree: bool, **changed) -> dict:
    shape = {"ways": 4, "shots": 1, "queries": 3}
    return {
        "tasks": {"name": "tests.descriptions:Described", "tree": tree, "train": shape, "test": shape},
        "model": {"name": "mlp", "width": 24, "depth": 1},
        "algorithm": {"name": "tests.descriptions:DescribedPrototypes"},
        "outer": {"steps": 60, "tasks_per_step": 8, "lr": 1e-2, "groups": {"encoder": {"lr": 3e-2}}},
        "evaluation": {"tasks": 40, "validation_tasks": 10, "every": 60},
        "engine": {"compile": "off"},
        "runs": {"root": str(folder)},
        "tracking": {"uri": None},
    } | changed


@pytest.fixture(scope="module", params=[False, True], ids=["attributes", "a dict of them"])
def trained(request, tmp_path_factory):
    return request.param, metatrain.train(configured(tmp_path_factory.mktemp("runs"), request.param), progress=False)


def test_it_trains_and_baselines_that_compare_inputs_are_left_out(trained):
    results = {result.learner: result for result in trained[1].results}
    assert results["trained"].value > 0.8 > 0.45 > results["untrained"].value
    assert results.keys() == {"trained", "untrained"}
    assert not results["trained"].transductive


def test_a_learner_adapts_to_descriptions_and_predicts_pictures(trained):
    tree, result = trained
    learner = metatrain.load(result.run_dir, trust=True)
    task = Described(tree).distribution("test", EpisodeShape(4, 1, 3), 5).episodes([0])
    given = np.asarray(task.support.x["attributes"] if tree else task.support.x)[0]
    names = ["wren", "robin", "finch", "rook"]
    adapted = learner.adapt(({"attributes": given} if tree else given, names))
    found = adapted.predict(task.query.x[0].numpy())
    right = [names[label] for label in task.query.y[0]]
    assert sum(a == b for a, b in zip(found, right, strict=True)) >= 9
    wrong = given[:, :-1]
    with pytest.raises(ValueError, match=rf"\[n, {ATTRIBUTES}\]"):
        learner.adapt(({"attributes": wrong} if tree else wrong, names))
    with pytest.raises(ValueError, match="attributes" if tree else "examples"):
        learner.adapt(({"colour": given} if tree else "no numbers", names))


def test_a_method_that_adapts_to_queries_of_one_kind_is_refused_in_one_line(tmp_path):
    config = configured(tmp_path, False, algorithm={"name": "maml"})
    config["outer"].pop("groups")
    with pytest.raises(ValueError, match=r"algorithm\.name: maml reads support examples of the shape of queries"):
        metatrain.train(config, progress=False)
    assert not list(tmp_path.iterdir())
    assert read_config(config).names.algorithm == "maml"
