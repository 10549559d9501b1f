"""Draw images with the classes that a learner takes them for, and mark which are right where that is known."""

from collections.abc import Sequence

import numpy as np
import torch

from metatrain.report.episode_figure import (
    GAP,
    RIGHT,
    WRONG,
    draw_frame,
    draw_tile,
    pixel_axes,
    text_width,
    write_text,
)
from metatrain.report.plots import COLOURS, INK, Chart, shorten
from metatrain.user_folders import FilePrediction
from tasks.store.store import Images

_MOST = 400
"""Images that are drawn; a caption says how many are left out."""
_COLUMNS, _TILE, _LINE, _HEAD = 10, 168, 22, 60
"""Pixels: side of an image, height of a line under it, above all."""


def draw_predictions(images: Images, predictions: Sequence[FilePrediction], title: str, is_ink: bool) -> Chart:
    """Draw images [n, 1 or 3, H, W] uint8 in rows, under each its class, the probability and, if wrong, its folder.

    is_ink: one channel is ink on paper, not brightness.
    """
    shown = list(zip(images, predictions, strict=True))[:_MOST]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    pitch = _TILE + GAP, _TILE + 2 * _LINE + 2 * GAP
    more = "" if len(shown) == len(images) else f"; the first {_MOST} of {len(images):,} images"
    legend = f"✓ right   ✗ wrong (its folder){more}" if any(one.truth for one in predictions) else more.lstrip("; ")
    figure, axes = pixel_axes(
        max(columns * pitch[0], text_width(legend, 9), text_width(title, 10)), _HEAD + rows * pitch[1]
    )
    write_text(axes, 0, 20, legend, COLOURS["soft"], 9)
    for number, (image, one) in enumerate(shown):
        corner = number % columns * pitch[0], _HEAD + number // columns * pitch[1]
        values = np.ascontiguousarray(255 - image if image.shape[0] == 1 and not is_ink else image)
        draw_tile(axes, corner, _TILE, torch.from_numpy(values) / 255)
        right = None if one.truth is None else one.truth == one.label
        colour = INK if right is None else RIGHT if right else WRONG
        if right is not None:
            draw_frame(axes, corner, _TILE, colour, 1.5)
        mark = "" if right is None else "✓ " if right else "✗ "
        under = f"{100 * one.probability:.0f} %" + ("" if right is not False else f" ({shorten(one.truth or '', 12)})")
        for line, text in enumerate((f"{mark}{shorten(one.label, 15)}", under)):
            write_text(axes, corner[0], corner[1] + _TILE + (line + 0.6) * _LINE, text, colour, 7)
    return Chart(title, f"{title}. {legend}", figure)
