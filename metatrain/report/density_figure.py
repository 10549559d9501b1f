"""Draw the densities that a learner predicts for functions of one number, beside the exact posterior if it is known."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.densities import log_density, mean_of, std_of
from metatrain.evaluation.predictions import TaskPredictions
from metatrain.report.plots import COLOURS, INK, ORANGE, Chart, Panel, draw_panels
from metatrain.types import Density, Gaussian, GaussianMixture
from tasks.types import OracleEpisode, members

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 5
"""Functions drawn of a mixture: the means of so many of its components."""


def draw_densities(shown: Sequence[TaskPredictions], tasks: str) -> Chart:
    """Draw tasks 0, 1, … of the source `tasks` side by side: points, and mean ± 2 standard deviations of predictions.

    Support and queries: x [n, 1], y [n, 1]. Predictions: densities [points, n, 1], of which the last point is drawn.
    """
    panels = []
    for number, one in enumerate(shown):
        count = int(members(one.episode.support).sum())
        likelihood = float(log_density(last_of(one), one.episode.query.y).mean())
        name = f"test task {number}, {count} support points"
        told = f"{tasks}, {name}: predicted density with a log-likelihood of {likelihood:.3g} nats"
        panels.append(Panel(name, partial(_draw, shown=one), size=(5.6, 3.6), description=told))
    return draw_panels(panels)


def last_of(shown: TaskPredictions) -> Density:
    """Return the density after the last inner step, [n, ...]."""
    density: Density = tree_map(lambda part: part[-1], shown.predictions)
    return density


def _draw(axes: "Axes", shown: TaskPredictions) -> None:
    support, query = shown.episode.support, shown.episode.query
    order = query.x[:, 0].argsort()
    x = query.x[order, 0].tolist()
    axes.plot(x, query.y[order, 0].tolist(), ".", color=ORANGE, alpha=0.35, markersize=4, label="targets")
    density = last_of(shown)
    _band(axes, x, mean_of(density)[order, 0], std_of(density)[order, 0], COLOURS["c1"], "-", "predicted, ± 2 std")
    if isinstance(density, GaussianMixture):
        for sample in range(min(SAMPLES, density.mean.shape[1])):
            label = "functions given z" if sample == 0 else None
            axes.plot(
                x, density.mean[order, sample, 0].tolist(), color=COLOURS["c1"], linewidth=0.6, alpha=0.7, label=label
            )
    if isinstance(shown.episode, OracleEpisode):
        exact = Gaussian(*shown.episode.posterior)
        _band(axes, x, exact.mean[order, 0], exact.std[order, 0], COLOURS["c0"], "--", "exact posterior, ± 2 std")
    inside = members(support)
    points = (support.x[inside, 0].tolist(), support.y[inside, 0].tolist())
    axes.plot(*points, "o", color=INK, markersize=5, markeredgecolor=COLOURS["paper"], label="support")
    axes.set_xlabel("x")
    axes.set_ylabel("y")


def _band(axes: "Axes", x: list[float], mean: Tensor, std: Tensor, color: str, line: str, label: str) -> None:
    axes.plot(x, mean.tolist(), color=color, linestyle=line, linewidth=1.6, label=label)
    low, high = (mean - 2 * std).tolist(), (mean + 2 * std).tolist()
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
