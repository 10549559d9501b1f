"""Write and read checkpoints: crash-safe, verified by checksum, loaded without running code.

    <folder>/00000120/state.pt         the snapshot, by torch.save
    <folder>/00000120/manifest.json    {"format": 1, "step", "size", "sha256", "extra": {...}}, written last

A checkpoint is valid when its manifest parses and agrees with state.pt. It is written under the name 00000120.new and
renamed when whole. To replace one, the old folder is removed once the new one is whole: a kill in between leaves a
valid 00000120.new, which readers accept and the next save of that step puts in its place.
"""

import hashlib
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from metatrain.runs.run import write_json
from metatrain.runs.state_file import UnreadableState, read_state
from tasks.io.atomic import fsync
from tasks.io.files import refuse_link
from tasks.io.json_documents import check_json, read_json

FORMAT = 1
STATE, MANIFEST, NEW = "state.pt", "manifest.json", ".new"
PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)


class _Manifest(TypedDict):
    """The content of manifest.json."""

    format: int
    step: int
    size: int
    sha256: str
    extra: dict[str, Any]


class DamagedError(ValueError):
    """Report a checkpoint that differs from what its writer wrote. The message says how."""


class Newest(NamedTuple):
    """The newest valid checkpoint, and why newer ones were skipped."""

    snapshot: dict[str, Any]
    step: int
    damaged: list[str]


def save(folder: Path, step: int, snapshot: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Path:
    """Write `snapshot` as the checkpoint of `step` and return its folder; what was there is replaced when it is whole.

    `snapshot`: dicts, lists and tuples of tensors and plain values; `extra`: a few JSON values for the manifest.
    TypeError names a leaf that could not be read back without running code. ValueError: the folder is or holds a link.
    """
    _refuse_links(folder)
    _check_plain(dict(snapshot), "snapshot")
    final, new = _names(folder, step)
    if _is_valid(new, step):
        _put_in_place(new, final)
    _remove(new)
    new.mkdir(parents=True)
    with _writable(new / STATE), (new / STATE).open("wb") as file:
        torch.save(dict(snapshot), file)
        file.flush()
        os.fsync(file.fileno())
    manifest = {"format": FORMAT, "step": step, **_fingerprint(new / STATE), "extra": dict(extra or {})}
    write_json(new / MANIFEST, manifest)
    _put_in_place(new, final)
    return final


def newest(folder: Path) -> Newest | None:
    """Return the newest valid checkpoint, on the CPU; None where none was ever finished.

    Raise DamagedError where there are checkpoints and none is valid.
    """
    skipped: list[str] = []
    lost = False
    for step, path in _entries(folder):
        try:
            return Newest(_read(path, step), step, skipped)
        except DamagedError as error:
            skipped.append(str(error))
            lost = lost or not _is_unfinished(path)
    if lost:
        reasons = "; ".join(skipped)
        raise DamagedError(f"no checkpoint in {folder} is valid ({reasons}): restore one from a copy or train anew")
    return None


def load(folder: Path, step: int) -> dict[str, Any]:
    """Return the snapshot of `step`, on the CPU. Raise DamagedError where it is not valid, ValueError where missing."""
    paths = [path for at, path in _entries(folder) if at == step]
    if not paths:
        steps = sorted({at for at, _ in _entries(folder)})
        raise ValueError(f"{folder} has no checkpoint of step {step}: choose one of {steps}")
    return _read(next((path for path in paths if _is_valid(path, step)), paths[-1]), step)


def manifest(folder: Path, step: int) -> dict[str, Any]:
    """Return the manifest of the checkpoint of `step`, `extra` included. Raise DamagedError where it is not valid."""
    final, new = _names(folder, step)
    return _verify(new if _is_valid(new, step) else final, step)


def files(folder: Path, step: int) -> list[Path]:
    """Return the files of the checkpoint of `step`."""
    final, new = _names(folder, step)
    return sorted((new if _is_valid(new, step) else final).iterdir())


def prune(folder: Path, keep: int, spared: Collection[int] = ()) -> None:
    """Remove checkpoints older than the `keep` newest valid ones, except those of the steps `spared`.

    Remove nothing before `keep` valid ones exist; leave a damaged one between them for a person to inspect. ValueError:
    the folder is or holds a link, whose target would be pruned.
    """
    _refuse_links(folder)
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be at least 1, not {keep}")
    valid: set[int] = set()
    for step, path in list(_entries(folder)):
        if len(valid) < keep:
            if step not in valid and _is_valid(path, step):
                valid.add(step)
        elif step not in valid and step not in spared:
            _remove(path)


def params_sha256(params: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the parameters' raw bytes, contiguous, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(params):
        flat = params[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Raise OSError with the remedy where a disk is full, for which torch raises RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(f"cannot write {path} ({reason}): free some space on that disk") from error


def _refuse_links(folder: Path) -> None:
    """Raise ValueError where something would be written or removed outside `folder`."""
    refuse_link(folder)
    for path in folder.glob("*"):
        refuse_link(path)


def _names(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"{step:08d}", folder / f"{step:08d}{NEW}"


def _entries(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (step, path) of all checkpoints, valid or not: newest first, a replacement before what it replaces."""
    matches = [re.fullmatch(r"([0-9]{8,16})(\.new)?", path.name) for path in folder.glob("*")]
    found = [(int(match[1]), match[0]) for match in matches if match]
    return ((step, folder / name) for step, name in sorted(found, reverse=True))


def _read(path: Path, step: int) -> dict[str, Any]:
    _verify(path, step)
    try:
        snapshot: dict[str, Any] = read_state(path / STATE)
    except UnreadableState as error:
        raise DamagedError(f"{path.name}: {STATE} {error}") from error
    return snapshot


def _verify(path: Path, step: int) -> dict[str, Any]:
    """Return the manifest at `path` after checking that the state agrees with it."""
    try:
        found = read_json(path / MANIFEST, "restore it")
        claims: dict[str, Any] = dict(check_json(found, _Manifest, MANIFEST, "restore it"))
        seen = {"format": FORMAT, "step": step, **_fingerprint(path / STATE)}
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name}: unfinished, {Path(error.filename).name} is missing") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path.name}: {MANIFEST} or {STATE} cannot be read ({error})") from error
    for key, value in seen.items():
        if claims[key] != value:
            raise DamagedError(f"{path.name}: {key} is {value} where {MANIFEST} says {claims[key]}")
    return claims


def _fingerprint(state: Path) -> dict[str, Any]:
    with state.open("rb") as file:
        return {"size": state.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_valid(path: Path, step: int) -> bool:
    try:
        _verify(path, step)
    except DamagedError:
        return False
    return True


def _is_unfinished(path: Path) -> bool:
    """Return whether `path` is a save that was cut short, which never was a checkpoint."""
    return path.name.endswith(NEW) and not (path / MANIFEST).exists()


def _put_in_place(new: Path, final: Path) -> None:
    _remove(final)
    new.rename(final)
    fsync(final.parent)


def _remove(path: Path) -> None:
    """Remove a checkpoint, manifest first, so that a kill leaves nothing that passes for one."""
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _check_plain(tree: Any, where: str) -> None:
    if type(tree) in (dict, OrderedDict):
        for key, value in tree.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(value, f"{where}[{key!r}]")
    elif type(tree) in (list, tuple):
        for number, value in enumerate(tree):
            _check_plain(value, f"{where}[{number}]")
    elif type(tree) not in PLAIN and not isinstance(tree, Tensor):
        raise TypeError(
            f"{where} is a {type(tree).__module__}.{type(tree).__name__}, which a checkpoint cannot hold:"
            " make it a tensor or a plain value"
        )
