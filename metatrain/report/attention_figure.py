"""Draw what queries attend to in the support set."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metatrain.report.plots import COLOURS, Chart, Panel, draw_panels
from tasks.types import Episode, members

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_attention(weights: Tensor, episode: Episode, title: str) -> Chart:
    """Draw the weights [q, n] of queries (rows) on support examples (columns), both in the order of their classes.

    Without classes the order is that of their inputs, if these are single numbers. Padding is left out.
    """
    inside = members(episode.support).nonzero()[:, 0]
    columns, column_names = _order(episode.support.x[inside], episode.support.y[inside])
    rows, row_names = _order(episode.query.x, episode.query.y)
    shown = weights[:, inside][rows][:, columns]
    has_classes = not episode.query.y.is_floating_point()
    draw = partial(_draw, weights=shown, columns=column_names, rows=row_names, grid=has_classes)
    told = f"{len(rows)} queries and {len(columns)} support examples, the greatest weight {float(shown.max()):.2f}"
    if has_classes:
        own = (episode.query.y[rows][:, None] == episode.support.y[inside][columns]).to(shown.dtype)
        told += f"; on average {float((own * shown).sum(1).mean()):.0%} of the weight is on the query's own class"
    size = (max(5.6, 2.4 + min(0.16 * len(columns), 6.0)), max(3.6, 1.6 + min(0.08 * len(rows), 6.0)))
    return draw_panels([Panel(title, draw, size=size, description=f"{title}: {told}")])


def _order(x: Tensor, y: Tensor) -> tuple[Tensor, list[tuple[int, str]]]:
    """Return the order in which examples are drawn, and labels of the axis: (the first example, its name)."""
    if not y.is_floating_point():
        order = y.argsort(stable=True)
        begins = [(int((y < label).sum()), f"class {label + 1}") for label in torch.unique(y).tolist()]
        return order, begins
    order = x.flatten().argsort() if x.shape[1:] == (1,) else torch.arange(len(x))
    if x.shape[1:] != (1,) or not len(x):
        return order, []
    shown = sorted({0, len(x) // 2, len(x) - 1})
    return order, [(at, f"x = {float(x.flatten()[order[at]]):.2g}") for at in shown]


def _draw(
    axes: "Axes", weights: Tensor, columns: list[tuple[int, str]], rows: list[tuple[int, str]], grid: bool
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("weights", [COLOURS["paper"], COLOURS["c1"], COLOURS["ink"]])
    height, width = weights.shape
    image = axes.imshow(
        weights.cpu().numpy(), cmap=shades, vmin=0, aspect="auto", interpolation="nearest", extent=(0, width, height, 0)
    )
    axes.figure.colorbar(image, ax=axes, label="weight")
    for ticks, set_ticks in ((columns, axes.set_xticks), (rows, axes.set_yticks)):
        set_ticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="x", rotation=90)
    axes.grid(grid)  # where a class begins
    axes.set_xlabel("support examples")
    axes.set_ylabel("queries")
