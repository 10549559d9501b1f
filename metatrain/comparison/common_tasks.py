"""Bring runs to the same tasks: those of the first run or of overrides, and those of other configurations."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.comparison.candidates import Candidate
from metatrain.config.load import as_plain, load_config, load_raw, resolve_paths
from metatrain.config.run_data import (
    EvaluationData,
    choose_test_classes,
    data_of,
    match_images,
    read_evaluation_config,
    require_same_examples,
    without_unused_splits,
)
from metatrain.settings import Config, EvaluationSettings, Tasks
from metatrain.trust import require_chosen_places
from metatrain.validation import require
from metatrain.yaml_config import flatten
from tasks.described_shape import TaskShape
from tasks.opening import open_tasks
from tasks.ragged_shape import RaggedShape, describe_shape
from tasks.types import DataRecord, EpisodeShape, Progress, Split, TaskDistribution, TaskSource

Prepare = Callable[[Config], object]
"""Decode what the tasks of a configuration need, once on this machine."""


class TaskSet(NamedTuple):
    """Tasks that all runs are scored on: those that `config` tests on."""

    name: str
    config: Config
    data: DataRecord | None
    """What they are drawn from; None for a source that does not say."""
    split: Split = "test"
    """Whose classes they are drawn from."""

    @property
    def shape(self) -> TaskShape:
        """Return the size of its tasks."""
        return self.config.tasks.test

    def describe(self) -> str:
        """Say what the tasks are: strokes, 5-way 1-shot, 15 queries a class."""
        evaluation = self.config.evaluation
        changed = "" if evaluation.corruption is None else f", {evaluation.corruption} {evaluation.severity}"
        return f"{self.config.names.tasks}, {describe_shape(self.shape)}{changed}"


def require_trusted(candidate: Candidate, overrides: Sequence[str], trust: bool = False) -> None:
    """Check that a run that this user did not make names no place that the user has not chosen. ValueError: it does."""
    settings = untracked(read_evaluation_config(candidate.trained, [one for one in overrides if not is_of_tasks(one)]))
    require_chosen_places(candidate.home.config, flatten(as_plain(settings)), overrides, trust)


def first_tasks(first: Candidate, overrides: Sequence[str], prepare: Prepare, split: Split = "test") -> TaskSet:
    """Return the test tasks of the first run, with `overrides`, as `metatrain evaluate` has them; or of `split`."""
    settings = untracked(read_evaluation_config(first.trained, overrides))
    found = choose_test_classes(first.trained, first.kept, settings, overrides, prepare)
    return _drawn_from(TaskSet("the same tasks", *found), split)


def other_tasks(
    first: Candidate, common: TaskSet, overrides: Sequence[str], also: str, prepare: Prepare, trust: bool = False
) -> TaskSet:
    """Return the tasks that `--also` names: settings beside `overrides`, or the tasks of another configuration.

    They are as many as those of `common`, of the same split, by the same seed, unless the settings say otherwise.
    """
    given = split_settings(also)
    if given is not None:
        both = [*overrides, *given]
        settings = untracked(read_evaluation_config(first.trained, both))
        found = choose_test_classes(first.trained, first.kept, settings, both, prepare)
        return _drawn_from(TaskSet(also, *found), common.split)
    path, _ = load_raw(also)
    other = load_config(path, trust=trust)
    placed = {key: value for key, value in flatten(as_plain(other)).items() if key.startswith("tasks.")}
    require_chosen_places(path, placed, (), trust)
    tasks = Tasks(other.tasks.source, common.config.tasks.train, other.tasks.test)
    names = replace(common.config.names, tasks=other.names.tasks)
    config = resolve_paths(replace(common.config, tasks=tasks, names=names))
    prepare(config)
    drawn = without_unused_splits(EvaluationData(config, data_of(config)), prepare)
    return _drawn_from(TaskSet(Path(also).stem, *drawn), common.split)


def split_settings(text: str) -> list[str] | None:
    """Split "tasks.test.ways=20 tasks.test.shots=5" at the blanks before a key; None for what holds no setting."""
    if re.match(r"\s*[A-Za-z_][\w.]*=", text) is None:
        return None
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip())


def settings_for(candidate: Candidate, tasks: TaskSet, overrides: Sequence[str], prepare: Prepare) -> Config:
    """Return the settings by which a run is scored on `tasks`: all its own but the tasks, their number and seed.

    overrides: other settings of theirs change each run's. ValueError: its network takes other examples, or fewer
    classes.
    """
    others = [override for override in overrides if not is_of_tasks(override)]
    own = untracked(read_evaluation_config(candidate.trained, others))
    given = tasks.config
    config = replace(
        own,
        tasks=Tasks(given.tasks.source, own.tasks.train, given.tasks.test),
        names=replace(own.names, tasks=given.names.tasks),
        evaluation=_like(own.evaluation, given.evaluation),
    )
    config = without_unused_splits(EvaluationData(config, tasks.data), prepare).config
    config, _ = match_images(config, candidate.trained, candidate.spec)
    require_same_examples(config, candidate.spec)
    return config


def _like(own: EvaluationSettings, given: EvaluationSettings) -> EvaluationSettings:
    """Return a run's own settings with those of tasks that all runs share."""
    shared = ("seed", "tasks", "corruption", "severity")
    return replace(own, **{name: getattr(given, name) for name in shared})


def training_tasks(candidate: Candidate, tasks: TaskSet, overrides: Sequence[str], prepare: Prepare) -> TaskSet:
    """Return tasks of the shape, number and seed of `tasks`, drawn from the classes that the run was trained on."""
    moved = [override for override in overrides if override.startswith(("tasks.root=", "tasks.cache="))]
    moved = moved if candidate.trained.names.tasks == tasks.config.names.tasks else []
    settings = untracked(read_evaluation_config(candidate.trained, moved))
    config, data = choose_test_classes(candidate.trained, candidate.kept, settings, moved, prepare)
    if data is not None and candidate.kept is not None:
        gone = list(data.classes["train"]) != list(candidate.kept.classes["train"])
        require(not gone, "its training classes are not all there: set tasks.root to the folder that holds them")
    evaluation = _like(config.evaluation, tasks.config.evaluation)
    shaped = replace(config, tasks=replace(config.tasks, test=tasks.shape), evaluation=evaluation)
    return _drawn_from(TaskSet("training classes", shaped, None), "train")


def _drawn_from(tasks: TaskSet, split: Split) -> TaskSet:
    """Return the tasks drawn from the classes of `split` in place of the test classes."""
    if split == "test":
        return tasks
    given, data = tasks.config.tasks, tasks.data
    config = replace(tasks.config, tasks=replace(given, source=OtherSplit(given.source, split)))
    if data is not None:
        data = data._replace(classes={**data.classes, "test": data.classes[split]})
    return TaskSet(tasks.name, config, data, split)


@dataclass(frozen=True)
class OtherSplit:
    """A source whose test tasks are drawn from another split of `source`."""

    source: TaskSource
    split: Split

    def prepare(self, progress: Progress) -> str:
        """Prepare the other source."""
        return self.source.prepare(progress)

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> TaskDistribution[Any]:
        """Return the tasks of `split`; for testing those of the other split."""
        return self.source.distribution(self._drawn_from(split), episode, seed)

    def ragged(self, split: Split, shape: RaggedShape, seed: int) -> TaskDistribution[Any]:
        """Return tasks of many sizes of `split`; for testing those of the other split."""
        return open_tasks(self.source, type(self.source).__name__, self._drawn_from(split), shape, seed)

    def __getattr__(self, name: str) -> Any:
        """Return what a source of images has beside these: its pool of a split, its mean and standard deviation."""
        if name == "pool":
            pool = self.source.pool  # type: ignore[attr-defined]
            return lambda split: pool(self._drawn_from(split))
        if name in ("mean", "std"):
            return getattr(self.source, name)
        raise AttributeError(name)

    def _drawn_from(self, split: Split) -> Split:
        return self.split if split == "test" else split


@contextmanager
def about(candidate: Candidate) -> Iterator[None]:
    """Say in an error which of the runs it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{candidate.label}: {error}") from error


def untracked(config: Config) -> Config:
    """Return the configuration without MLflow: a comparison is recorded with no run."""
    return replace(config, tracking=replace(config.tracking, uri=None))


def is_of_tasks(override: str) -> bool:
    """Return whether an override is one of `tasks` or of a setting in it."""
    key = override.partition("=")[0]
    return key == "tasks" or key.startswith("tasks.")
