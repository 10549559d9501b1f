"""Measure how far sources of tasks are apart under a trained network, from files and runs to plain results."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_map

from metatrain.config.load import load_config
from metatrain.inference import Learner, load
from metatrain.runs import Run
from metatrain.runs.checkpoints import params_sha256
from metatrain.runs.locations import open_run
from metatrain.settings import Config
from metatrain.similarity.distances import (
    Interval,
    Reals,
    SourceDistances,
    classical_scaling,
    mean_intervals,
    source_distances,
    task_distances,
    trivial_distances,
)
from metatrain.similarity.sources import Source, open_source, read_sources, require_same_shape, with_own_source
from metatrain.similarity.task2vec import embed_task, filters_of
from metatrain.similarity.transfer import LEAST, Transfer, against_own_runs, correlate, read_transfers
from metatrain.validation import require
from tasks.types import EpisodeShape, Progress, Split, TaskDistribution, no_progress


class Request(NamedTuple):
    """What is asked for: the place of the probe's run, files of sources, runs on some of them, tasks of each source."""

    probe: str
    files: Sequence[str]
    runs: Sequence[str]
    split: Split
    tasks: int
    trust: bool = False


class Probe(NamedTuple):
    """A trained run whose network tasks are embedded by."""

    home: Run
    config: Config
    learner: Learner


def open_probe(place: str, trust: bool = False) -> Probe:
    """Open a run by its best parameters. ValueError: its network has no filters, or takes in whole batches."""
    home = open_run(place)
    learner = load(place, "transductive", trust)
    model = learner.model
    require(
        model.can_be_inductive,
        f"PROBE: the network's outputs depend on the whole batch ({model.mixing}): use another run",
    )
    filters_of(learner.params)
    return Probe(home, load_config(home.config, trust=trust), learner)


def measure_similarity(request: Request, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the distances of tasks and of sources as plain values, and how they predict what `runs` lose.

    progress: called with the tasks that are embedded and all. say: told what is done to images of other sources.
    ValueError: what is wrong with the request.
    """
    require(request.tasks >= 2, f"--tasks: {request.tasks} has no pairs of tasks: set 2 or more")
    every = files = read_sources(request.files, request.trust)
    transfers: list[Transfer] = []
    for home in map(open_run, request.runs):
        trained_on, every = with_own_source(home, every, request.trust)
        transfers += read_transfers(home, trained_on, files)
    transfers = against_own_runs(transfers)
    few = f"--run: {len(transfers)} results on other sources have no rank correlation: give more runs or sources"
    require(not request.runs or len(transfers) >= LEAST, few)
    require(len(every) >= 2, "SOURCE…: one source is as far from nothing: name two files or more")
    shape = require_same_shape(every)
    probe = open_probe(request.probe, request.trust)
    spec = probe.learner.model.spec._asdict()
    opened = {one.name: open_source(one, probe.config, spec, request.split, say) for one in every}
    embeddings = embed_sources(probe, opened, request.tasks, shape.ways or 0, progress)
    places = {name: np.arange(request.tasks) + request.tasks * number for number, name in enumerate(opened)}
    found = source_distances(distances := task_distances(embeddings), places)
    return {
        "probe": _describe(probe, embeddings.shape[1]),
        "split": request.split,
        "tasks": request.tasks,
        "shape": {"ways": shape.ways, "shots": shape.shots, "queries": shape.queries},
        "sources": _describe_sources(every, found, embeddings, places),
        "pairs": _describe_pairs(found),
        "transfer": _describe_transfers(transfers, found) if transfers else None,
        **_describe_tasks(distances, opened, request.tasks),
    }


def embed_training_tasks(config: Config, place: str, shape: EpisodeShape, tasks: int) -> tuple[str, Reals]:
    """Return the digest of a probe's parameters, and the embeddings of training tasks 0, 1, … of `config` [tasks, M].

    place: of the probe's run. shape: of the tasks that are embedded, whatever the configuration's own. ValueError:
    `open_probe`, or the tasks have no classes or images that the probe can take.
    """
    probe = open_probe(place)
    own = replace(config, tasks=replace(config.tasks, test=shape))
    spec, source = probe.learner.model.spec._asdict(), Source("tasks", own, Path("tasks"))
    opened = open_source(source, probe.config, spec, "train", lambda matched: None)
    found = embed_sources(probe, {source.name: opened}, tasks, shape.ways or 0, no_progress)
    return params_sha256(probe.learner.params), found


def embed_sources(
    probe: Probe, sources: Mapping[str, TaskDistribution[Any]], tasks: int, ways: int, progress: Progress
) -> Reals:
    """Return the embeddings of tasks 0, 1, … of each source in turn: [sources · tasks, M]."""
    model, params = probe.learner.model, probe.learner.params
    found: list[torch.Tensor] = []
    for distribution in sources.values():
        for index in range(tasks):
            task = tree_map(lambda leaf: leaf[0], distribution.episodes([index]))
            found.append(embed_task(model, params, task, ways))
            progress(len(found), tasks * len(sources))
    stacked: Reals = torch.stack(found).double().numpy()
    return stacked


def _describe(probe: Probe, filters: int) -> dict[str, Any]:
    home = probe.home
    sha256 = params_sha256(probe.learner.params)
    return {"run_id": home.run_id, "run_dir": home.where, "params_sha256": sha256, "filters": filters}


def _describe_sources(
    sources: Sequence[Source], found: SourceDistances, embeddings: Reals, places: Mapping[str, Any]
) -> list[dict[str, Any]]:
    trivial = mean_intervals(trivial_distances(embeddings), places)
    information = mean_intervals(embeddings.mean(1), places)
    return [
        {
            "name": one.name,
            "file": str(one.file),
            "source": one.config.names.tasks,
            "within": _plain(found.within[one.name]),
            "from_trivial": _plain(trivial[one.name]),
            "information": _plain(information[one.name]),
        }
        for one in sources
    ]


def _describe_pairs(found: SourceDistances) -> list[dict[str, Any]]:
    return [
        {"first": a, "second": b, "distance": _plain(found.between[a, b]), "excess": _plain(found.excess[a, b])}
        for a, b in found.between
    ]


def _describe_transfers(transfers: Sequence[Transfer], found: SourceDistances) -> dict[str, Any]:
    either = {**found.between, **{(b, a): one for (a, b), one in found.between.items()}}
    distances = [either[one.trained_on, one.tested_on].value for one in transfers]
    points = [{**one._asdict(), "loss": one.loss, "distance": d} for one, d in zip(transfers, distances, strict=True)]
    return {"spearman": _plain(correlate(transfers, distances)), "points": points}


def _describe_tasks(distances: Reals, sources: Mapping[str, Any], tasks: int) -> dict[str, Any]:
    points, share = classical_scaling(distances)
    rows = [
        {"source": name, "task": index, "x": x, "y": y}
        for (name, index), (x, y) in zip(
            [(name, index) for name in sources for index in range(tasks)], points.tolist(), strict=True
        )
    ]
    return {"map": rows, "map_share": share, "task_distances": distances.tolist()}


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in interval._asdict().items()}
