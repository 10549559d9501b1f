"""miniImageNet in each form in which copies of it go around, and pickles that would rather run something."""

import collections
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.io.safe_pickle import load_arrays
from tasks.sources.cifar_splits import FC100, CifarFS
from tasks.sources.mini_imagenet import MiniImageNet
from tasks.sources.split_images import read_pickled_split
from tasks.store.store import Store
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import pictures

PARTS = tuple(pictures.SPLIT_SIZES)
PHASES = ("train_phase_train", "val", "test")
FIRST = dict(zip(PARTS, (0, 5, 9), strict=True))

Arrays = NDArray[np.uint8]


def mini(root: Path, tmp_path: Path, **given: object) -> MiniImageNet:
    return MiniImageNet(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **given})


def part_images(part: str) -> Arrays:
    """[classes × copies, 12, 12, 3]: copies first, so that a class is not a slice."""
    numbers = range(FIRST[part], FIRST[part] + pictures.SPLIT_SIZES[part])
    return np.stack([pictures.pixels(number, copy) for copy in range(pictures.COPIES) for number in numbers])


def part_rows(part: str) -> dict[str, list[int]]:
    names = pictures.SPLIT_NAMES[part]
    return {name: [copy * len(names) + at for copy in range(pictures.COPIES)] for at, name in enumerate(names)}


def part_labels(part: str, first: int) -> list[int]:
    return [first + at for _ in range(pictures.COPIES) for at in range(pictures.SPLIT_SIZES[part])]


def dumped(protocol: int) -> Callable[[object], bytes]:
    return lambda content: pickle.dumps(content, protocol=protocol)


def write_caches(root: Path, dump: Callable[[object], bytes] = pickle.dumps) -> Path:
    contents = {part: {"image_data": part_images(part), "class_dict": part_rows(part)} for part in PARTS}
    return pictures.write(root, {f"mini-imagenet-cache-{part}.pkl": dump(found) for part, found in contents.items()})


def write_categories(root: Path, as_list: bool = False, names: bool = True, restart: bool = False) -> Path:
    contents = {}
    for part, phase in zip(PARTS, PHASES, strict=True):
        first = 0 if restart else FIRST[part]
        images = part_images(part)
        found = {"data": list(images) if as_list else images, "labels": part_labels(part, first)}
        if names:
            found["catname2label"] = {name: first + at for at, name in enumerate(pictures.SPLIT_NAMES[part])}
        contents[f"miniImageNet_category_split_{phase}.pickle"] = pickle.dumps(found)
    return pictures.write(root, contents)


FORMS: dict[str, Callable[[Path], Path]] = {
    "tables": lambda at: pictures.write(at, pictures.table_files()),
    "tables, zipped": lambda at: pictures.write_zip(at / "mini.zip", pictures.table_files()).parent,
    "folders": lambda at: pictures.write(at, pictures.split_files()),
    "caches": write_caches,
    "categories": write_categories,
    "categories, as lists": lambda at: write_categories(at, as_list=True),
    "categories, labels anew in each split": lambda at: write_categories(at, restart=True),
    **{f"caches, protocol {n}": lambda at, n=n: write_caches(at, dumped(n)) for n in range(6)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_every_class_its_own_pictures(tmp_path: Path, form: str) -> None:
    store = mini(FORMS[form](tmp_path / "raw"), tmp_path).store(no_progress)
    check(store, pictures.SPLIT_NAMES)
    assert store.header.citation.startswith("Vinyals")
    assert store.header.name == "mini_imagenet"


def check(store: Store, names: dict[str, list[str]]) -> None:
    header = store.header
    for split, part in zip(SPLITS, PARTS, strict=True):
        numbers = header.splittings["classes"][split]
        assert [header.classes[number].name for number in numbers] == names[part]
        for at, number in enumerate(numbers):
            found = store.images[header.classes[number].start : header.classes[number].stop]
            expected = [pictures.pixels(FIRST[part] + at, copy) for copy in range(pictures.COPIES)]
            assert np.array_equal(found, np.stack(expected).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("source", "name"), [(CifarFS, "CIFAR_FS"), (FC100, "FC100")])
def test_divisions_of_cifar_100_are_read_from_three_pickles_or_from_folders(tmp_path: Path, source, name: str) -> None:
    categories = write_categories(tmp_path / "categories")
    root, given = tmp_path / "raw", {"cache": str(tmp_path / "cache"), "size": pictures.SIDE}
    root.mkdir()
    for part, phase in zip(PARTS, PHASES, strict=True):
        shutil.copy(categories / f"miniImageNet_category_split_{phase}.pickle", root / f"{name}_{part}.pickle")
    store = source(str(root), **given).store(no_progress)
    check(store, pictures.SPLIT_NAMES)
    assert (store.header.name, source().size) == (source.info.name, 32)
    folders = pictures.write(tmp_path / "folders", pictures.split_files())
    check(source(str(folders), **given).store(no_progress), pictures.SPLIT_NAMES)
    (root / f"{name}_val.pickle").unlink()
    with pytest.raises(ValueError, match=rf"raw lacks {name}_val\.pickle: replace it by a complete copy"):
        source(str(root), cache=str(tmp_path / "other")).store(no_progress)
    with pytest.raises(ValueError, match=rf"{source.info.name} has no official download.*{name}_train\.pickle, …val"):
        source().store(no_progress)


@pytest.mark.parametrize("restart", [False, True])
def test_labels_without_names_are_classes_of_their_split(tmp_path: Path, restart: bool) -> None:
    root = write_categories(tmp_path / "raw", names=False, restart=restart)
    first = dict.fromkeys(PARTS, 0) if restart else FIRST
    counts = pictures.SPLIT_SIZES
    spoken = dict(zip(PARTS, SPLITS, strict=True))
    names = {part: sorted(f"{spoken[part]} {first[part] + at}" for at in range(counts[part])) for part in PARTS}
    source = mini(root, tmp_path)
    header = source.store(no_progress).header
    assert {
        part: [header.classes[number].name for number in header.splittings["classes"][split]]
        for split, part in zip(SPLITS, PARTS, strict=True)
    } == names


def test_prepared_once_and_delivered_like_a_folder(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = mini(write_caches(tmp_path / "raw"), tmp_path, size=6, channels="grey", mean=(0.5,), std=(0.5,))
    line = source.prepare(lambda done, total: calls.append((done, total)))
    assert line.startswith("mini_imagenet: 104 images of 13 classes (5 train, 4 validation, 4 test) in ")
    assert calls[-1] == (104, 104)
    count = len(calls)
    assert source.prepare(lambda done, total: calls.append((done, total))) == line
    assert len(calls) == count
    episode = source.distribution("train", EpisodeShape(3, 1, 2), 0).episodes([0])
    assert episode.support.x.shape == (1, 3, 1, 6, 6)
    assert episode.support.x.min() == -1
    assert mini(tmp_path / "raw", tmp_path, size=6).store(no_progress).images.shape == (104, 3, 6, 6)


def test_another_pickle_in_its_place_gives_another_store(tmp_path: Path) -> None:
    root = write_caches(tmp_path / "raw")
    first = mini(root, tmp_path).store(no_progress)
    images = part_images("val")
    images[0] ^= 255
    found = {"image_data": images, "class_dict": part_rows("val")}
    (root / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(found))
    second = mini(root, tmp_path).store(no_progress)
    assert first.path != second.path
    assert not np.array_equal(first.images, second.images)


# What Python 2 wrote, opcode by opcode: strings of bytes, numpy's old names, __builtin__.


def python2(content: object) -> bytes:
    return b"\x80\x02" + _python2(content) + b"."


def _python2(content: object) -> bytes:
    if isinstance(content, dict):
        return b"}(" + b"".join(_python2(part) for pair in content.items() for part in pair) + b"u"
    if isinstance(content, list):
        return b"](" + b"".join(map(_python2, content)) + b"e"
    if isinstance(content, str | bytes):
        text = content.encode() if isinstance(content, str) else content
        return b"T" + struct.pack("<i", len(text)) + text
    if isinstance(content, int):
        return b"J" + struct.pack("<i", content)
    assert isinstance(content, np.ndarray)
    shape = b"(" + b"".join(map(_python2, content.shape)) + b"t"
    kind = b"cnumpy\ndtype\n" + _python2("u1") + b"K\x00K\x01\x87R(K\x03" + _python2("|")
    kind += b"NNN" + _python2(-1) + _python2(-1) + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _python2("b") + b"\x87R"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _python2(content.tobytes()) + b"tb"


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    check(mini(write_caches(tmp_path / "raw", python2), tmp_path).store(no_progress), pictures.SPLIT_NAMES)


def test_plain_containers_and_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    rows = collections.defaultdict(list, {"a": np.arange(3), "b": range(3, 5), "c": {5, 6}, "d": [np.int64(7)]})
    for protocol in range(6):
        held = collections.OrderedDict(image_data=part_images("test"), class_dict=rows)
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(held, protocol=protocol))
        found = {name: at.tolist() for name, at in read_pickled_split(path, "test").classes.items()}
        assert found == {"a": [0, 1, 2], "b": [3, 4], "c": [5, 6], "d": [7]}


class Runs:
    """Pickles as a call of `what(*arguments)`."""

    def __init__(self, what: Callable[..., object], *arguments: object) -> None:
        self.call = what, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def bombs(marker: Path) -> Iterator[tuple[str, bytes]]:
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w')"
    for protocol in range(6):
        yield "posix.system", pickle.dumps({"image_data": Runs(os.system, touch)}, protocol=protocol)
    yield "builtins.eval", pickle.dumps(Runs(eval, python))
    yield "builtins.getattr", b"cbuiltins\ngetattr\n."
    yield "__builtin__.eval", b"c__builtin__\neval\n(S" + repr(python).encode() + b"\ntR."
    yield "os.system", b"(S" + repr(touch).encode() + b"\nios\nsystem\n."
    yield "numpy.core.multiarray.fromfile", b"cnumpy.core.multiarray\nfromfile\n."
    yield "numpy.ndarray.tofile", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    yield "numpy.load", b"cnumpy\nload\n."
    yield "numpy.memmap", b"cnumpy\nmemmap\n."
    yield "copyreg._reconstructor", b"ccopyreg\n_reconstructor\n."
    yield "tasks.io.safe_pickle.load_arrays", b"ctasks.io.safe_pickle\nload_arrays\n."


def test_what_a_pickle_would_run_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {marker}")))
    assert marker.exists(), "the bomb would not even go off in an ordinary unpickler"
    marker.unlink()
    for wanted, content in bombs(marker):
        (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(content)
        with pytest.raises(ValueError) as error:
            load_arrays(tmp_path / "mini-imagenet-cache-train.pkl")
        assert f"train.pkl asks for {wanted}, which no array needs; it was not run: replace it by the" in str(
            error.value
        )
        assert "\n" not in str(error.value)
        assert not marker.exists()


def test_a_bomb_in_a_copy_is_refused_where_tasks_are_asked_for(tmp_path: Path) -> None:
    root = write_caches(tmp_path / "raw")
    marker = tmp_path / "ran"
    bomb = pickle.dumps({"image_data": part_images("val"), "class_dict": Runs(os.system, f"touch {marker}")})
    (root / "mini-imagenet-cache-val.pkl").write_bytes(bomb)
    fails(root, tmp_path, r"cache-val\.pkl asks for posix\.system, which no array needs; it was not run")
    assert not marker.exists()


@given(
    protocol=st.integers(-1, 5),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
)
@example(protocol=3, cut=0.0, flips=[(0.1875, 46)])  # an invalid escape, of which Python warns
@settings(max_examples=400, deadline=None)
def test_a_damaged_pickle_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, cut: float, flips: list[tuple[float, int]]
) -> None:
    found = {"image_data": part_images("test")[:2, :2, :2], "class_dict": {"a": [0], "b": [1]}}
    content = bytearray(python2(found) if protocol < 0 else pickle.dumps(found, protocol=protocol))
    content = content[: len(content) - int(cut**4 * len(content))]
    for place, change in flips:
        if content:
            content[int(place * len(content))] ^= change
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(content)
    try:
        assert len(read_pickled_split(path, "test").classes) > 0
    except ValueError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
        assert ": replace it by the original file" in str(error)


@pytest.mark.parametrize("name", [rb"a\e", rb"a\400"])
def test_an_invalid_escape_is_damage_and_no_warning(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(b"(S'image_data'\nS'" + name + b"'\nd.")
    with pytest.raises(ValueError, match=r"a\.pkl is not a complete pickle of arrays \(DeprecationWarning: invalid"):
        load_arrays(tmp_path / "a.pkl")


def fails(root: Path | None, tmp_path: Path, message: str) -> None:
    source = MiniImageNet(root=None if root is None else str(root), cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=message) as error:
        source.prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_roots_that_are_no_copy(tmp_path: Path) -> None:
    every_form = r"train\.csv, val\.csv and .*CLASS/IMAGE, or mini-imagenet-cache-train\.pkl.*train_phase_train\.pickle"
    fails(
        None, tmp_path, rf"^root: mini_imagenet has no official download: set tasks\.root to a copy with {every_form}"
    )
    fails(tmp_path / "none", tmp_path, rf"none does not exist: set tasks\.root to .*{every_form}")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", tmp_path, rf"empty holds no images .*{every_form}")
    unsplit = pictures.write(tmp_path / "unsplit", pictures.class_files([f"{number}" for number in range(20)]))
    fails(unsplit, tmp_path, rf"unsplit does not say which classes are for training: use {every_form}")


def test_a_copy_that_lacks_a_pickle(tmp_path: Path) -> None:
    root = write_categories(tmp_path / "raw")
    (root / "miniImageNet_category_split_val.pickle").unlink()
    fails(root, tmp_path, r"raw lacks miniImageNet_category_split_val\.pickle: replace it by a complete copy")


def test_a_class_in_two_splits(tmp_path: Path) -> None:
    root = write_caches(tmp_path / "raw")
    found = {"image_data": part_images("val"), "class_dict": {"train_1": [0]}}
    (root / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(found))
    fails(root, tmp_path, r"the class 'train_1' is in two splits: replace it by a complete copy")


UNLIKE: dict[str, tuple[object, str]] = {
    "no dict": ([1, 2], "it holds neither image_data and class_dict nor data and labels"),
    "other keys": ({"x": 1}, "it holds neither"),
    "reals": ({"image_data": np.zeros((2, 4, 4, 3)), "class_dict": {"a": [0]}}, r"not uint8 of \[n, height"),
    "one channel": ({"data": np.zeros((2, 4, 4), np.uint8), "labels": [0, 1]}, r"not uint8 of \[n, height"),
    "no images": ({"data": np.zeros((0, 4, 4, 3), np.uint8), "labels": []}, "not uint8 of"),
    "no pixels": ({"data": np.zeros((2, 0, 4, 3), np.uint8), "labels": [0, 1]}, "not uint8 of"),
    "mixed": ({"data": [np.zeros((4, 4, 3), np.uint8), 3], "labels": [0, 1]}, "not uint8 of"),
    "a number for images": ({"data": 3, "labels": [0, 1]}, ""),
    "beyond": ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": [0, 2]}}, "the class 'a' has rows"),
    "negative": ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": [-1]}}, "the class 'a' has rows"),
    "no rows": ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": []}}, "the class 'a' has rows"),
    "no classes": ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {}}, "it has no classes"),
    "more labels": (
        {"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0, 1, 1]},
        "it counts 3 images where there are 2",
    ),
    "fewer labels": ({"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0]}, "it has 1 labels for 2 images"),
    "endless": (
        {"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": range(10**12)}},
        "it counts 1000000000000 images where there are 2",
    ),
    "rows of letters": ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": "bc"}}, ""),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_a_pickle_of_something_else(tmp_path: Path, case: str) -> None:
    content, reason = UNLIKE[case]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    message = rf"x\.pkl is no split of images \(.*{reason}.*\): replace it by the original file"
    with pytest.raises(ValueError, match=message) as error:
        read_pickled_split(tmp_path / "x.pkl", "test")
    assert "\n" not in str(error.value)
