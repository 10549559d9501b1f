"""A picture of an episode: support on the left, query on the right, a row for each class.

With predictions, each query says under its image whether it was taken for its own class, and for which one if not:
by a shape, a colour and a number, so that no one of them is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.io.atomic import atomic_write
from tasks.types import Episode

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]

_GROUND: Colour = (247, 242, 232)
_PAPER: Colour = (255, 253, 248)
_EDGE: Colour = (226, 217, 200)
_INK: Colour = (38, 32, 28)
_MUTED: Colour = (133, 119, 101)
_ACCENT: Colour = (178, 74, 44)
_RIGHT: Colour = (0, 92, 138)
_WRONG: Colour = (190, 60, 0)
"""Blue and vermilion, which every kind of colour vision tells apart (Okabe & Ito 2008), darkened for small letters."""

_TICK = (((0.08, 0.55), (0.38, 0.85), (0.92, 0.2)),)
_CROSS = (((0.15, 0.15), (0.85, 0.85)), ((0.15, 0.85), (0.85, 0.15)))
"""Strokes in a square of side 1."""

_MARGIN = 48
_HEAD = 92
_HEADING = 34
_GUTTER = 44
_WIDEST = 1500
"""Pixels of drawings side by side before they are drawn smaller."""


class _Layout(NamedTuple):
    """Everything in pixels: the side of a tile, the gap between tiles, the height of the mark under a query (0 without
    predictions), the column of names, both blocks' left edges.
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


def episode_picture(
    episode: Episode, title: str, class_names: Sequence[str] | None = None, predicted: Tensor | None = None
) -> "Image":
    """A picture of one task. support.x, query.x: [n, C, H, W] in [0, 1], C of 1 (ink on paper) or 3 (colour).

    class_names: what to write before each row, in order of label; "alphabet/character" is written on two lines.
    predicted: what each query was taken for, labels [n], to be marked as right or wrong.
    ValueError: `episode` is not one task of images.
    """
    from PIL import Image, ImageDraw

    if episode.support.x.dim() != 4 or episode.support.x.shape[1] not in (1, 3):
        shape = list(episode.support.x.shape)
        raise ValueError(f"a picture needs one task of images [n, 1 or 3, H, W], and not {shape}: take one task's row")
    labels = _labels(episode)
    rows = [[part.x[part.y == label] for label in labels] for part in (episode.support, episode.query)]
    names = _row_names(labels, class_names, numbered=predicted is not None)
    layout = _layout(episode, [max(map(len, side)) for side in rows], names, predicted is not None)
    picture = Image.new("RGB", (layout.width, layout.height), _GROUND)
    draw = ImageDraw.Draw(picture)
    _words(draw, layout, title, caption(episode, predicted), names)
    for left, side in zip((layout.support, layout.query), rows, strict=True):
        for number, images in enumerate(side):
            for column, image in enumerate(images):
                corner = layout.column(left, column), layout.row(number)
                picture.paste(_tile(image, layout.tile), corner)
                _frame(draw, corner, layout.tile, _ACCENT if side is rows[0] else _EDGE)
    if predicted is not None:
        _key(picture, layout.mark - 6)
        _marks(picture, layout, episode, labels, predicted)
    return picture


def save_episode(
    path: Path,
    episode: Episode,
    title: str,
    class_names: Sequence[str] | None = None,
    predicted: Tensor | None = None,
) -> None:
    """Write `episode_picture` as a PNG, in one piece. What it shows stands in its text "Description" too."""
    from PIL.PngImagePlugin import PngInfo

    picture = episode_picture(episode, title, class_names, predicted)
    text = PngInfo()
    text.add_itxt("Description", f"{title}: {caption(episode, predicted)}")
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def _labels(episode: Episode) -> list[int]:
    labels: list[int] = torch.unique(torch.cat([episode.support.y, episode.query.y])).tolist()
    return labels


def _row_names(labels: Sequence[int], class_names: Sequence[str] | None, numbered: bool) -> list[str]:
    """What is written before each row; `numbered` where marks refer to rows by number."""
    if class_names is None:
        return [f"class {label + 1}" for label in labels]
    if not numbered:
        return list(class_names)
    return [f"{label + 1}  {name}" for label, name in zip(labels, class_names, strict=True)]


def caption(episode: Episode, predicted: Tensor | None = None) -> str:
    """How large the task is and, of predicted labels [n], how many are right."""
    labels = _labels(episode)
    shots, queries = (max(int((part.y == label).sum()) for label in labels) for part in episode)
    size = f"{len(labels)} ways, {_count(shots, 'shot')}, {_count(queries, 'query', 'queries')} per class"
    if predicted is None:
        return size
    right, count = int((predicted == episode.query.y).sum()), len(predicted)
    return f"{size} · {right} of {count} queries right ({100 * right / count:.0f} %)"


def _marks(picture: "Image", layout: _Layout, episode: Episode, labels: Sequence[int], predicted: Tensor) -> None:
    """Under each query a tick, or a cross with the number of the class that it was taken for, and a frame."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    size = layout.mark - 6
    for number, label in enumerate(labels):
        for column, taken_for in enumerate(predicted[episode.query.y == label].tolist()):
            right = taken_for == label
            colour = _RIGHT if right else _WRONG
            left, top = layout.column(layout.query, column), layout.row(number)
            if not right:
                _frame(draw, (left, top), layout.tile, colour, width=3)
            _symbol(picture, (left, top + layout.tile + 4), size, right, colour)
            if not right:
                corner = left + size + 3, top + layout.tile + 4 + size // 2
                draw.text(corner, str(taken_for + 1), fill=colour, font=_font(size), anchor="lm")


def _symbol(picture: "Image", corner: tuple[int, int], size: int, right: bool, colour: Colour) -> None:
    """A tick or a cross, `size` pixels high, drawn four times as large for smooth edges."""
    from PIL import Image, ImageDraw

    large = 4 * size
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    for stroke in _TICK if right else _CROSS:
        draw.line([(large * x, large * y) for x, y in stroke], fill=255, width=large // 6, joint="curve")
    picture.paste(colour, corner, mask.resize((size, size), Image.Resampling.LANCZOS))


def _key(picture: "Image", size: int) -> None:
    """What the marks mean, under the title."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    x, y = _MARGIN, _MARGIN + 62
    for right, meaning in ((True, "right"), (False, "wrong, with the number of the class it was taken for")):
        colour = _RIGHT if right else _WRONG
        _symbol(picture, (x, y), size, right, colour)
        draw.text((x + size + 5, y + size // 2), meaning, fill=colour, font=_font(15), anchor="lm")
        x += size + 5 + round(_font(15).getlength(meaning)) + 24


def _frame(draw: "ImageDraw", corner: tuple[int, int], side: int, colour: Colour, width: int = 1) -> None:
    """Around a tile, outwards."""
    x, y = corner
    draw.rectangle((x - width, y - width, x + side - 1 + width, y + side - 1 + width), outline=colour, width=width)


def _layout(episode: Episode, columns: list[int], names: list[str], marked: bool) -> _Layout:
    side = max(episode.support.x.shape[-2:])
    # A mark is as wide as a symbol and two figures, which a tile must be too.
    tile = max(min(side * max(1, round(72 / side)), _WIDEST // sum(columns)), 40 if marked else 24)
    gap = max(4, tile // 10)
    mark = min(22, max(18, tile // 4)) if marked else 0
    column = max(64, max(_name_width(name) for name in names) + 20)
    support = _MARGIN + column
    query = support + columns[0] * (tile + gap) - gap + _GUTTER
    width = query + columns[1] * (tile + gap) - gap + _MARGIN
    height = _MARGIN + _HEAD + _HEADING + len(names) * (tile + mark + gap) - gap + _MARGIN
    return _Layout(tile, gap, mark, column, support, query, max(width, 640), height)


def _words(draw: "ImageDraw", layout: _Layout, title: str, subtitle: str, names: list[str]) -> None:
    draw.text((_MARGIN, _MARGIN - 8), title, fill=_INK, font=_font(30))
    draw.text((_MARGIN, _MARGIN + 32), subtitle, fill=_MUTED, font=_font(17))
    top = layout.row(0)
    for left, heading, colour in ((layout.support, "Support", _ACCENT), (layout.query, "Query", _MUTED)):
        draw.text((left, top - 32), heading, fill=colour, font=_font(17))
    middle = layout.query - _GUTTER // 2
    draw.line((middle, top - 30, middle, layout.height - _MARGIN), fill=_EDGE, width=2)
    for number, name in enumerate(names):
        first, second = _lines(name)
        centre = layout.row(number) + layout.tile // 2
        draw.text((_MARGIN, centre - 9 * bool(second)), first, fill=_INK, font=_font(15), anchor="lm")
        draw.text((_MARGIN, centre + 10), second, fill=_MUTED, font=_font(13), anchor="lm")


def _tile(image: Tensor, side: int) -> "Image":
    """image: [1 or 3, H, W] in [0, 1]. One channel is ink on paper, three are colour."""
    from PIL import Image

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


def _lines(name: str) -> tuple[str, str]:
    first, _, second = name.replace("_", " ").partition("/")
    return _shortened(first), _shortened(second)


def _shortened(line: str, longest: int = 32) -> str:
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _name_width(name: str) -> int:
    first, second = _lines(name)
    return round(max(_font(15).getlength(first), _font(13).getlength(second)))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)
