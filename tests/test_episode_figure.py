"""Pictures of episodes: every drawing is in it, in its own place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.episode_figure import _GROUND, _PAPER, _RIGHT, _WRONG, caption, draw_episode, save_episode
from tasks.types import Episode, Examples


def episode(ways: int, shots: int, queries: int, shape: tuple[int, ...] = (1, 28, 28), value: float = 1.0) -> Episode:
    parts = (
        Examples(torch.full((ways * each, *shape), value), torch.arange(ways).repeat_interleave(each))
        for each in (shots, queries)
    )
    return Episode(*parts)


def tiles(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many separate squares of one colour there are, found by flooding."""
    matching = (np.asarray(picture) == np.array(colour)).all(-1)
    rows = matching.any(1)
    columns = matching[rows].all(0) if rows.any() else matching.any(0)
    runs = [int(np.diff(np.concatenate([[0], mask.astype(int)])).clip(0).sum()) for mask in (rows, columns)]
    return runs[0] * runs[1]


@pytest.mark.parametrize(
    ("ways", "shots", "queries", "shape"),
    [(2, 1, 1, (1, 28, 28)), (5, 1, 15, (1, 28, 28)), (20, 5, 5, (1, 28, 28)), (5, 5, 15, (3, 84, 84))],
)
def test_every_example_has_its_own_tile(ways: int, shots: int, queries: int, shape: tuple[int, ...]) -> None:
    colour = (255, 255, 255) if shape[0] == 3 else (38, 32, 28)
    picture = draw_episode(episode(ways, shots, queries, shape), "", [" "] * ways)
    alone = np.asarray(picture)[120:, 110:]
    assert tiles(Image.fromarray(alone), colour) == ways * (shots + queries)
    assert picture.width <= 2200
    assert picture.getpixel((2, 2)) == _GROUND


def test_ink_is_dark_on_light_paper_and_colours_stay_as_they_are() -> None:
    blank = np.asarray(draw_episode(episode(2, 1, 1, value=0.0), "", [" "] * 2))
    assert (blank[:, 110:].reshape(-1, 3) == _PAPER).all(-1).sum() > 4 * 70 * 70
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(4, 3, 32, 32)
    examples = Examples(red, torch.tensor([0, 0, 1, 1]))
    picture = np.asarray(draw_episode(Episode(examples, examples), "red"))
    assert (picture.reshape(-1, 3) == (255, 0, 0)).all(-1).sum() > 8 * 60 * 60


def test_the_names_and_the_title_are_written() -> None:
    named = np.asarray(draw_episode(episode(2, 1, 1), "title", ["Greek/character01", "Old_Church"]))
    unnamed = np.asarray(draw_episode(episode(2, 1, 1), "", ["Greek/character01", "Old_Church"]))
    assert (named[:80] != unnamed[:80]).any()
    assert (named[140:, :100] != _GROUND).any()


def test_saved_as_a_whole_png(tmp_path: Path) -> None:
    save_episode(tmp_path / "new" / "episode.png", episode(5, 1, 5), "strokes")
    with Image.open(tmp_path / "new" / "episode.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["episode.png"]


def test_what_is_no_picture_is_refused() -> None:
    several = Episode(*(Examples(part.x[None], part.y[None]) for part in episode(2, 1, 1)))
    with pytest.raises(ValueError, match=r"a picture needs one task of images"):
        draw_episode(several, "two tasks")


def guessed(predicted: list[int]) -> Image.Image:
    """Three classes of two queries, black squares, with these labels predicted."""
    return draw_episode(episode(3, 1, 2), "task", [" "] * 3, torch.tensor(predicted))


def marks(picture: Image.Image, colour: tuple[int, int, int], below: int = 174) -> int:
    return int((np.asarray(picture)[below:] == colour).all(-1).sum())


def test_predictions_are_marked_by_colour_shape_and_number() -> None:
    right, wrong = guessed([0, 0, 1, 1, 2, 2]), guessed([1, 1, 2, 2, 0, 0])
    assert marks(right, _RIGHT) > 0 and marks(right, _WRONG) == 0
    assert marks(wrong, _WRONG) > 0 and marks(wrong, _RIGHT) == 0
    left, top, size = 48 + 64 + 84 + 44, 174 + 84 + 4, 15
    shapes = [np.asarray(p)[top : top + size, left : left + size].min(-1) < 150 for p in (right, wrong)]
    assert (shapes[0] != shapes[1]).sum() > 40, "a tick and a cross, without their colours"
    framed = [np.asarray(p.convert("L"), dtype=int)[:, left - 3 : left] for p in (right, wrong)]
    assert (framed[0] - framed[1] > 60).sum() > 200, "and what is wrong has a dark frame"
    other = guessed([2, 2, 2, 2, 0, 0])
    assert marks(other, _WRONG) != marks(wrong, _WRONG), "the number of the class is written"


def test_a_mark_stands_under_its_own_query() -> None:
    """The third query of six is the first of the second class."""
    right, one_wrong = (np.asarray(guessed(p), dtype=int) for p in ([0, 0, 1, 1, 2, 2], [0, 0, 2, 1, 2, 2]))
    rows, columns = np.nonzero((right[174:] != one_wrong[174:]).any(-1))
    tile, gap, mark, left = 84, 8, 21, 48 + 64 + 84 + 44
    assert rows.min() >= tile + mark + gap - 3 and rows.max() < 2 * (tile + mark + gap)
    assert columns.min() >= left - 3 and columns.max() < left + tile + 3


def test_the_caption_counts_what_was_right(tmp_path: Path) -> None:
    task, predicted = episode(3, 1, 2), torch.tensor([0, 0, 1, 2, 2, 0])
    assert caption(task) == "3 ways, 1 shot, 2 queries per class"
    assert caption(task, predicted) == "3 ways, 1 shot, 2 queries per class · 4 of 6 queries right (67 %)"
    save_episode(tmp_path / "e.png", task, "strokes", None, predicted)
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.text["Description"] == f"strokes: {caption(task, predicted)}"


@pytest.mark.parametrize(("ways", "queries"), [(20, 15), (5, 60)])
def test_marks_have_room_in_large_tasks(ways: int, queries: int) -> None:
    task = episode(ways, 1, queries)
    picture = draw_episode(task, "large", None, (task.query.y + 1) % ways)
    assert picture.width <= 3300
    assert marks(picture, _WRONG) > ways * queries * 100
