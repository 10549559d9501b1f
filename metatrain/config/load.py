"""Read a configuration from YAML and `key=value` overrides into a checked `Config`, and write it back.

A bad configuration raises ValueError with one line: the field, what is wrong, the remedy.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from metatrain.algorithms import ALGORITHMS
from metatrain.config.sections import (
    checked,
    is_location,
    is_path,
    read_settings,
    read_value,
    refuse_unknown,
    section_of,
)
from metatrain.config.shipped import find_config
from metatrain.models.architectures import ARCHITECTURES, Custom
from metatrain.redact import require_no_logins
from metatrain.settings import SECTIONS, Config, PartNames, Tasks
from metatrain.trust import require_known_code
from metatrain.validation import require
from metatrain.yaml_config import LONGEST, apply_overrides, changed_keys, dump_yaml, load_yaml, shorten
from tasks.described import OWN
from tasks.described_shape import DescribedShape, TaskShape
from tasks.environments.shape import EnvironmentShape
from tasks.io.home import PathText, expand_home, home_path
from tasks.io.remote_fs import is_uri
from tasks.plugins import import_target, suggest_name
from tasks.ragged_shape import RaggedShape
from tasks.registry import TASK_SOURCES, resolve_task_source
from tasks.sources.class_sources import CLASS_SOURCES
from tasks.sources.class_splits import AUTO, SHUFFLE, TEST
from tasks.sources.mixture import MixedSource, Mixture
from tasks.types import EpisodeShape

_METHODS = ("init", "trajectory", "predict", "meta_gradient")
_METHODS_WITH_SCORE = ("init", "score", "meta_gradient")


def load_config(path: str | Path, overrides: Sequence[str] = (), trust: bool = False) -> Config:
    """Read the configuration in a YAML file, with `a.b=value` overrides (values are YAML too).

    ValueError: see `read_config`; or the file lies in a run that this user did not make, and names code to import,
    without `trust`.
    """
    path, plain = load_raw(path)
    require_known_code(path, plain, trust)
    return read_config(apply_overrides(plain, overrides))


def load_raw(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read the file of a configuration, or one that ships with metatrain by its name; return where it lies, and it."""
    begin = "tasks, model and algorithm, as configs/*.yaml do"
    path = find_config(path)
    return path, load_yaml(path, "a configuration, such as configs/*.yaml", begin)


def read_config(raw: Mapping[str, Any]) -> Config:
    """Build the Config that a plain mapping describes. ValueError: the field, what is wrong, the remedy."""
    raw = _without_retired(raw)
    require_no_logins({key: value for key, value in raw.items() if key != "tracking"})  # which says more of its own
    refuse_unknown(raw, SECTIONS, "")
    missing = [section for section in ("tasks", "model", "algorithm") if section not in raw]
    if missing:
        raise ValueError(f"{missing[0]}: missing: name one, such as {missing[0]}: {{name: …}} (see `metatrain list`)")
    hints = get_type_hints(Config)
    tasks_name, tasks = _read_tasks(section_of(raw, "tasks"))
    section = section_of(raw, "model")
    values: dict[str, Any] = {}
    if "weights" in section:
        values["weights"] = read_value(PathText | None, section.pop("weights"), "model.weights")
    model_name, model = _read_part(section, "model", ARCHITECTURES)
    algorithm_name, algorithm = _read_part(section_of(raw, "algorithm"), "algorithm", ALGORITHMS)
    values |= {"tasks": tasks, "model": model, "algorithm": algorithm}
    values["names"] = PartNames(tasks_name, model_name, algorithm_name)
    for name in raw:
        if name not in values and dataclasses.is_dataclass(hints[name]):
            values[name] = read_settings(hints[name], _spelt_out(section_of(raw, name)), name)
    if "seed" in raw:
        values["seed"] = checked(int, raw["seed"], "seed")
    if "initialize" in raw:
        values["initialize"] = read_value(PathText | None, raw["initialize"], "initialize")
    return Config(**values)


_RETIRED = {"executor": {"gradients": "float32"}}
"""Settings of earlier versions that had one useful value: kept configurations may still hold it."""


def _without_retired(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Drop retired settings from `raw`. ValueError: one has a value that nothing implements any more."""
    kept = dict(raw)
    for section, retired in _RETIRED.items():
        if not isinstance(kept.get(section), dict):
            continue
        for key, value in retired.items():
            found = kept[section].get(key, value)
            if found != value:
                raise ValueError(f"{section}.{key}: {shorten(found)} is no longer supported: remove it, or set {value}")
        kept[section] = {key: value for key, value in kept[section].items() if key not in retired}
    return kept


def _spelt_out(section: dict[str, Any]) -> dict[str, Any]:
    """Restore the words on and off, which YAML reads as true and false, in `compile: on`."""
    words = {True: "on", False: "off"}
    return {
        key: words[value] if key in ("compile", "activation_checkpointing") and type(value) is bool else value
        for key, value in section.items()
    }


def _read_tasks(section: dict[str, Any]) -> tuple[str, Tasks]:
    name = _name_of(section, "tasks", TASK_SOURCES)
    kind = resolve_task_source(name)
    shapes = {
        split: _read_shape(section_of({split: {}} | section, split, "tasks."), f"tasks.{split}", kind)
        for split in ("train", "test")
        if split in section or hasattr(kind, "environment")
    }
    settings = {key: value for key, value in section.items() if key not in ("train", "test")}
    if name == "mixture" and isinstance(settings.get("sources"), dict):
        settings["sources"] = {key: _with_typed_settings(key, one) for key, one in settings["sources"].items()}
    source = read_settings(kind, settings, "tasks", also=("train", "test"))
    return name, Tasks(source, **shapes)


def _with_typed_settings(key: str, section: Any) -> Any:
    """Return the section of one source of a mixture, its settings read by their types: paths expanded, lists kept."""
    if not isinstance(section, dict):
        return section  # which is refused where the mixture is read, as are a name and settings that are none
    name, settings = section.get("name", "omniglot"), section.get("settings", {})
    if not isinstance(name, str) or name not in CLASS_SOURCES or not isinstance(settings, dict):
        return section
    typed = read_settings(CLASS_SOURCES[name], settings, f"tasks.sources.{key}.settings")
    return {**section, "settings": {one: getattr(typed, one) for one in settings}}


def _read_shape(section: dict[str, Any], where: str, kind: Any) -> TaskShape:
    """Read the size of tasks of a source: with a range, imbalanced shots or a sampler they differ in it."""
    if hasattr(kind, "environment"):
        return read_settings(EnvironmentShape, section, where)  # type: ignore[no-any-return]
    if section.get("descriptions") is not None:
        return read_settings(DescribedShape, section, where)  # type: ignore[no-any-return]
    section.pop("descriptions", None)
    uniform = section.get("sampler", "uniform") == "uniform"
    if uniform and not any(isinstance(value, dict | str) for key, value in section.items() if key != "sampler"):
        section.pop("sampler", None)
        return read_settings(EpisodeShape, section, where, also=("sampler",))  # type: ignore[no-any-return]
    # What is not given is that of tasks of one size, but of the sampler of Meta-Dataset its own.
    given = dataclasses.asdict(EpisodeShape()) | section if uniform else section
    return read_settings(RaggedShape, given, where)  # type: ignore[no-any-return]


def _read_part(section: dict[str, Any], what: str, known: Mapping[str, type[Any]]) -> tuple[str, Any]:
    """Return the name and the object that a section describes: a registered class, or one given by import path."""
    name = _name_of(section, what, known)
    if ":" not in name:
        return name, read_settings(known[name], section, what)
    if what == "model":
        refuse_unknown(section, ("arguments", "head"), what)
        return name, read_settings(Custom, {"target": name, **section}, what)
    made: Any = import_target(f"{what}.name", name)
    if not dataclasses.is_dataclass(made):
        raise ValueError(f"{what}.name: '{name}' is not a dataclass: decorate it with @dataclass(frozen=True)")
    methods = _METHODS_WITH_SCORE if callable(getattr(made, "score", None)) else _METHODS
    lacking = [method for method in methods if not callable(getattr(made, method, None))]
    if lacking:
        remedy = "give it the methods of metatrain.types.Algorithm"
        raise ValueError(f"{what}.name: '{name}' lacks {' and '.join(lacking)}: {remedy}")
    return name, read_settings(made, section, what)


def _name_of(section: dict[str, Any], what: str, known: Mapping[str, Any]) -> str:
    """Pop the name from a section. ValueError: it is neither known nor an import path."""
    choices = f"choose among {', '.join(known)}, or give package.module:Name"
    if "name" not in section:
        raise ValueError(f"{what}.name: missing: {choices}")
    name = checked(str, section.pop("name"), f"{what}.name")
    if name not in known and ":" not in name:
        raise ValueError(f"{what}.name: no '{name[: LONGEST // 2]}'{suggest_name(name, known)}: {choices}")
    return str(name)


def as_plain(config: Config) -> dict[str, Any]:
    """Convert to the plain dict that `read_config` reads back to an equal Config."""
    plain: dict[str, Any] = {"seed": config.seed, "initialize": config.initialize}
    shapes = {"train": dataclasses.asdict(config.tasks.train), "test": dataclasses.asdict(config.tasks.test)}
    plain["tasks"] = _plain_part(config.names.tasks, config.tasks.source) | shapes
    plain["model"] = _plain_part(config.names.model, config.model)
    plain["model"].pop("target", None)
    plain["model"]["weights"] = config.weights
    plain["algorithm"] = _plain_part(config.names.algorithm, config.algorithm)
    for section in SECTIONS:
        if section not in plain:
            plain[section] = dataclasses.asdict(getattr(config, section))
    return plain


def _plain_part(name: str, part: Any) -> dict[str, Any]:
    return {"name": name} | dataclasses.asdict(part)


def _is_file(setting: Any) -> bool:
    """Return whether a setting is a path of this machine: no URI, no lists, and no name of a way to split classes."""
    shipped = (folder.name for folder in (resources.files("tasks") / "splits").iterdir())
    named = isinstance(setting, str) and setting not in ("", AUTO, TEST, SHUFFLE, *shipped)
    return named and not is_uri(setting)


def resolve_paths(config: Config) -> Config:
    """Make the paths of data, weights and MLflow's database absolute, so that a resume from another folder finds them.

    `runs.root` stays as it is: where a run lies is known once it is there.
    """
    source, tracking = _with_absolute_paths(config.tasks.source), config.tracking
    scheme, slashes, file = expand_home(tracking.uri or "").partition("sqlite:///")
    if slashes and not scheme:
        tracking = dataclasses.replace(tracking, uri=f"sqlite:///{Path(file).absolute()}")
    begins = {name: getattr(config, name) for name in ("weights", "initialize")}
    begins = {name: str(home_path(path).absolute()) for name, path in begins.items() if path and not is_uri(path)}
    shapes = {part: _with_absolute_files(getattr(config.tasks, part)) for part in ("train", "test")}
    tasks = dataclasses.replace(config.tasks, source=source, **shapes)
    return dataclasses.replace(config, tasks=tasks, tracking=tracking, **begins)


def _with_absolute_files(shape: TaskShape) -> TaskShape:
    """Return the size of tasks with an absolute path of the file of descriptions, if there is one."""
    if not isinstance(shape, DescribedShape) or shape.descriptions == OWN or is_uri(shape.descriptions):
        return shape
    return dataclasses.replace(shape, descriptions=str(home_path(shape.descriptions).absolute()))


def _with_absolute_paths(settings: Any) -> Any:
    """Return a source's settings, and those of sources within it, with absolute paths."""
    hints = get_type_hints(type(settings), include_extras=True)
    marked = {name: getattr(settings, name) for name, hint in hints.items() if is_path(hint)}
    found = {"root": getattr(settings, "root", None), **marked}
    changed: dict[str, Any] = {name: str(home_path(path).absolute()) for name, path in found.items() if _is_file(path)}
    if isinstance(settings, Mixture):
        changed["sources"] = {key: _with_absolute_paths(one) for key, one in settings.sources.items()}
    if isinstance(settings, MixedSource):
        inner = _with_absolute_paths(settings.source())
        changed["settings"] = {name: getattr(inner, name) for name in settings.settings}
    return dataclasses.replace(settings, **changed) if changed else settings


CHANGEABLE_EXECUTOR = ("executor.name", "executor.workers", "executor.address", "executor.timeout", "executor.deadline")
_CHANGEABLE = ("checkpoint.", "runs.heartbeat", "tracking.uri", "tracking.experiment")


def override_for_resume(config: Config, overrides: Sequence[str], done: int | None = None) -> Config:
    """Apply overrides to a run that is resumed. The run's own config.yaml keeps the values it began with.

    done: the steps that were taken, of a run that may be extended (`metatrain.config.extension`).
    ValueError: an override changes what is computed, not only where it is computed and recorded.
    """
    before = as_plain(config)
    changed = read_config(apply_overrides(before, overrides))
    for key in changed_keys(before, as_plain(changed)):
        if key == "outer.steps" and done is not None:
            few = (
                f"outer.steps: {changed.outer.steps} is not more than the {done} steps that the run has taken: set more"
            )
            require(changed.outer.steps > done, few)
        elif not key.startswith((*CHANGEABLE_EXECUTOR, *_CHANGEABLE)) and not is_location(key):
            raise ValueError(
                f"{key}: cannot change in a resumed run, which ends as if it had not stopped: remove it, or start a "
                "new run; outer.steps, executor.workers, checkpoint.every and tracking.uri can change"
            )
    return changed


def as_yaml(config: Config) -> str:
    """Write a configuration as YAML that `metatrain train` reads."""
    return dump_yaml(as_plain(config))
