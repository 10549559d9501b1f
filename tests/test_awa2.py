"""Animals with Attributes 2 from a miniature of its folder: official classes, attributes, copies that are not whole."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tasks.sources.awa2 import AwA2, split_training
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import metatrain
from tests.miniatures import ANIMALS, ANIMALS_FOR_TEST, PREDICATES, animal_files

BASE = "Animals_with_Attributes2"


def animals(root: Path, tmp_path: Path, **given: object) -> AwA2:
    return AwA2(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


def test_13_of_the_40_training_classes_are_for_validation_and_always_the_same() -> None:
    names = [f"animal {number}" for number in range(40)]
    found = split_training(names)
    assert [len(found["train"]), len(found["validation"])] == [27, 13]
    assert sorted([*found["train"], *found["validation"]]) == sorted(names)
    assert split_training(names[::-1]) == found
    assert found["validation"] == sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:13])


@pytest.mark.parametrize("place", ["", BASE, "zip"])
def test_images_are_read_by_class_wherever_the_folder_lies(tmp_path: Path, place: str) -> None:
    files = {**animal_files(), f"{BASE}/JPEGImages/unicorn/unicorn_1.jpg": b"not read"}
    root = pictures.write_zip(tmp_path / "a.zip", files) if place == "zip" else pictures.write(tmp_path, files) / place
    source = animals(root, tmp_path)
    store, data = source.store(no_progress), source.data()
    assert data.classes["test"] == ANIMALS_FOR_TEST
    assert [len(data.classes[split]) for split in SPLITS] == [6, 3, 3]
    assert "left out: 1 image that trainclasses.txt or testclasses.txt does not list" in data.notes[0]
    for number, kind in enumerate(store.header.classes):
        assert kind.name == ANIMALS[number]
        expected = np.stack([pictures.pixels(number, copy) for copy in range(pictures.COPIES)]).transpose(0, 3, 1, 2)
        assert np.array_equal(store.images[kind.start : kind.stop], expected)
    assert source.distribution("test", EpisodeShape(3, 1, 3), 0).episodes([0]).query.x.shape == (1, 9, 3, 12, 12)


def test_descriptions_follow_the_classes_and_what_is_missing_is_zero(tmp_path: Path) -> None:
    source = animals(pictures.write(tmp_path / "raw", animal_files()), tmp_path)
    expected = (np.arange(len(ANIMALS))[:, None] + np.arange(PREDICATES)) / 20
    expected[0, 0] = 0
    for split in SPLITS:
        pool = source.pool(split)
        every = np.arange(pool.num_classes)
        rows = [ANIMALS.index(name) for name in pool.class_names(every)]
        assert pool.description_shape == (PREDICATES,)
        assert np.allclose(pool.descriptions(every).numpy(), expected[rows])


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in animal_files().items() if not any(part in name for part in names)}


REFUSED: dict[str, tuple[Mapping[str, bytes], str]] = {
    "another folder": (
        {"a/b.jpg": b""},
        r"raw has no trainclasses\.txt: set tasks\.root to a .* JPEGImages/CLASS/IMAGE, as",
    ),
    "no test classes": (without("testclasses"), r"has no Animals_with_Attributes2/testclasses\.txt: replace it"),
    "no images": (without(".jpg"), r"JPEGImages/ has no images of animal\+a, .* and 7 more: replace .*AwA2-data\.zip"),
    "no image of one": (without("animal+c/"), r"JPEGImages/ has no images of animal\+c: replace"),
    "in both": (
        {**animal_files(), f"{BASE}/testclasses.txt": b"animal+a\n"},
        r"the class 'animal\+a' is in both '(train|validation)' and 'test'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_that_is_not_whole_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        animals(pictures.write(tmp_path / "raw", files), tmp_path).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", without(".jpg"))
    done = metatrain(tmp_path, "data", "prepare", "awa2", "root=raw", expect=2)
    assert "JPEGImages/ has no images of animal+a" in " ".join(done.err.split())
