"""Write and open stores: class-sorted Arrow IPC files that memory-map into an array of images.

    schema metadata   "metatrain.header": JSON (`Header`), "metatrain.header_sha256": its checksum,
                      "metatrain.left_out": JSON, what building left out, a line each; absent if that is nothing
    one record batch  column "image": fixed_size_list<uint8>[C*H*W], a class being a contiguous slice of rows

Any Arrow reader can open it. `open_store` checks version and checksums, and pickles a store by its path.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.io.atomic import atomic_write
from tasks.io.json_documents import check_json, parse_json
from tasks.types import Split

FORMAT_VERSION = 1

Images = NDArray[np.uint8]

_HEADER = b"metatrain.header"
_HEADER_SHA256 = b"metatrain.header_sha256"
_LEFT_OUT = b"metatrain.left_out"


@dataclass(frozen=True)
class ClassSlice:
    """One class: rows start to stop (excluded) of the store."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """Metadata of a store. `splittings["characters"]["train"]` lists indices into `classes`.

    groups: those of classes that belong together, such as an alphabet's. whole_groups: whether a task has all classes
    of a group, as of those below a node of a hierarchy.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: tuple[ClassSlice, ...]
    splittings: Mapping[str, Mapping[Split, tuple[int, ...]]]
    source: str
    citation: str
    preprocessing: str
    groups: tuple[tuple[int, ...], ...] = ()
    whole_groups: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without groups where there are none: as stores had them before there were groups."""
        fields = asdict(self)
        return fields if self.groups else {name: fields[name] for name in fields if "groups" not in name}


def slice_classes(sizes: Iterable[tuple[str, int]]) -> tuple[ClassSlice, ...]:
    """Return consecutive slices for classes given as (name, number of images)."""
    named = list(sizes)
    stops = list(accumulate(size for _, size in named))
    return tuple(ClassSlice(name, stop - size, stop) for (name, size), stop in zip(named, stops, strict=True))


class _Version(TypedDict):
    version: int


class _PlainClass(TypedDict):
    name: str
    start: int
    stop: int


class _PlainHeader(TypedDict):
    """A `Header` as JSON."""

    sha256: str
    name: str
    image_shape: list[int]
    classes: list[_PlainClass]
    splittings: dict[str, dict[str, list[int]]]
    source: str
    citation: str
    preprocessing: str
    groups: NotRequired[list[list[int]]]
    whole_groups: NotRequired[bool]


class DamagedStoreError(ValueError):
    """A file that is not a complete store of this version. Its arguments are the file's path and the reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"cannot use the store {path}: {reason}; delete it and run `metatrain data prepare NAME`"


class Store:
    """An open store: its header, and its images [rows, C, H, W] uint8, read-only and memory-mapped.

    Pickled by path; within one process, all stores opened from one file share its mapping. left_out: what building it
    left out (images that do not decode), a line for each reason.
    """

    def __init__(self, path: str, header: Header, images: Images, left_out: tuple[str, ...] = ()) -> None:
        self.path = path
        self.header = header
        self.images = images
        self.left_out = left_out

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def write_store(path: Path, header: Header, images: Images, left_out: Sequence[str] = ()) -> None:
    """Write a store atomically. images: [rows, C, H, W], sorted by class in the order of header.classes.

    left_out: see `Store`.
    """
    assert images.shape[1:] == header.image_shape, "the images have another shape than the header"
    assert not header.classes or header.classes[-1].stop == len(images), "the classes do not cover the images"
    flat = pa.array(np.ascontiguousarray(images).reshape(-1), type=pa.uint8())
    column = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(header.image_shape)))
    described = {"version": FORMAT_VERSION, "sha256": _hash_images(images), **header.as_dict()}
    text = json.dumps(described, sort_keys=True).encode()
    metadata = {_HEADER: text, _HEADER_SHA256: hashlib.sha256(text).hexdigest().encode()}
    if left_out:
        metadata[_LEFT_OUT] = json.dumps(list(left_out)).encode()
    schema = pa.schema([pa.field("image", column.type, nullable=False)], metadata=metadata)
    try:
        with atomic_write(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            writer = pa.ipc.new_file(sink, schema)
            writer.write_batch(pa.record_batch([column], schema=schema))
            writer.close()
    except OSError as error:
        remedy = "free some space, or set tasks.cache=FOLDER (or METATRAIN_CACHE) to a folder you may write to"
        raise OSError(f"cannot write the store {path} ({error}): {remedy}") from error


def open_store(path: str | Path) -> Store:
    """Map a store into memory; check its version and checksums once per process.

    ValueError: the file is missing, incomplete, or of another version.
    """
    resolved = Path(path).absolute()
    try:
        status = resolved.stat()
    except FileNotFoundError:
        raise ValueError(f"no store at {resolved}: run `metatrain data prepare NAME` on this machine") from None
    return _open(str(resolved), status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _open(path: str, *_identity: int) -> Store:
    with _explain_arrow_errors(path):
        reader = pa.ipc.open_file(pa.memory_map(path))
        metadata = reader.schema.metadata or {}
    fields = _read_fields(path, metadata)
    sha256 = fields.pop("sha256")
    header = _parse_header(fields)
    with _explain_arrow_errors(path):
        batch = reader.get_batch(0)
        batch.validate(full=True)
        column = batch.column(0)
    images = _map_images(path, column, header)
    if _hash_images(images) != sha256:
        raise DamagedStoreError(path, "its images do not match their checksum")
    return Store(path, header, images, _read_left_out(path, metadata))


@contextmanager
def _explain_arrow_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DamagedStoreError(path, f"it is not a complete Arrow file ({str(error).splitlines()[0]})") from error


def _read_fields(path: str, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the header as JSON values, after checking its checksum and version."""
    text = metadata.get(_HEADER, b"")
    if hashlib.sha256(text).hexdigest().encode() != metadata.get(_HEADER_SHA256):
        raise DamagedStoreError(path, "its header does not match its checksum")
    try:
        fields: dict[str, Any] = check_json(
            parse_json(text, "its header", "damaged"), _Version, "its header", "damaged"
        )
        version = fields.pop("version")
        if version != FORMAT_VERSION:
            raise DamagedStoreError(path, f"it has format version {version}, and this program reads {FORMAT_VERSION}")
        check_json(fields, _PlainHeader, "its header", "damaged")
    except DamagedStoreError:
        raise
    except ValueError as error:
        raise DamagedStoreError(path, str(error)) from error
    starts = [0, *(part["stop"] for part in fields["classes"])]
    sound = all(part["start"] == start <= part["stop"] for part, start in zip(fields["classes"], starts, strict=False))
    numbers = [number for split in fields["splittings"].values() for part in split.values() for number in part]
    numbers += [number for group in fields.get("groups", ()) for number in group]
    sound = sound and all(0 <= number < len(fields["classes"]) for number in numbers)
    if not sound or len(fields["image_shape"]) != 3 or min(fields["image_shape"]) < 1:
        raise DamagedStoreError(path, "its header has classes or images that cannot be")
    return {key: fields[key] for key in ("sha256", *Header.__dataclass_fields__) if key in fields}


def _read_left_out(path: str, metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    try:
        lines = json.loads(metadata.get(_LEFT_OUT, b"[]"))
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(lines)
    except (ValueError, RecursionError):
        pass
    raise DamagedStoreError(path, "its list of what was left out is no list of lines")


def _map_images(path: str, column: Any, header: Header) -> Images:
    size = int(np.prod(header.image_shape))
    rows = max((c.stop for c in header.classes), default=0)
    if column.type != pa.list_(pa.uint8(), size) or len(column) != rows or column.offset or column.null_count:
        raise DamagedStoreError(path, "its images do not match its header")
    pixels = column.values
    if len(pixels) != rows * size or pixels.buffers()[1] is None or pixels.buffers()[1].size < rows * size:
        raise DamagedStoreError(path, "some of its images are missing")
    flat: Images = pixels.to_numpy(zero_copy_only=True)
    return flat.reshape(rows, *header.image_shape)


def _parse_header(fields: Mapping[str, Any]) -> Header:
    return Header(
        **{
            **fields,
            "image_shape": tuple(fields["image_shape"]),
            "classes": tuple(ClassSlice(c["name"], c["start"], c["stop"]) for c in fields["classes"]),
            "splittings": {
                name: {split: tuple(numbers) for split, numbers in splitting.items()}
                for name, splitting in fields["splittings"].items()
            },
            "groups": tuple(map(tuple, fields.get("groups", ()))),
        }
    )


def _hash_images(images: Images) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).reshape(-1).data).hexdigest()
