"""Draw images that a learner completes: the pixels that it sees, the mean of what it predicts, and its doubt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metatrain.densities import mean_of, std_of
from metatrain.evaluation.predictions import TaskPredictions
from metatrain.report.density_figure import last_of
from metatrain.report.episode_figure import GAP, draw_tile, pixel_axes, text_width, write_text
from metatrain.report.plots import COLOURS, INK, Chart
from metatrain.types import Density
from tasks.types import Episode, OracleEpisode, Shape

SEEN = (10, 50, 100)
"""Pixels that the learner is shown, in one part of the picture each."""
UNSEEN = torch.tensor([0.78, 0.86, 0.94])
"""The colour of pixels that are not shown."""
DARKEST = 0.5
"""The standard deviation that is drawn as black."""
_TILE, _HEAD, _GUTTER = 112, 84, 28
"""Pixels: side of an image, height above all, between the parts."""


def draw_completions(images: Sequence[Sequence[TaskPredictions]], shape: Shape, tasks: str) -> Chart:
    """Draw a row for each image: itself, and for each number of seen pixels those, the mean and the deviation.

    images: for each image the predictions from each number of pixels, the same for all: the support set is what was
    seen, the queries are all pixels, and the predictions are densities. shape: (C, H, W), C of 1 (ink on paper) or 3
    (colour).
    """
    counts = [len(one.episode.support.y) for one in images[0]]
    told = f"seen, mean, and standard deviation (black: {DARKEST:g} or more)"
    part = 3 * (_TILE + GAP) + _GUTTER
    left = _TILE + GAP + _GUTTER
    width = max(left + len(counts) * part, text_width(told, 9))
    figure, axes = pixel_axes(width, _HEAD + len(images) * (_TILE + GAP))
    write_text(axes, 0, 14, told, COLOURS["soft"], 9)
    write_text(axes, 0, _HEAD - 20, "image", INK)
    for number, count in enumerate(counts):
        write_text(axes, left + number * part, _HEAD - 20, f"{count} pixels seen", INK)
    for row, completed in enumerate(images):
        y = _HEAD + row * (_TILE + GAP)
        draw_tile(axes, (0, y), _TILE, as_image(completed[0].episode.query.y, shape))
        for number, one in enumerate(completed):
            tiles = (seen_image(one.episode, shape), *density_images(last_of(one), shape))
            for column, image in enumerate(tiles):
                draw_tile(axes, (left + number * part + column * (_TILE + GAP), y), _TILE, image)
    title = f"{tasks}, test tasks 0 to {len(images) - 1}, completed"
    described = f"{title}, from {', '.join(map(str, counts))} pixels: {told}"
    return Chart(title, described, figure)


def as_image(values: Tensor, shape: Shape) -> Tensor:
    """Return the values of all pixels, row by row [H·W, C], as an image [C, H, W] within [0, 1]."""
    return values.T.reshape(shape).clamp(0, 1)


def seen_image(episode: Episode | OracleEpisode, shape: Shape) -> Tensor:
    """Return the seen pixels in their colours [3, H, W], the others in `UNSEEN`."""
    channels, height, width = shape
    image = UNSEEN[:, None, None].expand(3, height, width).clone()
    size = torch.tensor([max(height - 1, 1), max(width - 1, 1)])
    row, column = ((episode.support.x + 1) / 2 * size).round().long().T
    ink = episode.support.y.T.clamp(0, 1)
    image[:, row, column] = (1 - ink).expand(3, -1) if channels == 1 else ink
    return image


def density_images(density: Density, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return the means as an image [C, H, W], and the deviations [1, H, W], the largest of the channels' as ink."""
    deviation = std_of(density).amax(1, keepdim=True) / DARKEST
    return as_image(mean_of(density), shape), as_image(deviation, (1, *shape[1:]))
