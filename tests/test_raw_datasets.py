"""Raw folders of datasets that Meta-Dataset draws from, each from a miniature of its own layout."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tasks.sources.class_sources import CLASS_SOURCES
from tasks.types import SPLITS, no_progress
from tests import miniatures, pictures
from tests.command_line import metatrain
from tests.miniatures import KINDS

NUMBERED = [f"{number:04d}.{name}" for number, name in enumerate(KINDS)]


class Case(NamedTuple):
    """A miniature, the names of its classes, and whether their images are cut to boxes."""

    files: Callable[[], dict[str, bytes]]
    names: list[str]
    cut: bool = False


CASES = {
    "aircraft": Case(miniatures.aircraft_files, KINDS, cut=True),
    "dtd": Case(miniatures.texture_files, KINDS),
    "fungi": Case(miniatures.fungi_files, NUMBERED),
    "mscoco": Case(miniatures.coco_files, KINDS, cut=True),
    "traffic_sign": Case(miniatures.sign_files, [f"{number:02d}" for number in range(len(KINDS))]),
    "vgg_flower": Case(miniatures.flower_files, [f"{number:03d}" for number in range(1, len(KINDS) + 1)]),
}


def source(name: str, root: Path, tmp_path: Path, **given: object) -> Any:
    return CLASS_SOURCES[name](root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_class_has_its_own_pictures(tmp_path: Path, name: str, zipped: bool) -> None:
    case = CASES[name]
    files = case.files()
    root = pictures.write_zip(tmp_path / "a.zip", files) if zipped else pictures.write(tmp_path / "raw", files)
    made = source(name, root, tmp_path)
    store = made.store(no_progress)
    assert [kind.name for kind in store.header.classes] == case.names
    for number, kind in enumerate(store.header.classes):
        found = store.images[kind.start : kind.stop]
        expected = {expected_image(number, copy, case.cut) for copy in range(pictures.COPIES)}
        assert len(found) == pictures.COPIES and {image.tobytes() for image in found} == expected
    assert sorted(name for split in SPLITS for name in made.data().classes[split]) == case.names
    assert made.data().notes == () and store.header.name == name


def expected_image(number: int, copy: int, cut: bool) -> bytes:
    image = Image.fromarray(pictures.pixels(number, copy)[: 10 if cut else 12])
    size = (pictures.SIDE, pictures.SIDE)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_the_lists_of_meta_dataset_name_the_classes(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    titled = [f"{one}.a title" if one.isdecimal() else one for one in case.names]
    (tmp_path / "splits.json").write_text(json.dumps({"train": titled[:2], "valid": titled[2:4], "test": titled[4:]}))
    made = source(name, pictures.write(tmp_path / "raw", case.files()), tmp_path, splits=str(tmp_path / "splits.json"))
    assert list(made.data().classes.values()) == [case.names[:2], case.names[2:4], case.names[4:]]


def without(name: str, *ends: str) -> dict[str, bytes]:
    return {file: content for file, content in CASES[name].files().items() if not file.endswith(ends)}


def changed(name: str, file: str, **parts: object) -> dict[str, bytes]:
    files = CASES[name].files()
    return {**files, file: json.dumps({**json.loads(files[file]), **parts}).encode()}


COCO = "annotations/instances_train2017.json"
REFUSED: list[tuple[str, dict[str, bytes], str]] = [
    *((name, {"a/b.jpg": b""}, r"raw has no .*: set tasks\.root to a folder or a zip with ") for name in CASES),
    ("aircraft", without("aircraft", "_val.txt"), r"raw has no fgvc/data/images_variant_val\.txt: replace it"),
    (
        "aircraft",
        without("aircraft", "20003.jpg"),
        r"images_variant_\*\.txt lists 1 image that is missing \(fgvc/data/im",
    ),
    ("aircraft", without("aircraft", "_box.txt"), r"raw has no fgvc/data/images_box\.txt: replace"),
    ("dtd", without("dtd", ".jpg"), r"raw has no images as dtd/images/CLASS/IMAGE: replace"),
    ("traffic_sign", without("traffic_sign", ".ppm"), r"has no images as GTSRB/Final_Training/Images/CLASS/IMAGE"),
    (
        "vgg_flower",
        without("vgg_flower", "_00007.jpg"),
        r"imagelabels\.mat lists 1 image that is missing \(flowers/jpg",
    ),
    ("vgg_flower", {"imagelabels.mat": b"MATLAB"}, r"raw: imagelabels\.mat has no labels \(.*\): replace it"),
    ("fungi", without("fungi", "val.json"), r"raw has no val\.json: replace"),
    ("fungi", without("fungi", "00003.JPG"), r"train\.json or val\.json lists 1 image that is missing \(images/00003"),
    (
        "fungi",
        changed("fungi", "val.json", categories=[]),
        r"raw: val\.json: annotation 20 is of an image or a category",
    ),
    ("fungi", changed("fungi", "val.json", images=3), r"raw: val\.json: 'images' is no list: replace it"),
    (
        "mscoco",
        without("mscoco", "0003.jpg"),
        r"instances_train2017\.json lists 1 image that is missing \(train2017/0000",
    ),
    ("mscoco", changed("mscoco", COCO, annotations=[]), r"raw holds 0 classes, too few"),
]


@pytest.mark.parametrize(
    ("name", "files", "message"), REFUSED, ids=[f"{one[0]}-{at}" for at, one in enumerate(REFUSED)]
)
def test_a_copy_that_is_not_whole_is_told_in_one_line(
    tmp_path: Path, name: str, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        source(name, pictures.write(tmp_path / "raw", files), tmp_path).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_boxes_without_an_area_are_counted(tmp_path: Path) -> None:
    text = json.loads(CASES["mscoco"].files()[COCO])
    text["annotations"][0]["bbox"][2] = 0
    del text["annotations"][1]["bbox"]
    root = pictures.write(tmp_path / "raw", changed("mscoco", COCO, annotations=text["annotations"]))
    record = source("mscoco", root, tmp_path).data()
    assert record.notes == ("left out: 2 annotations without a box that has an area",)
    assert record.examples == len(miniatures.PLACES) - 2


def test_flowers_need_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures.write(tmp_path / "raw", miniatures.flower_files())
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        ValueError, match=r"imagelabels\.mat is read by scipy, which is not installed: run `pip install scipy`"
    ):
        source("vgg_flower", root, tmp_path).prepare(no_progress)


def test_the_command_line_says_it_and_exits_with_2(tmp_path: Path) -> None:
    pictures.write(tmp_path / "raw", without("dtd", ".jpg"))
    done = metatrain(tmp_path, "data", "prepare", "dtd", "root=raw", expect=2)
    assert "has no images as dtd/images/CLASS/IMAGE" in " ".join(done.err.split())
