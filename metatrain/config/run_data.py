"""Choose the classes that a run is resumed with and evaluated on, so that no test class was trained on."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.config.dry_run import explain_user_errors
from metatrain.config.evaluation_overrides import split_tasks_file
from metatrain.config.load import as_plain, load_raw, read_config, resolve_paths
from metatrain.config.other_algorithm import with_other_algorithm
from metatrain.settings import Config
from metatrain.trust import require_known_code
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides, parse_yaml
from tasks.described import OWN, FileDescriptions
from tasks.described_shape import DescribedShape
from tasks.opening import open_tasks
from tasks.sources.class_splits import AUTO, SHUFFLE, TEST
from tasks.sources.features import Features
from tasks.sources.image_folder import ImageFolder
from tasks.transformed import Resize, TransformedSource, moments_of
from tasks.types import DataRecord, as_shapes, is_shape


class EvaluationData(NamedTuple):
    """The settings of an evaluation, with the classes it is on; the record of its data, None where there is none."""

    config: Config
    data: DataRecord | None


def data_of(config: Config) -> DataRecord | None:
    """Return what the tasks are drawn from, prepared already; None for a source that does not say."""
    data = getattr(config.tasks.source, "data", None)
    if data is None:
        return None
    with explain_user_errors(config):
        found = data()
    if isinstance(found, DataRecord):
        return _with_descriptions(found, config)
    if found is None:
        return None
    raise ValueError(f"tasks.name: data() of '{config.names.tasks}' returns no tasks.types.DataRecord: return one")


def _with_descriptions(found: DataRecord, config: Config) -> DataRecord:
    """Return the record with the vectors of files of descriptions in the digests of the classes that have them."""
    shapes = [one for one in (config.tasks.train, config.tasks.test) if isinstance(one, DescribedShape)]
    contents = dict(found.contents)
    for file in sorted({shape.descriptions for shape in shapes} - {OWN}):
        for name, digest in FileDescriptions(file).digests().items():
            if name in contents:
                contents[name] = hashlib.sha256(f"{contents[name]} {digest}".encode()).hexdigest()[:32]
    return found._replace(contents=contents)


def require_training_classes(data: DataRecord | None) -> None:
    """Check that there is something to train on. ValueError: the source has test classes alone."""
    if data is not None and not data.classes["train"]:
        counts = ", ".join(f"{len(names)} {split}" for split, names in data.classes.items())
        remedy = "set tasks.root to a folder with training classes, or list them with tasks.splits"
        raise ValueError(f"tasks: no classes are left for training ({counts}): {remedy}")


def split_as_before(config: Config) -> Config:
    """Return the configuration of a run without a record of its data, with the splits of the version that made it."""
    source = config.tasks.source
    if not (isinstance(source, ImageFolder) and source.splits == AUTO):
        return config
    return _with_source(config, dataclasses.replace(source, splits=SHUFFLE))


def read_evaluation_config(trained: Config, overrides: Sequence[str], trust: bool = False) -> Config:
    """Apply overrides to a run's configuration. Another source of tasks starts from its own settings, not the run's.

    So does another algorithm. tasks=FILE.yaml takes the tasks of another configuration. ValueError: see `load_config`.
    """
    file, overrides = split_tasks_file(overrides)
    plain = with_other_algorithm(as_plain(trained), overrides)
    if file is not None:
        other = as_plain(load_tasks(file, trust))["tasks"]
        plain["tasks"] = {**other, "train": plain["tasks"]["train"]}
    plain["tasks"]["test"].pop("held_out", None)  # which follows from what the run's training left out
    pairs = (override.partition("=") for override in overrides)
    named = [parse_yaml(value, key) for key, _, value in pairs if key == "tasks.name"]
    if named and named[-1] != plain["tasks"]["name"]:
        plain["tasks"] = {key: plain["tasks"][key] for key in ("train", "test")}
    found = read_config(apply_overrides(plain, overrides))
    _require_seen_classes(trained, found)
    before, after = (getattr(one.model, "normalization", None) for one in (trained, found))
    layers: dict[Any, str] = {"transductive": "of batches", "inductive": "of batches"}
    if layers.get(before, before) != layers.get(after, after):
        raise ValueError(
            f"model.normalization: the run was trained with '{before}', whose layers are others: leave it out"
        )
    return found


def _require_seen_classes(trained: Config, found: Config) -> None:
    """Check that classes of training are those of the run, and what it left out. ValueError: they are not."""
    before, after = trained.tasks.train, found.tasks.train
    if isinstance(before, DescribedShape) and isinstance(after, DescribedShape):
        kept = f"tasks.train.held_out: the run left out {before.held_out:g} of each class, which cannot change"
        require(before.held_out == after.held_out, f"{kept}: leave it")
    if isinstance(found.tasks.test, DescribedShape) and found.tasks.test.seen:
        own, other = (_without_places(one.tasks.source) for one in (trained, found))
        reason = "tasks.test.seen: seen classes are those of the run, and these tasks have others"
        require(own == other, f"{reason}: set it to 0")


def _without_places(source: Any) -> Any:
    """Return a source as it is wherever its files lie."""
    places = {name: None for name in ("root", "cache") if hasattr(source, name)}
    return dataclasses.replace(source, **places)


def load_tasks(path: str | Path, trust: bool = False) -> Config:
    """Read a configuration for its tasks, which may be all that the file holds: `tasks: {…}`, or what stands there.

    Model and algorithm are then stand-ins. ValueError: see `load_config`.
    """
    path, plain = load_raw(path)
    plain = {"tasks": plain} if "name" in plain and "tasks" not in plain else plain
    require_known_code(path, plain, trust)
    return read_config({"model": {"name": "mlp"}, "algorithm": {"name": "protonet"}, **plain})


def choose_test_classes(
    trained: Config,
    kept: DataRecord | None,
    config: Config,
    overrides: Sequence[str],
    prepare: Callable[[Config], object],
) -> EvaluationData:
    """Return `config` with the classes that it tests, after preparing their data.

    Of the run's own data these are the run's test classes, also where the data have grown or moved, unless
    `overrides` choose others. Of other data they are those set aside for testing, or else all classes. kept: the run's
    record of its data.
    """
    config = resolve_paths(config)
    source: Any = config.tasks.source
    before: Any = trained.tasks.source
    choices = [config]
    chosen = any(override.startswith(("tasks.splits=", "tasks.splits.")) for override in overrides)
    if chosen or split_tasks_file(overrides)[0] is not None:
        pass
    elif type(source) is not type(before):
        choices = [_all_for_testing(config)]
    elif hasattr(source, "with_splits") and kept is None:
        choices = [split_as_before(config)]
    elif hasattr(source, "with_splits") and kept is not None:
        lists = (kept.classes, {"test": kept.classes["test"]})
        choices = [_with_source(config, source.with_splits(classes)) for classes in lists if any(classes.values())]
        if getattr(source, "root", None) != getattr(before, "root", None):
            choices.append(_all_for_testing(config))
    return without_unused_splits(_first_with_data(choices, prepare), prepare)


def without_unused_splits(found: EvaluationData, prepare: Callable[[Config], object]) -> EvaluationData:
    """Return the test classes alone if tasks cannot be drawn from other splits, which an evaluation does not read."""
    config, data = found
    source: Any = config.tasks.source
    if data is None or not data.classes["test"] or not hasattr(source, "with_splits"):
        return found
    try:
        open_tasks(source, config.names.tasks, "train", config.tasks.train, config.seed)
        open_tasks(source, config.names.tasks, "validation", config.tasks.test, config.evaluation.seed)
    except ValueError:  # too few classes, or images of a class
        alone = _with_source(config, source.with_splits({"test": data.classes["test"]}))
        prepare(alone)
        return EvaluationData(alone, data)
    return found


def _first_with_data(choices: Sequence[Config], prepare: Callable[[Config], object]) -> EvaluationData:
    """Return the first choice whose classes are all there. ValueError: that of the first choice, if none is."""
    problems: list[ValueError] = []
    for config in choices:
        try:
            prepare(config)
            return EvaluationData(config, data_of(config))
        except ValueError as error:  # a class is not there
            problems.append(error)
    raise problems[0]


def _all_for_testing(config: Config) -> Config:
    """Return `config` with the test classes that its source sets aside or, of an undivided folder, all classes."""
    source = config.tasks.source
    if not isinstance(source, (ImageFolder, Features)):
        return config
    return _with_source(config, dataclasses.replace(source, splits=TEST))


def match_images(config: Config, trained: Config, spec: Mapping[str, Any]) -> tuple[Config, str | None]:
    """Return `config` with the images of another source as the run's were: their shape, channels and normalisation.

    Return too what was done, in a line. Sources of the run's own kind are as their settings say.
    """
    source: Any = config.tasks.source
    with explain_user_errors(config):
        tested = open_tasks(source, config.names.tasks, "test", config.tasks.test, config.evaluation.seed).spec
    found, wanted = tested.x, as_shapes(spec["x"])
    images = all(is_shape(shape) and len(shape) == 3 and shape[0] in (1, 3) for shape in (found, wanted))
    own: Any = trained.tasks.source
    same_data = type(source) is type(own) and getattr(source, "root", None) == getattr(own, "root", None)
    if same_data or not images or not hasattr(source, "pool"):
        return config, None
    if found == wanted and moments_of(source) == moments_of(own):
        return config, None
    done = f"images of {config.names.tasks} {list(found)} are brought to those trained on, {list(wanted)}"
    return _with_source(config, TransformedSource(source, Resize(wanted), *moments_of(own))), done


def require_same_examples(config: Config, spec: Mapping[str, Any]) -> None:
    """Check that test tasks have examples of the shape trained on. ValueError: with the settings that give it.

    spec: what the tasks trained on had in common, from a checkpoint.
    """
    source = config.tasks.source
    with explain_user_errors(config):
        tested = open_tasks(source, config.names.tasks, "test", config.tasks.test, config.evaluation.seed).spec
    support = spec.get("support")
    kinds = (tested.support, None if support is None else as_shapes(support))
    told = tuple("examples like queries" if kind is None else f"{kind}" for kind in kinds)
    differ = f"tasks: their support sets are of {told[0]}, and the run learned from {told[1]}"
    require(kinds[0] == kinds[1], f"{differ}: set descriptions and shots in tasks.test as in tasks.train")
    found, wanted = tested.x, as_shapes(spec["x"])
    if found == wanted:
        return
    remedies = []
    if is_shape(wanted) and is_shape(found) and len(wanted) == len(found) == 3:
        channels = {1: "grey", 3: "rgb"}.get(wanted[0])
        if hasattr(source, "channels") and wanted[0] != found[0] and channels is not None:
            remedies.append(f"tasks.channels={channels}")
        if hasattr(source, "size") and wanted[1:] != found[1:] and wanted[1] == wanted[2]:
            remedies.append(f"tasks.size={wanted[1]}")
    remedy = f"set {' '.join(remedies)}" if remedies else "use tasks of the same shape"
    raise ValueError(f"tasks: their examples are of {found}, and the run was trained on {wanted}: {remedy}")


def _with_source(config: Config, source: Any) -> Config:
    return dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, source=source))
