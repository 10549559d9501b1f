"""Draw one task as a grid of images with matplotlib: support on the left, query on the right, a row for each class.

With predictions, each query has a mark under its image: right, or wrong with the number of the predicted class. Shape,
colour and number each tell which, so none of them alone is needed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metatrain.report.plots import BLUE, COLOURS, INK, ORANGE, Chart, shorten
from tasks.types import Episode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = BLUE, ORANGE
DPI = 144
"""Two pixels are one point."""
MARGIN, HEAD, GUTTER, GAP, MARK = 40, 100, 40, 6, 24
"""Pixels: around everything, above the images, between support and query, between tiles, height of a mark."""
MOST_PIXELS = 2600
"""Of tiles side by side; more are drawn smaller."""


def draw_episode(
    episode: Episode, title: str, class_names: Sequence[str] | None = None, predicted: Tensor | None = None
) -> Chart:
    """Draw one task, without its title, which `save_png` adds.

    support.x, query.x: [n, C, H, W] in [0, 1], C of 1 (ink on paper) or 3 (colour).

    class_names: labels of the rows; "alphabet/character" takes two lines.
    predicted: the predicted label of each query, [n], to be marked as right or wrong.
    ValueError: `episode` is not one task of images.
    """
    if episode.support.x.dim() != 4 or episode.support.x.shape[1] not in (1, 3):
        shape = list(episode.support.x.shape)
        raise ValueError(f"a picture needs one task of images [n, 1 or 3, H, W], and not {shape}: use one task's row")
    labels, (shots, queries), described = _labels(episode), _count(episode), caption(episode, predicted)
    names = _row_names(labels, class_names, numbered=predicted is not None)
    tile = _tile_side(max(episode.support.x.shape[-2:]), shots + queries)
    pitch, row = tile + GAP, tile + GAP + MARK * (predicted is not None)
    left = 20 + max(text_width(line, 8) for name in names for line in name.split("\n"))
    middle = left + shots * pitch + GUTTER
    width = max(middle + queries * pitch, text_width(title, 10), text_width(described, 9), 540)
    figure, axes = pixel_axes(width, HEAD + len(names) * row)
    write_text(axes, 0, 14, described, COLOURS["soft"], 9)
    for number, name in enumerate(names):
        write_text(axes, 0, HEAD + number * row + tile / 2, name, INK)
    for heading, start, part in (("Support", left, episode.support), ("Query", middle, episode.query)):
        write_text(axes, start, HEAD - 20, heading, COLOURS["soft"], 9)
        for number, label in enumerate(labels):
            for column, image in enumerate(part.x[part.y == label]):
                draw_tile(axes, (start + column * pitch, HEAD + number * row), tile, image)
    if predicted is not None:
        write_text(axes, 0, 42, "✓ right", RIGHT)
        write_text(axes, 90, 42, "✗ wrong, with the number of the class it was taken for", WRONG)
        for number, label in enumerate(labels):
            for column, guess in enumerate(predicted[episode.query.y == label].tolist()):
                _draw_mark(axes, (middle + column * pitch, HEAD + number * row), tile, guess, guess == label)
    return Chart(title, f"{title}: {described}", figure)


def caption(episode: Episode, predicted: Tensor | None = None) -> str:
    """Return the size of the task and, of predicted labels [n], how many are right."""
    shots, queries = _count(episode)
    fewest = int(torch.bincount(episode.support.y).min())
    shown = f"{shots} shot{'s' * (shots != 1)}" if fewest == shots else f"{fewest} to {shots} shots"
    size = f"{len(_labels(episode))} ways, {shown}, {queries} quer{'y' if queries == 1 else 'ies'} per class"
    if predicted is None:
        return size
    right, count = int((predicted == episode.query.y).sum()), len(predicted)
    return f"{size} · {right} of {count} queries right ({100 * right / count:.0f} %)"


def _labels(episode: Episode) -> list[int]:
    labels: list[int] = torch.unique(torch.cat([episode.support.y, episode.query.y])).tolist()
    return labels


def _count(episode: Episode) -> tuple[int, int]:
    """Return the most examples that a class has, in support and in query."""
    shots, queries = (int(torch.bincount(part.y).max()) for part in episode)
    return shots, queries


def _row_names(labels: Sequence[int], class_names: Sequence[str] | None, numbered: bool) -> list[str]:
    """Return the labels of the rows, in one or two lines; `numbered` if marks refer to rows by number."""
    if class_names is None:
        return [f"class {label + 1}" for label in labels]
    numbers = [f"{label + 1}  " if numbered else "" for label in labels]
    return [
        "\n".join(shorten(line, 32) for line in f"{number}{name}".replace("_", " ").split("/", 1))
        for number, name in zip(numbers, class_names, strict=True)
    ]


def _tile_side(side: int, columns: int) -> int:
    """Return the pixels of a tile: a multiple of the image's, about 80, unless there are too many columns."""
    return min(side * max(1, round(72 / side)), max(1500 // columns, 44) - GAP, max(MOST_PIXELS // columns, 16) - GAP)


def text_width(text: str, size: float) -> int:
    """Return about how many pixels a line takes, in a font of `size` points."""
    return round(len(text) * size * DPI / 72 * 0.62)


def pixel_axes(width: int, height: int) -> tuple["Figure", "Axes"]:
    """Return a figure and axes in pixels from the top left: images enlarged by a whole number stay sharp."""
    from matplotlib.figure import Figure

    full = width + 2 * MARGIN, height + 2 * MARGIN
    figure = Figure((full[0] / DPI, full[1] / DPI), dpi=DPI, facecolor="none")
    axes = figure.add_axes((MARGIN / full[0], MARGIN / full[1], width / full[0], height / full[1]))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def write_text(axes: "Axes", x: float, y: float, text: str, colour: str, size: float = 8) -> None:
    """Write a line at (x, y), its left and its middle."""
    axes.text(x, y, text, color=colour, fontsize=size, va="center", parse_math=False)


def draw_tile(axes: "Axes", corner: tuple[float, float], side: int, image: Tensor) -> None:
    """Draw an image [1 or 3, H, W] in [0, 1], fitted into a square. One channel is ink on paper, three are colour."""
    values = image.detach().to("cpu", torch.float32).clamp(0, 1).permute(1, 2, 0)
    height, width = (side * length / max(values.shape[:2]) for length in values.shape[:2])
    x, y = corner[0] + (side - width) / 2, corner[1] + (side - height) / 2
    extent = x, x + width, y + height, y
    axes.imshow(values.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto")
    draw_frame(axes, corner, side, COLOURS["line"], 0.5)


def _draw_mark(axes: "Axes", corner: tuple[float, float], side: int, predicted: int, right: bool) -> None:
    """Frame a query, and write under it a tick, or a cross and the number of the predicted class."""
    text, colour = ("✓", RIGHT) if right else (f"✗{predicted + 1}", WRONG)
    draw_frame(axes, corner, side, colour, 1.5)
    write_text(axes, corner[0], corner[1] + side + MARK / 2 + 2, text, colour, min(8, side / 5))


def draw_frame(axes: "Axes", corner: tuple[float, float], side: int, colour: str, width: float) -> None:
    """Draw the outline of a square, `width` points wide."""
    from matplotlib.patches import Rectangle

    axes.add_artist(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width, clip_on=False))
