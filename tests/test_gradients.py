"""Test meta-gradients in float64 against references that share no code with them (invariant 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from metatrain.algorithms import ALGORITHMS
from metatrain.algorithms.pretrained.pretraining import Classifier
from metatrain.engine import Engine, unrolled_gradient
from metatrain.models import Conv4, build_model
from metatrain.types import InnerLoop
from tasks.types import Episode, Examples
from tests import reference, reference_descent, reference_leo, reference_metric, reference_svm
from tests.configurations import ON_PICTURES
from tests.episodes import classification_spec, context_of, random_episodes
from tests.reference import log_softmax_loss

TOLERANCE = 1e-9
BLOCKS = 2


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference over the largest absolute value, all parameters together."""
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / scale


@dataclass(frozen=True)
class Row:
    settings: dict
    expected: Callable[..., dict[str, Tensor]]
    """(parameters, tasks, blocks=, stride=, inductive=) -> Σ_tasks ∇ of the query loss."""


def descent(rate: float, **kind: object) -> Row:
    steps = 3
    return Row({"inner_lr": rate, "inner_steps": steps}, partial(reference.maml, **{"lr": rate, "steps": steps} | kind))


def comparison(scores: Callable[..., Tensor], loss: Callable[..., Tensor] = log_softmax_loss, **settings) -> Row:
    return Row(settings, partial(reference.comparison, scores=scores, loss=loss))


TWO_OF_LSTM = {"inner_lr": 0.3, "inner_steps": 2, "hidden": 3}
LEO = {"inner_steps": 2, "finetuning_lr": 0.1, "finetuning_steps": 2, "latents": 3, "encoder_penalty_weight": 0.1}
ROWS = {
    "maml": descent(0.3, second=True),
    "fomaml": descent(0.3, second=False),
    "maml_plus_plus": Row(
        {"inner_lr": 0.3, "inner_steps": 3}, partial(reference.maml_plus_plus, lr=0.3, steps=3, share=1 / 3)
    ),
    "imaml": Row(
        {"inner_lr": 0.05, "inner_steps": 3, "regularization": 4.0, "damping": 296.0, "iterations": 25},
        partial(reference.imaml, lr=0.05, steps=3, strength=4.0, damping=296.0),
    ),
    # Reptile's Adam moves every weight by about its rate, however small the gradient: 0.3 would be off the map.
    "reptile": Row({"inner_lr": 0.003, "inner_steps": 3}, partial(reference.reptile, lr=0.003, steps=3)),
    "anil": descent(0.3, second=True, adapted="head."),
    "boil": descent(0.3, second=True, adapted="body."),
    "meta_sgd": descent(0.3, second=True, lr=1, move=reference_descent.by_own_rates),
    "meta_curvature": descent(0.3, second=True, move=reference_descent.by_curvature),
    "meta_lstm": Row(TWO_OF_LSTM, partial(reference_descent.meta_lstm, steps=2, second=False)),
    "meta_lstm, second order": Row(
        TWO_OF_LSTM | {"second_order": True}, partial(reference_descent.meta_lstm, steps=2, second=True)
    ),
    "leo": comparison(reference_leo.scores, reference_leo.loss, **LEO),
    "protonet": comparison(reference.nearest_centre),
    "r2d2": comparison(reference.ridge),
    "meta_opt_net": comparison(reference_svm.scores, reference_svm.smoothed_loss),
    "matching": comparison(partial(reference_metric.attention, scale=4.0), scale=4.0),
    "matching, full context": comparison(reference_metric.full_context, full_context=True, processing_steps=2),
    "siamese": comparison(reference_metric.pairs, reference_metric.pair_loss),
    "siamese, unbalanced": comparison(
        reference_metric.pairs, partial(reference_metric.pair_loss, balanced=False), balanced=False
    ),
    "relation": comparison(reference_metric.relation, reference_metric.sigmoid_mse, width=4, hidden=3),
    "in_context": comparison(reference_metric.in_context, width=4, layers=2, heads=2, hidden=3),
    "nearest_centroid": Row({}, reference.classification),
    "simple_shot": Row({"classifier": Classifier(centred=False)}, partial(reference.classification, centred=False)),
    "logistic_regression": Row({}, reference.classification),
    "baseline_plus_plus": Row({"scale": 5.0}, partial(reference.classification, scale=20.0)),
    "fine_tune": Row({}, reference.classification),
}


def test_every_algorithm_has_a_reference():
    found = list(dict.fromkeys(name.split(",")[0] for name in ROWS))
    assert found == ON_PICTURES, "the others have a file each"


@pytest.mark.parametrize(
    ("vectorize", "downsample"),
    [
        ("loop", "pool"),
        ("vmap", "stride"),
        pytest.param("loop", "stride", marks=pytest.mark.slow),
        pytest.param("vmap", "pool", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("normalization", ["transductive", "inductive"])
@pytest.mark.parametrize("name", ROWS)
def test_gradients_through_convolution_and_normalisation(name, normalization, vectorize, downsample):
    spec, count, row = classification_spec(), 3, ROWS[name]
    architecture = Conv4(width=4, depth=BLOCKS, downsample=downsample, normalization=normalization)
    model = build_model(architecture, spec, seed=1).to(torch.device("cpu"), torch.float64)
    algorithm = ALGORITHMS[name.split(",")[0]](**row.settings)
    params = {key: value.double() for key, value in algorithm.init(model, spec, 1).items()}
    differ = ("inner_lr.", "step_norm.")  # from each other, as they will once learned
    params |= {key: value * torch.rand_like(value) for key, value in params.items() if key.startswith(differ)}
    learned = {key: value for key, value in params.items() if key.startswith(("curvature.", "update_rule."))}
    params |= {key: value + 0.3 * torch.rand_like(value) for key, value in learned.items()}
    tasks = random_episodes(spec, count)
    found = algorithm.meta_gradient(model, params, tasks, context_of(count), Engine(vectorize))

    plain = {key.replace("model.", ""): value for key, value in params.items()}
    each = list(zip(*tasks.support, *tasks.query, strict=True))
    stride, inductive = (2 if downsample == "stride" else 1), normalization == "inductive"
    expected = row.expected(plain, each, blocks=BLOCKS, stride=stride, inductive=inductive)
    got = {key.replace("model.", ""): value for key, value in found.grads.items()}
    assert relative_error(got, expected) < TOLERANCE
    assert int(found.num_tasks) == count


@pytest.mark.parametrize("weighted", [False, True])
def test_against_finite_differences_with_learned_rates_and_weighted_losses(weighted):
    """A smooth inner loop of another kind: its own rate is a parameter, its start is not θ, every step may count."""
    torch.manual_seed(0)
    params = {"w": torch.randn(3, dtype=torch.float64), "log_rate": torch.tensor(-1.0, dtype=torch.float64)}
    support, query = torch.randn(2, 1, 4, 3, dtype=torch.float64), torch.randn(2, 1, 4, 3, dtype=torch.float64)
    targets = torch.randn(1, 4, dtype=torch.float64)

    def mse(w, x, y):
        return ((torch.tanh(x @ w) - y) ** 2).mean()

    def step(p, fast, examples, t, context):
        return fast - p["log_rate"].exp() * torch.func.grad(mse)(fast, *examples)

    def loss(p, fast, support, query, t, context):
        value = mse(fast, *query) + 0.01 * (p["w"] ** 2).sum()
        return value, {"loss": value}

    weights = (lambda step: torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)) if weighted else None
    inner = InnerLoop(lambda p, s, c: torch.tanh(p["w"]), step, loss, 3, weights)
    tasks = Episode(Examples(support[0], targets), Examples(query[0], targets))
    found = unrolled_gradient(inner, params, tasks, context_of(1), Engine("loop")).grads

    def objective(p):
        fast, one = torch.tanh(p["w"]), (support[0, 0], targets[0])
        losses = []
        for t in range(4):
            losses.append(mse(fast, query[0, 0], targets[0]) + 0.01 * (p["w"] ** 2).sum())
            fast = step(p, fast, one, t, None)
        chosen = weights(None) if weighted else torch.tensor([0.0, 0, 0, 1])
        return sum(w * value for w, value in zip(chosen, losses, strict=True))

    eps = 1e-6
    for name, value in params.items():
        for i in range(value.numel()):
            shift = torch.zeros(value.numel(), dtype=torch.float64)
            shift[i] = eps
            up = objective({**params, name: value + shift.view(value.shape)})
            down = objective({**params, name: value - shift.view(value.shape)})
            difference = (up - down).item() / (2 * eps)
            assert float(found[name].view(-1)[i]) == pytest.approx(difference, rel=1e-6, abs=1e-9)
