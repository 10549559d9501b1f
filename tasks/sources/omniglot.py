"""Serve Omniglot (Lake et al. 2015) as a task source: 1623 characters of 50 alphabets, each drawn by 20 people.

The official archives, zipped or unpacked, become a store of 28×28 images in which ink is 1 and paper 0.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from tasks.few_shot import FewShot
from tasks.io.home import PathText
from tasks.random import stream, uniforms
from tasks.store.archive import Archive, find_archive, open_archive
from tasks.store.cache import FileChecksum, cache_root, content_key, lock_file
from tasks.store.class_pool import StorePool
from tasks.store.record import describe_data
from tasks.store.store import FORMAT_VERSION, Header, Images, Store, slice_classes, write_store
from tasks.store.store_cache import BuildPlan, Findings, LoadedStore, RawFiles, load_or_build, locate_raw_files
from tasks.text import count_of, enumerate_few
from tasks.types import SPLITS, DataRecord, EpisodeShape, Progress, Split, no_progress

FOLDERS = ("images_background", "images_evaluation")
SIDE = 28

_PREPROCESSING = f"inverted, so that ink is 255; Lanczos to {SIDE}×{SIDE}; drawings in order of file name"
_SOURCE = "https://github.com/brendenlake/omniglot"
_CITATION = (
    "Lake, B. M., Salakhutdinov, R., and Tenenbaum, J. B. (2015). Human-level concept learning through "
    "probabilistic program induction. Science, 350(6266), 1332-1338."
)
_ARCHIVES = " and ".join(f"{folder}.zip" for folder in FOLDERS)

Splitting = Mapping[Split, tuple[int, ...]]


@dataclass(frozen=True)
class Omniglot:
    """Omniglot as a task source.

    root: a folder with images_background.zip and images_evaluation.zip, or with what they unpack to (also below
    torchvision's `omniglot-py/`); None downloads them into the cache. It is only read. It may be a URI, such as
    s3://BUCKET/FOLDER.
    cache: where the store is kept; None for $METATRAIN_CACHE or ~/.cache/metatrain. A URI, such as s3://BUCKET/FOLDER,
    is a cache that machines share; each keeps its downloads in the folder for None.
    splitting: "characters" mixes the characters of all alphabets, 1100 for training, 100 for validation and 423 for
    test, in one fixed order: the sizes of MAML's split (Finn et al. 2017), whose own order was that of an unsorted
    folder and is lost. "alphabets" keeps alphabets whole: those of the evaluation set are for test, a sixth of the
    background alphabets for validation (Lake et al. 2015).
    rotations: in training, each character turned by 90°, 180° and 270° is one more class (Santoro et al. 2016).
    """

    root: PathText | None = None
    cache: PathText | None = None
    splitting: Literal["characters", "alphabets"] = "characters"
    rotations: bool = True

    decodes_ink: ClassVar[bool] = True
    """`decode` reads dark ink on light paper."""

    def prepare(self, progress: Progress) -> str:
        """Build the store unless it exists. Return a line that says what it holds and where it is."""
        store = self.store(progress)
        splitting = store.header.splittings[self.splitting]
        split = ", ".join(f"{len(splitting[split])} {split}" for split in SPLITS)
        characters = f"characters ({split}; split by {self.splitting})"
        return f"omniglot: {len(store.images)} drawings of {characters} in {store.path}"

    def pool(self, split: Split) -> StorePool:
        """Return the characters of one split, in training each rotation as one of its own."""
        store = self.store(no_progress)
        numbers = store.header.splittings[self.splitting][split]
        alphabets: dict[str, list[int]] = {}
        for place, number in enumerate(numbers):
            alphabets.setdefault(store.header.classes[number].name.split("/")[0], []).append(place)
        turns = 4 if self.rotations and split == "train" else 1
        return StorePool("omniglot", store, numbers, turns, grouped=tuple(map(tuple, alphabets.values())))

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot:
        """Return few-shot episodes over one split's characters."""
        return FewShot(self.pool(split), episode, seed, split)

    def data(self) -> DataRecord:
        """Return the characters of each split, digests of their drawings, and what was left out."""
        return describe_data(self._load(no_progress), self.splitting)

    def decode(self, content: bytes) -> Images:
        """Decode a user's file of dark ink on light paper as the drawings are: [1, 28, 28] uint8, ink 255."""
        from tasks.store.decoding import drawing_decoder

        return drawing_decoder(SIDE)(content)

    def store(self, progress: Progress) -> Store:
        """Return the store of this archive, built first if this machine has none."""
        return self._load(progress).store

    def _load(self, progress: Progress) -> LoadedStore:
        if self.root is None:
            folder = cache_root(self.cache) / "omniglot"
            raw = RawFiles("the official archives", [], lambda: _download(folder))
        else:
            raw = locate_raw_files(self.root, self.cache, _select_files)
        return load_or_build("omniglot", raw, _PREPROCESSING, self.cache, lambda root: _plan(root, progress))


def split_by_character(characters: int) -> Splitting:
    """Return a fixed shuffle into 423/1623 test, 100/1623 validation and the rest training (1100 of 1623)."""
    order = np.argsort(uniforms(0, stream("omniglot", "characters"), [0], characters)[0], kind="stable").tolist()
    test, validation = round(characters * 423 / 1623), max(1, round(characters * 100 / 1623))
    train = characters - test - validation
    parts: dict[Split, list[int]] = {
        "train": order[:train],
        "validation": order[train : train + validation],
        "test": order[train + validation :],
    }
    return {split: tuple(sorted(numbers)) for split, numbers in parts.items()}


def split_by_alphabet(background: list[str], evaluation: list[str]) -> Splitting:
    """Return splits of whole alphabets. background, evaluation: the alphabet of each character, in order of class."""
    alphabets = sorted(set(background))
    order = np.argsort(uniforms(0, stream("omniglot", "alphabets"), [0], len(alphabets))[0], kind="stable")
    held_out = {alphabets[i] for i in order[: max(1, round(len(alphabets) / 6))]}
    return {
        "train": tuple(i for i, alphabet in enumerate(background) if alphabet not in held_out),
        "validation": tuple(i for i, alphabet in enumerate(background) if alphabet in held_out),
        "test": tuple(range(len(background), len(background) + len(evaluation))),
    }


def _plan(root: Path, progress: Progress) -> BuildPlan:
    archives = _find_archives(root)
    files, others = zip(*map(_list_drawings, archives), strict=True)
    unread = [name for names in others for name in names]
    note = f"left out: {count_of(len(unread), 'file')} that are no drawings: {enumerate_few(unread)}"

    def build(path: Path) -> None:
        from tasks.store.decoding import decode_files, drawing_decoder  # Pillow, which training does without

        header, decode = _header(files), drawing_decoder(SIDE)
        names = [[file.name for file in file_list] for file_list in files]
        sources = list(zip(archives, names, strict=True))
        write_store(path, header, decode_files(sources, header.image_shape, decode, "a PNG", progress))

    key = content_key(chain(*files), _PREPROCESSING, FORMAT_VERSION)
    return BuildPlan(key, build, Findings(notes=(note,) if unread else ()))


def _select_files(names: Sequence[str]) -> Iterator[str]:
    """Yield, of all files in a root, those of the archives that `_find_archives` would find there."""
    for folder in FOLDERS:
        for place in (f"{inner}{folder}{end}" for inner in ("", "omniglot-py/") for end in (".zip", "/")):
            found = [name for name in names if name == place or (place.endswith("/") and name.startswith(place))]
            if found:
                yield from found
                break


def _find_archives(root: Path) -> list[Archive]:
    roots = [root, root / "omniglot-py"]
    found = [find_archive(roots, folder) for folder in FOLDERS]
    archives = [archive for archive in found if archive is not None]
    if len(archives) < len(FOLDERS):
        missing = " and ".join(folder for folder, archive in zip(FOLDERS, found, strict=True) if archive is None)
        reason = f"has no {missing}" if root.is_dir() else "is not a folder"
        raise ValueError(f"{root} {reason}: set tasks.root=FOLDER holding {_ARCHIVES}, or what they unpack to")
    return archives


def _list_drawings(archive: Archive) -> tuple[list[FileChecksum], list[str]]:
    """Return the drawings of an archive, and the names of its other files."""
    with open_archive(archive) as contents:
        drawings = [name for name in contents.names if PurePosixPath(name).match("*/*/*/*.png")]
        files = [contents.checksum(name) for name in drawings]
        others = sorted(set(contents.names) - set(drawings))
    if not files:
        reason = f"holds no drawings as {archive.folder}/ALPHABET/CHARACTER/DRAWING.png"
        raise ValueError(f"{archive.path} {reason}: replace it by a complete copy")
    return files, others


def _download(folder: Path) -> Path:
    """Return the folder into which torchvision downloads Omniglot, downloading it the first time."""
    with lock_file(folder / "download.lock"):
        if all((folder / "omniglot-py" / name / ".whole").exists() for name in FOLDERS):
            return folder
        from torchvision.datasets import Omniglot as Download

        try:
            for name in FOLDERS:
                Download(os.fspath(folder), background=name == FOLDERS[0], download=True)
                (folder / "omniglot-py" / name / ".whole").touch()
        except (OSError, RuntimeError) as error:
            reason = f"no network, or the download failed ({error})"
            raise OSError(f"{reason}: set tasks.root=FOLDER holding {_ARCHIVES}") from error
    return folder


def _header(files: Sequence[list[FileChecksum]]) -> Header:
    """Return the header, with classes in order of set, alphabet and character, and both splittings."""
    groups = groupby(chain(*files), key=lambda file: PurePosixPath(file.name).parent)
    classes = slice_classes(("/".join(folder.parts[-2:]), len(list(members))) for folder, members in groups)
    boundary = len({PurePosixPath(file.name).parent for file in files[0]})
    alphabets = [PurePosixPath(c.name).parts[0] for c in classes]
    splittings = {
        "characters": split_by_character(len(classes)),
        "alphabets": split_by_alphabet(alphabets[:boundary], alphabets[boundary:]),
    }
    return Header("omniglot", (1, SIDE, SIDE), classes, splittings, _SOURCE, _CITATION, _PREPROCESSING)
