"""Raw archives: a zip, or the folder it unpacks to, read alike and never written to."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.cache import RawFile

_REMEDY = "put a whole copy in its place"


@dataclass(frozen=True)
class Archive:
    """Where the files below `folder/` are: in the zip `path`, or in the folder `path` whose name is `folder`."""

    path: Path
    folder: str

    @property
    def is_zip(self) -> bool:
        """Whether `path` is a zip rather than an unpacked folder."""
        return self.path.suffix == ".zip"


def find_archive(roots: list[Path], folder: str) -> Archive | None:
    """The first `folder.zip`, or else folder of that name, in any of `roots`."""
    for path in (root / name for root in roots for name in (f"{folder}.zip", folder)):
        if path.exists():
            return Archive(path, folder)
    return None


def raw_files(archive: Archive, suffix: str) -> list[RawFile]:
    """Its files that end in `suffix`, in order of name; hidden ones, and what macOS adds to zips, are left out.

    A zip's own directory tells the checksums, so nothing is unpacked; the files of a folder are read.
    """
    files = _zip_files(archive.path) if archive.is_zip else _folder_files(archive, suffix)
    return sorted(file for file in files if file.name.endswith(suffix) and not _hidden(file.name))


def read_files(archive: Archive, names: list[str]) -> Iterator[bytes]:
    """The content of each of `names`, as `raw_files` lists them. Raises ValueError for a damaged zip."""
    if not archive.is_zip:
        for name in names:
            yield (archive.path.parent / name).read_bytes()
        return
    with _opened(archive.path) as opened:
        for name in names:
            try:
                yield opened.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ValueError(f"{archive.path}: {name} is damaged ({error}): {_REMEDY}") from error


def _zip_files(path: Path) -> Iterator[RawFile]:
    with _opened(path) as opened:
        entries = opened.infolist()
    for entry in entries:
        if _climbs_out(entry.filename):
            raise ValueError(f"{path}: the entry {entry.filename!r} climbs out of the archive: {_REMEDY}")
        if not entry.is_dir():
            yield RawFile(entry.filename, entry.file_size, entry.CRC)


def _folder_files(archive: Archive, suffix: str) -> Iterator[RawFile]:
    for path in archive.path.rglob(f"*{suffix}"):
        content = path.read_bytes()
        name = PurePosixPath(archive.folder, *path.relative_to(archive.path).parts)
        yield RawFile(str(name), len(content), zlib.crc32(content))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole zip ({error}): {_REMEDY}") from error


def _climbs_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":")


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
