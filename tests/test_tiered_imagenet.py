"""tieredImageNet in each form in which copies of it go around, and copies that are not whole."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tasks.sources.tiered_imagenet import TieredImageNet
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import metatrain
from tests.miniatures import npz, tiered_files

NAMES = {
    "train": ["terrier/maillot (1)", "terrier/maillot (2)", "terrier/pug"],
    "validation": ["snake/boa", "snake/crane"],
    "test": ["boat/canoe", "boat/crane"],
}
LABELS = {"train": [1, 2, 0], "validation": [0, 1], "test": [1, 0]}


def tiered(root: Path, tmp_path: Path, **given: object) -> TieredImageNet:
    return TieredImageNet(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


@pytest.mark.parametrize("form", ["png", "npz"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_files_of_the_authors_give_every_class_its_own_pictures(tmp_path: Path, form: str, protocol: int) -> None:
    source = tiered(pictures.write(tmp_path / "raw", tiered_files(form, protocol)), tmp_path)
    header, images = source.store(no_progress).header, source.store(no_progress).images
    for number, split in enumerate(SPLITS):
        kinds = [header.classes[at] for at in header.splittings["classes"][split]]
        assert [kind.name for kind in kinds] == NAMES[split]
        for label, kind in zip(LABELS[split], kinds, strict=True):
            expected = [pictures.pixels(10 * number + label, copy) for copy in range(pictures.COPIES)]
            assert np.array_equal(images[kind.start : kind.stop], np.stack(expected).transpose(0, 3, 1, 2))
    assert source.distribution("test", EpisodeShape(2, 1, 2), 0).episodes([0]).query.x.shape == (1, 4, 3, 12, 12)


def test_labels_of_bytes_and_without_names(tmp_path: Path) -> None:
    files = tiered_files()
    for part in ("train", "val", "test"):
        fields = pickle.loads(files[f"{part}_labels.pkl"])
        as_bytes = {
            key.encode(): [one.encode() for one in value] if key.endswith("_str") else value
            for key, value in fields.items()
        }
        files[f"{part}_labels.pkl"] = pickle.dumps(as_bytes, 2)
    source = tiered(pictures.write(tmp_path / "raw", files), tmp_path)
    assert source.data().classes["test"] == NAMES["test"]
    for part in ("train", "val", "test"):
        fields = pickle.loads(files[f"{part}_labels.pkl"])
        files[f"{part}_labels.pkl"] = pickle.dumps({"label_specific": fields[b"label_specific"]})
    source = tiered(pictures.write(tmp_path / "plain", files), tmp_path)
    assert source.data().classes["validation"] == ["validation 0", "validation 1"]


def test_a_class_whose_node_has_no_name_is_called_by_its_own(tmp_path: Path) -> None:
    files = tiered_files()
    fields = pickle.loads(files["val_labels.pkl"])
    files["val_labels.pkl"] = pickle.dumps(fields | {"label_general": fields["label_general"] + 7})
    classes = tiered(pictures.write(tmp_path / "raw", files), tmp_path).data().classes
    assert classes == {**NAMES, "validation": ["boa", "crane"]}


def test_folders_of_classes_are_read_too(tmp_path: Path) -> None:
    source = tiered(pictures.write(tmp_path / "raw", pictures.split_files()), tmp_path)
    assert list(source.data().classes.values()) == list(pictures.SPLIT_NAMES.values())


def test_images_that_do_not_decode_are_named_or_left_out(tmp_path: Path) -> None:
    files = tiered_files()
    images = pickle.loads(files["val_images_png.pkl"])
    images[2] = images[2][:20]
    files["val_images_png.pkl"] = pickle.dumps(images)
    root = pictures.write(tmp_path / "raw", files)
    with pytest.raises(ValueError, match=r"raw: image 2 of validation does not decode as an image .*on_bad_image=skip"):
        tiered(root, tmp_path).prepare(no_progress)
    record = tiered(root, tmp_path, on_bad_image="skip").data()
    assert record.examples == 7 * pictures.COPIES - 1
    assert any(note.startswith("left out: 1 image that do not decode: image 2 of validation") for note in record.notes)


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def with_pickle(name: str, content: object) -> dict[str, bytes]:
    return {**tiered_files(), name: pickle.dumps(content)}


def without(*names: str, form: str = "png") -> dict[str, bytes]:
    return {name: content for name, content in tiered_files(form).items() if name not in names}


COUNT = 2 * pictures.COPIES
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({"a.txt": b""}, r"raw holds no images .*or train_images_png\.pkl \(or \.npz\) and train_labels\.pkl"),
    "no validation": (without("val_images_png.pkl"), r"raw lacks val_images_png\.pkl: replace it by a complete copy"),
    "no labels": (without("val_labels.pkl"), r"raw lacks val_labels\.pkl: replace"),
    "no labels of .npz": (without("test_labels.pkl", form="npz"), r"raw lacks test_labels\.pkl: replace"),
    "labels alone": ({"train_labels.pkl": b""}, r"raw holds no images"),
    "no list": (
        with_pickle("test_images_png.pkl", {"a": 1}),
        r"test_images_png\.pkl is no list of images encoded as arr",
    ),
    "no files": (
        with_pickle("test_images_png.pkl", [np.zeros((3, 4))]),
        r"test_images_png\.pkl is no list of images encod",
    ),
    "no dict": (
        with_pickle("test_labels.pkl", [1]),
        r"test_labels\.pkl is no dict of labels: replace it by the original",
    ),
    "other keys": (
        with_pickle("test_labels.pkl", {"a": 1}),
        r"test_labels\.pkl does not hold .*it has no 'label_specific'",
    ),
    "few labels": (
        with_pickle("test_labels.pkl", {"label_specific": np.arange(3)}),
        r"test_labels\.pkl .*it has 3 labels for the 16 images of test_images_png\.pkl\): replace",
    ),
    "few names": (
        with_pickle(
            "test_labels.pkl",
            {
                "label_specific": np.arange(COUNT),
                "label_general": np.zeros(COUNT, int),
                "label_specific_str": ["a"],
                "label_general_str": ["b"],
            },
        ),
        r"test_labels\.pkl does not hold the labels of tieredImageNet \(list index out of range\)",
    ),
    "labels of text": (
        with_pickle("test_labels.pkl", {"label_specific": np.array(["a"] * COUNT)}),
        r"its labels are not whole numbers \[n\]",
    ),
    "code": (
        with_pickle("test_labels.pkl", Runs("true")),
        r"asks for posix\.system, which no array needs; it was not run",
    ),
    "an .npz of other arrays": (
        {**tiered_files("npz"), "test_images.npz": npz({"x": np.zeros(3, np.uint8)})},
        r"test_images\.npz has no images of uint8 \[n, height, width, 3\]: replace",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_that_is_not_whole_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        tiered(pictures.write(tmp_path / "raw", files), tmp_path).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", without("test_images_png.pkl"))
    done = metatrain(tmp_path, "data", "prepare", "tiered_imagenet", "root=raw", expect=2)
    assert "lacks test_images_png.pkl" in " ".join(done.err.split())
