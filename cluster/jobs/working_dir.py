"""Pack a working directory into the zip that a job is sent with: sources, without runs, data and secrets.

Leaves out what `.gitignore` and `.rayignore` name, each for the files below its folder (where they differ, the stricter
counts), what ALWAYS_IGNORED names, files that hold secrets (`cluster.jobs.secret_files`, and those that the caller
excludes), and links that lead out of the folder; links to folders are not followed. The zip depends on names and
contents alone, so that an unchanged folder is not sent again (Ray names it by its hash).
"""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from cluster.jobs.secret_files import begins_as_secret, is_secret_name
from metatrain.validation import require

ALWAYS_IGNORED = (
    ".git/",
    ".venv/",
    "__pycache__/",
    "*.egg-info/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    "/runs/",
    "/mlruns/",
    "/mlartifacts/",
    "/mlflow.db*",
)
IGNORE_FILES = (".gitignore", ".rayignore")
MAX_BYTES = 100 * 2**20
"""Largest request body that Ray's dashboard accepts."""
_LARGEST_NAMED = 4
_MOST_NAMED = 8
_FIRST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can store; used for every entry, so that times do not change the hash."""


@dataclass(frozen=True)
class WorkingDir:
    """The files of `folder` that are sent: sizes in bytes by relative path."""

    folder: Path
    files: dict[str, int]
    secrets: tuple[str, ...] = ()
    """Files and folders ("/" at the end) that are not sent, since secrets are kept in them."""
    links: tuple[str, ...] = ()
    """Links that are not sent, since they lead out of the folder."""

    def describe_left_out(self) -> str | None:
        """Return a line on what is not sent and not ignored by the user; None without any."""
        named = {"secrets may be in": self.secrets, "links lead out of the folder from": self.links}
        parts = [f"{why} {', '.join(names[:_MOST_NAMED])}" for why, names in named.items() if names]
        parts = [
            part if len(names) <= _MOST_NAMED else f"{part} and {len(names) - _MOST_NAMED} more"
            for part, names in zip(parts, filter(None, named.values()), strict=True)
        ]
        return f"not sent: {'; '.join(parts)}" if parts else None

    def write_zip(self, path: Path) -> Path:
        """Write the zip to `path`. ValueError: it is larger than a cluster accepts, or a file cannot be read."""
        self._check_size(sum(self.files.values()) // 4)  # too large for any compression: fail before hours of it
        try:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                for name in self.files:
                    file = self.folder / name
                    entry = zipfile.ZipInfo(name, _FIRST_ZIP_TIME)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
                    archive.writestr(entry, file.read_bytes())
        except OSError as error:
            reason = f"{error.filename or path} cannot be read or written ({error.strerror})"
            raise ValueError(f"{reason}: fix that, or add it to .rayignore") from error
        self._check_size(path.stat().st_size)
        return path

    def _check_size(self, size: int) -> None:
        weights: Counter[str] = Counter()
        for name, weight in self.files.items():
            top, inside, _ = name.partition("/")
            weights[top + inside] += weight
        largest = ", ".join(f"{top} ({_format_size(weight)})" for top, weight in weights.most_common(_LARGEST_NAMED))
        require(
            size <= MAX_BYTES,
            f"the working directory is too large for a job: {_format_size(sum(self.files.values()))} in "
            f"{len(self.files)} files, where {_format_size(MAX_BYTES)} can be sent; most of it is {largest}: add to "
            ".rayignore what the job does not need, and keep data where the cluster reads it (tasks.root)",
        )


def scan_working_dir(folder: Path, exclude: Iterable[Path] = ()) -> WorkingDir:
    """Find the files of `folder` to send, without walking ignored folders.

    exclude: files that are never sent, under whatever name or link they are found. ValueError: an unreadable folder, a
    wrong ignore pattern, a name that is not UTF-8.
    """
    excluded = {(status.st_dev, status.st_ino) for status in (path.stat() for path in exclude if path.exists())}
    walk = _Walk(folder, excluded)
    walk.enter(folder, [(folder, GitIgnoreSpec.from_lines(ALWAYS_IGNORED))])
    return WorkingDir(folder, dict(sorted(walk.files.items())), tuple(walk.secrets), tuple(walk.links))


class _Walk:
    """Sort the entries of a folder into files to send, secrets and links that lead out of it."""

    def __init__(self, top: Path, excluded: set[tuple[int, int]]) -> None:
        self._top, self._real_top, self._excluded = top, top.resolve(), excluded
        self.files: dict[str, int] = {}
        self.secrets: list[str] = []
        self.links: list[str] = []

    def enter(self, folder: Path, ignored: list[tuple[Path, GitIgnoreSpec]]) -> None:
        """Walk through a folder below `top`. ignored: patterns, each for what lies below its folder."""
        specs = [*ignored, *_read_ignored(folder)]
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be read ({error.strerror}): fix that, or add it to .rayignore"
            ) from error
        for entry in entries:
            path = Path(entry.path)
            is_folder = entry.is_dir(follow_symlinks=False)
            name = path.relative_to(self._top).as_posix() + "/" * is_folder
            if any(spec.match_file(path.relative_to(base).as_posix() + "/" * is_folder) for base, spec in specs):
                continue
            if is_secret_name(name):
                self.secrets.append(_printable(name))
            elif is_folder:
                self.enter(path, specs)
            elif path.is_file():  # sockets and dead links have no content
                self._add(path, name)

    def _add(self, path: Path, name: str) -> None:
        """Add a file, or a link to one of this folder, which counts as its target."""
        status = path.stat()
        if (status.st_dev, status.st_ino) in self._excluded or begins_as_secret(path):
            self.secrets.append(_printable(name))
            return
        if path.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(self._real_top):
                self.links.append(_printable(name))
                return
            if is_secret_name(target.relative_to(self._real_top).as_posix()):
                self.secrets.append(_printable(name))
                return
        printable = _printable(name)
        require(printable == name, f"'{printable}': its name is not UTF-8: rename it, or add it to .rayignore")
        self.files[name] = status.st_size


def _read_ignored(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """Return what the .gitignore and .rayignore in a folder name, if it has any."""
    lines = [
        line
        for name in IGNORE_FILES
        if (folder / name).is_file()
        for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    try:
        return [(folder, GitIgnoreSpec.from_lines(lines))] if lines else []
    except GitIgnorePatternError as error:
        raise ValueError(f"{folder}: .gitignore or .rayignore: {error}: fix that line") from error


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()


def _format_size(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
