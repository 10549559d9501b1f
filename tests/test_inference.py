"""What a run is for: load it, adapt it to a few labelled examples of one's own, ask it about others."""

import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metatrain
from metatrain.algorithms import MAML
from metatrain.config.load import load_config
from metatrain.inference import Learner
from metatrain.models import MLP, Conv4, build_model
from metatrain.runs import checkpoints, open_run
from metatrain.settings import Config
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run, run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker, driver_worker
from metatrain.types import Context
from tasks.sources.strokes import Strokes
from tasks.types import EpisodeShape, Examples
from tests import drawings, pictures
from tests.configurations import tiny
from tests.episodes import classification_spec
from tests.test_models import custom

CONTEXT = Context(torch.tensor(0), torch.tensor(-1))
LABELS = ["cat", "ape", "dog"]
SHORT = ("outer.steps=3", "evaluation.baselines=false", "evaluation.tasks=2", "evaluation.validation_tasks=2")


def train(config: Config) -> Path:
    worker = driver_worker(config)
    return Path(run(worker, InProcess(worker), CompositeRecorder()).run_dir)


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = f"runs.root={tmp_path_factory.mktemp('runs')}"
    protonet = "algorithm={name: protonet}"
    return {
        "maml": train(tiny(root, "evaluation.inner_steps=3", "evaluation.baselines=false")),
        "protonet": train(tiny(root, protonet, "evaluation.baselines=false")),
        "inductive": train(tiny(root, protonet, "model.normalization=inductive", *SHORT)),
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
    model = build_model(load_config(home.config).model, spec, seed=99).with_normalization("inductive")
    x, y = torch.tensor(images(6), dtype=torch.float32)[:, None], torch.tensor([0, 1, 2, 0, 1, 2])
    queries = torch.tensor(images(5, seed=3), dtype=torch.float32)[:, None]
    with torch.no_grad():
        *trajectory, adapted = learner.algorithm.trajectory(model, best, Examples(x, y), CONTEXT)
        expected = learner.algorithm.predict(model, best, adapted, queries, CONTEXT).softmax(1)
    assert len(trajectory) == {"maml": 3}.get(name, 0), "as many inner steps as in evaluation"
    found = learner.adapt((images(6), [*LABELS, *LABELS])).probabilities(images(5, seed=3))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["maml", "protonet", "inductive"])
def test_a_learner_says_the_same_of_one_image_as_of_many_unless_it_is_asked_to_be_transductive(run_dirs, name):
    asked = images(4, seed=1)
    adapted = metatrain.load(run_dirs[name]).adapt((images(3), LABELS))
    alone = torch.cat([adapted.probabilities(asked[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, adapted.probabilities(asked), atol=1e-5)
    transductive = metatrain.load(run_dirs[name], normalization="transductive").adapt((images(3), LABELS))
    together = transductive.probabilities(asked)
    assert not torch.allclose(together, alone, atol=1e-3)
    assert not torch.allclose(transductive.probabilities(asked[::-1][:3]).flip(0), together[1:], atol=1e-3)


def test_the_normalization_is_part_of_a_learner_and_its_repr(run_dirs):
    for chosen in (None, "inductive", "transductive"):
        learner = metatrain.load(run_dirs["maml"], normalization=chosen)
        adapted = learner.adapt((images(3), LABELS))
        assert learner.normalization == adapted.normalization == (chosen or "inductive")
        for shown in (repr(learner), repr(adapted)):
            assert "MAML(inner_lr=0.1, inner_steps=3" in shown
            assert f"normalization='{chosen or 'inductive'}'" in shown
            assert len(shown) < 160
        assert "trained on 3 classes" in repr(learner)
        assert repr(LABELS) in repr(adapted)
    with pytest.raises(ValueError, match="no 'none': choose inductive or transductive"):
        metatrain.load(run_dirs["maml"], normalization="none")


def test_a_transductive_learner_warns_of_each_call_with_few_queries(run_dirs):
    adapted = metatrain.load(run_dirs["protonet"], normalization="transductive").adapt((images(3), LABELS))
    for few in (1, 2):
        for call in (adapted.predict, adapted.probabilities):
            with pytest.warns(UserWarning, match=rf"{few} of at least 3 queries: .* or leave out norm") as told:
                call(images(few))
            assert len(told) == 1
            assert told[0].filename == __file__
    adapted.predict(images(3))
    with pytest.warns(UserWarning, match="1 of at least 2 queries"):
        adapted_to_two = metatrain.load(run_dirs["protonet"], normalization="transductive")
        adapted_to_two.adapt((images(2), ["a", "b"])).predict(images(1))


OWN = """
import torch
from torch import nn
from metatrain.algorithms import ProtoNet
from metatrain.models import TaskNorm


class Net(nn.Module):
    def __init__(self, late=False, norm=False):
        super().__init__()
        self.linear, self.late = nn.Linear(784, 8), late
        self.gate = nn.Parameter(torch.zeros(()))  # at first, no example moves another
        self.norm = TaskNorm(8) if norm else nn.Identity()

    def forward(self, x):
        h = self.linear(x.flatten(1))
        return self.norm(h - self.gate * h.mean(0) if self.late else h)


class Centred(ProtoNet):
    def predict(self, model, params, adapted, x, context):
        logits = super().predict(model, params, adapted, x, context)
        return logits - logits.mean(0)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Train with one's own module or algorithm and return the run."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def trained(*settings: str) -> Path:
        changed = [setting.replace("own:", f"{name}:") for setting in settings]
        return train(tiny(f"runs.root={tmp_path}", "outer.lr=0.1", *SHORT, *changed))

    yield trained
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (("algorithm={name: protonet}", "model={name: 'own:Net', arguments: {late: true}}"), "forward of Net"),
        (("algorithm={name: 'own:Centred'}",), "in Centred"),
    ],
)
def test_code_of_ones_own_by_which_queries_influence_each_other_is_found_at_the_trained_parameters(
    own, settings, where
):
    found = own(*settings)
    with pytest.warns(UserWarning, match=rf"this learner is transductive.*{where}.*mixed classes together") as told:
        learner = metatrain.load(found)
    assert told[0].filename == __file__
    assert learner.normalization == "transductive"
    with pytest.warns(UserWarning, match="predict 3 or more of mixed classes together$"):
        learner.adapt((images(3), LABELS)).predict(images(1))
    with pytest.raises(ValueError, match=rf"{where}.*cannot be inductive: set normalization to transductive"):
        metatrain.load(found, normalization="inductive")
    assert metatrain.load(found, normalization="transductive").normalization == "transductive"


def test_a_module_of_ones_own_is_inductive_with_task_norm_and_without_statistics(own):
    protonet = "algorithm={name: protonet}"
    normalized = metatrain.load(own(protonet, "model={name: 'own:Net', arguments: {norm: true}}"))
    plain = metatrain.load(own(protonet, "model={name: 'own:Net'}"))
    assert (normalized.normalization, plain.normalization) == ("inductive", "none")
    for learner in (normalized, plain):
        adapted = learner.adapt((images(3), LABELS))
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
        (images(1)[0], LABELS[:1], r"^x: one example of shape \(28, 28\), .*trained on .*: use x\[None\]"),
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


@pytest.mark.parametrize("x", [images(2)[:, :20], np.zeros((2, 3, 28, 28))])
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


class WithItself(nn.Module):
    """A copy of it would call the original."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 8)
        self.embed = lambda x: self.linear(x.flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)


@pytest.mark.parametrize(
    "architecture",
    [Conv4(width=8, downsample="stride"), custom(WithItself)],
    ids=["conv4", "own"],
)
def test_threads_that_share_a_learner_get_what_one_thread_gets(architecture):
    spec, algorithm = classification_spec(ways=5, size=28, channels=1), MAML(0.4, 2)
    model = build_model(architecture, spec, seed=0)
    learner = Learner(algorithm, model, algorithm.init(model, spec, 0))
    tasks = Strokes().distribution("test", EpisodeShape(5, 1, 3), 0).episodes(range(8))
    settings = [learner, replace(learner, model=model.with_normalization("inductive"))]

    def answer(number: int) -> torch.Tensor:
        support, query = (type(part)(*(leaf[number % 8] for leaf in part)) for part in tasks)
        return settings[number // 8 % 2].adapt((support.x, support.y)).probabilities(query.x)

    serial = [answer(number) for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(answer, list(range(16)) * 4))
    worst = max(float((one - serial[number % 16]).abs().max()) for number, one in enumerate(found))
    assert worst < 1e-5


def test_threads_that_share_an_adapted_learner_or_load_the_same_run(run_dirs):
    def answer(number: int) -> torch.Tensor:
        return metatrain.load(run_dirs["maml"]).adapt((images(3), LABELS)).probabilities(images(5, number % 4))

    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(answer, range(16)))
    assert torch.equal(torch.random.get_rng_state(), state), "the generator is as it was"
    adapted = metatrain.load(run_dirs["maml"]).adapt((images(3), LABELS))
    expected = [adapted.probabilities(images(5, seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        shared = list(threads.map(adapted.probabilities, [images(5, number % 4) for number in range(64)]))
    for number, one in [*enumerate(loaded), *enumerate(shared)]:
        assert torch.allclose(one, expected[number % 4], atol=1e-5)


def test_models_built_in_threads_begin_from_their_own_seeds_whatever_others_draw():
    spec, stop = classification_spec(ways=5, size=28, channels=1), threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(2)

    expected = [build_model(MLP(width=8), spec, seed).initial() for seed in range(4)]
    drawing = threading.Thread(target=draw)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda seed: build_model(MLP(width=8), spec, seed).initial(), list(range(4)) * 6))
        drawing.start()
        try:
            list(threads.map(lambda seed: build_model(MLP(width=8), spec, seed), range(24)))  # none is refused
        finally:
            stop.set()
            drawing.join()
    for number, params in enumerate(found):
        assert all(torch.equal(value, expected[number % 4][name]) for name, value in params.items())


def test_a_learner_that_has_answered_can_still_be_sent_to_another_process(learner):
    adapted = learner.adapt((images(3), LABELS))
    sent = pickle.loads(pickle.dumps((learner, adapted)))
    assert torch.equal(sent[1].probabilities(images(3)), adapted.probabilities(images(3)))
    assert torch.equal(sent[0].adapt((images(3), LABELS)).probabilities(X), adapted.probabilities(X))
