"""Draw an episode as a picture with Pillow: support on the left, query on the right, a row for each class.

With predictions, each query has a mark under its image: right, or wrong with the number of the predicted class. Shape,
colour and number each tell which, so none of them alone is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from tasks.io.atomic import atomic_write
from tasks.types import Episode

Colour = tuple[int, int, int]

_GROUND: Colour = (247, 242, 232)
_PAPER: Colour = (255, 253, 248)
_EDGE: Colour = (226, 217, 200)
_INK: Colour = (38, 32, 28)
_MUTED: Colour = (133, 119, 101)
_ACCENT: Colour = (178, 74, 44)
_RIGHT: Colour = (0, 92, 138)
_WRONG: Colour = (190, 60, 0)
"""Blue and vermilion, distinct for every kind of colour vision (Okabe & Ito 2008), darkened for small letters."""

_TICK = (((0.08, 0.55), (0.38, 0.85), (0.92, 0.2)),)
_CROSS = (((0.15, 0.15), (0.85, 0.85)), ((0.15, 0.85), (0.85, 0.15)))
"""Lines in a square of side 1."""

_MARGIN = 48
_HEAD = 92
_HEADING = 34
_GUTTER = 44
_MAX_WIDTH = 1500
"""Pixels of tiles side by side; more are drawn smaller."""


class _Layout(NamedTuple):
    """Positions in pixels. mark: height of the mark under a query, 0 without predictions; names: width of that column;
    support, query: left edges of both blocks.
    """

    tile: int
    gap: int
    mark: int
    names: int
    support: int
    query: int
    width: int
    height: int

    def row(self, number: int) -> int:
        return _MARGIN + _HEAD + _HEADING + number * (self.tile + self.mark + self.gap)

    def column(self, left: int, number: int) -> int:
        return left + number * (self.tile + self.gap)


def draw_episode(
    episode: Episode, title: str, class_names: Sequence[str] | None = None, predicted: Tensor | None = None
) -> Image.Image:
    """Draw one task. support.x, query.x: [n, C, H, W] in [0, 1], C of 1 (ink on paper) or 3 (colour).

    class_names: labels of the rows; "alphabet/character" takes two lines.
    predicted: the predicted label of each query, [n], to be marked as right or wrong.
    ValueError: `episode` is not one task of images.
    """
    if episode.support.x.dim() != 4 or episode.support.x.shape[1] not in (1, 3):
        shape = list(episode.support.x.shape)
        raise ValueError(f"a picture needs one task of images [n, 1 or 3, H, W], and not {shape}: use one task's row")
    labels = _labels(episode)
    rows = [[part.x[part.y == label] for label in labels] for part in (episode.support, episode.query)]
    names = _row_names(labels, class_names, numbered=predicted is not None)
    layout = _compute_layout(episode, [max(map(len, side)) for side in rows], names, predicted is not None)
    picture = Image.new("RGB", (layout.width, layout.height), _GROUND)
    draw = ImageDraw.Draw(picture)
    _draw_text(draw, layout, title, caption(episode, predicted), names)
    for left, side in zip((layout.support, layout.query), rows, strict=True):
        for number, images in enumerate(side):
            for column, image in enumerate(images):
                corner = layout.column(left, column), layout.row(number)
                picture.paste(_make_tile(image, layout.tile), corner)
                _draw_frame(draw, corner, layout.tile, _ACCENT if side is rows[0] else _EDGE)
    if predicted is not None:
        _draw_legend(picture, layout.mark - 6)
        _draw_marks(picture, layout, episode, labels, predicted)
    return picture


def save_episode(
    path: Path,
    episode: Episode,
    title: str,
    class_names: Sequence[str] | None = None,
    predicted: Tensor | None = None,
) -> None:
    """Write `draw_episode` as a PNG, atomically, with its title and caption as the text "Description"."""
    text = PngInfo()
    text.add_itxt("Description", f"{title}: {caption(episode, predicted)}")
    picture = draw_episode(episode, title, class_names, predicted)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def caption(episode: Episode, predicted: Tensor | None = None) -> str:
    """Return the size of the task and, of predicted labels [n], how many are right."""
    labels = _labels(episode)
    shots, queries = (max(int((part.y == label).sum()) for label in labels) for part in episode)
    size = f"{len(labels)} ways, {shots} shot{'s' * (shots != 1)}, {queries} quer{'y' if queries == 1 else 'ies'}"
    if predicted is None:
        return f"{size} per class"
    right, count = int((predicted == episode.query.y).sum()), len(predicted)
    return f"{size} per class · {right} of {count} queries right ({100 * right / count:.0f} %)"


def _labels(episode: Episode) -> list[int]:
    labels: list[int] = torch.unique(torch.cat([episode.support.y, episode.query.y])).tolist()
    return labels


def _row_names(labels: Sequence[int], class_names: Sequence[str] | None, numbered: bool) -> list[str]:
    """Return the labels of the rows; `numbered` if marks refer to rows by number."""
    if class_names is None:
        return [f"class {label + 1}" for label in labels]
    if not numbered:
        return list(class_names)
    return [f"{label + 1}  {name}" for label, name in zip(labels, class_names, strict=True)]


def _draw_marks(
    picture: Image.Image, layout: _Layout, episode: Episode, labels: Sequence[int], predicted: Tensor
) -> None:
    """Draw under each query a tick, or a cross with the number of the predicted class, and a frame."""
    draw = ImageDraw.Draw(picture)
    size = layout.mark - 6
    for number, label in enumerate(labels):
        for column, prediction in enumerate(predicted[episode.query.y == label].tolist()):
            right = prediction == label
            colour = _RIGHT if right else _WRONG
            left, top = layout.column(layout.query, column), layout.row(number)
            _draw_symbol(picture, (left, top + layout.tile + 4), size, right)
            if not right:
                _draw_frame(draw, (left, top), layout.tile, colour, width=3)
                corner = left + size + 3, top + layout.tile + 4 + size // 2
                draw.text(corner, str(prediction + 1), fill=colour, font=_font(size), anchor="lm")


def _draw_symbol(picture: Image.Image, corner: tuple[int, int], size: int, right: bool) -> None:
    """Draw a tick or a cross, `size` pixels high, scaled down from four times that for smooth edges."""
    large = 4 * size
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    for line in _TICK if right else _CROSS:
        draw.line([(large * x, large * y) for x, y in line], fill=255, width=large // 6, joint="curve")
    picture.paste(_RIGHT if right else _WRONG, corner, mask.resize((size, size), Image.Resampling.LANCZOS))


def _draw_legend(picture: Image.Image, size: int) -> None:
    """Draw the meaning of the marks under the title."""
    draw = ImageDraw.Draw(picture)
    x, y = _MARGIN, _MARGIN + 62
    for right, meaning in ((True, "right"), (False, "wrong, with the number of the class it was taken for")):
        _draw_symbol(picture, (x, y), size, right)
        colour = _RIGHT if right else _WRONG
        draw.text((x + size + 5, y + size // 2), meaning, fill=colour, font=_font(15), anchor="lm")
        x += size + 5 + round(_font(15).getlength(meaning)) + 24


def _draw_frame(draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, colour: Colour, width: int = 1) -> None:
    """Draw a frame around a tile, outwards."""
    x, y = corner
    draw.rectangle((x - width, y - width, x + side - 1 + width, y + side - 1 + width), outline=colour, width=width)


def _compute_layout(episode: Episode, columns: list[int], names: list[str], marked: bool) -> _Layout:
    side = max(episode.support.x.shape[-2:])
    # A mark takes the width of a symbol and two digits, and so must a tile.
    tile = max(min(side * max(1, round(72 / side)), _MAX_WIDTH // sum(columns)), 40 if marked else 24)
    gap = max(4, tile // 10)
    mark = min(22, max(18, tile // 4)) if marked else 0
    column = max(64, max(_name_width(name) for name in names) + 20)
    support = _MARGIN + column
    query = support + columns[0] * (tile + gap) - gap + _GUTTER
    width = query + columns[1] * (tile + gap) - gap + _MARGIN
    height = _MARGIN + _HEAD + _HEADING + len(names) * (tile + mark + gap) - gap + _MARGIN
    return _Layout(tile, gap, mark, column, support, query, max(width, 640), height)


def _draw_text(draw: ImageDraw.ImageDraw, layout: _Layout, title: str, subtitle: str, names: list[str]) -> None:
    draw.text((_MARGIN, _MARGIN - 8), title, fill=_INK, font=_font(30))
    draw.text((_MARGIN, _MARGIN + 32), subtitle, fill=_MUTED, font=_font(17))
    top = layout.row(0)
    for left, heading, colour in ((layout.support, "Support", _ACCENT), (layout.query, "Query", _MUTED)):
        draw.text((left, top - 32), heading, fill=colour, font=_font(17))
    middle = layout.query - _GUTTER // 2
    draw.line((middle, top - 30, middle, layout.height - _MARGIN), fill=_EDGE, width=2)
    for number, name in enumerate(names):
        first, second = _split_name(name)
        centre = layout.row(number) + layout.tile // 2
        draw.text((_MARGIN, centre - 9 * bool(second)), first, fill=_INK, font=_font(15), anchor="lm")
        draw.text((_MARGIN, centre + 10), second, fill=_MUTED, font=_font(13), anchor="lm")


def _make_tile(image: Tensor, side: int) -> Image.Image:
    """Draw an image [1 or 3, H, W] in [0, 1]. One channel is ink on paper, three are colour."""
    values = image.detach().to("cpu", torch.float32).clamp(0, 1).permute(1, 2, 0).numpy()
    paper, ink = np.array(_PAPER, dtype=np.float32), np.array(_INK, dtype=np.float32)
    colours = paper + values * (ink - paper) if values.shape[-1] == 1 else values * 255
    pixels: NDArray[np.uint8] = np.rint(colours).astype(np.uint8)
    drawn = Image.fromarray(pixels)
    scale = side / max(drawn.size)
    fitted = drawn.resize((round(drawn.width * scale), round(drawn.height * scale)), Image.Resampling.BICUBIC)
    tile = Image.new("RGB", (side, side), _PAPER)
    tile.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return tile


def _split_name(name: str, longest: int = 32) -> tuple[str, str]:
    """Return the two lines on which a name is written, each of at most `longest` characters."""
    first, _, second = name.replace("_", " ").partition("/")
    first, second = (line if len(line) <= longest else f"{line[: longest - 1]}…" for line in (first, second))
    return first, second


def _name_width(name: str) -> int:
    first, second = _split_name(name)
    return round(max(_font(15).getlength(first), _font(13).getlength(second)))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
