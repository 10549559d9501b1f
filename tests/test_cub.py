"""CUB-200-2011 from a miniature of its folder: splits, boxes, attributes, and copies that are not whole."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tasks.sources.cub import CUB, split_by_position
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import metatrain
from tests.miniatures import ATTRIBUTES, BIRDS, bird_files

FORMS = r"set tasks\.root to a folder or a zip with images\.txt, image_class_labels\.txt, classes\.txt and images/"


def birds(root: Path, tmp_path: Path, **given: object) -> CUB:
    return CUB(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


def test_the_rule_of_chen_et_al_gives_their_100_50_and_50_classes() -> None:
    found = split_by_position([f"{number:03d}" for number in range(1, 201)][::-1])
    assert [len(found[split]) for split in SPLITS] == [100, 50, 50]
    assert [found[split][:3] for split in SPLITS] == [
        ["001", "003", "005"],
        ["002", "006", "010"],
        ["004", "008", "012"],
    ]


@pytest.mark.parametrize("place", ["", "CUB_200_2011", "zip"])
def test_images_are_read_by_class_wherever_the_folder_lies(tmp_path: Path, place: str) -> None:
    files = bird_files()
    root = (
        pictures.write_zip(tmp_path / "a.zip", files)
        if place == "zip"
        else pictures.write(tmp_path / "raw", files) / place
    )
    source = birds(root, tmp_path)
    store = source.store(no_progress)
    split_of = {
        split: [store.header.classes[at].name for at in store.header.splittings["classes"][split]] for split in SPLITS
    }
    assert split_of == {"train": BIRDS[::2], "validation": BIRDS[1::4], "test": BIRDS[3::4]}
    for label, kind in enumerate(store.header.classes, start=1):
        expected = np.stack([pictures.pixels(label, copy) for copy in range(pictures.COPIES)]).transpose(0, 3, 1, 2)
        assert np.array_equal(store.images[kind.start : kind.stop], expected)
    assert source.distribution("test", EpisodeShape(2, 1, 3), 0).episodes([0]).query.x.shape == (1, 6, 3, 12, 12)


def test_lists_replace_the_rule(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", bird_files())
    source = birds(root, tmp_path).with_splits({"train": BIRDS[:3], "validation": BIRDS[3:5], "test": BIRDS[5:]})
    assert source.data().classes == {"train": BIRDS[:3], "validation": BIRDS[3:5], "test": BIRDS[5:]}


def test_descriptions_follow_the_classes_of_a_split(tmp_path: Path) -> None:
    pool = birds(pictures.write(tmp_path / "raw", bird_files()), tmp_path).pool("test")
    assert pool.description_shape == (ATTRIBUTES,)
    found = pickle.loads(pickle.dumps(pool)).descriptions(np.array([1, 0, 1]))
    assert found.dtype.is_floating_point and found.shape == (3, ATTRIBUTES)
    labels = np.array([7, 3, 7])
    assert np.allclose(found.numpy(), (labels[:, None] + np.arange(ATTRIBUTES)) / 20)


def test_crop_takes_the_box_alone(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", bird_files())
    whole, cut = (birds(root, tmp_path, crop=crop, size=8).store(no_progress) for crop in (False, True))
    assert whole.path != cut.path
    for label, kind in enumerate(cut.header.classes, start=1):
        colour = np.array(pictures.COLOURS[label % len(pictures.COLOURS)])[:, None, None]
        inside = cut.images[kind.start : kind.stop]
        assert (inside == colour).all(), kind.name
    assert "of the box to 8×8" in cut.header.preprocessing
    assert "of the central square to 8×8" in whole.header.preprocessing
    assert (
        birds(root, tmp_path, crop=True, size=8, on_bad_image="skip").store(no_progress).images.shape
        == cut.images.shape
    )


def test_without_attributes_there_are_images_and_no_descriptions(tmp_path: Path) -> None:
    files = {name: content for name, content in bird_files().items() if "/attributes/" not in name}
    pool = birds(pictures.write(tmp_path / "raw", files), tmp_path).pool("train")
    assert pool.num_classes == 4
    with pytest.raises(
        ValueError, match=r"has no CUB_200_2011/attributes/class_attribute_labels_continuous\.txt: replace"
    ):
        pool.descriptions(np.array([0]))


def changed(name: str, old: str, new: str) -> dict[str, bytes]:
    files = bird_files()
    content = files[f"CUB_200_2011/{name}"].decode()
    assert old in content
    return {**files, f"CUB_200_2011/{name}": content.replace(old, new, 1).encode()}


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in bird_files().items() if not name.endswith(names)}


LABELS = "image_class_labels.txt"
BOXES = "bounding_boxes.txt"
REFUSED: dict[str, tuple[Mapping[str, bytes], str]] = {
    "another folder": ({"a/b.jpg": b""}, rf"raw has no images\.txt: {FORMS}"),
    "no labels": (without(LABELS), r"raw has no CUB_200_2011/image_class_labels\.txt: replace it by a"),
    "no classes": (without("/classes.txt"), r"has no CUB_200_2011/classes\.txt"),
    "an image is missing": (
        without("_0003_12.jpg"),
        r"images\.txt lists 1 image that is missing \(CUB_200_2011/images/002",
    ),
    "no images": (without(".jpg"), r"images\.txt lists 64 images that are missing \(CUB.* and 59 more\): replace it"),
    "a line is cut": (changed("images.txt", "\n7 ", "\n7\n8"), r"images\.txt, line 7: not 2 words: replace it"),
    "a label is missing": (changed(LABELS, "\n7 1\n", "\n"), r"labels\.txt has no line for '7': replace"),
    "a class is missing": (changed("classes.txt", "\n3 ", "\n33 "), r"classes\.txt has no line for '3': replace it"),
    "twice": (changed("images.txt", "\n7 ", "\n6 "), r"images\.txt lists '6' twice: replace it"),
    "empty": ({**bird_files(), "CUB_200_2011/classes.txt": b"\n"}, r"classes\.txt is empty: replace it"),
    "not text": ({**bird_files(), "CUB_200_2011/classes.txt": b"\xff\xfe1"}, r"classes\.txt is not text in UTF-8"),
    "no box": (changed(BOXES, "\n9 ", "\n99 "), r"bounding_boxes\.txt has no line for '9'"),
    "a box of text": (changed(BOXES, "\n9 2.0", "\n9 nan"), r"boxes\.txt, image 9: 'nan .*' are no numbers"),
    "a cut box": (changed(BOXES, "\n9 2.0", "\n9"), r"boxes\.txt, line 9: not 5 words"),
    "a box outside": (changed(BOXES, "\n9 2.0", "\n9 50"), r"_9\.jpg does not decode .*12×12.*box lies outside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_that_is_not_whole_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        birds(pictures.write(tmp_path / "raw", files), tmp_path, crop=True).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


TABLES = {
    "too few rows": (b"1 2\n", r"continuous\.txt has 1 row of 2 numbers, for 8 classes: replace"),
    "rows that differ": (b"1 2\n" * 7 + b"1 2 3\n", r"has 8 rows of 2, 3 numbers, for 8 classes"),
    "words": (b"1 b\n" * 8, r"has something else than numbers \(.*\): replace"),
    "not finite": (b"1 inf\n" * 8, r"has numbers that are not finite: replace"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_attributes_that_does_not_fit(tmp_path: Path, case: str) -> None:
    content, message = TABLES[case]
    files = {**bird_files(), "CUB_200_2011/attributes/class_attribute_labels_continuous.txt": content}
    pool = birds(pictures.write(tmp_path / "raw", files), tmp_path).pool("test")
    with pytest.raises(ValueError, match=message) as error:
        pool.descriptions(np.array([0]))
    assert "\n" not in str(error.value)


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", {"a/b.jpg": b""})
    done = metatrain(tmp_path, "data", "prepare", "cub", "root=raw", expect=2)
    assert re.search(FORMS, " ".join(done.err.split()))
