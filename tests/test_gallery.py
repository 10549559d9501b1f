"""Pictures of episodes: every drawing is in it, in its own place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.gallery import _GROUND, _PAPER, episode_picture, save_episode
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
    picture = episode_picture(episode(ways, shots, queries, shape), "", [" "] * ways)
    alone = np.asarray(picture)[120:, 110:]
    assert tiles(Image.fromarray(alone), colour) == ways * (shots + queries)
    assert picture.width <= 2200
    assert picture.getpixel((2, 2)) == _GROUND


def test_ink_is_dark_on_light_paper_and_colours_stay_as_they_are() -> None:
    blank = np.asarray(episode_picture(episode(2, 1, 1, value=0.0), "", [" "] * 2))
    assert (blank[:, 110:].reshape(-1, 3) == _PAPER).all(-1).sum() > 4 * 70 * 70
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(4, 3, 32, 32)
    examples = Examples(red, torch.tensor([0, 0, 1, 1]))
    picture = np.asarray(episode_picture(Episode(examples, examples), "red"))
    assert (picture.reshape(-1, 3) == (255, 0, 0)).all(-1).sum() > 8 * 60 * 60


def test_the_names_and_the_title_are_written() -> None:
    named = np.asarray(episode_picture(episode(2, 1, 1), "title", ["Greek/character01", "Old_Church"]))
    unnamed = np.asarray(episode_picture(episode(2, 1, 1), "", ["Greek/character01", "Old_Church"]))
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
        episode_picture(several, "two tasks")
