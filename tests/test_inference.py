"""What a run is for: load it, adapt it to a few labelled examples of one's own, ask it about others."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import metatrain
from metatrain.config.load import load_config
from metatrain.inference import Learner
from metatrain.models import build_model
from metatrain.runs import checkpoints, open_run
from metatrain.settings import Config
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker, driver_worker
from metatrain.types import Context
from tasks.types import Examples
from tests import drawings, pictures
from tests.configurations import tiny

CONTEXT = Context(torch.tensor(0), torch.tensor(-1))
LABELS = ["cat", "ape", "dog"]


def train(config: Config) -> Path:
    worker = driver_worker(config)
    return Path(run(worker, InProcess(worker), CompositeRecorder()).run_dir)


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = f"runs.root={tmp_path_factory.mktemp('runs')}"
    protonet = "algorithm={name: protonet}"
    return {
        "maml": train(tiny(root, "evaluation.inner_steps=3")),
        "protonet": train(tiny(root, protonet)),
        "inductive": train(tiny(root, protonet, "model.normalization=inductive", "outer.steps=3")),
    }


@pytest.fixture(params=["maml", "protonet"])
def learner(request: pytest.FixtureRequest, run_dirs: dict[str, Path]) -> Learner:
    return metatrain.load(run_dirs[request.param])


def images(n: int, seed: int = 0) -> np.ndarray:
    """Each has ink in a place of its own, so that they can be told apart."""
    x = np.random.default_rng(seed).uniform(0, 0.2, (n, 28, 28))
    for i in range(n):
        x[i, 4 * (i % 6) : 4 * (i % 6) + 4, :] = 1
    return x


def test_it_answers_in_the_labels_that_it_was_given(learner):
    adapted = learner.adapt((images(3), LABELS))
    assert adapted.labels == LABELS
    assert adapted.predict(images(3)) == LABELS, "it knows the very examples that it was shown"
    found = adapted.predict(images(7, seed=1))
    assert len(found) == 7
    assert set(found) <= set(LABELS)


@pytest.mark.parametrize(
    ("labels", "spelt"),
    [
        (np.array(["b", "a", "c"]), ["b", "a", "c"]),
        (np.array([7, 3, 5]), [7, 3, 5]),
        (torch.tensor([7, 3, 5]), [7, 3, 5]),
        ((None, True, ("a", 1)), [None, True, ("a", 1)]),
    ],
)
def test_labels_are_of_any_kind_and_come_back_as_plain_values(learner, labels, spelt):
    found = learner.adapt((images(3), labels)).predict(images(3))
    assert found == spelt
    assert [type(label) for label in found] == [type(label) for label in spelt]


def test_probabilities_sum_to_one_and_agree_with_the_labels(learner):
    adapted = learner.adapt((images(6), [*LABELS, *LABELS]))
    chances = adapted.probabilities(images(8, seed=2))
    assert chances.shape == (8, 3)
    assert torch.allclose(chances.sum(1), torch.ones(8))
    assert not chances.requires_grad
    assert [LABELS[i] for i in chances.argmax(1).tolist()] == adapted.predict(images(8, seed=2))


X = images(3)
FORMS = {
    "torch": torch.tensor(X),
    "torch with channels": torch.tensor(X, dtype=torch.float32)[:, None],
    "numpy with channels": X[:, None],
    "float32": X.astype(np.float32),
    "list of images": list(X),
    "nested lists": X.tolist(),
    "read-only": np.broadcast_to(X, X.shape),
    "flipped twice": X[:, ::-1].copy()[:, ::-1],
    "with a graph": torch.tensor(X, requires_grad=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_may_come_in_many_forms(learner, form):
    expected = learner.adapt((X, LABELS)).probabilities(X)
    found = learner.adapt((FORMS[form], LABELS)).probabilities(FORMS[form])
    assert torch.equal(found, expected)


def test_a_list_of_torch_images(learner):
    whole = learner.adapt((X, LABELS)).probabilities(X)
    assert torch.equal(learner.adapt(([torch.tensor(x) for x in X], LABELS)).probabilities(X), whole)


def test_what_is_given_is_left_alone(learner):
    x, kept = images(3), images(3)
    learner.adapt((x, LABELS)).predict(x)
    assert np.array_equal(x, kept)


@pytest.mark.parametrize("name", ["maml", "protonet", "inductive"])
def test_it_says_what_the_algorithm_says_at_the_best_parameters(run_dirs, name):
    home = open_run(run_dirs[name])
    newest = checkpoints.newest(home.checkpoints)
    best = checkpoints.load(home.checkpoints, newest.snapshot["best"]["step"])["params"]
    learner = metatrain.load(run_dirs[name])
    assert all(torch.equal(learner.params[key], value) for key, value in best.items())

    spec = learner.model.spec
    model = build_model(load_config(home.config).model, spec, seed=99)
    x, y = torch.tensor(images(6), dtype=torch.float32)[:, None], torch.tensor([0, 1, 2, 0, 1, 2])
    queries = torch.tensor(images(5, seed=3), dtype=torch.float32)[:, None]
    with torch.no_grad():
        *trajectory, adapted = learner.algorithm.trajectory(model, best, Examples(x, y), CONTEXT)
        expected = learner.algorithm.predict(model, best, adapted, queries, CONTEXT).softmax(1)
    assert len(trajectory) == {"maml": 3}.get(name, 0), "as many inner steps as in evaluation"
    found = learner.adapt((images(6), [*LABELS, *LABELS])).probabilities(images(5, seed=3))
    assert torch.equal(found, expected)


def test_an_inductive_learner_says_the_same_of_one_image_as_of_many(run_dirs):
    adapted = metatrain.load(run_dirs["inductive"]).adapt((images(3), LABELS))
    alone = torch.cat([adapted.probabilities(images(4)[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, adapted.probabilities(images(4)), atol=1e-5)


def test_fewer_classes_than_trained_on(learner):
    adapted = learner.adapt((images(2), ["a", "b"]))
    assert adapted.probabilities(images(4)).shape == (4, 2)
    assert set(adapted.predict(images(4))) <= {"a", "b"}


def test_more_classes_than_trained_on_take_a_learner_without_a_head(run_dirs):
    five = (images(5), list("abcde"))
    assert metatrain.load(run_dirs["protonet"]).adapt(five).predict(images(5)) == list("abcde")
    with pytest.raises(ValueError, match=r"5 classes, and the head was trained for 3: .* such as protonet") as refused:
        metatrain.load(run_dirs["maml"]).adapt(five)
    assert "\n" not in str(refused.value)


def test_adapting_again_begins_anew(learner):
    first = learner.adapt((images(3), LABELS))
    before = first.probabilities(images(4))
    learner.adapt((images(3, seed=5)[::-1].copy(), LABELS))
    assert torch.equal(first.probabilities(images(4)), before)
    assert torch.equal(learner.adapt((images(3), LABELS)).probabilities(images(4)), before)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (images(3), LABELS[:2], r"^support: 3 examples and 2 labels: use one label for each$"),
        (images(2), LABELS, r"^support: 2 examples and 3 labels"),
        (images(3)[:, :20], LABELS, r"^x: .*\(20, 28\).*trained on \(1, 28, 28\): reshape or resize"),
        (np.zeros((3, 3, 28, 28)), LABELS, r"^x: .*\(3, 28, 28\).*trained on \(1, 28, 28\)"),
        (images(1)[0], LABELS[:1], r"^x: .*\(28,\).*trained on"),
        (np.float64(3.0), LABELS[:1], r"^x: .*trained on"),
        (images(3)[:0], [], r"^x: holds no examples: use one"),
        ([images(1)[0], images(1)[0][:20]], LABELS[:2], r"^x: no array of numbers .* use examples of shape"),
        (np.full((3, 28, 28), np.nan), LABELS, r"^x: .*not finite"),
        (["a", "b", "c"], LABELS, r"^x: no array of numbers"),
    ],
)
def test_a_support_set_that_makes_no_sense_is_one_line(learner, x, y, message):
    with pytest.raises(ValueError, match=message) as refused:
        learner.adapt((x, y))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("x", [images(2)[:, :20], np.zeros((2, 3, 28, 28)), images(1)[0]])
def test_queries_of_another_shape_are_refused(learner, x):
    with pytest.raises(ValueError, match=r"^x: .*trained on \(1, 28, 28\): reshape or resize"):
        learner.adapt((images(3), LABELS)).predict(x)


def test_no_run_and_a_run_without_a_checkpoint_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"no run at .*metatrain train"):
        metatrain.load(tmp_path / "nowhere")
    home = new_run(tiny(f"runs.root={tmp_path}"))
    with pytest.raises(ValueError, match="no checkpoint yet: go on with `metatrain train --resume"):
        metatrain.load(home.path)


FRESH = """
import json, sys
import numpy as np
import metatrain
x = np.load(sys.argv[2])
adapted = metatrain.load(sys.argv[1]).adapt((x[:3], ["cat", "ape", "dog"]))
print(json.dumps([adapted.predict(x), adapted.probabilities(x).tolist()]))
"""


@pytest.mark.slow
def test_in_a_fresh_process_elsewhere_without_the_data_set(tmp_path):
    raw = drawings.write_zips(tmp_path / "raw")
    config = tiny(
        f"runs.root={tmp_path / 'runs'}",
        f"tasks={{name: omniglot, root: '{raw}', cache: '{tmp_path / 'cache'}', splitting: alphabets}}",
        "tasks.train={ways: 3, shots: 1, queries: 2}",
        "tasks.test={ways: 3, shots: 1, queries: 2}",
        "outer.steps=2",
    )
    trained = train(config)
    np.save(tmp_path / "x.npy", images(6))
    adapted = metatrain.load(trained).adapt((images(6)[:3], LABELS))
    (tmp_path / "raw").rename(tmp_path / "gone")
    (tmp_path / "cache").rename(tmp_path / "gone too")
    moved = trained.rename(tmp_path / "moved")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(moved), str(tmp_path / "x.npy")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    labels, chances = json.loads(done.stdout)
    assert labels == adapted.predict(images(6))
    assert torch.allclose(torch.tensor(chances), adapted.probabilities(images(6)), atol=1e-6)


def test_images_are_scaled_as_the_run_had_them_and_bytes_are_bytes(tmp_path):
    photos = pictures.write(tmp_path / "photos", pictures.split_files())
    source = f"name: image_folder, root: {photos}, cache: {tmp_path / 'cache'}, size: {pictures.SIDE}"
    shapes = "mean: [0.2, 0.4, 0.6], std: [0.5], train: {ways: 3, queries: 2}, test: {ways: 3, queries: 2}"
    algorithm = ("algorithm={name: protonet}", "model={name: mlp, width: 8}")
    config = tiny(f"tasks={{{source}, {shapes}}}", f"runs.root={tmp_path / 'runs'}", *algorithm)
    learner, worker = metatrain.load(train(config)), Worker(config, torch.device("cpu"))
    distribution = worker.distribution("test")
    task = distribution.episodes([0])
    (x, y), (asked, _) = (type(part)(*(leaf[0] for leaf in part)) for part in task)
    *_, adapted = worker.algorithm.trajectory(worker.model, learner.params, Examples(x, y), CONTEXT)
    expected = worker.algorithm.predict(worker.model, learner.params, adapted, asked, CONTEXT).softmax(1)
    shown = [distribution.denormalize(images) for images in (x, asked)]
    assert torch.allclose(learner.adapt((shown[0], y)).probabilities(shown[1]), expected, atol=1e-5)
    as_bytes = [(images * 255).round().to(torch.uint8).numpy() for images in shown]
    assert torch.allclose(learner.adapt((as_bytes[0], y)).probabilities(as_bytes[1]), expected, atol=1e-5)
