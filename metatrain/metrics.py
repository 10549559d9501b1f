"""Define the metrics by which learners are judged, in a registry, and compute the loss that they are trained by.

A new metric is one entry of `METRICS`: results, records, reports and searches read name, direction and unit there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from metatrain.densities import log_density, mean_of, probability_below
from metatrain.types import Density, Prediction

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017)."""
QUANTILES = 20
"""Bins of equal width of the calibration error of quantiles (Kuleshov et al. 2018)."""


@dataclass(frozen=True)
class CalibrationCurve:
    """The probabilities that were predicted, how often each came true, and the share of all queries that it was
    predicted for. Of a calibrated learner predicted and observed are equal."""

    predicted: list[float]
    observed: list[float]
    share: list[float]


class Metric(NamedTuple):
    """A number by which learners are judged, a mean over tasks unless `of_sums` says how tasks are pooled.

    title: what it is called in a sentence. scale: what values are multiplied by for people, then in `unit`.
    """

    name: str
    title: str
    higher_is_better: bool
    scale: float = 1.0
    unit: str = ""
    kinds: tuple[str, ...] = ()
    """The kinds of predictions that have it: "classification" (logits), "regression" (values), "density" (of values);
    for others an algorithm has to score itself."""
    of_task: Callable[[Any, Tensor], Tensor] | None = None
    """(predictions [points, n, ...], targets [n, ...]) of a task's queries -> its value at each point [points], or the
    sums that are pooled over tasks [points, *shape]. Batched by hand: vmap would cost more than the numbers do."""
    of_sums: Callable[[Tensor], Tensor] | None = None
    """Sums over tasks [..., *shape] -> [...]; None: the metric is the mean of the tasks' values."""
    curve_of_sums: Callable[[Tensor], CalibrationCurve] | None = None
    """Sums over tasks [*shape] -> the curve whose distance from the diagonal the metric measures."""

    @property
    def sign(self) -> int:
        """Return 1 if higher is better, −1 if lower is: of signed values the greatest is the best."""
        return 1 if self.higher_is_better else -1

    @property
    def label(self) -> str:
        """Return the label of an axis: "Accuracy (%)"."""
        return f"{self.title[0].upper()}{self.title[1:]}{f' ({self.unit})' if self.unit else ''}"


def task_loss(prediction: Prediction, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics) of predictions [n, ...]; integer targets are labels, float targets values.

    The loss is the mean cross-entropy of labels, the mean squared error of values, or minus the mean log-density of
    values. ValueError: the shapes of predictions and values differ, so that one would be repeated over the other.
    """
    if y.is_floating_point():
        values = mean_of(prediction)
        if values.shape != y.shape:
            found, wanted = tuple(values.shape), tuple(y.shape)
            raise ValueError(f"predictions of shape {found} for targets of shape {wanted}: make both [n, *y]")
        error = F.mse_loss(values, y)
        if isinstance(prediction, Tensor):
            return error, {"loss": error, "mse": error}
        likelihood = log_density(prediction, y).mean()
        return -likelihood, {"loss": -likelihood, "log_likelihood": likelihood, "mse": error}
    assert isinstance(prediction, Tensor), "logits"
    loss = F.cross_entropy(prediction, y)
    return loss, {"loss": loss, "accuracy": accuracy(prediction, y)}


def measure(
    predictions: Sequence[Prediction], y: Tensor, exact: Prediction | None = None, seen: int = 0
) -> dict[str, Tensor]:
    """Return every metric of the registry of a task's predictions at several points: name -> [points, ...].

    exact: what the exact posterior predicts, of tasks that hold it, for the gap to it. seen: `TaskSpec.seen`.
    More than a training step computes (`task_loss`), so for scoring alone.
    """
    kind = _kind_of(predictions[0], y)
    losses = [task_loss(prediction, y)[1] for prediction in predictions]
    found = {name: torch.stack([each[name] for each in losses]) for name in losses[0]}
    together = tree_map(lambda *points: torch.stack(points), *predictions)
    for metric in METRICS.values():
        if metric.name not in found and kind in metric.kinds and metric.of_task is not None:
            found[metric.name] = metric.of_task(together, y)
    if exact is not None and "log_likelihood" in found:
        found["oracle_gap"] = log_likelihood(exact, y) - found["log_likelihood"]
    if seen and isinstance(together, Tensor):
        found |= generalised_scores(together, y, seen)
    return found


def _kind_of(prediction: Prediction, y: Tensor) -> str:
    if not y.is_floating_point():
        return "classification"
    return "regression" if isinstance(prediction, Tensor) else "density"


def primary_of(names: Iterable[str]) -> Metric:
    """Return the metric that decides which of two learners is better, of those that were scored.

    ValueError: there is none.
    """
    known = set(names)
    for name in PRIMARY:
        if name in known:
            return METRICS[name]
    scored = ", ".join(sorted(known)) or "nothing"
    raise ValueError(f"scores of {scored} do not say which learner is better: return one of {', '.join(PRIMARY)} too")


def calibration_of(sums: Mapping[str, Tensor]) -> CalibrationCurve | None:
    """Return the calibration curve of scores by metric, summed over tasks; None without predicted probabilities."""
    curves = ((METRICS[name].curve_of_sums, values) for name, values in sums.items() if name in METRICS)
    return next((curve(values) for curve, values in curves if curve is not None), None)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of queries whose class has the greatest logit. logits: [..., n, ways], here and below."""
    return (logits.argmax(-1) == y).to(logits.dtype).mean(-1)


def balanced_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the classes among the queries of the share of each that is recognised."""
    members = _one_hot(y, logits.shape[-1], logits)
    of_class = members.sum(0)
    right = (logits.argmax(-1) == y).to(logits.dtype) @ members
    return (right / of_class.clamp(min=1)).sum(-1) / (of_class > 0).sum()


def log_likelihood(logits: Prediction, y: Tensor) -> Tensor:
    """Return the mean of log p(y | x) over the queries, in nats. logits, or a density of values."""
    if not isinstance(logits, Tensor):
        return log_density(logits, y).mean(-1)
    rows = torch.arange(len(y), device=y.device)
    return logits.log_softmax(-1)[..., rows, y].mean(-1)


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the queries of Σ_n (p_n − 1[y = n])², between 0 and 2 (Brier 1950)."""
    return (logits.softmax(-1) - _one_hot(y, logits.shape[-1], logits)).square().sum(-1).mean(-1)


def squared_error(values: Prediction, y: Tensor) -> Tensor:
    """Return the mean of (f(x) − y)² over queries and the parts of y. values: [..., n, *y], or densities of them."""
    return (mean_of(values) - y).square().flatten(-y.dim()).mean(-1)


def generalised_scores(logits: Tensor, y: Tensor, seen: int) -> dict[str, Tensor]:
    """Return the accuracy on classes of training and on others, and the sums of which their harmonic mean is.

    seen: how many classes, those of the last labels, are of training. All classes compete for every query (generalised
    zero-shot, Xian et al. 2018).
    """
    right = (logits.argmax(-1) == y).to(logits.dtype)
    known = (y >= logits.shape[-1] - seen).to(logits.dtype)
    parts = [torch.stack([right @ of, of.sum().expand(right.shape[:-1])], -1) for of in (1 - known, known)]
    sums = torch.stack(parts, -2)
    unseen, again = (sums[..., 0] / sums[..., 1].clamp(min=1)).unbind(-1)
    return {"unseen_accuracy": unseen, "seen_accuracy": again, "harmonic_mean": sums}


def harmonic_mean(sums: Tensor) -> Tensor:
    """Return 2us / (u + s) of the accuracies u on unseen and s on seen classes; 0 where both are 0.

    sums: [..., 2, 2], of unseen and then of seen classes: the queries that were right, and their number.
    """
    unseen, seen = (sums[..., 0] / sums[..., 1].clamp(min=1)).unbind(-1)
    both = unseen + seen
    return torch.where(both > 0, 2 * unseen * seen / both.clamp(min=1e-12), 0.0)


def calibration_sums(logits: Tensor, y: Tensor) -> Tensor:
    """Return [..., 3, BINS]: the confidence, the number right, and the number of the queries of each bin.

    Bin m holds the queries whose greatest probability lies in ((m − 1)/M, m/M].
    """
    confidence, predicted = logits.softmax(-1).max(-1)
    right = (predicted == y).to(logits.dtype)
    number = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    return torch.stack([confidence, right, torch.ones_like(right)], dim=-2) @ _one_hot(number, BINS, logits)


def calibration_error(sums: Tensor) -> Tensor:
    """Return ECE = Σ_m |confidence_m − right_m| / n of sums over all queries of all tasks (Guo et al. 2017, eq. 5).

    sums: [..., 3, BINS]. Of pooled sums: the few queries of one task would leave a bin one or two, whose share of right
    ones is far from their confidence by chance alone.
    """
    confidence, right, count = sums.unbind(-2)
    return (confidence - right).abs().sum(-1) / count.sum(-1)


def confidence_curve(sums: Tensor) -> CalibrationCurve:
    """Return the mean confidence of each bin that holds queries, and the share that is right. sums: [3, BINS]."""
    confidence, right, number = sums[:, sums[2] > 0]
    parts = (confidence / number, right / number, number / number.sum())
    return CalibrationCurve(*(values.tolist() for values in parts))


def quantile_sums(density: Density, y: Tensor) -> Tensor:
    """Return [..., QUANTILES]: how many values lie between the predicted quantiles (m − 1)/M and m/M, for each m."""
    below = probability_below(density, y).flatten(-y.dim())
    number = ((below * QUANTILES).ceil().long() - 1).clamp(0, QUANTILES - 1)
    return _one_hot(number, QUANTILES, below).sum(-2)


def quantile_error(sums: Tensor) -> Tensor:
    """Return the mean over levels p = m/M of |share of values below the predicted p-quantile − p|.

    Of sums over all queries of all tasks (Kuleshov et al. 2018, eq. 9, with absolute for squared differences).
    sums: [..., QUANTILES].
    """
    below = sums.cumsum(-1)[..., :-1] / sums.sum(-1, keepdim=True)
    return (below - _levels(sums)).abs().mean(-1)


def quantile_curve(sums: Tensor) -> CalibrationCurve:
    """Return the levels p = m/M, and the share of all values below the predicted p-quantile. sums: [QUANTILES]."""
    levels = _levels(sums).tolist()
    return CalibrationCurve(levels, (sums.cumsum(-1)[:-1] / sums.sum()).tolist(), [1.0] * len(levels))


def _levels(sums: Tensor) -> Tensor:
    return torch.arange(1, QUANTILES, device=sums.device) / QUANTILES


def _one_hot(numbers: Tensor, count: int, like: Tensor) -> Tensor:
    """Return rows of I [..., count], by comparison: F.one_hot reads its values, which vmap does not allow."""
    return (numbers[..., None] == torch.arange(count, device=like.device)).to(like.dtype)


_CLASSES, _VALUES, _DENSITIES = ("classification",), ("regression",), ("density",)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", True, 100.0, "%", _CLASSES, accuracy),
        Metric("mse", "mean squared error", False, 1.0, "", _VALUES + _DENSITIES, squared_error),
        Metric("loss", "loss", False, kinds=_CLASSES + _VALUES + _DENSITIES),  # by `task_loss`
        Metric("balanced_accuracy", "balanced accuracy", True, 100.0, "%", _CLASSES, balanced_accuracy),
        Metric("log_likelihood", "log-likelihood", True, 1.0, "nats", _CLASSES + _DENSITIES, log_likelihood),
        Metric("brier", "Brier score", False, 1.0, "", _CLASSES, brier),
        Metric(
            "ece",
            "expected calibration error",
            False,
            100.0,
            "%",
            _CLASSES,
            calibration_sums,
            calibration_error,
            confidence_curve,
        ),
        Metric(
            "quantile_error",
            "calibration error of quantiles",
            False,
            100.0,
            "%",
            _DENSITIES,
            quantile_sums,
            quantile_error,
            quantile_curve,
        ),
        Metric("oracle_gap", "gap to the exact posterior", False, 1.0, "nats"),  # by `measure`
        Metric("unseen_accuracy", "accuracy on unseen classes", True, 100.0, "%"),  # by `measure`, as the next two
        Metric("seen_accuracy", "accuracy on seen classes", True, 100.0, "%"),
        Metric("harmonic_mean", "harmonic mean of seen and unseen", True, 100.0, "%", of_sums=harmonic_mean),
        Metric("return", "return", True),  # of a task that is an environment: of one episode there
        Metric("total_return", "return of all episodes", True),  # so far
    )
}
"""The metrics by name."""
GENERALISED = ("unseen_accuracy", "seen_accuracy", "harmonic_mean")
"""The metrics of tasks of seen and unseen classes."""
PRIMARY = ("accuracy", "log_likelihood", "mse", "return")
"""The metrics that decide which of two learners is better: the first of them that was scored."""
