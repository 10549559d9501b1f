"""Strokes: the same character again, never the same drawing, and harder than pixels can tell."""

import numpy as np
import pytest
import torch

from tasks.random import normals, stream, uniforms
from tasks.sources.strokes import DRAWINGS, StrokePool, Strokes, redraw, render, sample_characters
from tasks.types import SPLITS, EpisodeShape, Split


def nearest_neighbour(jitter: float, tasks: int = 200) -> float:
    """5-way 1-shot accuracy of the nearest support drawing, by Euclidean distance on pixels."""
    episode = Strokes(jitter=jitter).distribution("test", EpisodeShape(5, 1, 15), 1).episodes(range(tasks))
    nearest = torch.cdist(episode.query.x.flatten(2), episode.support.x.flatten(2)).argmin(-1)
    return float((episode.support.y.gather(1, nearest) == episode.query.y).float().mean())


def test_pixels_are_a_poor_guide_at_the_usual_jitter() -> None:
    assert 0.45 < nearest_neighbour(1.0) < 0.60


def test_without_jitter_every_drawing_is_the_same() -> None:
    assert nearest_neighbour(0.0, tasks=20) == 1.0


def images(split: Split, classes: list[int], members: list[int], seed: int = 0, jitter: float = 1.0) -> torch.Tensor:
    pool = Strokes(seed=seed, jitter=jitter).distribution(split, EpisodeShape(), 0).pool
    return pool.examples(np.array(classes), np.array(members))


def test_an_image_depends_on_its_address_alone() -> None:
    classes, members = [3, 999_999, 3, 0] * 50, [0, DRAWINGS - 1, 7, 0] * 50
    together = images("train", classes, members)
    assert torch.equal(together[:4], together[196:])
    for r in range(4):
        assert torch.equal(together[r : r + 1], images("train", classes[r : r + 1], members[r : r + 1]))


@pytest.mark.parametrize("rows", [7, 128, 129, 600])
def test_no_bit_depends_on_what_is_drawn_beside_nor_on_threads(rows: int) -> None:
    draw = np.random.default_rng(rows)
    pool, members = StrokePool(0, 1000, 1.0, "train"), draw.integers(0, DRAWINGS, rows)
    classes = draw.integers(0, 1000, rows)
    together = pool.examples(classes, members)
    backwards = pool.examples(classes[::-1], members[::-1]).flip(0)
    alone = torch.cat([pool.examples(classes[r : r + 1], members[r : r + 1]) for r in range(rows)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = pool.examples(classes, members)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, backwards) and torch.equal(together, alone) and torch.equal(together, threaded)


@pytest.mark.parametrize("jitter", [0.0, 1.0, 3.0])
def test_a_drawing_is_the_integral_that_its_definition_says(jitter: float) -> None:
    """In float64, with absent strokes weighed by 0: at most one grey in 2,000 may be rounded to its neighbour."""
    classes, members = np.arange(200), np.arange(200)
    pool = StrokePool(0, 1000, jitter, "test")
    character, present = sample_characters(uniforms(0, stream("strokes", "test"), classes, 29))
    numbers = uniforms(0, stream("strokes", "test", "hand"), classes * DRAWINGS + members, 48)
    hand = np.concatenate(normals(numbers[:, 0::2], numbers[:, 1::2]), axis=1).clip(-2.5, 2.5)
    control, pen = redraw(character, jitter * hand)
    assert set(present.sum(axis=1)) == {2, 3, 4}
    t = (np.arange(32) + 0.5)[:, None, None] / 32
    p = np.moveaxis(control, (1, 2), (2, 1))[:, None]  # [R, 1, 4 points, strokes, 2]
    place = (1 - t) ** 3 * p[:, :, 0] + 3 * t * (1 - t) ** 2 * p[:, :, 1] + 3 * t**2 * (1 - t) * p[:, :, 2]
    place += t**3 * p[:, :, 3]
    edges = np.diff(p, axis=2)
    speed = 3 * ((1 - t) ** 2 * edges[:, :, 0] + 2 * t * (1 - t) * edges[:, :, 1] + t**2 * edges[:, :, 2])
    weight = np.sqrt((speed**2).sum(-1)) * present[:, None] / 32 / pen[:, None, None]
    away = (np.arange(28) + 0.5)[:, None, None, None] - place[:, None]  # [R, 28, points, strokes, 2]
    x, y = np.moveaxis(np.exp(-(away**2) / (2 * pen[:, None, None, None, None] ** 2)), -1, 0)
    expected = 255 * (1 - np.exp(-2.2 * np.einsum("rits,rjts,rts->rij", y, x, weight)))
    found = pool.examples(classes, members)[:, 0].numpy() * 255
    assert np.abs(found - expected).max() < 0.51
    assert (np.rint(found) != np.rint(expected)).mean() < 1 / 2000


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_splits_seeds_and_classes_are_different_characters(jitter: float) -> None:
    several = [images(split, [1, 2], [0, 0], jitter=jitter) for split in SPLITS]
    several.append(images("train", [1, 2], [0, 0], seed=1, jitter=jitter))
    flat = torch.cat(several).flatten(1)
    assert (torch.cdist(flat, flat) + 99 * torch.eye(len(flat))).min() > 1


def test_drawings_of_a_character_differ() -> None:
    flat = images("train", [1] * 20, list(range(20))).flatten(1)
    assert (torch.cdist(flat, flat) + 99 * torch.eye(len(flat))).min() > 1


def test_each_character_is_drawn_by_hands_of_its_own() -> None:
    """Were drawing 0 of all characters by one hand, its shift would show in their mean centre (1.4 pixels)."""
    pixels = torch.arange(28, dtype=torch.float32)
    for member in range(6):
        drawn = images("train", list(range(500)), [member] * 500).sum(dim=(0, 1))
        centre = torch.stack([(drawn.sum(axis) * pixels).sum() for axis in (0, 1)]) / drawn.sum()
        assert (centre - 13.5).abs().max() < 0.35


def test_every_character_is_there_to_be_seen() -> None:
    many = images("train", list(range(2000)), [0] * 2000)
    ink = many.mean(dim=(1, 2, 3))
    assert ink.min() > 0.03
    assert ink.max() < 0.45
    assert torch.equal(many, (many * 255).round() / 255) or torch.allclose(many * 255, (many * 255).round(), atol=1e-4)


def test_a_straight_stroke_is_rendered_where_it_is_drawn() -> None:
    """A line from (4, 14) to (24, 14) pixels: full ink along it, none three pixels away, alike on both sides."""
    control = np.zeros((1, 1, 4, 2))
    control[0, 0, :, 0] = np.linspace(4, 24, 4)
    control[0, 0, :, 1] = 14
    image = render(control, np.ones((1, 1)), np.array([0.6]))[0]
    assert (image[13:15, 6:22] > 0.9).all()
    assert (image[:11] < 0.01).all()
    assert np.allclose(image, image[::-1], atol=1 / 255)
    assert np.allclose(image, image[:, ::-1], atol=1 / 255)
    assert (render(control, np.zeros((1, 1)), np.array([0.6])) == 0).all()


def test_nothing_to_prepare_is_said_so() -> None:
    calls: list[tuple[int, int]] = []
    assert "1,000,000 characters" in Strokes().prepare(lambda done, total: calls.append((done, total)))
    assert calls == []


def test_settings_that_make_no_sense_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"set tasks\.classes to 2 or more"):
        Strokes(classes=1)
    with pytest.raises(ValueError, match=r"set tasks\.jitter to 0 or more"):
        Strokes(jitter=float("nan"))
