"""Read TFRecord files: records with checksums, each an Example (in protocol buffers) of an image and its label.

    8 bytes        length of the content, little-endian
    4 bytes        masked CRC-32C of these
    length bytes   the content
    4 bytes        masked CRC-32C of the content

It is read here because two fields of one message are needed, and `tasks` does without TensorFlow and protobuf. The
package tfrecord, which needs the latter, does not check the checksums.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.store.archive import Archive, DamagedEntryError, OpenArchive, open_archive
from tasks.store.cache import FileChecksum

SUFFIX = ".tfrecords"

_HEAD, _TAIL = 12, 4
_LANES = 256
_SHORT = 1024
_REMEDY = "replace it by a complete copy"

Words = NDArray[np.uint32]


class Place(NamedTuple):
    """Where the content of a record is in its file, its length in bytes and its masked CRC."""

    start: int
    length: int
    masked: int


class Example(NamedTuple):
    """The image of a record, as an encoded file, and its label; None where it has none."""

    image: bytes
    label: int | None


@contextmanager
def open_records(archive: Archive) -> Iterator[OpenArchive]:
    """Open a folder of TFRecord files. In place of a file's name, FILE.tfrecords/NUMBER is the image of a record.

    `names` has the files alone. ValueError: it is a zip, or a file is damaged.
    """
    if archive.is_zip:
        raise ValueError(f"{archive.path} is a zip, and records are read from a folder: unpack it")
    with open_archive(archive) as files:
        places: dict[str, list[Place]] = {}
        lock = Lock()

        def find(name: str) -> tuple[Path, Place]:
            file, _, number = name.rpartition("/")
            path = archive.path / file
            with lock:
                if file not in places:
                    places[file] = list_records(path)
            if int(number) >= len(places[file]):
                raise ValueError(f"{path} has {len(places[file])} records, and should have more: {_REMEDY}")
            return path, places[file][int(number)]

        def read(name: str) -> bytes:
            if not _is_record(name):
                return files.read(name)
            path, place = find(name)
            label = path.name.removesuffix(SUFFIX)
            try:
                found = parse_example(read_record(path, place))
            except ValueError as error:
                raise DamagedEntryError(f"{archive.path}: {name}", str(error)) from error
            if found.label is not None and label.isdigit() and found.label != int(label):
                raise DamagedEntryError(f"{archive.path}: {name}", f"its label is {found.label}")
            return found.image

        def checksum(name: str) -> FileChecksum:
            if not _is_record(name):
                return files.checksum(name)
            _, place = find(name)
            return FileChecksum(name, place.length, place.masked)

        stamp = cache(files.stamp)
        yield OpenArchive(
            files.names, read, checksum, lambda name: stamp(name.rpartition("/")[0] if _is_record(name) else name)
        )


def _is_record(name: str) -> bool:
    return name.rpartition("/")[0].endswith(SUFFIX)


def list_records(path: Path) -> list[Place]:
    """Return where the records of a file are. ValueError: it is cut, or a length does not match its checksum."""
    found: list[Place] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD)
        while head:
            start = file.tell()
            if len(head) < _HEAD or mask(crc32c(head[:8])) != int.from_bytes(head[8:], "little"):
                raise ValueError(f"{path}: record {len(found)} has a damaged length: {_REMEDY}")
            (length,) = struct.unpack("<Q", head[:8])
            if start + length + _TAIL > size:
                raise ValueError(f"{path} ends within record {len(found)}: {_REMEDY}")
            file.seek(start + length)
            tail = file.read(_TAIL + _HEAD)
            found.append(Place(start, length, int.from_bytes(tail[:_TAIL], "little")))
            head = tail[_TAIL:]
    return found


def read_record(path: Path, place: Place) -> bytes:
    """Return the content of a record. ValueError: it does not match its checksum."""
    with path.open("rb") as file:
        file.seek(place.start)
        content = file.read(place.length)
    if mask(crc32c(content)) != place.masked:
        raise ValueError("it does not match its checksum")
    return content


def parse_example(content: bytes) -> Example:
    """Return the features "image" and "label" of an Example. ValueError: it is none, or has no image."""
    features: dict[str, Any] = {}
    for part in _messages(content, 1):
        for entry in _messages(part, 1):
            fields = dict(_fields(entry))
            if isinstance(fields.get(1), bytes) and isinstance(fields.get(2), bytes):
                features[fields[1].decode("utf-8", "replace")] = dict(_fields(fields[2]))
    images = [value for one in _messages_of(features.get("image"), 1) for value in _messages(one, 1)]
    if len(images) != 1:
        raise ValueError(f"it holds {len(images)} images")
    labels = [value for one in _messages_of(features.get("label"), 3) for value in _integers(one)]
    return Example(images[0], labels[0] if labels else None)


def _messages_of(fields: dict[int, Any] | None, number: int) -> list[bytes]:
    value = (fields or {}).get(number)
    return [value] if isinstance(value, bytes) else []


def _messages(content: bytes, number: int) -> list[bytes]:
    """Return the fields of one number that have a length: messages, strings and bytes."""
    return [value for found, value in _fields(content) if found == number and isinstance(value, bytes)]


def _integers(content: bytes) -> list[int]:
    """Return the values of an Int64List, packed or not."""
    found: list[int] = []
    for number, value in _fields(content):
        if number == 1 and isinstance(value, int):
            found.append(value)
        elif number == 1:
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                found.append(one)
    return found


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message: an int, or bytes of what has a length, or of 4 or 8 bytes."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no message of protocol buffers")
        if at + size > len(content):
            raise ValueError("it is a message of protocol buffers that is cut")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is a message of protocol buffers that is cut")


def mask(crc: int) -> int:
    """Return the form in which a TFRecord keeps a CRC."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_TABLE = _make_table()
_NUMBERS: list[int] = _TABLE.tolist()


def crc32c(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of bytes.

    Long contents are cut into 256 parts whose CRCs are computed side by side: CRC(a b) = Z^|b| CRC(a) ⊕ CRC(b), where
    the linear map Z appends a zero byte.
    """
    if len(content) < _SHORT:
        crc = 0xFFFFFFFF
        for byte in content:
            crc = _NUMBERS[(crc ^ byte) & 255] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    width = -(-len(content) // _LANES)
    padded = np.zeros((_LANES + 32) * width, np.uint8)
    start = _LANES * width - len(content)  # a CRC that begins with 0 passes over zeros
    padded[start : _LANES * width] = np.frombuffer(content, np.uint8)
    padded[start : start + 4] ^= 255  # the same as to begin with 0xFFFFFFFF
    columns = np.ascontiguousarray(padded.reshape(-1, width).T)
    # The last 32 rows apply Z^width to each bit.
    state = np.concatenate([np.zeros(_LANES, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in columns:
        state = _TABLE[(state ^ column) & 255] ^ (state >> 8)
    parts, appended = state[:_LANES], state[_LANES:]
    while len(parts) > 1:
        parts = _apply(appended, parts[::2]) ^ parts[1::2]
        appended = _apply(appended, appended)
    return int(parts[0]) ^ 0xFFFFFFFF


def _apply(images: Words, words: Words) -> Words:
    """Return a linear map of words, given by its images of the 32 bits."""
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    found: Words = np.bitwise_xor.reduce(np.where(bits, images, np.uint32(0)), axis=1)
    return found
