"""Folders of images that lack something, are damaged or mean harm: one line that names what, and the remedy."""

import os
from pathlib import Path

import pytest

from tasks.sources import image_store
from tasks.sources.image_folder import ImageFolder
from tasks.types import no_progress
from tests import pictures

NAMES = [f"class_{number}" for number in range(10)]


def fails(root: Path | str | None, tmp_path: Path, message: str, **settings: object) -> None:
    source = ImageFolder(root=None if root is None else str(root), cache=str(tmp_path / "cache"), size=8, **settings)
    with pytest.raises(ValueError, match=message) as error:
        source.prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_no_root(tmp_path: Path) -> None:
    fails(
        None, tmp_path, r"^root: there are no images without it: set tasks\.root to a folder or a zip with CLASS/IMAGE"
    )


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    fails(tmp_path / "none", tmp_path, r"none does not exist: set tasks\.root to a folder or a zip")


def test_a_root_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    fails(tmp_path / "a.tar", tmp_path, r"a\.tar is neither a folder nor a zip: unpack it")


def test_two_zips_and_no_images(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        pictures.write_zip(tmp_path / "raw" / name, pictures.class_files(NAMES))
    fails(tmp_path / "raw", tmp_path, r"raw holds no images, but a\.zip and b\.zip: set tasks\.root to one of them")


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": (
        {"a/notes.txt": b"x"},
        r"raw holds no images \(\.png, .*\), but 1 file of other kinds \(1 \.txt\), .*: set tasks\.root",
    ),
    "no folders": (
        {"1.png": b"", "2.png": b""},
        r"holds no classes \(its 2 images are in fewer than two folders\): set",
    ),
    "few classes": (
        pictures.class_files(NAMES[:5]),
        "holds 5 classes, too few for a task of two in each .*: add classes",
    ),
    "too few to take a split from": (
        {n: c for n, c in pictures.split_files().items() if n.startswith(("train/train_0", "train/train_1", "val/"))},
        "raw: train holds 2 classes, too few for a task of two in each of train, test: add classes",
    ),
    "in two splits": (
        pictures.split_files() | {"test/train_3/0.png": b""},
        "the class 'train_3' is in both 'train' and 'test': leave it in one",
    ),
    "a table without its picture": (
        {n: c for n, c in pictures.table_files().items() if n != "images/val_1_3.png"},
        r"val\.csv lists val_1_3\.png, which is not in images/: add it",
    ),
    "a table of other columns": (
        pictures.table_files() | {"test.csv": b"id,class\n1,2\n"},
        r"test\.csv has no columns filename and label; it begins with 'id,class': name its columns filename,label",
    ),
    "an empty table": (pictures.table_files() | {"test.csv": b""}, r"test\.csv has no rows of filename,label"),
    "half a row": (
        pictures.table_files() | {"test.csv": b"filename,label\ntest_0_0.png\n"},
        r"test\.csv, line 2 lacks a filename or a label: fix it",
    ),
    "a table in another encoding": (
        pictures.table_files() | {"test.csv": b"filename,label\n\xff,x\n"},
        r"test\.csv is not text in UTF-8 .*: save it as UTF-8",
    ),
    "half a picture": (
        pictures.class_files(NAMES) | {"class_4/3.png": pictures.encoded(pictures.pixels(0, 0))[:50]},
        r"raw: class_4/3\.png does not decode as an image \(.*\): replace it by a complete copy",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_folder_may_lack_is_told_with_the_remedy(tmp_path: Path, case: str) -> None:
    contents, message = REFUSED[case]
    fails(pictures.write(tmp_path / "raw", contents), tmp_path, message)


LISTS: dict[str, tuple[dict[str, str], str]] = {
    "no images": (
        {"train": "class_0\nclass_99", "val": "class_1", "test": "class_2"},
        "the class 'class_99', listed in 'train', has no examples: add them, or remove it from the list",
    ),
    "twice": ({"train": "class_0", "val": "class_1", "test": "class_0"}, "'class_0' is in both 'train' and 'test'"),
    "empty": ({"train": "class_0", "val": "\n \n", "test": "class_2"}, "the split 'validation' has no classes"),
    "lacking": ({"train": "class_0", "val": "class_1"}, "the split 'test' has no classes"),
}


@pytest.mark.parametrize("case", LISTS)
def test_what_a_list_may_say_wrong(tmp_path: Path, case: str) -> None:
    lists, message = LISTS[case]
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    named = pictures.write(tmp_path / "lists", {f"{part}.txt": text.encode() for part, text in lists.items()})
    fails(root, tmp_path, message, splits=str(named))


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    message = r"tasks\.splits: there is no list 'tiny': use auto, cifar-fs, fc100, tiny-imagenet-140, or a fold"
    fails(root, tmp_path, message, splits="tiny")


@pytest.mark.parametrize("kept", [0, 0.3, 0.95])
def test_a_truncated_zip(tmp_path: Path, kept: float) -> None:
    path = pictures.write_zip(tmp_path / "a.zip", pictures.class_files(NAMES))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    fails(path, tmp_path, r"a\.zip is not a complete zip .*replace it by a complete copy")


def test_an_entry_that_climbs_out(tmp_path: Path) -> None:
    path = pictures.write_zip(tmp_path / "a.zip", pictures.class_files(NAMES) | {"../escaped/0.png": b"x"})
    fails(path, tmp_path, r"a\.zip: '\.\./escaped/0\.png' leads outside its folder")


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = pictures.write_zip(tmp_path / "a.zip", pictures.class_files(NAMES))
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    fails(
        path,
        tmp_path,
        r"a\.zip: 80 files do not decode as an image: class_0/0\.png \(damaged: .*encrypted",
    )


def test_a_file_too_large_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "_MAX_FILE_BYTES", 5000)
    contents = pictures.class_files(NAMES) | {"class_3/big.png": bytes(5001)}
    message = r"class_3/big\.png has 5,001 bytes, more than the 5,000 allowed for an image: remove it"
    fails(pictures.write(tmp_path / "raw", contents), tmp_path, message)
    fails(pictures.write_zip(tmp_path / "a.zip", contents), tmp_path, message)


def test_links_that_lead_in_circles_or_nowhere(tmp_path: Path) -> None:
    for name, target, message in (
        ("loop", "raw-loop", "loop is a link to a folder that it lies in: remove the link"),
        (
            "self.png",
            "raw-self.png/class_0/self.png",
            r"cannot read .*self\.png \(Too many levels .*\): fix or remove",
        ),
        ("gone.png", "nowhere", r"cannot read .*gone\.png \(No such file or directory\): fix or remove it"),
    ):
        root = pictures.write(tmp_path / f"raw-{name}", pictures.class_files(NAMES))
        (root / "class_0" / name).symlink_to(tmp_path / target)
        fails(root, tmp_path, message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    (root / "class_0" / "0.png").chmod(0)
    fails(root, tmp_path, r"cannot read .*0\.png \(Permission denied\): fix or remove it")
