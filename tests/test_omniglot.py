"""Omniglot from its archives: every layout, every split, every damage; and the real one where it is at hand."""

import builtins
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.sources.omniglot import Omniglot, split_by_alphabet, split_by_character
from tasks.types import SPLITS, EpisodeShape, no_progress
from tests import drawings

CHARACTERS = sum(sum(alphabets.values()) for alphabets in drawings.CHARACTERS.values())


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawings.write_zips(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def broken(raw: Path, tmp_path: Path) -> Path:
    """A copy of the archives that a test may damage."""
    return Path(shutil.copytree(raw, tmp_path / "broken"))


def listing(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*"))


def test_drawings_are_small_inverted_and_in_order_of_class_and_name(raw: Path, cache: Path) -> None:
    store = Omniglot(root=str(raw), cache=str(cache)).store(no_progress)
    assert store.images.shape == (CHARACTERS * drawings.DRAWINGS, 1, 28, 28)
    assert [c.name for c in store.header.classes][:1] == ["Aleph/character01"]
    assert [(c.start, c.stop) for c in store.header.classes[:2]] == [(0, 20), (20, 40)]
    for number, copy in ((1, 1), (17, 20), (CHARACTERS, 7)):
        small = drawings.drawing(number, copy).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        found = store.images[(number - 1) * drawings.DRAWINGS + copy - 1, 0]
        assert np.abs(found.astype(int) - (255 - np.asarray(small, dtype=int))).max() <= 1
    assert store.header.citation.startswith("Lake")


def test_progress_reaches_its_end_once(raw: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = Omniglot(root=str(raw), cache=str(tmp_path))
    line = source.prepare(lambda done, total: calls.append((done, total)))
    total = CHARACTERS * drawings.DRAWINGS
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (total, total)
    assert f"{total} drawings" in line
    assert str(tmp_path) in line
    assert source.prepare(lambda done, total: calls.append((done, total))) == line
    assert calls[-1] == (total, total)
    assert len(calls) == len(set(calls))


@pytest.mark.parametrize("inner", ["", "omniglot-py"])
def test_every_layout_gives_the_same_store_and_is_left_untouched(raw: Path, tmp_path: Path, inner: str) -> None:
    zipped, unpacked, cache = tmp_path / "zipped", tmp_path / "unpacked", tmp_path / "cache"
    shutil.copytree(raw, zipped / inner)
    drawings.write_folders(unpacked / inner)
    before = [listing(zipped), listing(unpacked)]
    paths = {Omniglot(root=str(root), cache=str(cache)).store(no_progress).path for root in (raw, zipped, unpacked)}
    assert len(paths) == 1
    assert [listing(zipped), listing(unpacked)] == before


def test_published_sizes_of_the_character_split() -> None:
    split = split_by_character(1623)
    assert [len(split[name]) for name in SPLITS] == [1100, 100, 423]
    assert sorted(sum((split[name] for name in SPLITS), ())) == list(range(1623))
    assert split["test"][:8] == split_by_character(1623)["test"][:8]


def test_no_class_and_no_alphabet_in_two_splits(raw: Path, cache: Path) -> None:
    header = Omniglot(root=str(raw), cache=str(cache)).store(no_progress).header
    for splitting in header.splittings.values():
        assert all(splitting[name] for name in SPLITS)
        assert sorted(sum((splitting[name] for name in SPLITS), ())) == list(range(CHARACTERS))
    alphabets = {
        name: {header.classes[number].name.split("/")[0] for number in header.splittings["alphabets"][name]}
        for name in SPLITS
    }
    assert alphabets["test"] == set(drawings.CHARACTERS["images_evaluation"])
    assert alphabets["train"] | alphabets["validation"] == set(drawings.CHARACTERS["images_background"])
    assert not alphabets["train"] & alphabets["validation"]


def test_a_sixth_of_the_background_alphabets_is_held_out() -> None:
    background = [f"alphabet {number // 3:02}" for number in range(90)]
    split = split_by_alphabet(background, ["x", "x"])
    assert [len(split[name]) for name in SPLITS] == [75, 15, 2]


def test_rotations_are_classes_of_training_alone(raw: Path, cache: Path) -> None:
    turned = Omniglot(root=str(raw), cache=str(cache))
    upright = Omniglot(root=str(raw), cache=str(cache), rotations=False)
    shape = EpisodeShape(2, 1, 1)
    counts = {name: turned.distribution(name, shape, 0).pool.num_classes for name in SPLITS}
    plain = {name: upright.distribution(name, shape, 0).pool.num_classes for name in SPLITS}
    assert counts == {**plain, "train": 4 * plain["train"]}
    pool = turned.distribution("train", shape, 0).pool
    classes = np.arange(4) * plain["train"]
    images = pool.examples(classes, np.zeros(4, dtype=np.int64))
    for turn in range(1, 4):
        assert torch.equal(images[turn], torch.rot90(images[0], turn, (1, 2)))


def fails(root: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message) as error:
        Omniglot(root=str(root), cache=str(tmp_path / "cache")).prepare(no_progress)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    fails(tmp_path / "none", tmp_path, r"is not a folder: set tasks\.root=FOLDER holding images_background\.zip and")


def test_a_root_that_lacks_one_archive(broken: Path, tmp_path: Path) -> None:
    (broken / "images_evaluation.zip").unlink()
    fails(broken, tmp_path, r"has no images_evaluation: set tasks\.root")


def test_a_folder_without_drawings(tmp_path: Path) -> None:
    for folder in drawings.CHARACTERS:
        (tmp_path / "raw" / folder / "Aleph").mkdir(parents=True)
    fails(tmp_path / "raw", tmp_path, r"images_background holds no drawings.*replace it by a complete copy")


@pytest.mark.parametrize("kept", [0, 0.3, 0.95])
def test_a_truncated_zip(broken: Path, tmp_path: Path, kept: float) -> None:
    path = broken / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    fails(broken, tmp_path, r"images_evaluation\.zip is not a complete zip .*replace it by a complete copy")


def test_flipped_bytes_in_a_zip(broken: Path, tmp_path: Path) -> None:
    path = broken / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    fails(
        broken,
        tmp_path,
        r"images_background\.zip: images_background/.* does not decode as a PNG \(damaged: ",
    )


def test_a_picture_that_does_not_decode(tmp_path: Path) -> None:
    root = drawings.write_folders(tmp_path / "raw")
    victim = root / "images_background/Aleph/character03/0003_05.png"
    victim.write_bytes(victim.read_bytes()[:60])
    fails(root, tmp_path, r"character03/0003_05\.png does not decode as a PNG .*replace it by a complete copy")


def test_an_entry_that_climbs_out(broken: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(broken / "images_background.zip", "a") as archive:
        archive.writestr("images_background/../../escaped.png", b"x")
    fails(broken, tmp_path, "leads outside its folder")
    assert not (tmp_path / "escaped.png").exists()


def test_a_damaged_store_in_the_cache_says_to_delete_it(raw: Path, tmp_path: Path) -> None:
    source = Omniglot(root=str(raw), cache=str(tmp_path))
    path = Path(source.store(no_progress).path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"checksum; delete it and run `metatrain data prepare"):
        source.distribution("train", EpisodeShape(2, 1, 1), 0)


@pytest.fixture
def downloader(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Stands in for torchvision.datasets."""
    module = ModuleType("torchvision.datasets")
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    yield module


def test_without_root_torchvision_downloads_once(
    downloader: ModuleType, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def download(root: str, background: bool, download: bool) -> None:
        assert download
        calls.append(background)
        folder = "images_background" if background else "images_evaluation"
        (Path(root) / "omniglot-py").mkdir(exist_ok=True)
        shutil.copy(raw / f"{folder}.zip", Path(root) / "omniglot-py")
        with zipfile.ZipFile(raw / f"{folder}.zip") as archive:
            archive.extractall(Path(root) / "omniglot-py")

    downloader.Omniglot = download  # type: ignore[attr-defined]
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path))
    assert Omniglot().store(no_progress).images.shape[0] == CHARACTERS * drawings.DRAWINGS
    Omniglot().store(no_progress)
    assert calls == [True, False]


@pytest.mark.parametrize("error", [OSError("Name or service not known"), RuntimeError("Dataset not found")])
def test_without_root_or_network(downloader: ModuleType, tmp_path: Path, error: builtins.Exception) -> None:
    def download(*_: object, **__: object) -> None:
        raise error

    downloader.Omniglot = download  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"no network.*set tasks\.root=FOLDER holding images_background\.zip and"):
        Omniglot(cache=str(tmp_path)).distribution("train", EpisodeShape(), 0)


@pytest.fixture(scope="module")
def real(cache: Path) -> Omniglot:
    folder = os.environ.get("METATRAIN_DATA")
    if not folder:
        reason = "METATRAIN_DATA is not set: point it at a folder that holds omniglot/ to test on the real drawings"
        pytest.skip(reason)
    return Omniglot(root=str(Path(folder) / "omniglot"), cache=str(cache))


@pytest.mark.slow
@pytest.mark.omniglot
def test_the_real_one_has_its_published_sizes(real: Omniglot) -> None:
    store = real.store(no_progress)
    assert store.images.shape == (32460, 1, 28, 28)
    assert len(store.header.classes) == 1623
    assert {c.stop - c.start for c in store.header.classes} == {20}
    assert len({c.name.split("/")[0] for c in store.header.classes}) == 50
    sizes = {name: [len(split[s]) for s in SPLITS] for name, split in store.header.splittings.items()}
    assert sizes["characters"] == [1100, 100, 423]
    assert sizes["alphabets"][2] == 659
    assert sum(sizes["alphabets"][:2]) == 964
    assert 0.03 < store.images.mean() / 255 < 0.15


@pytest.mark.slow
@pytest.mark.omniglot
def test_nearest_neighbours_on_the_real_one_score_as_is_known(real: Omniglot) -> None:
    """On 28×28 pixels 5-way 1-shot nearest neighbour is far from chance, and far from solved."""
    episode = real.distribution("test", EpisodeShape(5, 1, 15), 0).episodes(range(200))
    nearest = torch.cdist(episode.query.x.flatten(2), episode.support.x.flatten(2)).argmin(-1)
    accuracy = (episode.support.y.gather(1, nearest) == episode.query.y).float().mean()
    assert 0.35 < accuracy < 0.75
