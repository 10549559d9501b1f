"""Decide what a file in a run may do here: have code imported, and have this user's logins sent to its addresses.

A run that this user made (`metatrain.runs.signature`) may do both, and so may any configuration that the user names.
A run from elsewhere is data: import paths in it are listed and refused, and addresses in it are not contacted, unless
the user says to trust it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metatrain.redact import find_texts, mask
from metatrain.runs.signature import is_own
from metatrain.yaml_config import load_yaml

_PARTS = ("tasks", "model", "algorithm")
_IMPORT_PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
_SOURCE_IN_MIXTURE = re.compile(r"^tasks\.sources\.[^.]+\.")
_MOST_NAMED = 5
_PLACES = {
    "tracking.uri": "MLFLOW_TRACKING_URI",
    "executor.address": "RAY_ADDRESS",
    "tasks.cache": "METATRAIN_CACHE",
    "tasks.root": None,
    "model.weights": None,
    "initialize": None,
}
"""Settings that name a place to which logins or data are sent, and the variable by which a user chooses it too."""
HOW = "add --trust (trust=True in Python)"


def find_code(plain: Any) -> list[tuple[str, str]]:
    """Return the import paths in a plain configuration or search, after their keys: [("model.name", "mine:Net")]."""
    if not isinstance(plain, Mapping):
        return []
    named = [
        (f"{part}.name", str(section["name"]))
        for part in _PARTS
        if isinstance(section := plain.get(part), Mapping) and ":" in str(section.get("name", ""))
    ]
    # Those of a search are spelt in several ways: as a key's values, in an expression, or as whole sections.
    texts = [found for part in ("space", "search") for found in find_texts(plain.get(part), part)]
    return named + [(key, path) for key, text in texts for path in _IMPORT_PATH.findall(text)]


def require_known_code(path: Path, plain: Mapping[str, Any], trust: bool) -> None:
    """Check that a file inside a run that this user did not make names no code to import. ValueError: it does.

    Files that are in no run pass: the user has chosen them. Beside the config.yaml of an own run, another file (its
    best.yaml) may name what that names.
    """
    folder = path.parent
    if trust or not in_run(path) or not (code := find_code(plain)):
        return
    if is_own(folder):
        config = folder / "config.yaml"
        known = _paths_in(load_yaml(config, "a configuration"))
        code = [(key, name) for key, name in code if name not in known]
    if code:
        named = ", ".join(f"{key}: {name[:100]}" for key, name in code[:_MOST_NAMED])
        raise ValueError(
            f"{path} names code to import ({named}), and this user did not make that run: read it, then {HOW}"
        )


def names_unknown_code(path: Path) -> bool:
    """Return whether the configuration at `path` is used with --trust alone."""
    try:
        require_known_code(path, load_yaml(path, "a configuration"), trust=False)
    except ValueError:
        return True
    return False


def require_same_code(configuration: Mapping[str, Any], known: Any, where: str) -> None:
    """Check that the import paths in one trial's configuration are among the texts of its search. ValueError."""
    if found := {path for _, text in find_texts(configuration, "") for path in _IMPORT_PATH.findall(text)}:
        strange = sorted(found - _paths_in(known))
        if strange:
            raise ValueError(f"{where} names code that its search does not ({strange[0][:100]}): restore that file")


def require_chosen_places(path: Path, plain: Mapping[str, Any], overrides: Sequence[str], trust: bool) -> None:
    """Check that a run that this user did not make names no address that the user has not chosen. ValueError."""
    found = {} if trust or is_own_or_chosen(path) else unchosen_places(plain, overrides)
    if found:
        key, value = next(iter(found.items()))
        raise ValueError(
            f"{path} names a place of its own for {key} ({_shown(value)}), and this user did not make that run: set "
            f"{key}=…, or {HOW}"
        )


def unchosen_places(plain: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Return places in a flat configuration that neither an override nor the environment names, by their keys."""
    given = [override.partition("=")[0] for override in overrides]
    found = {}
    for key, value in plain.items():
        kind = _SOURCE_IN_MIXTURE.sub("tasks.", key)
        within = {key.rsplit(".", level)[0] for level in range(key.count(".") + 1)}
        if kind not in _PLACES or not isinstance(value, str) or within & set(given):
            continue
        variable = _PLACES[kind]
        chosen = variable is not None and value.rstrip("/") == os.environ.get(variable, "").rstrip("/")
        if not chosen and not _is_harmless(kind, value, plain):
            found[key] = value
    return found


def in_run(path: Path) -> bool:
    """Return whether a file lies in the folder of a run or a search."""
    return (path.parent / "run.json").is_file()


def is_own_or_chosen(path: Path) -> bool:
    """Return whether a configuration is in a run that this user made, or in none."""
    return not in_run(path) or is_own(path.parent)


def _is_harmless(key: str, value: str, plain: Mapping[str, Any]) -> bool:
    """Return whether nothing is sent to a place, or written there, that is not the run's own."""
    if key == "executor.address":
        return plain.get("executor.name") not in ("ray", "ray_train") or value in ("auto", "local")
    # Data are read, and S3 has its endpoint from the environment; other URIs may name an endpoint themselves.
    return key in ("tasks.root", "model.weights", "initialize") and not ("://" in value and "?" in value)


def _paths_in(tree: Any) -> set[str]:
    """Return what may be an import path in a plain tree, wherever it stands."""
    texts = [text for _, text in find_texts(tree, "") if ":" in text]
    return {*texts, *(path for text in texts for path in _IMPORT_PATH.findall(text))}


def _shown(value: str) -> str:
    shown = mask(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"
