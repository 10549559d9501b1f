"""MedMNIST from miniatures of its files: the same classes and other images in each split, and files of another kind."""

from pathlib import Path

import numpy as np
import pytest

from tasks.sources.medmnist import MedMNIST
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures
from tests.command_line import metatrain
from tests.miniatures import MEDICAL_COPIES, MEDICAL_LABELS, medical_arrays, npz

PARTS = dict(zip(SPLITS, MEDICAL_COPIES, strict=True))


def medical(root: Path, tmp_path: Path, **given: object) -> MedMNIST:
    return MedMNIST(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("place", ["file", "folder", "by name"])
def test_each_split_has_every_label_with_the_images_of_its_part(tmp_path: Path, grey: bool, place: str) -> None:
    arrays = medical_arrays(grey)
    root = pictures.write(tmp_path / "raw", {"bloodmnist.npz": npz(arrays)})
    if place == "by name":
        pictures.write(root, {"pathmnist.npz": b"not read"})
    source = medical(
        root / "bloodmnist.npz" if place == "file" else root,
        tmp_path,
        channels="grey" if grey else "rgb",
        dataset="bloodmnist" if place == "by name" else None,
    )
    store = source.store(no_progress)
    for split, part in PARTS.items():
        kinds = [store.header.classes[number] for number in store.header.splittings["classes"][split]]
        assert [kind.name for kind in kinds] == [f"{split}/{label}" for label in range(MEDICAL_LABELS)]
        for label, kind in enumerate(kinds):
            images = arrays[f"{part}_images"][arrays[f"{part}_labels"][:, 0] == label]
            expected = images[:, None] if grey else images.transpose(0, 3, 1, 2)
            assert np.array_equal(store.images[kind.start : kind.stop], expected)
    assert source.distribution("validation", EpisodeShape(4, 2, 3), 0).episodes([0]).query.x.shape[1] == 12
    assert "the splits have the same classes: tasks for testing have other images" in source.data().notes[0]


def test_classes_with_few_images_are_left_out_of_their_split_and_counted(tmp_path: Path) -> None:
    arrays = medical_arrays()
    arrays["val_labels"][arrays["val_labels"] == 3] = 2
    arrays["val_labels"][:1] = 3
    root = pictures.write(tmp_path / "raw", {"a.npz": npz(arrays)})
    every, kept = (medical(root, tmp_path, min_examples=least).data() for least in (1, 2))
    assert [len(every.classes[split]) for split in SPLITS] == [4, 4, 4]
    assert [len(kept.classes[split]) for split in SPLITS] == [4, 3, 4]
    assert "left out: 1 class of fewer than 2 images: validation/3 (1)" in kept.notes


def test_a_file_that_has_changed_gives_another_store(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", {"a.npz": npz(medical_arrays())})
    first = medical(root, tmp_path).store(no_progress)
    arrays = medical_arrays()
    arrays["test_images"][0] ^= 255
    pictures.write(root, {"a.npz": npz(arrays)})
    assert medical(root, tmp_path).store(no_progress).path != first.path


def changed(**arrays: object) -> bytes:
    return npz({name: np.asarray(array) for name, array in {**medical_arrays(), **arrays}.items()})


def without(name: str) -> bytes:
    return npz({key: array for key, array in medical_arrays().items() if key != name})


COUNT = MEDICAL_COPIES["val"] * MEDICAL_LABELS
OBJECTS = np.array([[None]] * COUNT, dtype=object)
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "no file": (
        {"a.txt": b""},
        r"raw holds no \.npz: set tasks\.root to one with train_images, train_labels, val_images",
    ),
    "several files": (
        {"a.npz": b"", "b.npz": b""},
        r"^dataset: .*raw has several datasets: set tasks\.dataset to one of a, b",
    ),
    "no arrays": ({"a.npz": b"PK"}, r"a\.npz is no \.npz of arrays without objects \(.*\): write it again"),
    "a part is missing": (
        {"a.npz": without("val_labels")},
        r"a\.npz has no val_labels: set tasks\.root to a file with",
    ),
    "several labels": (
        {"a.npz": changed(val_labels=np.zeros((COUNT, 14), np.uint8))},
        r"a\.npz: val_labels gives each image 14 labels, which belong to no one class: use a dataset with one label",
    ),
    "volumes": (
        {"a.npz": changed(train_images=np.zeros((32, 12, 12, 12), np.uint8))},
        r"a\.npz: train_images has volumes of 12×12×12, and images are read: use a 2D dataset",
    ),
    "reals": (
        {"a.npz": changed(test_images=np.zeros((28, 12, 12)))},
        r"a\.npz: test_images is no uint8 array \[n, H, W\]",
    ),
    "fewer labels": (
        {"a.npz": changed(val_labels=np.zeros((3, 1), int))},
        r"val_labels is not 24 whole numbers, one an",
    ),
    "labels of text": ({"a.npz": changed(val_labels=np.array([["a"]] * COUNT))}, r"val_labels is not 24 whole numbers"),
    "objects": (
        {"a.npz": changed(val_labels=OBJECTS)},
        r"a\.npz is no \.npz of arrays without objects \(Object arrays",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    files, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        medical(pictures.write(tmp_path / "raw", files), tmp_path).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", {"a.npz": b"", "b.npz": b""})
    with pytest.raises(ValueError, match=r"raw has no c\.npz: set tasks\.dataset to one of a, b"):
        medical(root, tmp_path, dataset="c").prepare(no_progress)
    with pytest.raises(ValueError, match=r"none does not exist: set tasks\.root to an \.npz with train_images"):
        medical(tmp_path / "none", tmp_path).prepare(no_progress)
    with pytest.raises(ValueError, match=r"^root: there are no images without it: set tasks\.root to an \.npz"):
        MedMNIST().prepare(no_progress)


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", {"a.npz": without("test_images")})
    done = metatrain(tmp_path, "data", "prepare", "medmnist", "root=raw", expect=2)
    assert "a.npz has no test_images" in " ".join(done.err.split())
