"""A picture of an episode: support on the left, query on the right, a row for each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.durable import replacing
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

_MARGIN = 48
_HEAD = 92
_HEADING = 34
_GUTTER = 44
_WIDEST = 1500
"""Pixels of drawings side by side before they are drawn smaller."""


class _Layout(NamedTuple):
    """Everything in pixels: the side of a tile, the gap between tiles, the column of names, both blocks' left edges."""

    tile: int
    gap: int
    names: int
    support: int
    query: int
    width: int
    height: int

    def row(self, number: int) -> int:
        return _MARGIN + _HEAD + _HEADING + number * (self.tile + self.gap)

    def column(self, left: int, number: int) -> int:
        return left + number * (self.tile + self.gap)


def episode_picture(episode: Episode, title: str, class_names: Sequence[str] | None = None) -> "Image":
    """A picture of one task. support.x, query.x: [n, C, H, W] in [0, 1], C of 1 (ink on paper) or 3 (colour).

    class_names: what to write before each row, in order of label; "alphabet/character" is written on two lines.
    """
    from PIL import Image, ImageDraw

    if episode.support.x.dim() != 4 or episode.support.x.shape[1] not in (1, 3):
        shape = list(episode.support.x.shape)
        raise ValueError(f"a picture needs one task of images [n, 1 or 3, H, W], and not {shape}: take one task's row")
    labels = torch.unique(torch.cat([episode.support.y, episode.query.y])).tolist()
    names = list(class_names) if class_names is not None else [f"class {label + 1}" for label in labels]
    rows = [[part.x[part.y == label] for label in labels] for part in (episode.support, episode.query)]
    layout = _layout(episode, [max(map(len, side)) for side in rows], names)
    picture = Image.new("RGB", (layout.width, layout.height), _GROUND)
    draw = ImageDraw.Draw(picture)
    _words(draw, layout, title, rows, names)
    for left, side in zip((layout.support, layout.query), rows, strict=True):
        for number, images in enumerate(side):
            for column, image in enumerate(images):
                corner = layout.column(left, column), layout.row(number)
                picture.paste(_tile(image, layout.tile), corner)
                far = corner[0] + layout.tile, corner[1] + layout.tile
                draw.rectangle((corner[0] - 1, corner[1] - 1, *far), outline=_ACCENT if side is rows[0] else _EDGE)
    return picture


def save_episode(path: Path, episode: Episode, title: str, class_names: Sequence[str] | None = None) -> None:
    """Write `episode_picture` as a PNG, in one piece."""
    picture = episode_picture(episode, title, class_names)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _layout(episode: Episode, columns: list[int], names: list[str]) -> _Layout:
    side = max(episode.support.x.shape[-2:])
    tile = max(min(side * max(1, round(72 / side)), _WIDEST // sum(columns)), 24)
    gap = max(4, tile // 10)
    column = max(64, max(_name_width(name) for name in names) + 20)
    support = _MARGIN + column
    query = support + columns[0] * (tile + gap) - gap + _GUTTER
    width = query + columns[1] * (tile + gap) - gap + _MARGIN
    height = _MARGIN + _HEAD + _HEADING + len(names) * (tile + gap) - gap + _MARGIN
    return _Layout(tile, gap, column, support, query, max(width, 640), height)


def _words(draw: "ImageDraw", layout: _Layout, title: str, rows: list[list[Tensor]], names: list[str]) -> None:
    shots, queries = (max(map(len, side)) for side in rows)
    draw.text((_MARGIN, _MARGIN - 8), title, fill=_INK, font=_font(30))
    size = f"{len(names)} ways, {_count(shots, 'shot')}, {_count(queries, 'query', 'queries')} per class"
    draw.text((_MARGIN, _MARGIN + 36), size, fill=_MUTED, font=_font(17))
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
