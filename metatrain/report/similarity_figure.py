"""Draw how far sources of tasks are apart: a matrix of distances, a map of tasks, and what accuracy is lost."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from metatrain.report.plots import COLOURS, INK, Chart, Panel, draw_panels, draw_points, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORT = 24
"""Characters of a source's name beside a matrix."""


def draw_similarity(found: Mapping[str, Any]) -> Chart:
    """Return the chart of what `metatrain.similarity.measure.measure_similarity` found."""
    names = [one["name"] for one in found["sources"]]
    side = 2.4 + 0.55 * len(names)
    panels = [
        Panel("Mean distance of tasks", partial(_draw_matrix, found=found), "", (side + 1.2, side + 0.6), _told(found)),
        Panel(
            f"Map of tasks, {100 * found['map_share']:.0f} % of the squared distances",
            partial(_draw_map, found=found, names=names),
            "",
            (5.2, 4.4),
            f"A map of {len(found['map'])} tasks by source.",
        ),
    ]
    if found["transfer"] is not None:
        panels.append(_transfer_panel(found["transfer"], len(names)))
    return draw_panels(panels)


def _told(found: Mapping[str, Any]) -> str:
    pairs = "; ".join(f"{one['first']} and {one['second']}: {one['distance']['value']:.3f}" for one in found["pairs"])
    within = "; ".join(f"within {one['name']}: {one['within']['value']:.3f}" for one in found["sources"])
    return f"Mean distance of tasks. {pairs}; {within}."


def _draw_matrix(axes: "Axes", found: Mapping[str, Any]) -> None:
    names = [one["name"] for one in found["sources"]]
    values = np.diag([one["within"]["value"] for one in found["sources"]])
    for pair in found["pairs"]:
        row, column = names.index(pair["first"]), names.index(pair["second"])
        values[row, column] = values[column, row] = pair["distance"]["value"]
    axes.grid(visible=False)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.4 * max(values.max(), 1e-12))
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=9, color=INK)
    labels = [shorten(name, _SHORT) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)


def _draw_map(axes: "Axes", found: Mapping[str, Any], names: Sequence[str]) -> None:
    for look, name in enumerate(names, start=1):
        own = [one for one in found["map"] if one["source"] == name]
        draw_points(axes, [one["x"] for one in own], [one["y"] for one in own], name, look)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelbottom=False, labelleft=False)


def _transfer_panel(transfer: Mapping[str, Any], sources: int) -> Panel:
    """Return the panel of runs, which share the legend with `sources` sources and so look otherwise."""
    rho = transfer["spearman"]
    ends = "" if rho["low"] is None else f" ({rho['low']:.2f} to {rho['high']:.2f})"
    value = "none" if rho["value"] is None else f"{rho['value']:.2f}{ends}"
    title = f"Loss by distance, rank correlation {value}"
    told = "; ".join(
        f"{one['run']} on {one['tested_on']}: {one['distance']:.3f}, {100 * one['loss']:.1f} points"
        for one in transfer["points"]
    )
    draw = partial(_draw_transfer, points=transfer["points"], first=sources + 1)
    return Panel(title, draw, "points", (5.2, 4.4), f"{title}. {told}.")


def _draw_transfer(axes: "Axes", points: Sequence[Mapping[str, Any]], first: int) -> None:
    axes.axhline(0, color=COLOURS["line"], linewidth=1)
    for look, run in enumerate(dict.fromkeys(one["run"] for one in points), start=first):
        own = [one for one in points if one["run"] == run]
        draw_points(axes, [one["distance"] for one in own], [100 * one["loss"] for one in own], run, look)
    axes.set_xlabel("distance of the source tested on from that trained on")
    axes.set_ylabel("accuracy lost (points)")
