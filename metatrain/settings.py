"""Define every key of a configuration, except those of the chosen task source, model and algorithm.

Plain frozen dataclasses that validate themselves; `metatrain/config/load.py` reads them from YAML. The sections
`engine` and `executor` are in `execution_settings.py`.
"""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from metatrain.algorithms.base import Algorithm
from metatrain.execution_settings import EngineSettings as EngineSettings
from metatrain.execution_settings import ExecutorSettings as ExecutorSettings
from metatrain.execution_settings import WorkerRange as WorkerRange
from metatrain.models import Architecture
from metatrain.redact import require_no_login
from metatrain.validation import require, require_at_most, require_not_negative, require_positive
from tasks.corruptions import CORRUPTIONS, SEVERITIES
from tasks.described_shape import DescribedShape, TaskShape
from tasks.io.home import PathText
from tasks.types import EpisodeShape, TaskSource

_MOST_TASKS = 10**7
_MOST_SEED = 2**63 - 1
_OWN_PLACE = "set it where the database's client looks for it, such as ~/.pgpass"


@dataclass(frozen=True)
class Tasks:
    """The task source and the episode shapes for training and for evaluation."""

    source: TaskSource
    train: TaskShape = field(default_factory=EpisodeShape)
    test: TaskShape = field(default_factory=EpisodeShape)

    def __post_init__(self) -> None:
        share = self.train.held_out if isinstance(self.train, DescribedShape) else 0.0
        if isinstance(self.train, DescribedShape):
            require(self.train.seen == 0, "tasks.train.seen: seen classes are for tests: set tasks.test.seen")
        if isinstance(self.test, DescribedShape):
            other = f"tasks.test.held_out: {self.test.held_out:g}, and training leaves out {share:g}"
            require(self.test.held_out in (0, share), f"{other}: set tasks.train.held_out alone")
            object.__setattr__(self, "test", replace(self.test, held_out=share if self.test.seen else 0.0))


@dataclass(frozen=True)
class GroupSettings:
    """Optimiser settings of one group of meta-parameters. A schedule goes from `lr` to `final_lr`."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    final_lr: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_positive("", lr=self.lr)
        require_not_negative("", final_lr=self.final_lr, momentum=self.momentum, weight_decay=self.weight_decay)
        unused = (
            f"momentum: {self.momentum:g} has no effect with {self.optimizer}: set optimizer to sgd, or momentum to 0"
        )
        require(self.momentum == 0 or self.optimizer == "sgd", unused)


@dataclass(frozen=True)
class OuterSettings:
    """Settings of the outer loop and of the optimiser of all meta-parameters outside `groups`.

    groups: keyed by a prefix of parameter names, such as "inner_lr" or "model.head", each with its own optimiser.
    The schedule is shared: it takes each group's rate from its `lr` to its `final_lr`, or halves it. In the first
    `warmup` steps the rate rises to it in proportion.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    steps: int = 1000
    tasks_per_step: int = 16
    schedule: Literal["constant", "linear", "cosine", "halving"] = "constant"
    final_lr: float = 0.0
    halve_every: int = 2000
    warmup: int = 0
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    groups: dict[str, GroupSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive("outer", steps=self.steps, tasks_per_step=self.tasks_per_step, halve_every=self.halve_every)
        require_positive("outer", clip_value=self.clip_value, clip_norm=self.clip_norm)
        require_not_negative("outer", warmup=self.warmup)
        require_at_most("outer", _MOST_TASKS, tasks_per_step=self.tasks_per_step)
        ends = any(group.final_lr for group in (self.default_group, *self.groups.values()))
        require(
            not ends or self.schedule in ("linear", "cosine"),
            f"outer.final_lr: has no effect with the schedule {self.schedule}: set outer.schedule to linear or cosine",
        )
        require(
            self.halve_every == 2000 or self.schedule == "halving",
            f"outer.halve_every: has no effect with the schedule {self.schedule}: set outer.schedule to halving",
        )

    @property
    def default_group(self) -> GroupSettings:
        """Return the optimiser settings of the parameters that are in no group."""
        return GroupSettings(self.optimizer, self.lr, self.final_lr, self.momentum, self.weight_decay)


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation on held-out tasks, drawn by a seed of their own so that runs are compared on the same tasks.

    from_scratch_tasks: the most tasks the from-scratch baseline is trained on; 0 turns it off.
    corruption, severity: test tasks have their images corrupted so (`tasks.corruptions`), by 1 to 5; None for as they
    are.
    """

    every: int = 500
    tasks: int = 1000
    validation_tasks: int = 200
    inner_steps: int | None = None
    seed: int = 0
    baselines: bool = True
    from_scratch_tasks: int = 100
    corruption: str | None = None
    severity: int = 3

    def __post_init__(self) -> None:
        require_positive("evaluation", every=self.every, inner_steps=self.inner_steps)
        require(self.tasks >= 2, f"evaluation.tasks: {self.tasks} task has no interval: set 2 or more")
        few = "evaluation.from_scratch_tasks: 1 task has no interval: set 2 or more, or 0 for none"
        require(self.validation_tasks >= 2, "evaluation.validation_tasks: an interval needs more: set 2 or more")
        require(self.from_scratch_tasks != 1, few)
        require_not_negative("evaluation", from_scratch_tasks=self.from_scratch_tasks)
        require_at_most("evaluation", _MOST_TASKS, tasks=self.tasks, validation_tasks=self.validation_tasks)
        require_not_negative("evaluation", seed=self.seed)
        known = self.corruption is None or self.corruption in CORRUPTIONS
        names = f"no corruption is called '{self.corruption}': set one of {', '.join(CORRUPTIONS)}, or null"
        require(known, f"evaluation.corruption: {names}")
        amount = f"evaluation.severity: {self.severity} is no severity: set 1 to {SEVERITIES}"
        require(1 <= self.severity <= SEVERITIES, amount)
        require_at_most("evaluation", _MOST_SEED, seed=self.seed)


@dataclass(frozen=True)
class RunsSettings:
    """Where run folders are created: on a disk, or in object storage as s3://BUCKET/FOLDER.

    heartbeat: seconds between heartbeats in object storage; a run that missed four may be taken over.
    """

    root: PathText = "runs"
    name: str = "run"
    heartbeat: float = 15.0

    def __post_init__(self) -> None:
        require_positive("runs", heartbeat=self.heartbeat)
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None
        require(
            plain,
            f"runs.name: {self.name[:100]!r} cannot name a folder: use letters, digits, '-', '_' and '.', 1 to 100 of "
            "them, a letter or digit first",
        )
        require(bool(self.root) and "\0" not in self.root, f"runs.root: {self.root!r} does not name a folder: set one")
        elsewhere = "://" in self.root and not re.match(r"s3://[^/]+", self.root)
        require(
            not elsewhere,
            f"runs.root: '{self.root}': runs are kept on disks and in s3://BUCKET/FOLDER: set one of these",
        )


@dataclass(frozen=True)
class CheckpointSettings:
    """Steps between checkpoints, and how many of the newest are kept (the best by validation is kept too)."""

    every: int = 200
    keep: int = 3

    def __post_init__(self) -> None:
        require_positive("checkpoint", every=self.every, keep=self.keep)


@dataclass(frozen=True)
class TrackingSettings:
    """Where MLflow records runs; `uri: null`: the run folder only. `every`: steps between recorded metrics."""

    uri: PathText | None = "sqlite:///mlflow.db"
    experiment: str = "metatrain"
    every: int = 1

    def __post_init__(self) -> None:
        require_positive("tracking", every=self.every)
        require(self.experiment.strip() != "", "tracking.experiment: is empty: set a name, such as metatrain")
        at_server = (self.uri or "").lower().startswith(("http://", "https://"))
        instead = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if at_server else _OWN_PLACE
        require_no_login("tracking.uri", self.uri or "", instead)


@dataclass(frozen=True)
class PartNames:
    """The names by which a configuration chose its parts: registered ones, or import paths "package.module:Name"."""

    tasks: str
    model: str
    algorithm: str

    @property
    def of_user_code(self) -> list[str]:
        """Return the settings that name user code, such as "algorithm.name"."""
        return [f"{part}.name" for part in ("algorithm", "model", "tasks") if ":" in getattr(self, part)]


@dataclass(frozen=True)
class Config:
    """The complete configuration of a run; `seed` determines the initial parameters, so everything follows from it.

    weights: a file or run that the network's weights are read from, set by `model.weights`. initialize: a run whose
    parameters a new run begins with. Both are read once: a run keeps what it began with.
    """

    tasks: Tasks
    model: Architecture
    algorithm: Algorithm
    names: PartNames
    seed: int = 0
    weights: PathText | None = None
    initialize: PathText | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    outer: OuterSettings = field(default_factory=OuterSettings)
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    runs: RunsSettings = field(default_factory=RunsSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed: {self.seed} is no seed: set 0 or more, below 2^63")
        for key, place in (("model.weights", self.weights), ("initialize", self.initialize)):
            names = place is None or (place.strip() != "" and "\0" not in place)
            require(names, f"{key}: {place!r} names no file or run: set one, or remove it")


SECTIONS = tuple(section.name for section in fields(Config) if section.name not in ("names", "weights"))
"""The top-level keys of a configuration file; `names` are read from the sections `tasks`, `model` and `algorithm`,
`weights` from `model`."""
