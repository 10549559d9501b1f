"""Draw where a policy goes in the plane, before and after each update, or in each episode of a trial."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatrain.reinforcement.rollout import Trajectories, mean_return
from metatrain.report.plots import COLOURS, DASHES, INK, Chart, Panel, draw_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 5
"""Episodes that are drawn of each batch."""


def draw_trajectories(tasks: Sequence[tuple[Tensor, Sequence[Trajectories]]], name: str, after: str) -> Chart:
    """Draw tasks 0, 1, … of the source `name` side by side.

    tasks: of each its goal [2], and the trajectories (observations [E, T, 2]) after 0, 1, … of what `after` says.
    """
    panels = []
    for number, (goal, batches) in enumerate(tasks):
        returns = ", ".join(f"{float(mean_return(one)):.1f}" for one in batches)
        told = f"{name}, test task {number}: positions in the plane; returns {returns} after 0, 1, … {after}"
        draw = partial(_draw, goal=goal, batches=batches, after=after)
        panels.append(Panel(f"test task {number}, return {returns}", draw, size=(4.6, 4.4), description=told))
    return draw_panels(panels)


def _draw(axes: "Axes", goal: Tensor, batches: Sequence[Trajectories], after: str) -> None:
    for number, one in enumerate(batches):
        look: dict[str, Any] = {
            "color": COLOURS[f"c{number % 6}"],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 0.8,
        }
        label = f"after {number} {after}"
        for episode in range(min(_MOST, len(one.mask))):
            there = one.observations[episode][one.mask[episode] > 0].tolist()
            axes.plot(*zip(*there, strict=True), label=label if episode == 0 else None, alpha=0.8, **look)
    axes.plot(*goal.tolist(), "*", color=INK, markersize=13, markeredgecolor=COLOURS["paper"], label="goal")
    axes.plot(0, 0, "o", color=INK, markersize=5, markeredgecolor=COLOURS["paper"])
    reach = max(0.6, float(torch.cat([one.observations.abs().flatten() for one in batches]).quantile(0.99)))
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_xlabel("x")
    axes.set_ylabel("y")
