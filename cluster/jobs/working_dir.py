"""A working directory as one zip, the way it travels to a cluster: sources, not what runs and data leave beside them.

What `.gitignore` and `.rayignore` name stays behind, in every folder for what lies below it (of two files that differ
the stricter counts), and so does what `ALWAYS_LEFT` names, and what a caller keeps; links to folders are not followed.
The zip is a function of names and contents alone, so that a folder that has not changed is not sent again (Ray names it
by its hash).
"""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from metatrain.validation import require

ALWAYS_LEFT = (
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
    "profiles.yaml",
    ".env",
    ".env.*",
    "*.pem",
    "auth_token",
)
IGNORE_FILES = (".gitignore", ".rayignore")
LARGEST = 100 * 2**20
"""Bytes of a request that Ray's dashboard takes."""
_NAMED = 4
_BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The first moment that a zip can name: of every entry, so that a new time alone makes no new zip."""


@dataclass(frozen=True)
class Parcel:
    """What is sent of `folder`: its files, by their names in it, with their sizes in bytes."""

    folder: Path
    files: dict[str, int]

    def written(self, to: Path) -> Path:
        """The zip. ValueError: it is larger than a cluster takes, with what makes it so; or a file cannot be read."""
        self._check(sum(self.files.values()) // 4)  # so much larger that no compression helps, before hours of it
        try:
            with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                for name in self.files:
                    path = self.folder / name
                    entry = zipfile.ZipInfo(name, _BEGINNING)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
                    archive.writestr(entry, path.read_bytes())
        except OSError as error:
            reason = f"{error.filename or to} cannot be read or written ({error.strerror})"
            raise ValueError(f"{reason}: mend that, or name it in .rayignore") from error
        self._check(to.stat().st_size)
        return to

    def _check(self, size: int) -> None:
        require(
            size <= LARGEST,
            f"the working directory is too large for a job: {_mib(sum(self.files.values()))} in {len(self.files)} "
            f"files, where {_mib(LARGEST)} can be sent; most of it is {', '.join(self._largest())}: name in .rayignore "
            "what the job does without, and keep data where the cluster reads it (tasks.root)",
        )

    def _largest(self) -> list[str]:
        """The folders and files at the top that weigh most."""
        weights: Counter[str] = Counter()
        for name, size in self.files.items():
            top, inside, _ = name.partition("/")
            weights[top + inside] += size
        return [f"{top} ({_mib(size)})" for top, size in weights.most_common(_NAMED)]


def packed(folder: Path, keep: Iterable[Path] = ()) -> Parcel:
    """What is sent of `folder`, found by walking it; folders that stay behind are not walked.

    keep: files that stay here, by whatever name or link they would be sent.
    """
    above = [(folder, GitIgnoreSpec.from_lines(ALWAYS_LEFT))]
    kept = {(status.st_dev, status.st_ino) for status in (path.stat() for path in keep if path.exists())}
    return Parcel(folder, dict(sorted(_walk(folder, folder, above, kept))))


def _walk(
    top: Path, folder: Path, above: list[tuple[Path, GitIgnoreSpec]], kept: set[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    lines = [
        line
        for name in IGNORE_FILES
        if (folder / name).is_file()
        for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    try:
        specs = [*above, (folder, GitIgnoreSpec.from_lines(lines))] if lines else above
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except GitIgnorePatternError as error:
        raise ValueError(f"{folder}: .gitignore or .rayignore: {error}: mend that line") from error
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): mend that, or name it in .rayignore") from error
    for entry in entries:
        path = Path(entry.path)
        is_folder = entry.is_dir(follow_symlinks=False)
        if any(spec.match_file(path.relative_to(base).as_posix() + "/" * is_folder) for base, spec in specs):
            continue
        if is_folder:
            yield from _walk(top, path, specs, kept)
        elif path.is_file():  # of a link, what it leads to; sockets and dead links have no content
            status = path.stat()
            if (status.st_dev, status.st_ino) in kept:
                continue
            name = path.relative_to(top).as_posix()
            plain = name.encode(errors="replace").decode()
            require(plain == name, f"'{plain}': has a name that is not UTF-8: rename it, or name it in .rayignore")
            yield name, status.st_size


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
