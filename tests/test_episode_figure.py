"""Test pictures of tasks: every example has its own tile, and every prediction its mark."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from metatrain.report.episode_figure import RIGHT, WRONG, caption, draw_episode
from metatrain.report.plots import Chart, save_png
from tasks.types import Episode, Examples

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def episode(ways: int, shots: int, queries: int, shape: tuple[int, ...] = (1, 28, 28)) -> Episode:
    """Return images of one value each, another for each example."""
    sides = []
    for each in (shots, queries):
        values = torch.linspace(0.1, 0.9, ways * each).view(-1, 1, 1, 1).expand(-1, *shape)
        sides.append(Examples(values, torch.arange(ways).repeat_interleave(each)))
    return Episode(*sides)


def axes_of(chart: Chart) -> Axes:
    (axes,) = chart.figure.axes
    return axes


def tiles(chart: Chart) -> list[Box]:
    extents = [image.get_extent() for image in axes_of(chart).images]
    return [(left, top, right, bottom) for left, right, bottom, top in extents]


def marks(chart: Chart) -> list[Text]:
    return [text for text in axes_of(chart).texts if text.get_text() == "✓" or text.get_text()[1:].isdigit()]


def box(chart: Chart, text: Text) -> Box:
    drawn = text.get_window_extent().transformed(axes_of(chart).transData.inverted())
    return drawn.x0, drawn.y1, drawn.x1, drawn.y0


def apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def width(chart: Chart) -> float:
    return float(chart.figure.get_size_inches()[0] * chart.figure.dpi)


@pytest.mark.parametrize(
    ("ways", "shots", "queries", "shape"),
    [(2, 1, 1, (1, 28, 28)), (5, 1, 15, (1, 28, 28)), (20, 5, 5, (1, 28, 28)), (5, 5, 15, (3, 84, 60))],
)
def test_every_example_has_its_own_tile(ways: int, shots: int, queries: int, shape: tuple[int, ...]) -> None:
    task = episode(ways, shots, queries, shape)
    chart = draw_episode(task, "", None)
    drawn = [float(np.asarray(image.get_array()).mean()) for image in axes_of(chart).images]
    assert drawn == pytest.approx(torch.cat([part.x.mean((1, 2, 3)) for part in task]).tolist())
    places = tiles(chart)
    assert all(apart(one, other) for number, one in enumerate(places) for other in places[:number])
    left, top, right, bottom = np.array(places).T
    assert (np.diff(top[: ways * shots : shots]) > 0).all(), "a row for each class"
    assert (top[: ways * shots : shots] == top[ways * shots :: queries]).all()
    assert right[: ways * shots].max() < left[ways * shots :].min(), "support is on the left"
    assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1])
    assert left.min() >= 0 and right.max() <= axes_of(chart).get_xlim()[1] and width(chart) <= 2200


def test_ink_is_dark_on_light_paper_and_colours_stay_as_they_are() -> None:
    ink, red = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for x, colours in ((ink, [(255, 255, 255), (0, 0, 0)]), (red.expand(2, -1, -1, -1), [(255, 0, 0)] * 2)):
        examples = Examples(x.expand(-1, -1, 28, 28), torch.tensor([0, 1]))
        images = axes_of(draw_episode(Episode(examples, examples), "")).images
        shown = [image.to_rgba(image.get_array(), bytes=True)[..., :3].reshape(-1, 3) for image in images]
        assert [set(map(tuple, pixels.tolist())) for pixels in shown] == [{colour} for colour in colours * 2]


def test_the_names_and_the_title_are_written(tmp_path: Path) -> None:
    chart = draw_episode(episode(2, 1, 1), "a $title", ["Greek/character01", "Old_Church"])
    save_png(chart, tmp_path / "e.png")
    axes = axes_of(chart)
    assert axes.get_title(loc="left") == "a $title"
    texts = {text.get_text(): text for text in axes.texts}
    assert texts.keys() >= {"Greek\ncharacter01", "Old Church", "2 ways, 1 shot, 1 query per class"}
    for name, tile in zip(("Greek\ncharacter01", "Old Church"), tiles(chart)[:2], strict=True):
        assert tile[1] < texts[name].get_position()[1] < tile[3], "beside its row"
        assert box(chart, texts[name])[2] < tile[0]


def test_saved_as_a_whole_png(tmp_path: Path) -> None:
    save_png(draw_episode(episode(5, 1, 5), "strokes"), tmp_path / "new" / "episode.png")
    with Image.open(tmp_path / "new" / "episode.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.text["Description"] == "strokes: 5 ways, 1 shot, 5 queries per class"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["episode.png"]


def test_what_is_no_picture_is_refused() -> None:
    several = Episode(*(Examples(part.x[None], part.y[None]) for part in episode(2, 1, 1)))
    with pytest.raises(ValueError, match=r"a picture needs one task of images"):
        draw_episode(several, "two tasks")


def test_predictions_are_marked_by_colour_shape_and_number_under_their_own_query() -> None:
    chart = draw_episode(episode(3, 1, 2), "task", ["a", "b", "c"], torch.tensor([0, 0, 2, 1, 2, 0]))
    found = marks(chart)
    assert [mark.get_text() for mark in found] == ["✓", "✓", "✗3", "✓", "✓", "✗1"]
    colours = [RIGHT, RIGHT, WRONG, RIGHT, RIGHT, WRONG]
    assert [mark.get_color() for mark in found] == colours and RIGHT != WRONG
    frames = {patch.get_xy(): to_hex(patch.get_edgecolor()) for patch in axes_of(chart).findobj(match=is_frame)}
    for mark, colour, (left, top, right, bottom) in zip(found, colours, tiles(chart)[3:], strict=True):
        assert frames[left, top] == colour
        x0, y0, x1, y1 = box(chart, mark)
        assert left - 2 <= x0 < x1 <= right and bottom < y0 < y1 < bottom + 30
    texts = {text.get_text() for text in axes_of(chart).texts}
    assert {"✓ right", "✗ wrong, with the number of the class it was taken for", "2  b"} <= texts


def is_frame(artist: object) -> bool:
    return hasattr(artist, "get_xy") and hasattr(artist, "get_edgecolor") and not artist.get_fill()


def test_the_caption_counts_what_was_right() -> None:
    task, predicted = episode(3, 1, 2), torch.tensor([0, 0, 1, 2, 2, 0])
    assert caption(task) == "3 ways, 1 shot, 2 queries per class"
    assert caption(task, predicted) == "3 ways, 1 shot, 2 queries per class · 4 of 6 queries right (67 %)"
    described = draw_episode(task, "strokes", None, predicted).description
    assert described == f"strokes: {caption(task, predicted)}"


@pytest.mark.parametrize(("ways", "queries"), [pytest.param(20, 15, marks=pytest.mark.slow), (5, 60)])
def test_marks_have_room_in_large_tasks(ways: int, queries: int) -> None:
    task = episode(ways, 1, queries)
    chart = draw_episode(task, "large", ["Alphabet_of_the_Magi/character01"] * ways, (task.query.y + 1) % ways)
    assert width(chart) < 3300
    found = marks(chart)
    assert len(found) == ways * queries
    boxes = [box(chart, mark) for mark in found]
    assert all(apart(one, other) for one, other in pairwise(boxes))
    assert all(one[3] < below[1] for one, below in zip(boxes, tiles(chart)[ways + queries :], strict=False))
