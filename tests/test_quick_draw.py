"""Quick, Draw! from miniatures of its files: the first drawings of each class, and files of another kind."""

import io
from pathlib import Path

import numpy as np
import pytest

from tasks.sources.quick_draw import QuickDraw
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import metatrain

KINDS = ("airplane", "alarm clock", "bee", "cat", "dog", "ear")
DRAWINGS = {kind: np.random.default_rng(k).integers(0, 256, (5 + k, 784), np.uint8) for k, kind in enumerate(KINDS)}


def npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def folder(tmp_path: Path, prefix: str = "", **changed: bytes) -> Path:
    files = {f"{prefix}{kind}.npy": npy(rows) for kind, rows in DRAWINGS.items()}
    return pictures.write(tmp_path / "raw", files | {f"{name}.npy": content for name, content in changed.items()})


def source(root: Path, tmp_path: Path, **given: object) -> QuickDraw:
    return QuickDraw(root=str(root), cache=str(tmp_path / "cache"), **given)


@pytest.mark.parametrize("prefix", ["", "full_numpy_bitmap_"])
def test_each_class_has_its_first_drawings(tmp_path: Path, prefix: str) -> None:
    made = source(folder(tmp_path, prefix), tmp_path, max_examples=6)
    store = made.store(no_progress)
    assert [kind.name for kind in store.header.classes] == list(KINDS)
    for kind in store.header.classes:
        rows = DRAWINGS[kind.name][:6]
        assert np.array_equal(store.images[kind.start : kind.stop], rows.reshape(-1, 1, 28, 28))
    assert sorted(name for split in SPLITS for name in made.data().classes[split]) == list(KINDS)
    two = made.with_splits({"train": KINDS[:2], "validation": KINDS[2:4], "test": KINDS[4:]})
    assert two.distribution("test", EpisodeShape(2, 1, 4), 0).episodes([0]).query.x.shape == (1, 8, 1, 28, 28)


def test_more_drawings_or_other_files_give_another_store(tmp_path: Path) -> None:
    root = folder(tmp_path)
    few, more = (source(root, tmp_path, max_examples=most).store(no_progress) for most in (2, 3))
    assert (len(few.images), len(more.images)) == (12, 18) and few.path != more.path
    changed = DRAWINGS["bee"].copy()
    changed[0, 0] ^= 255
    pictures.write(root, {"bee.npy": npy(changed)})
    again = source(root, tmp_path, max_examples=2).store(no_progress)
    assert again.path != few.path and again.images[4, 0, 0, 0] == changed[0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((3, 10), np.uint8)), r"bee\.npy holds uint8 \[3, 10\], not uint8 \[n, 784\]"),
        (npy(np.zeros((3, 784))), r"bee\.npy holds float64"),
        (npy(np.array([{"a": 1}], dtype=object)), r"bee\.npy is no \.npy of bitmaps"),
        (b"nothing", r"bee\.npy is no \.npy of bitmaps"),
        (npy(DRAWINGS["bee"])[:300], r"bee\.npy is no \.npy of bitmaps"),
    ],
)
def test_files_of_another_kind_are_told_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(folder(tmp_path, bee=content), tmp_path).store(no_progress)


def test_wrong_places_and_settings_are_told_in_a_line(tmp_path: Path) -> None:
    empty = pictures.write(tmp_path / "empty", {"read.me": b"-"})
    with pytest.raises(ValueError, match=r"has no \.npy files: set tasks\.root to a folder with a file of bitmaps"):
        source(empty, tmp_path).store(no_progress)
    zipped = pictures.write_zip(tmp_path / "a.zip", {"bee.npy": npy(DRAWINGS["bee"])})
    with pytest.raises(ValueError, match=r"is a zip, and drawings are read from a folder: unpack it"):
        source(zipped, tmp_path).store(no_progress)
    with pytest.raises(ValueError, match=r"max_examples: 0 leaves no drawing"):
        QuickDraw(max_examples=0)
    done = metatrain(tmp_path, "data", "prepare", "quick_draw", f"tasks.root={empty}", expect=2)
    assert "has no .npy files" in done.err and len(done.err.strip().splitlines()) == 1
