"""Test the registry of metrics: each against numpy, how it is pooled over tasks, and that its direction is read."""

import math
import operator
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.func import vmap

from metatrain.evaluation.evaluate import estimate, evaluate
from metatrain.evaluation.intervals import mean_and_ci95, pooled_and_ci95
from metatrain.metrics import (
    BINS,
    METRICS,
    PRIMARY,
    QUANTILES,
    calibration_error,
    calibration_of,
    measure,
    primary_of,
    quantile_sums,
    task_loss,
)
from metatrain.report import collect
from metatrain.report.series import Series
from metatrain.report.text import best_first, best_step
from metatrain.tracking.status_line import format_metrics, merge_metrics
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Gaussian, ShardRequest
from tests.configurations import tiny
from tune.settings import NamedMethod, SearchSettings


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_ece(logits: np.ndarray, y: np.ndarray) -> float:
    """Guo et al. 2017, by a loop over bins, of all the queries in one list."""
    p = probabilities(logits)
    confidence, right = p.max(-1), p.argmax(-1) == y
    total = 0.0
    for m in range(1, BINS + 1):
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if inside.any():
            total += inside.sum() / len(y) * abs(right[inside].mean() - confidence[inside].mean())
    return total


CLASSES = {
    "loss": lambda z, y: -np.log(probabilities(z)[np.arange(len(y)), y]).mean(),
    "accuracy": lambda z, y: (z.argmax(-1) == y).mean(),
    "balanced_accuracy": lambda z, y: np.mean([(z[y == c].argmax(-1) == c).mean() for c in np.unique(y)]),
    "log_likelihood": lambda z, y: np.log(probabilities(z)[np.arange(len(y)), y]).mean(),
    "brier": lambda z, y: ((probabilities(z) - np.eye(z.shape[-1])[y]) ** 2).sum(-1).mean(),
    "ece": numpy_ece,
}
VALUES = {"loss": lambda f, y: ((f - y) ** 2).mean(), "mse": lambda f, y: ((f - y) ** 2).mean()}


def a_task(seed: int, queries: int = 17, ways: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at two points, and labels of unlike number in which the last class never comes up."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, ways - 1, (queries,), generator=generator)
    return torch.randn(2, queries, ways, generator=generator, dtype=torch.float64) * 2, y


def of_one(name: str, values: torch.Tensor) -> list[float]:
    of_sums = METRICS[name].of_sums
    return (values if of_sums is None else of_sums(values)).tolist()


def test_every_metric_is_in_the_registry_with_a_reference_here():
    computed = {metric.name for metric in METRICS.values() if {"classification", "regression"} & {*metric.kinds}}
    assert computed == CLASSES.keys() | VALUES.keys(), "those of densities alone are in test_densities"
    assert all(name == metric.name for name, metric in METRICS.items())
    lower = {"loss", "brier", "ece", "mse", "quantile_error", "oracle_gap"}
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == lower
    assert set(PRIMARY) <= METRICS.keys()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_classes_are_those_of_numpy(seed):
    logits, y = a_task(seed)
    found = measure(list(logits), y)
    assert found.keys() == CLASSES.keys()
    for name, expected in CLASSES.items():
        assert of_one(name, found[name]) == pytest.approx([expected(z.numpy(), y.numpy()) for z in logits]), name


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_metrics_of_values_are_those_of_numpy(shape):
    generator = torch.Generator().manual_seed(0)
    values, y = (torch.randn(*of, 6, *shape, generator=generator, dtype=torch.float64) for of in ((2,), ()))
    found = measure(list(values), y)
    assert found.keys() == VALUES.keys()
    for name, expected in VALUES.items():
        assert found[name].tolist() == pytest.approx([expected(f.numpy(), y.numpy()) for f in values])
        alone = METRICS[name].of_task
        assert alone is None or alone(values, y).tolist() == pytest.approx(found[name].tolist())


def test_metrics_pass_through_vmap():
    tasks = [a_task(seed) for seed in range(3)]
    logits, y = (torch.stack(part) for part in zip(*tasks, strict=True))
    lifted = vmap(lambda z, y: measure(list(z), y))(logits, y)
    for number, (z, labels) in enumerate(tasks):
        for name, values in measure(list(z), labels).items():
            assert torch.allclose(lifted[name][number], values, rtol=1e-12)


def test_a_training_step_computes_no_more_than_loss_and_accuracy():
    logits, y = a_task(0)
    assert task_loss(logits[0], y)[1].keys() == {"loss", "accuracy"}


def test_calibration_is_of_all_queries_together_and_no_mean_over_tasks():
    """Ten tasks of two queries: each by itself looks far from calibrated, whatever the learner is."""
    tasks = [a_task(seed, queries=2) for seed in range(10)]
    sums = torch.stack([measure(list(z), y)["ece"] for z, y in tasks])
    pooled, half = estimate(METRICS["ece"], sums[:, -1])
    together = numpy_ece(np.concatenate([z[-1].numpy() for z, _ in tasks]), np.concatenate([y for _, y in tasks]))
    of_each = float(calibration_error(sums[:, -1]).mean())
    assert float(pooled) == pytest.approx(together)
    assert of_each > 1.2 * together
    assert float(half) > 0


def test_the_curve_lies_as_far_from_the_diagonal_as_the_error_says():
    tasks = [a_task(seed) for seed in range(4)]
    scores = {name: torch.stack([measure(list(z), y)[name] for z, y in tasks]) for name in ("ece", "accuracy")}
    found = calibration_of({name: values[:, -1].sum(0) for name, values in scores.items()})
    assert sum(found.share) == pytest.approx(1) and len(found.share) < BINS, "empty bins are left out"
    apart = [abs(predicted - observed) for predicted, observed in zip(found.predicted, found.observed, strict=True)]
    error = float(estimate(METRICS["ece"], scores["ece"][:, -1])[0])
    assert sum(map(operator.mul, apart, found.share)) == pytest.approx(error)
    right = sum(map(operator.mul, found.observed, found.share))
    assert right == pytest.approx(float(scores["accuracy"][:, -1].mean()))


def test_the_curve_of_densities_is_the_share_of_values_below_each_predicted_quantile():
    y = torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = Gaussian(torch.zeros(1, 2000, 1).double(), torch.full((1, 2000, 1), 2.0).double())
    sums = quantile_sums(wide, y)[0]
    found = calibration_of({"quantile_error": sums})
    assert found.predicted == pytest.approx([m / QUANTILES for m in range(1, QUANTILES)])
    for level, observed in zip(found.predicted, found.observed, strict=True):
        assert observed == pytest.approx(float((y < 2 * NormalDist().inv_cdf(level)).double().mean()), abs=1e-9)
    apart = [abs(level - observed) for level, observed in zip(found.predicted, found.observed, strict=True)]
    assert sum(apart) / len(apart) == pytest.approx(float(METRICS["quantile_error"].of_sums(sums)))
    assert calibration_of({"mse": torch.ones(1)}) is None


def test_a_certain_and_a_hesitant_learner_fall_into_the_bins_at_the_ends():
    y = torch.tensor([0, 1])
    certain = torch.tensor([[500.0, 0.0], [500.0, 0.0]])
    assert of_one("ece", measure([certain], y)["ece"]) == [0.5]
    hesitant = torch.zeros(2, 2)
    assert of_one("ece", measure([hesitant], y)["ece"]) == [0.0]


def test_the_jackknife_of_a_mean_is_its_interval_and_of_others_comes_close_to_the_spread():
    scores = torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with_counts = torch.stack([scores, torch.ones_like(scores)], dim=-1)
    pooled = pooled_and_ci95(with_counts, lambda sums: sums[..., 0] / sums[..., 1])
    for found, expected in zip(pooled, mean_and_ci95(scores), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12)
    assert math.isnan(float(pooled_and_ci95(with_counts[:1], lambda sums: sums[..., 0].sum())[1]))
    # A ratio of unlike counts: 400 samples of 60 tasks each, against what the jackknife says of each.
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(1, 9, (400, 60), generator=generator).double()
    sums = torch.stack([counts * torch.rand(400, 60, generator=generator, dtype=torch.float64), counts], dim=-1)
    ratio = partial(pooled_and_ci95, of_sums=lambda sums: sums[..., 0] / sums[..., 1])
    values, halves = (torch.stack(part) for part in zip(*map(ratio, sums), strict=True))
    assert float(halves.mean()) == pytest.approx(2.0 * float(values.std()), rel=0.1)


def test_the_primary_metric_is_the_one_that_decides():
    assert primary_of(["loss", "brier", "accuracy"]).name == "accuracy"
    assert primary_of(["return"]).name == "return"
    with pytest.raises(
        ValueError, match=r"^scores of brier, loss do not say .*: return one of accuracy, log_likelihood, mse"
    ):
        primary_of(["loss", "brier"])


@pytest.mark.parametrize("name", PRIMARY)
def test_the_status_line_and_the_report_know_which_way_is_better(name):
    values = [0.5, 0.9, 0.2, 0.9]
    wanted = 2 if METRICS[name].higher_is_better else 3
    shown: dict[str, float] = {}
    for step, value in enumerate(values, start=1):
        shown = merge_metrics(shown, step, {f"validation/{name}": value, "validation/ci95": 0.01})
    assert (shown["best/step"], shown[f"best/{name}"]) == (wanted, values[wanted - 1])
    assert f"best {'90.00 ± 1.00 %' if name == 'accuracy' else f'{name} {values[wanted - 1]} ± 0.01'}" in " ".join(
        format_metrics(shown)
    )
    rows = [{"learner": "trained", "score": name, name: value, "ci95": 0.0, "metrics": {}} for value in values]
    records = [a_record(name, row) for row in rows]
    assert best_first(records)[0] == wanted - 1
    assert best_step(replace(records[0], series={f"validation/{name}": Series([1, 2, 3, 4], values)})) == wanted


def a_record(name: str, row: dict) -> collect.RunRecord:
    empty = {"where": "", "run_id": "", "created": "", "settings": {}, "config_text": "", "environment": {}}
    return collect.RunRecord(
        **empty,
        series={},
        events=[],
        clock=None,
        evaluations=[collect.Evaluation(collect.AS_TRAINED, [row])],
        pictures=[],
        kept=0,
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_search_optimises_every_metric_in_its_direction(name):
    settings = SearchSettings(NamedMethod("random", None), f"validation/{name}", trials=1)
    assert settings.mode == ("max" if METRICS[name].higher_is_better else "min")


def test_an_evaluation_holds_all_metrics_and_the_primary_one_as_before():
    executor = InProcess(Worker(tiny(), torch.device("cpu")))
    params, request = executor.worker.initial(), ShardRequest("score", "test", 0)
    found = evaluate(executor, request, params, 6, 4, transductive=True)
    assert (found.score, found.metrics.keys()) == ("accuracy", CLASSES.keys())
    assert (found.metrics["accuracy"].value, found.metrics["accuracy"].ci95) == (found.value, found.ci95)
    assert found.metrics["loss"].value == found.loss
    assert found.metrics["log_likelihood"].value == pytest.approx(-found.loss, rel=1e-6)
    plain = found.as_dict()
    assert plain["metrics"]["accuracy"] == {"value": plain["accuracy"], "ci95": plain["ci95"]}
    one = evaluate(executor, request, params, 1, 4, transductive=True).as_dict()
    assert all(metric["ci95"] is None for metric in one["metrics"].values())
