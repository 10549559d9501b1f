"""CIFAR-100 in a miniature of the form in which it is downloaded, divided as CIFAR-FS and as FC100."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.sources.cifar_splits import FC100, CifarFS
from tasks.sources.class_splits import read_split_lists
from tasks.types import SPLITS, Split, no_progress
from tests.command_line import metatrain

NAMES = sorted(name for names in read_split_lists("cifar-fs").values() for name in names)
IN_TRAIN, IN_TEST = 3, 2
"""Images of a class in CIFAR-100's own two parts."""


def image(label: int, copy: int) -> np.ndarray[Any, Any]:
    """Return [32, 32, 3]: a class by its shade, a copy by the place of a dot, and more red to the right."""
    found = np.full((32, 32, 3), label, np.uint8)
    found[..., 0] += np.arange(32, dtype=np.uint8)
    found[copy, copy] = 255
    return found


def part_of(copies: range) -> dict[bytes, Any]:
    """Return a part as Python 2 wrote it: names in bytes, each image its three channels one after another."""
    rows = [(label, copy) for copy in copies for label in range(100)]
    data = np.stack([image(*row).transpose(2, 0, 1).reshape(-1) for row in rows])
    labels = [label for label, _ in rows]
    return {b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * len(rows), b"batch_label": b"a part"}


def write(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True)
    parts = {
        "meta": {b"fine_label_names": [name.encode() for name in NAMES], b"coarse_label_names": []},
        "train": part_of(range(IN_TRAIN)),
        "test": part_of(range(IN_TRAIN, IN_TRAIN + IN_TEST)),
    }
    for name, content in {**parts, **changed}.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.mark.parametrize("source", [CifarFS, FC100])
@pytest.mark.parametrize("inside", [False, True])
def test_it_is_divided_by_the_lists_of_the_authors(tmp_path: Path, source: Callable[..., Any], inside: bool) -> None:
    folder = write(tmp_path / "raw" / "cifar-100-python")
    made = source(str(folder if inside else folder.parent), str(tmp_path / "cache"))
    store = made.store(no_progress)
    assert made.data().classes == read_split_lists({"cifar_fs": "cifar-fs"}.get(made.info.name, made.info.name))
    for kind in store.header.classes:
        expected = [image(NAMES.index(kind.name), copy) for copy in range(IN_TRAIN + IN_TEST)]
        assert np.array_equal(store.images[kind.start : kind.stop], np.stack(expected).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("lists", "counts"), [("cifar-fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_each_class_is_in_one_split(lists: str, counts: list[int]) -> None:
    found = read_split_lists(lists)
    assert [len(found[split]) for split in SPLITS] == counts
    assert sorted(name for names in found.values() for name in names) == NAMES and len(set(NAMES)) == 100


@pytest.mark.parametrize(
    ("split", "names"), [("train", "maple_tree oak_tree rose"), ("validation", "wolf mouse"), ("test", "boy girl bee")]
)
def test_of_fc100_whole_superclasses_are_in_a_split(split: Split, names: str) -> None:
    assert set(names.split()) <= set(read_split_lists("fc100")[split])


REFUSED = {
    "no labels": ({"train": {b"data": np.zeros((2, 3072), np.uint8)}}, "has no 'fine_labels'"),
    "other images": (
        {"test": {**part_of(range(1)), b"data": np.zeros((100, 784), np.uint8)}},
        r"not uint8 \[n, 3072\]",
    ),
    "too few": ({"test": {**part_of(range(1)), b"fine_labels": [1]}}, "301 labels for 400 images"),
    "other names": ({"meta": {b"fine_label_names": [b"cat"]}}, "has no 'apple'"),
    "CIFAR-10's": ({"meta": {b"label_names": [b"cat"]}}, "has no 'fine_label_names'"),
    "no dict": ({"meta": [1]}, "meta is no dict of CIFAR-100"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_something_else_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    changed, message = REFUSED[case]
    root = write(tmp_path / "raw" / "cifar-100-python", **changed).parent
    with pytest.raises(ValueError, match=message) as error:
        CifarFS(str(root), str(tmp_path / "cache")).prepare(no_progress)
    assert "\n" not in str(error.value) and "replace it by the original file" in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "cifar-100-python")
    (folder / "test").unlink()
    done = metatrain(tmp_path, "data", "prepare", "fc100", f"root={tmp_path}", f"cache={tmp_path / 'cache'}", expect=2)
    assert "lacks cifar-100-python/test: replace it by a complete copy" in done.err
