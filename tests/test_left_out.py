"""What a folder of images leaves out is counted and named; odd tables, bad images and doubles are read or refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sources.class_splits import SplitLists, hash_splits
from tasks.sources.image_folder import ImageFolder
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.split_images import PackedSplit, check_split
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures

NAMES = [f"class_{number}" for number in range(10)]


def images(root: Path, **settings: object) -> ImageFolder:
    return ImageFolder(root=str(root), cache=str(root.parent / "cache"), **{"size": pictures.SIDE, **settings})


def counts(source: ImageFolder) -> dict[str, int]:
    return {split: len(names) for split, names in source.data().classes.items()}


@given(classes=st.sets(st.text("abcd", min_size=3, max_size=8), min_size=40, max_size=60), new=st.text("ABC"))
@settings(max_examples=25, deadline=None)
def test_a_folder_that_grows_moves_no_class_from_training_to_testing(classes: set[str], new: str) -> None:
    before, after = hash_splits("", sorted(classes)), hash_splits("", sorted({*classes, new}))
    moved = [split for split in SPLITS for name in before[split] if name not in after[split]]
    assert len(moved) <= (0 if min(map(len, before.values())) > 2 else 1)


def test_files_of_other_kinds_are_counted_with_their_folders(tmp_path: Path) -> None:
    contents = pictures.class_files(NAMES) | {f"drawn_{n}/{m}.avif": b"" for n in range(6) for m in range(6)}
    contents |= {"read.me": b"", "drawn_0/1.xcf": b""}
    notes = images(pictures.write(tmp_path / "raw", contents)).data().notes
    folders = "drawn_0, drawn_1, drawn_2, drawn_3, drawn_4 and 1 more"
    assert notes == (
        f"left out: 38 files of other kinds (36 .avif, 1 .me, 1 .xcf), 6 folders without any image ({folders})",
    )


def test_images_outside_the_folders_of_classes_are_counted(tmp_path: Path) -> None:
    one = pictures.encoded(pictures.pixels(0, 0))
    contents = pictures.split_files() | {"extra/a/0.png": one, "extra/b/0.png": one, "val/0.png": one, "logo.png": one}
    assert images(pictures.write(tmp_path / "raw", contents)).data().notes == (
        "left out: 1 image beside the folders of classes: logo.png",
        "left out: 2 images in extra/, which is not a split (train, val and test are): extra/a/0.png, extra/b/0.png",
        "left out: 1 image in val/, outside folders of classes: val/0.png",
    )


@pytest.mark.parametrize("parts", [("Training", "Valid", "TESTING"), ("train", "dev", "eval")])
def test_the_usual_names_of_splits_in_any_case_will_do(tmp_path: Path, parts: tuple[str, ...]) -> None:
    called = dict(zip(("train", "val", "test"), parts, strict=True))
    source = images(pictures.write(tmp_path / "raw", pictures.split_files(called)))
    assert source.data().classes == dict(zip(SPLITS, pictures.SPLIT_NAMES.values(), strict=True))


def test_a_split_that_is_lacking_is_taken_from_train_and_told(tmp_path: Path) -> None:
    found = pictures.split_files({"val": "valid"})
    kept = {name: content for name, content in found.items() if not name.startswith("test/")}
    data = images(pictures.write(tmp_path / "raw", kept)).data()
    assert data.classes["validation"] == pictures.SPLIT_NAMES["val"]
    assert sorted([*data.classes["train"], *data.classes["test"]]) == pictures.SPLIT_NAMES["train"]
    assert len(data.classes["test"]) == 2
    assert data.notes[0].startswith("there is no test split: 2 of train's 5 classes are taken for it, by a hash of")


@pytest.mark.parametrize("inner", ["", "test/"])
def test_test_classes_alone_are_tested_whole(tmp_path: Path, inner: str) -> None:
    root = pictures.write(
        tmp_path / "raw", {f"{inner}{name}": content for name, content in pictures.class_files(NAMES).items()}
    )
    source = images(root, splits="auto" if inner else "test")
    assert counts(source) == {"train": 0, "validation": 0, "test": 10}
    with pytest.raises(ValueError, match="the split 'train' of image_folder has no classes"):
        source.distribution("train", EpisodeShape(2, 1, 1), 0).episodes([0])
    assert source.distribution("test", EpisodeShape(2, 1, 1), 0).episodes([0]).query.x.shape == (1, 2, 3, 12, 12)


def test_lists_in_the_settings_name_classes_also_by_path_and_by_display_name(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    lists = SplitLists(("class_0", "images\\class_1"), ("toad/class_2",), ("class_3", "./class_4/"))
    data = images(root, splits=lists).data()
    assert data.classes == {"train": NAMES[:2], "validation": [NAMES[2]], "test": NAMES[3:5]}
    assert data.notes == ("left out: 5 classes in no split: class_5, class_6, class_7, class_8, class_9",)
    alone = pictures.write(tmp_path / "lists", {"test.txt": b"class_8\nclass_9\n"})
    assert counts(images(root, splits=str(alone))) == {"train": 0, "validation": 0, "test": 2}
    hash(images(root, splits=lists))


TABLES = {
    "semicolon": lambda text: text.replace(",", ";"),
    "tab": lambda text: text.replace(",", "\t"),
    "no header": lambda text: text.partition("\n")[2],
    "label first, no header": lambda text: "\n".join(",".join(line.split(",")[::-1]) for line in text.split("\n")[1:]),
    "other names": lambda text: text.replace("filename,label", "Image,Category"),
    "back slashes": lambda text: text.replace("train_", ".\\images\\train_").replace(",.\\images\\", ","),
    "empty lines first": lambda text: "\n\n" + text.replace("\n", "\n\n"),
    "lines that end in CR": lambda text: text.replace("\n", "\r"),
    "quoted": lambda text: text.replace("filename,label", '"filename" , "label"'),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_as_people_write_them(tmp_path: Path, kind: str) -> None:
    contents = pictures.table_files()
    table = contents["train.csv"].decode().replace("\r\n", "\n").rstrip("\n")
    contents["train.csv"] = TABLES[kind](table).encode()
    plain = images(pictures.write(tmp_path / "plain", pictures.table_files())).store(no_progress)
    assert images(pictures.write(tmp_path / "raw", contents)).store(no_progress).path == plain.path


def test_a_column_that_a_table_has_twice_is_not_guessed(tmp_path: Path) -> None:
    contents = pictures.table_files()
    contents["train.csv"] = contents["train.csv"].replace(b"filename,label", b"filename,label,Label")
    with pytest.raises(ValueError, match=r"train\.csv has several columns 'label': rename or remove all but one"):
        images(pictures.write(tmp_path / "raw", contents)).data()


def test_classes_in_train_and_test_are_named_by_the_folders_that_are_there(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for split in ("train", "test"):
        pictures.write(root / split, pictures.class_files(NAMES))
    with pytest.raises(ValueError, match="the class 'class_0' is in both 'train' and 'test': leave it in one"):
        images(root).data()


def test_tables_without_a_test_table_and_images_that_none_lists(tmp_path: Path) -> None:
    contents = pictures.table_files()
    del contents["test.csv"]
    data = images(pictures.write(tmp_path / "raw", contents)).data()
    assert [len(data.classes[split]) for split in SPLITS] == [3, 4, 2]
    assert data.notes[0].startswith("left out: 32 images that no table lists: images/test_0_0.png, ")


@pytest.mark.parametrize(
    ("table", "line", "reason"),
    [
        (
            "test.csv",
            "train_0_0.png,test_0",
            r"train_0_0\.png is in both 'train' and 'test', in train\.csv, line",
        ),
        (
            "train.csv",
            "train_0_0.png,train_1",
            r"train_0_0\.png is under two labels, .* \(as 'train_1'\): remove",
        ),
    ],
)
def test_a_file_in_two_splits_or_under_two_labels_is_refused(
    tmp_path: Path, table: str, line: str, reason: str
) -> None:
    contents = pictures.table_files()
    contents[table] += f"{line}\r\n".encode()
    with pytest.raises(ValueError, match=reason) as error:
        images(pictures.write(tmp_path / "raw", contents)).prepare(no_progress)
    assert "\n" not in str(error.value)


def test_a_row_of_a_pickle_in_two_classes_is_refused() -> None:
    rows = {"a": np.arange(3), "b": np.arange(2, 4)}
    with pytest.raises(ValueError, match="its row 2 is in both the classes 'a' and 'b'"):
        check_split(PackedSplit(np.zeros((4, 2, 2, 3), np.uint8), rows))


def test_identical_images_under_two_classes_are_told(tmp_path: Path) -> None:
    contents = pictures.split_files()
    contents["test/test_0/x.png"] = contents["train/train_1/0.png"]
    contents["train/train_2/x.png"] = contents["train/train_0/3.png"]
    assert images(pictures.write(tmp_path / "raw", contents)).data().warnings == (
        "2 images identical under two or more classes, 1 of them in two splits: 'test_0' (test) and 'train_1' (train), "
        "'train_0' (train) and 'train_2' (train): remove them where they do not belong",
    )


def spoilt(tmp_path: Path, bad: int) -> Path:
    contents = pictures.split_files()
    for name in sorted(contents)[:bad]:
        contents[name] = b"no picture"
    return pictures.write(tmp_path / "raw", contents)


def test_all_bad_images_are_listed_in_one_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"raw: 7 files do not decode as an image: .* and 2 more") as error:
        images(spoilt(tmp_path, 7)).prepare(no_progress)
    message = str(error.value)
    assert message.endswith("replace them by complete copies, or set tasks.on_bad_image=skip to leave them out")
    report = Path(message.partition("all of them in ")[2].partition(")")[0])
    assert len(report.read_text().splitlines()) == 7
    assert "test/test_0/6.png\tunknown format\n" in report.read_text()


@pytest.mark.parametrize("source", [ImageFolder, MiniImageNet])
def test_bad_images_are_left_out_on_request(tmp_path: Path, source: type) -> None:
    root = spoilt(tmp_path, 7)
    made = source(root=str(root), cache=str(tmp_path / "cache"), size=pictures.SIDE, on_bad_image="skip")
    store = made.store(no_progress)
    sizes = {kind.name: kind.stop - kind.start for kind in store.header.classes}
    assert sizes == {name: 1 if name == "test_0" else 8 for names in pictures.SPLIT_NAMES.values() for name in names}
    assert np.array_equal(store.images[0], pictures.pixels(9, 7).transpose(2, 0, 1))
    assert made.data().notes[0].startswith("left out: 7 images that do not decode: test/test_0/0.png (unknown format)")
    with pytest.raises(ValueError, match="the class 'test_0' has only 1 in 'test' of"):
        made.distribution("test", EpisodeShape(2, 1, 1), 0)


def test_classes_of_few_images_are_named_and_left_out_on_request(tmp_path: Path) -> None:
    contents = {name: content for name, content in pictures.split_files().items() if "train_0/" not in name}
    contents["train/train_0/0.png"] = pictures.encoded(pictures.pixels(0, 0))
    root = pictures.write(tmp_path / "raw", contents)
    with pytest.raises(ValueError, match=r"'train_0' has only 1 in 'train' .*, or set tasks\.min_examples=4$"):
        images(root).distribution("train", EpisodeShape(2, 1, 3), 0)
    with pytest.raises(ValueError, match=r": \d+ of its \d+ classes have too few examples: lower tasks\.min_examples"):
        images(root, min_examples=1000).data()
    source = images(root, min_examples=4)
    assert counts(source)["train"] == 4
    assert source.data().notes == ("left out: 1 class of fewer than 4 images: train_0 (1)",)
    skipping = images(spoilt(tmp_path, 7), min_examples=4, on_bad_image="skip")
    assert counts(skipping) == {"train": 5, "validation": 4, "test": 3}
    assert skipping.data().notes[-1] == "left out: 1 class of too few images then: test_0"


def test_a_zip_with_back_slashes_is_a_zip_with_slashes(tmp_path: Path) -> None:
    plain = pictures.class_files(NAMES)
    slashes = pictures.write_zip(tmp_path / "a.zip", plain)
    back = pictures.write_zip(tmp_path / "b.zip", {name.replace("/", "\\"): content for name, content in plain.items()})
    assert images(slashes).store(no_progress).path == images(back).store(no_progress).path


def test_settings_of_default_keep_the_key_of_a_store(tmp_path: Path) -> None:
    source = images(pictures.write(tmp_path / "raw", pictures.split_files()))
    assert Path(source.store(no_progress).path).stem == "3e07b9502a45fcf342162473cfc25cf9"
    assert dataclasses.replace(source, on_bad_image="skip").store(no_progress).path != source.store(no_progress).path
