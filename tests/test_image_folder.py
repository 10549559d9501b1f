"""Folders of images: every layout, every split, every way of delivery; and Tiny ImageNet where it is at hand."""

import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatrain.config.load import as_plain, read_config
from tasks.random import stream, uniforms
from tasks.sources.class_splits import hash_splits, read_split_lists, shuffle_splits
from tasks.sources.image_folder import ImageFolder
from tasks.sources.image_layout import common_folder
from tasks.store.cache import cached_key
from tasks.store.class_pool import StorePool
from tasks.store.store import Store
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import conformance_distributions as conformance
from tests import pictures

NAMES = [f"class_{number}" for number in range(10)]
SHAPE = EpisodeShape(2, 1, 1)


def folder(root: Path, tmp_path: Path, **settings: object) -> ImageFolder:
    return ImageFolder(root=str(root), cache=str(tmp_path / "cache"), **{"size": pictures.SIDE, **settings})


def split_names(store: Store) -> dict[str, list[str]]:
    splitting = store.header.splittings["classes"]
    return {split: [store.header.classes[number].name for number in splitting[split]] for split in SPLITS}


def check_images(store: Store, names: list[str]) -> None:
    """Every class has its own pictures, in order. names: of the classes, in the order in which they were drawn."""
    assert sorted(c.name for c in store.header.classes) == sorted(names)
    for found in store.header.classes:
        expected = [pictures.pixels(names.index(found.name), copy) for copy in range(pictures.COPIES)]
        assert np.array_equal(store.images[found.start : found.stop], np.stack(expected).transpose(0, 3, 1, 2))


ONE_PLACE: dict[str, Callable[[Path], Path]] = {
    "folders": lambda at: pictures.write(at, pictures.class_files(NAMES)),
    "images/ in each": lambda at: pictures.write(at, pictures.class_files(NAMES, inner="images/")),
    "deeper": lambda at: pictures.write(at / "a" / "b", pictures.class_files(NAMES, inner="c/d/")),
    "train/ alone": lambda at: pictures.write(at / "train", pictures.class_files(NAMES, inner="images/")),
    "as Tiny ImageNet": lambda at: pictures.write(
        pictures.write(at / "train", pictures.class_files(NAMES, inner="images/")).parent,
        {f"{part}/images/0.png": pictures.encoded(pictures.pixels(0, 0)) for part in ("val", "test")},
    ),
    "a stray image": lambda at: pictures.write(at, {**pictures.class_files(NAMES), "logo.png": b"not read"}),
    "hidden": lambda at: pictures.write(
        at, {**pictures.class_files(NAMES), ".cache/0.png": b"", "class_0/._0.png": b"", "__MACOSX/class_0/0.png": b""}
    ),
    "zip": lambda at: pictures.write_zip(at / "some.zip", pictures.class_files(NAMES)),
    "zip in a folder": lambda at: pictures.write_zip(at / "some.zip", pictures.class_files(NAMES)).parent,
    "zip with a leading folder": lambda at: pictures.write_zip(
        at / "SOME.ZIP", {f"top/{name}": content for name, content in pictures.class_files(NAMES).items()}
    ),
    "zip with more in it": lambda at: pictures.write_zip(
        at / "some.zip",
        {f"top/{name}": content for name, content in pictures.class_files(NAMES, inner="images/").items()}
        | {"top/read.me": b"no", "__MACOSX/top/class_0/._0.png": b"no", "top/.hidden/0.png": b"no"},
    ),
}


@pytest.mark.parametrize("layout", ONE_PLACE)
def test_classes_in_one_place_are_divided_by_their_names(tmp_path: Path, layout: str) -> None:
    source = folder(ONE_PLACE[layout](tmp_path / "raw"), tmp_path)
    store = source.store(no_progress)
    check_images(store, NAMES)
    assert split_names(store) == hash_splits("", NAMES)
    assert [len(split_names(store)[split]) for split in SPLITS] == [4, 2, 4]


def test_every_name_of_a_split_folder_will_do(tmp_path: Path) -> None:
    for part in ("val", "validation"):
        root = pictures.write(tmp_path / part, pictures.split_files({"val": part}))
        store = folder(root, tmp_path).store(no_progress)
        check_images(store, list(chain.from_iterable(pictures.SPLIT_NAMES.values())))
        assert list(split_names(store).values()) == list(pictures.SPLIT_NAMES.values())


def test_tables_give_what_folders_give(tmp_path: Path) -> None:
    tables = folder(pictures.write(tmp_path / "tables", pictures.table_files()), tmp_path).store(no_progress)
    folders = folder(pictures.write(tmp_path / "folders", pictures.split_files()), tmp_path).store(no_progress)
    assert tables.header == folders.header
    assert np.array_equal(tables.images, folders.images)


def test_a_table_of_all_images_in_one_place_gives_classes_that_are_divided_by_their_names(tmp_path: Path) -> None:
    """The layout of Meta-Album."""
    source = folder(pictures.write(tmp_path / "album", pictures.album_files()), tmp_path)
    store, names = source.store(no_progress), list(chain.from_iterable(pictures.SPLIT_NAMES.values()))
    check_images(store, names)
    assert split_names(store) == hash_splits("", names)
    assert source.data().notes == ()
    (tmp_path / "album/album/labels.csv").write_text("FILE_NAME,CATEGORY\nnone.png,a\n")
    with pytest.raises(ValueError, match=r"album/labels.csv lists none.png, which is not in album/images/: add it"):
        folder(tmp_path / "album", tmp_path / "other").store(no_progress)


def test_tables_with_a_byte_order_mark_and_images_right_beside_them(tmp_path: Path) -> None:
    contents = {name.removeprefix("images/"): content for name, content in pictures.table_files().items()}
    contents["train.csv"] = b"\xef\xbb\xbf" + contents["train.csv"]
    store = folder(pictures.write_zip(tmp_path / "a.zip", contents), tmp_path).store(no_progress)
    check_images(store, list(chain.from_iterable(pictures.SPLIT_NAMES.values())))


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPEG", ".Jpg", ".bmp", ".webp", ".gif", ".tif", ".TIFF"])
def test_every_suffix_counts_and_no_other(tmp_path: Path, suffix: str) -> None:
    contents = pictures.class_files(NAMES, suffix=suffix) | {"class_0/notes.txt": b"no", "class_0/9.avif": b"no"}
    store = folder(pictures.write(tmp_path / "raw", contents), tmp_path).store(no_progress)
    check_images(store, NAMES)


def test_a_zip_and_its_folder_have_one_store_and_are_left_untouched(tmp_path: Path) -> None:
    zipped = pictures.write_zip(
        tmp_path / "zipped" / "a.zip", {f"top/{n}": c for n, c in pictures.split_files().items()}
    )
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(tmp_path / "unpacked")
    before = listing(tmp_path / "zipped"), listing(tmp_path / "unpacked")
    roots = zipped, zipped.parent, tmp_path / "unpacked", tmp_path / "unpacked" / "top"
    assert len({folder(root, tmp_path).store(no_progress).path for root in roots}) == 1
    assert (listing(tmp_path / "zipped"), listing(tmp_path / "unpacked")) == before


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*"))


def test_linked_classes_are_read_like_any_other(tmp_path: Path) -> None:
    pictures.write(tmp_path / "all", pictures.class_files(NAMES))
    for part, names in (("train", NAMES[:6]), ("val", NAMES[6:8]), ("test", NAMES[8:])):
        (tmp_path / "raw" / part).mkdir(parents=True)
        for name in names:
            (tmp_path / "raw" / part / name).symlink_to(tmp_path / "all" / name)
    store = folder(tmp_path / "raw", tmp_path).store(no_progress)
    check_images(store, NAMES)
    assert split_names(store)["test"] == NAMES[8:]


@given(classes=st.sets(st.text("abc", min_size=3, max_size=8), min_size=6, max_size=200))
def test_a_shuffle_is_a_partition_into_about_64_16_and_20_percent(classes: set[str]) -> None:
    splits = shuffle_splits("here", sorted(classes))
    assert sorted(chain.from_iterable(splits.values())) == sorted(classes)
    for split, share in zip(SPLITS, (0.64, 0.16, 0.2), strict=True):
        assert len(splits[split]) >= 2
        assert abs(len(splits[split]) - share * len(classes)) <= 2
    assert splits == shuffle_splits("there", sorted(classes))


def test_a_shuffle_is_none_in_order_and_stays_the_same() -> None:
    splits = shuffle_splits("", [f"{number:03}" for number in range(100)])
    assert [len(splits[split]) for split in SPLITS] == [64, 16, 20]
    assert list(splits["test"])[:6] == ["001", "005", "006", "009", "010", "011"]


@given(names=st.lists(st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5).map("/".join), min_size=1))
def test_the_shared_folder_is_the_innermost(names: list[str]) -> None:
    shared = common_folder(names)
    assert all(name.startswith(shared) for name in names)
    rest = {name[len(shared) :].partition("/")[::2] for name in names}
    assert len({first for first, _ in rest}) > 1 or any(not deeper for _, deeper in rest)


def test_lists_of_the_users_own_override_folders_and_leave_classes_out(tmp_path: Path) -> None:
    lists = {"train.txt": b"val_0\ntrain_0\n\n train_1 \n", "val.txt": b"test_1\r\n", "test.txt": b"train_2\nval_1\n"}
    root, named = pictures.write(tmp_path / "raw", pictures.split_files()), pictures.write(tmp_path / "lists", lists)
    store = folder(root, tmp_path, splits=str(named)).store(no_progress)
    assert split_names(store) == {
        "train": ["train_0", "train_1", "val_0"],
        "validation": ["test_1"],
        "test": ["train_2", "val_1"],
    }
    assert len(store.images) == 6 * pictures.COPIES


def test_the_list_that_we_ship_is_the_shuffle_that_it_says() -> None:
    lists = read_split_lists("tiny-imagenet-140")
    names = sorted(chain.from_iterable(lists.values()))
    assert [len(set(lists[split])) for split in SPLITS] == [80, 20, 40]
    assert len(set(names)) == 140
    numbers = uniforms(0, stream("tiny-imagenet-140", "classes"), [0], 140)[0]
    order = [names[i] for i in np.argsort(numbers, kind="stable")]
    assert [sorted(order[:80]), sorted(order[80:100]), sorted(order[100:])] == [lists[split] for split in SPLITS]


def test_words_tell_what_a_class_is_called(tmp_path: Path) -> None:
    words = "class_0\tbullfrog, Rana catesbeiana\nclass_1\tand/or gate\nother\tthing\nclass_2\t\n"
    contents = pictures.class_files(NAMES) | {"words.txt": words.encode()}
    store = folder(pictures.write(tmp_path / "raw", contents), tmp_path).store(no_progress)
    assert [c.name for c in store.header.classes][:3] == ["bullfrog/class_0", "and or gate/class_1", "class_2"]


def test_size_and_channels_make_stores_of_their_own(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    shapes = {}
    for size, channels in ((12, "rgb"), (12, "grey"), (5, "rgb")):
        store = folder(root, tmp_path, size=size, channels=channels).store(no_progress)
        shapes[store.path] = store.images.shape[1:]
    assert list(shapes.values()) == [(3, 12, 12), (1, 12, 12), (3, 5, 5)]


def test_a_store_is_built_once_and_progress_reaches_its_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = folder(pictures.write(tmp_path / "raw", pictures.class_files(NAMES)), tmp_path)
    line = source.prepare(lambda done, total: calls.append((done, total)))
    assert calls[-1] == (80, 80)
    assert line.startswith("image_folder: 80 images of 10 classes (4 train, 2 validation, 4 test) in ")
    count = len(calls)
    assert source.prepare(lambda done, total: calls.append((done, total))) == line
    assert len(calls) == count


def test_another_picture_or_another_split_gives_another_store(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    first = folder(root, tmp_path).store(no_progress)
    swapped = pictures.write(root, {"class_0/0.png": pictures.encoded(pictures.pixels(5, 5))})
    second = folder(swapped, tmp_path).store(no_progress)
    assert np.array_equal(second.images[0], pictures.pixels(5, 5).transpose(2, 0, 1))
    lists = {"train.txt": "\n".join(NAMES[:6]), "val.txt": "class_6\nclass_7", "test.txt": "class_8\nclass_9"}
    named = pictures.write(tmp_path / "lists", {name: text.encode() for name, text in lists.items()})
    third = folder(swapped, tmp_path, splits=str(named)).store(no_progress)
    assert len({first.path, second.path, third.path}) == 3


def test_other_labels_for_the_same_pictures_give_another_store(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.table_files())
    first = folder(root, tmp_path).store(no_progress)
    table = (root / "train.csv").read_text().replace("train_0_0.png,train_0", "train_0_0.png,train_1")
    (root / "train.csv").write_text(table.replace("train_1_0.png,train_1", "train_1_0.png,train_0"))
    second = folder(root, tmp_path).store(no_progress)
    assert first.path != second.path
    assert first.header == second.header


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def key() -> str:
        calls.append("read")
        return f"{len(calls):032}"

    def ask(stamps: list[tuple[object, ...]], recipe: str) -> str:
        return cached_key(tmp_path, "some", stamps, recipe, key)

    first = ask([("a", 1)], "r")
    assert ask([("a", 1)], "r") == first
    assert len({first, ask([("a", 2)], "r"), ask([("a", 1)], "s")}) == 3
    assert len(calls) == 3
    for count, damage in ((4, b"\xff"), (5, b"half")):
        for note in (tmp_path / "some").iterdir():
            note.write_bytes(damage)
        assert ask([("a", 1)], "r") == f"{count:032}"
    (tmp_path / "file").touch()
    assert cached_key(tmp_path / "file", "some", [], "r", key) == f"{6:032}"


MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.75)


def test_images_are_normalised_by_channel_and_made_visible_again(tmp_path: Path) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files(NAMES))
    plain = folder(root, tmp_path).distribution("train", SHAPE, 0)
    normal = folder(root, tmp_path, mean=MEAN, std=STD).distribution("train", SHAPE, 0)
    seen, x = plain.episodes(range(5)).query.x, normal.episodes(range(5)).query.x
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.allclose(x, (seen - mean) / std, atol=1e-6)
    assert x[:, :, 1].min() == -1
    assert torch.allclose(normal.denormalize(x), seen, atol=1e-6)
    assert torch.allclose(normal.denormalize(x[0, 0].double()).float(), seen[0, 0], atol=1e-6)
    assert normal.denormalize(x.half()).dtype == torch.float16
    assert torch.equal(plain.denormalize(seen), seen)


@pytest.mark.parametrize(
    ("mean", "std", "white"), [((0.5,), (), 0.5), ((), (0.25,), 4.0), ((0.5,), (0.25,), 2.0), ((), (), 1.0)]
)
def test_one_number_serves_all_channels(
    tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], white: float
) -> None:
    contents = {f"{name}/0.png": pictures.encoded(np.full((4, 4, 3), 255, np.uint8)) for name in NAMES}
    source = folder(pictures.write(tmp_path / "raw", contents), tmp_path, mean=mean, std=std)
    store = source.store(no_progress)
    pool = StorePool("white", store, (0, 1), mean=source.mean, std=source.std)
    x = pool.examples(np.array([0, 1]), np.array([0, 0]))
    assert torch.allclose(x, torch.tensor(white))
    assert torch.allclose(pool.denormalize(x), torch.tensor(1.0))


@pytest.mark.parametrize("check", [conformance.check_law, conformance.check_shapes, conformance.check_disjoint])
def test_normalised_images_conform(tmp_path: Path, check: Callable[[object], None]) -> None:
    root = pictures.write(tmp_path / "raw", pictures.class_files([f"{number:02}" for number in range(16)]))
    check(folder(root, tmp_path, mean=MEAN, std=STD).distribution("train", EpisodeShape(3, 2, 4), 3))


def test_a_configuration_reads_back_as_it_was() -> None:
    settings = {"name": "image_folder", "root": "here", "mean": [0.5, 0, 1], "std": [0.25], "channels": "rgb"}
    config = read_config({"tasks": settings, "model": {"name": "mlp"}, "algorithm": {"name": "protonet"}})
    assert config.tasks.source.mean == (0.5, 0, 1)
    assert read_config(as_plain(config)) == config
    hash(config.tasks.source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size: an image of 0 pixels shows nothing: set tasks.size to 1 or more"),
        ({"channels": "rgba"}, "channels: there are no 'rgba' images: set tasks.channels to rgb or grey"),
        ({"mean": (0.1, 0.2)}, "mean: 2 numbers for 3 channels: set tasks.mean to 1 or 3 numbers"),
        ({"std": (1.0, 1.0, 1.0), "channels": "grey"}, "std: 3 numbers for 1 channels: set tasks.std to 1 number"),
        ({"mean": (120.4,)}, "mean: [120.4] is no mean of values in [0, 1]: set tasks.mean to"),
        ({"mean": (float("nan"),)}, "mean: [nan] is no mean"),
        ({"std": (0.0,)}, "std: nothing can be divided by [0.0]: set tasks.std to positive numbers"),
        ({"std": (0.5, -0.5, 0.5)}, "std: nothing can be divided by"),
        ({"std": (float("nan"),)}, "std: nothing can be divided by"),
        ({"std": (float("inf"),)}, "std: nothing can be divided by"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ImageFolder(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny(tiny_imagenet_root: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    cache = str(tmp_path_factory.mktemp("cache"))
    return ImageFolder(root=str(tiny_imagenet_root), cache=cache, size=64, splits="tiny-imagenet-140")


@pytest.mark.slow
def test_tiny_imagenet_has_its_published_sizes(tiny: ImageFolder) -> None:
    store = tiny.store(no_progress)
    assert store.images.shape == (16800, 3, 64, 64)
    assert {c.stop - c.start for c in store.header.classes} == {120}
    assert [len(names) for names in split_names(store).values()] == [80, 20, 40]
    assert {"bullfrog/n01641577", "trilobite/n01768244"} <= {c.name for c in store.header.classes}
    assert 0.35 < store.images.mean() / 255 < 0.55


@pytest.mark.slow
def test_nearest_neighbours_on_tiny_imagenet_are_better_than_chance_and_poor(tiny: ImageFolder) -> None:
    episode = tiny.distribution("test", EpisodeShape(5, 5, 15), 0).episodes(range(100))
    centres = episode.support.x.flatten(2).reshape(100, 5, 5, -1).mean(2)
    accuracy = (torch.cdist(episode.query.x.flatten(2), centres).argmin(-1) == episode.query.y).float().mean()
    assert 0.24 < accuracy < 0.45
