"""Open the sources of tasks that are compared: those of files and of runs, their images as the probe was trained on."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from metatrain.config.load import as_plain, load_config, resolve_paths
from metatrain.config.run_data import load_tasks, match_images, require_same_examples
from metatrain.config.shipped import find_config
from metatrain.runs import Run
from metatrain.settings import Config, Tasks
from metatrain.setup import prepare
from metatrain.trust import require_chosen_places
from metatrain.validation import require
from metatrain.yaml_config import flatten
from tasks.few_shot import EmptySplit
from tasks.opening import open_tasks
from tasks.text import part_of
from tasks.types import EpisodeShape, Split, TaskDistribution


class Source(NamedTuple):
    """A source of tasks, named for the user: `config` holds it, with the size of its test tasks."""

    name: str
    config: Config
    file: Path
    """The file that it is from: a user's own, or a run's configuration."""

    @property
    def shape(self) -> EpisodeShape:
        """Return the size of its test tasks. ValueError: they have many sizes, or no classes."""
        shape = self.config.tasks.test
        if isinstance(shape, EpisodeShape) and shape.ways is not None:
            return shape
        raise ValueError(f"{self.name}: tasks of one size with classes are compared: set tasks.test.ways and .shots")

    def says_the_same(self, other: "Source") -> bool:
        """Return whether both draw the same tasks for testing: of the same source, with the same settings."""
        return _settings_of(self.config) == _settings_of(other.config)


def _settings_of(config: Config) -> dict[str, Any]:
    plain = as_plain(resolve_paths(config))["tasks"]
    return {key: value for key, value in plain.items() if key != "train"}


def read_sources(files: Sequence[str], trust: bool = False) -> list[Source]:
    """Read the tasks of each file, named by the file without its suffix, or by its path where two would be alike.

    ValueError: a file is named twice or is no configuration; or it names a place that is not the user's to name.
    """
    paths = [find_config(file) for file in files]
    for path, times in Counter(path.absolute() for path in paths).items():
        require(times == 1, f"SOURCE…: {path} is named {times} times: name each file once")
    stems = Counter(path.stem for path in paths)
    found = []
    for file, path in zip(files, paths, strict=True):
        with _about(path):
            config = load_tasks(file, trust)
        placed = {key: value for key, value in flatten(as_plain(config)).items() if key.startswith("tasks.")}
        require_chosen_places(path, placed, (), trust)
        found.append(Source(path.stem if stems[path.stem] == 1 else str(path), config, path))
    return found


def with_own_source(home: Run, sources: Sequence[Source], trust: bool = False) -> tuple[Source, list[Source]]:
    """Return the source that a run was trained on, one of `sources` that says the same or a new one; and all of them.

    ValueError: as for `read_sources`.
    """
    config = load_config(home.config, trust=trust)
    require_chosen_places(home.config, flatten(as_plain(config)), (), trust)
    own = Source(f"tasks of {home.run_id}", config, home.config)
    known = next((one for one in sources if own.says_the_same(one)), None)
    return (own, [*sources, own]) if known is None else (known, list(sources))


def require_same_shape(sources: Sequence[Source]) -> EpisodeShape:
    """Return the size of the tasks of all sources. ValueError: they differ."""
    first = sources[0]
    for one in sources[1:]:
        if one.shape != first.shape:
            both = " and ".join(f"{source.name} has {_describe(source.shape)}" for source in (first, one))
            raise ValueError(f"tasks.test: {both}: set the same ways, shots and queries in all files")
    return first.shape


def _describe(shape: EpisodeShape) -> str:
    return f"{shape.ways}-way {shape.shots}-shot, {shape.queries} queries"


def open_source(
    source: Source, probe: Config, spec: Mapping[str, Any], split: Split, say: Callable[[str], None]
) -> TaskDistribution[Any]:
    """Return the tasks of a split of `source`, images as those that the probe was trained on, after preparing them.

    probe, spec: the probe's configuration, and what its training tasks had in common. say: told what is done to images.
    They are the tasks that
    `metatrain evaluate PROBE tasks=FILE` scores, with its seed. ValueError: there are none, or their examples do not
    fit the probe's network.
    """
    given = source.config
    tasks = Tasks(given.tasks.source, probe.tasks.train, source.shape)
    config = resolve_paths(replace(probe, tasks=tasks, names=replace(probe.names, tasks=given.names.tasks)))
    with _about(source.name):
        prepare(config)
        config, matched = match_images(config, probe, spec)
        require_same_examples(config, {**spec, "support": None})  # the network alone is read
        found = open_tasks(config.tasks.source, config.names.tasks, split, source.shape, probe.evaluation.seed)
    if matched is not None:
        say(matched)
    none = f"{source.name}: has no {split} classes: set another --split, or {part_of(split)} classes by tasks.splits"
    require(not isinstance(found, EmptySplit), none)
    classes = found.spec.kind == "classification" and isinstance(found.episodes([0]).support.x, Tensor)
    require(classes, f"{source.name}: its tasks are no images with classes")
    return found


@contextmanager
def _about(source: str | Path) -> Iterator[None]:
    """Say in an error which source it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(f"{source}: ") else f"{source}: {error}") from error
