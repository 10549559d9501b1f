"""Train from Python: `metatrain.train` in a script, a notebook or a thread, which leaves the process as it was."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from metatrain.cli.training import load_resumed, train_run
from metatrain.config.load import as_plain, load_raw, read_config
from metatrain.runs.locations import open_run
from metatrain.settings import Config
from metatrain.trainer import RunResult
from metatrain.trust import require_chosen_places, require_known_code
from metatrain.validation import require
from metatrain.yaml_config import dump_inline, flatten


def train(
    config: str | Path | Mapping[str, Any] | Config | None = None,
    *,
    resume: str | Path | None = None,
    take_over: bool = False,
    trust: bool = False,
    progress: bool = True,
    **settings: Any,
) -> RunResult:
    """Train, test and keep a run as `metatrain train` does, and return its result.

    config: a file, the name of a configuration that ships with metatrain (`metatrain config list`), a mapping or a
    Config; None with `resume`, the folder or URI of a run. settings: changes to it, as nested sections
    (outer={"steps": 100}) or under dotted keys (**{"outer.steps": 100}). progress: show it on standard error.
    In the main thread, Ctrl-C stops after the step, with a checkpoint: the result is then not `finished`.
    ValueError or OSError: a wrong request. RunFailed, and others of `metatrain.errors`: the run failed, and is kept.
    """
    changes = flatten_settings(settings)
    home = None if resume is None else open_run(resume)
    require((config is None) != (home is None), "config: name a configuration, or a run as resume=…: give one of them")
    require(not take_over or home is not None, "take_over: works only with resume: remove it")
    with _left_as_it_was():
        if home is not None:
            overrides = [f"{key}={dump_inline(value)}" for key, value in changes.items()]
            chosen = load_resumed(home, overrides, trust)
        else:
            assert config is not None, "required above"
            chosen = _read(config, changes, trust)
        return train_run(chosen, home, take_over, show=progress).result


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return plain values under dotted keys. A section that names its part replaces the whole section, as in YAML."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and "name" not in value
        flat |= flatten_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": _plain(value)}
    return flat


def _read(config: str | Path | Mapping[str, Any] | Config, changes: Mapping[str, Any], trust: bool) -> Config:
    path = None
    if isinstance(config, Config):
        raw = as_plain(config)
    elif isinstance(config, Mapping):
        raw = _plain(config)
    else:
        remedy = "use a file, a name from `metatrain config list`, a mapping or a Config"
        require(isinstance(config, str | PathLike), f"config: of type {type(config).__name__}: {remedy}")
        path, raw = load_raw(config)
        require_known_code(path, raw, trust)
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
            require(
                isinstance(place, dict), f"{key}: '{section}' is a value, not a section: see `metatrain config show`"
            )
        place[last] = value
    found = read_config(raw)
    if path is not None:
        require_chosen_places(path, flatten(as_plain(found)), [f"{key}=" for key in changes], trust)
    return found


def _plain(value: Any) -> Any:
    """Return a value as YAML would give it: paths as text, tuples as lists, numbers of numpy as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, PathLike):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Restore torch's threads and the import path, which training sets for itself."""
    threads, path = torch.get_num_threads(), list(sys.path)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.path[:] = path
