"""What a user may give to a learner, in which forms, and what each mistake is told."""

import warnings
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metatrain.algorithms import MAML, ProtoNet
from metatrain.inference import Learner
from metatrain.metrics import task_loss
from metatrain.models import MLP, Conv4, build_model
from tasks.sources.sinusoid import Sinusoid
from tasks.sources.strokes import Strokes
from tasks.types import EpisodeShape, TaskSpec
from tests.episodes import classification_spec

SPEC = classification_spec(ways=5, size=8, channels=1)
X = np.random.default_rng(0).uniform(size=(4, 8, 8))
Y = ["a", "b", "a", "b"]


def untrained(algorithm, architecture, spec: TaskSpec, source=None) -> Learner:
    model = build_model(architecture, spec, seed=0).with_normalization("inductive")
    return Learner(algorithm, model, algorithm.init(model, spec, 0), source)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return untrained(ProtoNet(), Conv4(width=4, depth=2), SPEC, Strokes())


@pytest.fixture(scope="module")
def regressor() -> Learner:
    return untrained(MAML(0.01, 2), MLP(width=8), TaskSpec("regression", None, (1,), (1,)), Sinusoid())


def sines(n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-5, 5, n)[:, None]
    return x, 2 * np.sin(x)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y[:, 0],
        lambda y: y[:, :, None],
        lambda y: y[:, 0].tolist(),
        lambda y: torch.tensor(y[:, 0]),
        lambda y: list(torch.tensor(y)),
        lambda y: iter(y.tolist()),
    ],
)
def test_targets_in_other_forms_are_the_tasks_own_targets_and_not_repeated(regressor, form):
    x, y = sines()
    expected = regressor.adapt((x, y)).predict(x)
    found = regressor.adapt((x, form(y))).predict(x[:, 0])
    assert torch.equal(found, expected)
    assert found.shape == (10, 1)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (sines()[1][:9], r"^support: 10 examples and targets of shape \(9, 1\): use targets of shape \(10, 1\)$"),
        (sines()[1].T, r"^support: 10 examples and targets of shape \(1, 10\): use"),
        (np.zeros((10, 10)), r"^targets: of shape \(10, 10\), .*trained on \(10, 1\): reshape them$"),
        (np.float64(3.0), r"^support: 10 examples and targets of shape \(\)"),
        (np.where(np.arange(10) == 3, np.nan, 0.0), r"^targets: holds values that are not finite: fix or remove"),
        (np.where(np.arange(10) == 3, np.inf, 0.0), r"^targets: holds values that are not finite"),
        (np.full(10, 1e300), r"^targets: holds values that are not finite"),
        (np.zeros(10, complex), r"^targets: complex numbers: use numbers of shape"),
        (["a"] * 10, r"^targets: no array of numbers .*: use numbers of shape \(10, 1\)$"),
        ("0123456789", r"^targets: a str: use numbers of shape"),
        (dict.fromkeys(range(10), 0.0), r"^targets: a dict: use numbers"),
        (set(range(10)), r"^targets: a set: use numbers"),
        ([[0.0]] * 9 + [[0.0, 1.0]], r"^targets: no array of numbers .*inhomogeneous"),
        (None, r"^targets: no array of numbers"),
    ],
)
def test_targets_that_are_none_are_refused(regressor, targets, message):
    refused(lambda: regressor.adapt((sines()[0], targets)), message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_in_every_input(regressor, value):
    x, y = sines()
    wrong = x.copy()
    wrong[4] = value
    adapted = regressor.adapt((x, y))
    refused(lambda: regressor.adapt((wrong, y)), r"^x: holds values that are not finite: fix or remove those examples$")
    refused(lambda: adapted.predict(wrong), r"^x: holds values that are not finite")


def test_probabilities_of_a_regression_are_refused(regressor):
    x, y = sines()
    refused(lambda: regressor.adapt((x, y)).probabilities(x), r"^probabilities: .*regresses values.*: use predict$")


def test_predictions_that_are_not_finite_are_no_answer(regressor):
    x, y = sines()
    diverging = Learner(MAML(1e18, 5), regressor.model, regressor.params)
    refused(lambda: diverging.adapt((x, y)).predict(x), r"^predictions are not finite: check the scale")


def test_a_loss_repeats_neither_predictions_nor_targets():
    with pytest.raises(ValueError, match=r"predictions of shape \(4, 1\) for targets of shape \(4,\): make both"):
        task_loss(torch.zeros(4, 1), torch.zeros(4))
    source = Sinusoid().distribution("train", EpisodeShape(ways=None), 0).episodes([0]).query
    assert float(task_loss(torch.zeros_like(source.y[0]), source.y[0])[0]) == pytest.approx(float((source.y**2).mean()))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((image for image in X), Y),
        (X, iter(Y)),
        (X, (label for label in Y)),
        (X, np.array(Y, dtype=object)),
        (list(map(torch.tensor, X)), [np.str_(label) for label in Y]),
        ((X * 255).round().astype(np.uint8), Y),
        (torch.tensor(X).requires_grad_(), Y),
        (X > 0.5, Y),
        (X[:, None].astype(np.float16), Y),
        (X.astype(">f8"), Y),
        (X.astype(np.longdouble), Y),
        (torch.tensor(X).to_sparse(), Y),
        (np.ma.array(X), np.ma.array(Y)),
    ],
)
def test_forms_that_are_accepted(learner, x, y):
    adapted = learner.adapt((x, y))
    assert adapted.labels == ["a", "b"]
    assert adapted.predict(image for image in X) == Y


def test_labels_are_told_apart_as_python_does(learner):
    each = [(1, "a"), None, (1, "a"), 2.5]
    assert learner.adapt((X, each)).labels == [(1, "a"), None, 2.5]
    assert learner.adapt([X, torch.tensor([3, 1, 3, 1])]).labels == [3, 1]


class Unknown:
    """As pandas' NA."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self) -> str:
        return "<NA>"


ONE_HOT = r"use one label for each example, such as y.argmax\(1\) of one-hot rows$"
SUPPORTS = [
    ((X,), r"^support: a tuple of 1: use a pair of examples and labels, adapt\(\(x, y\)\)$"),
    ((X, Y, X), r"^support: a tuple of 3: use a pair"),
    (X, r"^support: a ndarray: use a pair"),
    (torch.tensor(X[:2]), r"^support: a Tensor: use a pair"),
    ({"x": X, "y": Y}, r"^support: a dict: use a pair"),
    (zip(X, Y, strict=True), r"^support: a zip: use a pair"),
    (list(zip(X, Y, strict=True)), r"^support: a list of 4: use a pair"),
    (None, r"^support: a NoneType: use a pair"),
    ("xy", r"^support: a str: use a pair"),
    ((X, np.eye(4)), r"^labels: of shape \(4, 4\) for 4 examples: " + ONE_HOT),
    ((X, torch.eye(4)), r"^labels: of shape \(4, 4\) for 4 examples: " + ONE_HOT),
    ((X, np.eye(4).tolist()), r"^labels: the one at 0 is a list, which cannot be compared: " + ONE_HOT),
    ((X, list(np.eye(4))), r"^labels: the one at 0 is an array of shape \(4,\): " + ONE_HOT),
    ((X, list(torch.eye(4))), r"^labels: the one at 0 is an array of shape \(4,\): " + ONE_HOT),
    ((X, np.zeros((4, 1))), r"^labels: of shape \(4, 1\) for 4 examples: use y\[:, 0\]$"),
    ((X, np.int64(3)), r"^labels: of shape \(\)|^labels: a int64: use a sequence"),
    ((X, [{}, {}, {}, {}]), r"^labels: the one at 0 is a dict, which cannot be compared: use numbers or strings$"),
    ((X, ["a", "b", {1}, "a"]), r"^labels: the one at 2 is a set"),
    ((X, ["a", ("b", []), "a", "a"]), r"^labels: the one at 1 is a tuple"),
    ((X, [0.0, float("nan"), 1.0, 0.0]), r"^labels: the one at 1 is missing \(nan\): fix or remove that example$"),
    ((X, [Unknown(), "a", "b", "a"]), r"^labels: the one at 0 is missing \(<NA>\)"),
    ((X, [Decimal("nan")] * 4), r"^labels: the one at 0 is missing \(NaN\)"),
    ((X, np.ma.masked_equal([1, 2, 3, 4], 2)), r"^labels: the one at 1 is masked: fix or remove"),
    ((X, dict(zip("wxyz", X, strict=True))), r"^labels: a dict: use a sequence with one label for each example$"),
    ((X, set("wxyz")), r"^labels: a set: use a sequence"),
    ((X, "abab"), r"^labels: a str: use a sequence"),
    ((X, b"abab"), r"^labels: a bytes: use a sequence"),
    ((X, None), r"^labels: a NoneType: use a sequence"),
    ((X, 3), r"^labels: a int: use a sequence"),
    ((X, []), r"^support: 4 examples and 0 labels: use one label for each$"),
    ((X, Y[:3]), r"^support: 4 examples and 3 labels"),
    ((X, (label for label in Y[:3])), r"^support: 4 examples and 3 labels"),
    ((X, ["a"] * 4), r"^labels: all 4 are equal, which leaves nothing to tell apart: use two or more classes$"),
]
EXAMPLES = [
    (X[0], r"^x: one example of shape \(8, 8\), without the dimension of examples; .*: use x\[None\]$"),
    (X[:0], r"^x: holds no examples: use one or more$"),
    ([], r"^x: holds no examples"),
    ((image for image in []), r"^x: holds no examples"),
    (X[:, :, :, None], r"^x: examples of shape \(8, 8, 1\), channels last; .*: move the channels first$"),
    (X[:, :5], r"^x: examples of shape \(5, 8\); this learner was trained on \(1, 8, 8\): reshape or resize them$"),
    (X.reshape(4, 64), r"^x: examples of shape \(64,\); "),
    (np.float64(3.0), r"^x: .*trained on \(1, 8, 8\)"),
    (X.astype(complex), r"^x: complex numbers: use examples of shape \(1, 8, 8\), real numbers alone$"),
    (torch.tensor(X).to(torch.complex64), r"^x: complex numbers"),
    (X.astype(str), r"^x: no array of numbers \(its values are text\): use examples of shape \(1, 8, 8\)$"),
    (X.astype(object), r"^x: no array of numbers \(its values are of type object\)"),
    (np.array(["2026-01-01"] * 4, "datetime64[D]"), r"^x: no array of numbers"),
    ([X[0], None], r"^x: no array of numbers"),
    ([X[0], X[1][:5]], r"^x: no array of numbers .*inhomogeneous"),
    (["one.png", "two.png"], r"^x: no array of numbers"),
    ("folder", r"^x: no array of numbers"),
    ({"x": X}, r"^x: no array of numbers \(a dict\)"),
    ({1, 2}, r"^x: no array of numbers \(a set\)"),
    (None, r"^x: no array of numbers"),
    (lambda: X, r"^x: no array of numbers"),
    (np.where(X > 0.9, np.nan, X), r"^x: holds values that are not finite"),
    (X * 255, r"^x: images from .*; this learner reads bytes or numbers in \[0, 1\]: use uint8, or divide"),
    ((X * 6e4).astype(np.uint16), r"^x: images from .*: scale them to \[0, 1\]$"),
    (np.ma.masked_greater(X, 0.9), r"^x: no array of numbers \(some of its values are masked\)"),
    ((X * 255).astype(np.int64), r"^x: images from 0 to 25.*: use uint8"),
    ((X - 0.5) / 0.2, r"^x: images from -2.*: undo what they were normalised by$"),
]


def refused(call, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as told:
        warnings.simplefilter("error")
        call()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(("support", "message"), SUPPORTS)
def test_a_support_set_with_one_mistake_is_told_in_one_line(learner, support, message):
    refused(lambda: learner.adapt(support), message)


def test_examples_and_labels_as_two_arguments_are_told_to_be_a_pair(learner):
    refused(
        lambda: learner.adapt(X, Y), r"^support: 2 arguments: use a pair of examples and labels, adapt\(\(x, y\)\)$"
    )


@pytest.mark.parametrize(("x", "message"), EXAMPLES)
def test_examples_with_one_mistake_are_told_in_one_line(learner, x, message):
    if not hasattr(x, "__next__"):
        refused(lambda: learner.adapt((x, Y)), message)
    refused(lambda: learner.adapt((X, Y)).predict(x), message)


def test_numbers_that_are_no_images_may_have_any_scale():
    spec = classification_spec(ways=2, size=8, channels=1)
    learner = untrained(ProtoNet(), Conv4(width=4, depth=2), spec, SimpleNamespace())
    assert learner.adapt((X * 100 - 20, Y)).predict(X * 100 - 20) == Y
