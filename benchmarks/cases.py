"""Define the benchmark cases (network, tasks, inner loop) by names such as "omniglot-5-32".

Everything is a pure function of the case, so every process gets the same tasks and parameters. Images are uniform
noise in the shape of the data sets: computing time does not depend on their content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from metatrain.models import ARCHITECTURES, Model, build_model
from metatrain.types import Params
from tasks.random import stream
from tasks.sources.sinusoid import Sinusoid
from tasks.types import Episode, EpisodeShape, Examples, Progress, Split, TaskDistribution, TaskSpec

if TYPE_CHECKING:
    from metatrain.settings import Config

SEED = 0


@dataclass(frozen=True)
class Case:
    """Describe one meta-gradient: the sum over `meta_batch` tasks, through `inner_steps` steps of rate `inner_lr`.

    `model` and `source` are sections of a configuration. threads: 1, or 0 for the whole machine.
    """

    name: str
    tasks: Literal["sinusoid", "images"]
    source: dict[str, Any]
    model: dict[str, Any]
    inner_lr: float
    ways: int | None
    shots: int
    queries: int
    threads: Literal[0, 1] = 1
    inner_steps: int = 1
    meta_batch: int = 1

    @property
    def shape(self) -> EpisodeShape:
        return EpisodeShape(self.ways, self.shots, self.queries)


SINUSOID = Case(
    "sinusoid", "sinusoid", {"name": "sinusoid"}, {"name": "mlp", "width": 40, "depth": 2}, 1e-3, None, 10, 10
)
"""Finn et al. 2017, §5.1, with ten query points."""
OMNIGLOT = Case(
    "omniglot",
    "images",
    {"name": "benchmarks.cases:Noise", "channels": 1, "size": 28},
    {"name": "conv4", "width": 64, "downsample": "stride"},
    inner_lr=0.4,
    ways=5,
    shots=1,
    queries=15,
    threads=0,
)
"""Finn et al. 2017, §5.2: strided convolutions of 64 filters, 5-way 1-shot."""
RESNET12 = Case(
    "resnet12",
    "images",
    {"name": "benchmarks.cases:Noise", "channels": 3, "size": 84},
    # Without dropout, whose masks differ between libraries, so that gradients can be compared.
    {"name": "resnet12", "drop": 0.0},
    inner_lr=0.01,
    ways=5,
    shots=1,
    queries=5,
    threads=0,
)
"""Images in the size of miniImageNet, 84×84 in colour."""
FAMILIES = {case.name: case for case in (SINUSOID, OMNIGLOT, RESNET12)}

# The largest are fifty steps, and 256 tasks of images at one step: seconds per call, short enough for seven rounds.
RACE = (
    *("sinusoid-1-256", "sinusoid-5-256", "sinusoid-20-256", "sinusoid-50-256", "sinusoid-5-4", "sinusoid-5-32"),
    *("omniglot-1-32", "omniglot-5-32", "omniglot-20-32", "omniglot-50-8", "omniglot-1-4", "omniglot-1-256"),
    "resnet12-1-4",
)
"""Names of the cases of the race: family, inner steps, meta-batch."""


def find_case(name: str) -> Case:
    """Return the case called "FAMILY-STEPS-BATCH". ValueError: the name has another form."""
    family, *numbers = name.split("-")
    if family not in FAMILIES or len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{name}: write FAMILY-STEPS-BATCH with one of {', '.join(FAMILIES)}, such as {RACE[1]}")
    return replace(FAMILIES[family], name=name, inner_steps=int(numbers[0]), meta_batch=int(numbers[1]))


def config_of(case: Case, **sections: dict[str, Any]) -> "Config":
    """Return a configuration whose first training step computes exactly this case."""
    from metatrain.config.load import read_config  # imports pydantic, which a bare GPU image does not have

    shape = {"ways": case.ways, "shots": case.shots, "queries": case.queries}
    return read_config(
        {
            "tasks": {**case.source, "train": shape, "test": shape},
            "model": case.model,
            "algorithm": {"name": "maml", "inner_lr": case.inner_lr, "inner_steps": case.inner_steps},
            "outer": {"tasks_per_step": case.meta_batch},
            "tracking": {"uri": None},
            "seed": SEED,
            **sections,
        }
    )


def distribution_of(case: Case) -> TaskDistribution[Episode]:
    """Return the case's training tasks."""
    settings = {key: value for key, value in case.source.items() if key != "name"}
    source = Sinusoid(**settings) if case.tasks == "sinusoid" else Noise(**settings)
    return source.distribution("train", case.shape, SEED)


def tasks_of(case: Case) -> Episode:
    """Return the case's tasks, stacked: [meta_batch, ...], float32."""
    return distribution_of(case).episodes(range(case.meta_batch))


def model_of(case: Case) -> Model:
    """Return the case's network; its `initial()` gives the case's parameters."""
    settings = {key: value for key, value in case.model.items() if key != "name"}
    return build_model(ARCHITECTURES[case.model["name"]](**settings), distribution_of(case).spec, SEED)


def params_of(case: Case) -> Params:
    """Return the meta-parameters at which the gradient is computed."""
    return model_of(case).initial()


@dataclass(frozen=True)
class Noise:
    """Task source of noise images [channels, size, size]."""

    channels: int = 1
    size: int = 28

    def prepare(self, progress: Progress) -> str:
        """Do nothing: noise needs no preparation."""
        return f"noise images of {self.channels}×{self.size}×{self.size}, generated as needed"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> TaskDistribution[Episode]:
        """Return tasks whose images are uniform in [0, 1), a function of (seed, split, index)."""
        ways = episode.ways or 0
        if ways < 2:
            raise ValueError("tasks.ways: noise tasks need classes: set 2 or more")
        return NoiseTasks(
            split, episode, TaskSpec("classification", ways, (self.channels, self.size, self.size), ()), seed
        )


@dataclass(frozen=True)
class NoiseTasks:
    """Sample the noise tasks of one split."""

    split: Split
    episode: EpisodeShape
    spec: TaskSpec
    seed: int

    def episodes(self, indices: Sequence[int]) -> Episode:
        """Return support [B, N·K, C, H, W] and query [B, N·Q, C, H, W], labels ordered by class."""
        ways, shots, queries = self.spec.ways or 0, self.episode.shots, self.episode.queries
        examples = ways * (shots + queries)
        drawn = np.stack([self._images(index, examples) for index in indices])
        x = torch.from_numpy(drawn).split([ways * shots, ways * queries], dim=1)
        y = [torch.arange(ways).repeat_interleave(each).repeat(len(indices), 1) for each in (shots, queries)]
        return Episode(Examples(x[0], y[0]), Examples(x[1], y[1]))

    def _images(self, index: int, examples: int) -> np.ndarray[Any, Any]:
        key = np.random.SeedSequence([self.seed, stream("noise-images", self.split), index])
        return np.random.Generator(np.random.Philox(key)).random((examples, *self.spec.x), dtype=np.float32)
