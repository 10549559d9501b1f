"""Make the store of a folder or zip of images: read, checked, decoded, its classes split; for several task sources."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.few_shot import EmptySplit, FewShot, few_shot
from tasks.io.home import PathText
from tasks.sources.class_splits import ChosenSplits
from tasks.sources.image_layout import Layout, common_folder, display_names
from tasks.sources.image_names import is_image
from tasks.sources.image_settings import CHANNELS, Channels, OnBadImage
from tasks.sources.wordnet import MOST_LEAVES, classes_below
from tasks.store.archive import Archive, Crop, OpenArchive, Opener, open_archive
from tasks.store.bad_images import BadImage, explain_bad_images
from tasks.store.cache import cached_key, content_key
from tasks.store.class_pool import StorePool
from tasks.store.record import describe_data
from tasks.store.store import FORMAT_VERSION, Header, Images, Store, slice_classes, write_store
from tasks.store.store_cache import BuildPlan, Findings, LoadedStore
from tasks.text import count_of, enumerate_few
from tasks.types import SPLITS, DataRecord, EpisodeShape, Progress, Split, no_progress

_MAX_FILE_BYTES = 2**28
"""Larger image files are refused, as likely attacks on memory."""
_NAMED = 50
"""Bad images that a store names; the others are counted."""


class SourceInfo(NamedTuple):
    """Properties that all stores of one source share."""

    name: str
    source: str
    citation: str
    forms: str
    """Layouts that the root may have, for messages."""


class StoreSettings(NamedTuple):
    """What the user decides of a store. shape: (channels, size). cache: this machine's, for the keys of folders."""

    shape: tuple[int, int]
    cache: Path
    on_bad_image: OnBadImage = "error"
    min_examples: int = 1


class ImageFormat(NamedTuple):
    """How a source's images are read from an archive.

    find: from the place of an archive, for messages, and its files to its classes. open: opens an archive. decoder:
    from size and channels to a function from the content of a file (and the box of a crop) to an image; None for files
    in any of the usual formats. preprocessing: what decoder does, for the store's header.
    """

    find: Callable[[str, OpenArchive], Layout]
    open: Opener = open_archive
    decoder: Callable[[int, int], Callable[..., Images]] | None = None
    preprocessing: str = ""


def find_image_archive(root: Path, forms: str) -> Archive:
    """Return the archive of the images: `root`, or the one zip in it. ValueError: there is none.

    forms: the layouts that it may have, for messages.
    """
    if not root.exists():
        raise ValueError(f"{root} does not exist: set tasks.root to a folder or a zip with {forms}")
    archive = Archive(root)
    if archive.is_zip:
        return archive
    if not root.is_dir():
        raise ValueError(f"{root} is neither a folder nor a zip: unpack it, and set tasks.root to the folder")
    with open_archive(archive) as files:
        zips = [name for name in files.names if "/" not in name and name.lower().endswith(".zip")]
        if not zips or any(map(is_image, files.names)):
            return archive
    if len(zips) > 1:
        raise ValueError(f"{root} holds no images, but {' and '.join(zips)}: set tasks.root to one of them")
    return Archive(root / zips[0])


def plan_store(
    info: SourceInfo,
    archive: Archive,
    form: ImageFormat,
    choose: Callable[[Layout, Mapping[str, int]], ChosenSplits],
    settings: StoreSettings,
    progress: Progress,
) -> BuildPlan:
    """Return the plan for the store of the images in an archive.

    choose: from the archive's layout and the classes with too few images to the classes of each split; other classes
    are left out.
    """
    shape = settings.shape
    with form.open(archive) as files:
        layout = form.find(str(archive.path), files)
        sizes = {name: len(members) for name, members in layout.classes.items()}
        few = {name: size for name, size in sorted(sizes.items()) if size < settings.min_examples}
        splits, decided = choose(layout, few)
        classes = {name: layout.classes[name] for name in sorted(set().union(*splits.values()))}
        names = [name for members in classes.values() for name in members]
        display = display_names(files, classes)
        slices = slice_classes((display[name], len(members)) for name, members in classes.items())
        numbers = {name: number for number, name in enumerate(classes)}
        splitting = {split: tuple(sorted(numbers[name] for name in splits.get(split, ()))) for split in SPLITS}
        image_shape = (shape[0], shape[1], shape[1])
        made = form.preprocessing or preprocessing(shape, "the box" if layout.crops else "the central square")
        of_groups = tuple(tuple(numbers[name] for name in one if name in numbers) for one in layout.groups)
        header = Header(
            info.name,
            image_shape,
            slices,
            {"classes": splitting},
            info.source,
            info.citation,
            made,
            tuple(one for one in of_groups if one),
            layout.whole_groups,
        )
        crops = {name: layout.crops[name] for name in names if name in layout.crops}
        key = _store_key(settings, archive, files, names, header, crops)

    def build(path: Path) -> None:
        # Pillow, which training does without
        from tasks.store.decoding import image_decoder, try_files

        decode = (form.decoder or image_decoder)(shape[1], shape[0])
        images, bad = try_files([(archive, names)], image_shape, decode, progress, form.open, crops)
        write_images(path, str(archive.path), header, images, bad, settings)

    left_out = [*layout.left_out, *([describe_few(few, settings.min_examples)] if few else [])]
    notes = (*(f"left out: {line}" for line in left_out), *decided)
    return BuildPlan(key, build, Findings(tuple(classes), notes))


def describe_few(few: Mapping[str, int], least: int) -> str:
    """Describe classes that are left out for the number of their images."""
    named = enumerate_few([f"{name} ({size})" for name, size in few.items()])
    return f"{count_of(len(few), 'class', 'classes')} of fewer than {least} images: {named}"


def write_images(
    path: Path,
    where: str,
    header: Header,
    images: Images,
    bad: Sequence[BadImage],
    settings: StoreSettings,
    few: Sequence[str] = (),
) -> None:
    """Write a store without the images that do not decode. ValueError: there are such, and settings refuse them.

    where: what the images come from, for messages. few: what else was left out, a line each.
    """
    left_out = list(few)
    if bad and settings.on_bad_image == "error":
        skip = f", or set tasks.on_bad_image=skip to leave {'it' if len(bad) == 1 else 'them'} out"
        report = path.with_suffix(".bad-images.txt")
        raise ValueError(explain_bad_images(f"{where}: ", bad, "an image", report, skip))
    if bad:
        header, images, gone = _drop_rows(header, images, {image.row for image in bad}, settings.min_examples)
        named = enumerate_few([f"{image.name} ({image.reason})" for image in bad], _NAMED)
        left_out.append(f"{count_of(len(bad), 'image')} that do not decode: {named}")
        if gone:
            left_out.append(f"{count_of(len(gone), 'class', 'classes')} of too few images then: {enumerate_few(gone)}")
    write_store(path, header, images, left_out)


def _drop_rows(header: Header, images: Images, rows: set[int], least: int) -> tuple[Header, Images, list[str]]:
    """Return header and images without `rows`, and without classes that have fewer than `least` images then.

    Such classes stay in the header without images and without a split, so that their numbers stay.
    """
    lost = Counter(next(n for n, kind in enumerate(header.classes) if kind.start <= row < kind.stop) for row in rows)
    kept = np.array([row not in rows for row in range(len(images))], dtype=bool)
    gone = {n for n, kind in enumerate(header.classes) if kind.stop - kind.start - lost[n] < least}
    for number in gone:
        kept[header.classes[number].start : header.classes[number].stop] = False
    sizes = ((kind.name, int(kept[kind.start : kind.stop].sum())) for kind in header.classes)
    splitting = {
        split: tuple(number for number in numbers if number not in gone)
        for split, numbers in header.splittings["classes"].items()
    }
    changed = Header(**{**vars(header), "classes": slice_classes(sizes), "splittings": {"classes": splitting}})
    return changed, images[kept], [header.classes[number].name for number in sorted(gone)]


def split_pool(
    store: Store,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    few_remedy: str = "",
    hierarchy: PathText | None = None,
) -> StorePool:
    """Return the classes of one split. few_remedy: the setting that leaves out classes of few images.

    hierarchy: a file that says which classes belong together; None for what the store says.
    """
    header = store.header
    numbers = header.splittings["classes"][split]
    if hierarchy is None:
        place_of, whole = {number: place for place, number in enumerate(numbers)}, header.whole_groups
        parts = (tuple(place_of[number] for number in one if number in place_of) for one in header.groups)
        grouped = tuple(one for one in parts if 2 <= len(one) <= MOST_LEAVES)
    else:
        grouped, whole = classes_below(str(hierarchy), [header.classes[number].name for number in numbers]), True
    return StorePool(header.name, store, numbers, 1, tuple(mean), tuple(std), grouped, whole, few_remedy)


class StoredImages:
    """What sources share whose images are decoded once into a store. They have `pool` and `_load` of their own."""

    size: int
    channels: Channels

    def pool(self, split: Split) -> StorePool:
        """Return one split's classes."""
        raise NotImplementedError

    def _load(self, progress: Progress) -> LoadedStore:
        """Return the store, built first if this machine has none, and what was found."""
        raise NotImplementedError

    def prepare(self, progress: Progress) -> str:
        """Build the store unless it exists. Return a line that says what it holds and where it is."""
        return describe_store(self.store(progress))

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> FewShot | EmptySplit:
        """Return few-shot episodes over one split's classes."""
        return few_shot(self.pool(split), episode, seed, split)

    def data(self) -> DataRecord:
        """Return the classes of each split, digests of their images, and what was left out."""
        return describe_data(self._load(no_progress), "classes")

    def decode(self, content: bytes) -> Images:
        """Decode a user's image file as those of the store are: [C, size, size] uint8."""
        from tasks.store.decoding import image_decoder

        return image_decoder(self.size, CHANNELS[self.channels])(content)

    def store(self, progress: Progress) -> Store:
        """Return the store of this root, built first if this machine has none."""
        return self._load(progress).store


def describe_store(store: Store) -> str:
    """Return a line that says what a store holds and where it is."""
    header = store.header
    split = ", ".join(f"{len(header.splittings['classes'][split])} {split}" for split in SPLITS)
    return f"{header.name}: {len(store.images)} images of {len(header.classes)} classes ({split}) in {store.path}"


def preprocessing(shape: tuple[int, int], part: str = "the central square") -> str:
    """Return the description of the preprocessing, which is part of a store's key. shape: (channels, size)."""
    channels, size = shape
    return f"{'RGB' if channels == 3 else 'grey'}, upright, on white; Lanczos of {part} to {size}×{size}"


def _store_key(
    settings: StoreSettings,
    archive: Archive,
    files: OpenArchive,
    rows: Sequence[str],
    header: Header,
    crops: Mapping[str, Crop],
) -> str:
    """Return the content key of a store. It is equal for a zip and its folder, wherever in them the images are."""
    names = [crops[row].file if row in crops else row for row in rows]
    start = len(common_folder(names))
    recipe = json.dumps([header.as_dict(), [name[start:] for name in names]])
    if crops:
        recipe += json.dumps([crops[row].box for row in rows])
        names = list(dict.fromkeys(names))
    if settings.on_bad_image == "skip":
        recipe += json.dumps(["skip", settings.min_examples])

    def read_all() -> str:
        checksums = [files.checksum(name) for name in names]
        large = [f"{file.name} has {file.size:,} bytes" for file in checksums if file.size > _MAX_FILE_BYTES]
        if large:
            reason = f"more than the {_MAX_FILE_BYTES:,} allowed for an image"
            it = "it" if len(large) == 1 else "them"
            raise ValueError(f"{archive.path}: {enumerate_few(large)}, {reason}: remove {it}, or save {it} smaller")
        return content_key([file._replace(name=file.name[start:]) for file in checksums], recipe, FORMAT_VERSION)

    if archive.is_zip:  # its directory has the checksums
        return read_all()
    return cached_key(settings.cache, header.name, [files.stamp(name) for name in names], recipe, read_all)
