"""Measure how similar two task distributions are, which decides how much a search trusts a prior study.

A signature is plain JSON: what a configuration says of its tasks, and a few statistics of a handful of them.

    d(a, b)² = ¼ δ_source² + δ_ways² + δ_shots² + Σₖ δ_k²,    infinite if one is classification, the other regression

    δ_source  0 for the same source and settings, ½ · the share of settings that differ for the same source, else 1
    δ_ways    |ln(Nₐ / N_b)| / ln 20, at most 1; δ_shots by the same formula
    δ_k       |kₐ - k_b| of statistic k, at most 1 (`statistics`)

Where both have embeddings by one probe, a trained network (Task2Vec, `metatrain.similarity`), these tell in place of
source and statistics:

    d(a, b)² = δ_ways² + δ_shots² + δ_embedding²
    δ_embedding   max(0, between / within - 1), at most 3: the mean distance of a task of one and a task of the other,
                  beside the mean distance of two tasks of the same

What only one of the two has counts as 1. If one has no statistics at all, as single runs have none, they count as 0 for
the same source and as 1 each for another. The similarity is exp(-d²).

Statistics are of training tasks 0 to 31 of seed 0, of images reduced to at most 14×14: the same tasks at a higher
resolution are the same tasks, and so, except for δ_ways and δ_shots, are those with other ways and shots.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from metatrain.config.load import as_plain
from metatrain.settings import Config
from metatrain.similarity.distances import task_distances
from metatrain.similarity.measure import embed_training_tasks
from metatrain.yaml_config import flatten
from tasks.described_shape import DescribedShape
from tasks.environments.shape import EnvironmentShape
from tasks.ragged_shape import RaggedShape, least
from tasks.types import EpisodeShape

Signature = Mapping[str, Any]

_TASKS = 32
_SIDE = 14
_QUERIES = 5
_FEW_WAYS = 5
_IMBALANCED_SHOTS = 10
_POINTS = (10, 10)
"""Shots and queries of regression tasks."""
_BINS = 16
_LOG_RANGE = math.log(20)
_SOURCE_WEIGHT = 0.25
_EMBEDDED = 16
_EMBEDDED_SHAPE = EpisodeShape(3, 1, 5)
"""The tasks that are embedded: of one small size, so that searches on any classes can be compared."""
_MOST_APART = 3.0
_STATISTICS = 6
"""The number of statistics of classification, which has the most: by these two unknown ones differ."""
_PLACES = ("name", "root", "cache", "train", "test")
"""Keys under `tasks.` that say where files lie, or that the signature has separately."""


def signature(config: Config, probe: str | None = None) -> dict[str, Any]:
    """Compute the signature of a configuration's training tasks; some are drawn, and their files must exist.
    ValueError: they do not, or the probe cannot embed them.

    Tasks whose x is not a tensor, and environments, have no statistics. probe: the place of a run whose
    network embeds tasks.
    """
    found = signature_from_settings(as_plain(config)["tasks"])
    if probe is not None:
        found["embedding"] = _embedding(config, probe)
    if isinstance(config.tasks.train, EnvironmentShape):
        return {**found, "kind": "environment"}
    distribution = config.tasks.source.distribution("train", few := _few(config.tasks.train), 0)
    # One at a time: a handful of large tasks together would take much memory.
    drawn = [distribution.episodes([index]) for index in range(_TASKS)]
    found["kind"] = distribution.spec.kind
    if not all(isinstance(task.support.x, Tensor) for task in drawn):
        return found
    support, query = (
        torch.cat([_reduce_images(getattr(task, part).x) for task in drawn]) for part in ("support", "query")
    )
    targets = tuple(torch.cat([getattr(task, part).y for task in drawn]) for part in ("support", "query"))
    regression = distribution.spec.kind == "regression"
    computed = (
        _regression_statistics(support, query, *targets)
        if regression
        else _class_statistics(support, query, few.ways or 1)
    )
    return {**found, "statistics": {name: round(value, 6) for name, value in computed.items()}}


def _embedding(config: Config, place: str) -> dict[str, Any]:
    """Return the digest of the probe, and what it makes of each of a few training tasks, as JSON."""
    try:
        sha256, tasks = embed_training_tasks(config, place, _EMBEDDED_SHAPE, _EMBEDDED)
    except ValueError as error:
        raise ValueError(f"search.probe: {error}, or remove search.probe") from error
    return {"probe": sha256, "tasks": [[float(f"{value:.6g}") for value in task] for task in tasks]}


def _few(shape: EpisodeShape | RaggedShape | DescribedShape) -> EpisodeShape:
    """Return the shape of the tasks that statistics are of: of few classes, with one support example of each."""
    if shape.ways is None:
        return EpisodeShape(None, *_POINTS)
    examples = 2 if shape.shots == "imbalanced" else least(shape.shots) + least(shape.queries)
    return EpisodeShape(min(least(shape.ways), _FEW_WAYS), 1, max(1, min(_QUERIES, examples - 1)))


def _middle(value: Any) -> Any:
    """Return a number itself, the middle of a range of them, and of imbalanced shots a typical number of them."""
    if isinstance(value, Mapping):
        return (value["min"] + value["max"]) / 2
    return _IMBALANCED_SHOTS if value == "imbalanced" else value


def signature_from_settings(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the signature without statistics, from the `tasks` section of a plain configuration alone."""
    shape = {"ways": 5, "shots": 1, **tasks.get("train", {})}
    settings = flatten({key: value for key, value in tasks.items() if key not in _PLACES})
    kind = "regression" if shape["ways"] is None else "classification"
    known = {"kind": kind, "source": tasks["name"], **{name: _middle(shape[name]) for name in ("ways", "shots")}}
    return {**known, "settings": {key: _listed(value) for key, value in settings.items()}}


def task_distance(a: Signature, b: Signature) -> float:
    """Compute d(a, b) >= 0 by the equation above: symmetric, and 0 for equals."""
    if a["kind"] != b["kind"]:
        return math.inf
    parts = [_log_ratio(a.get(part), b.get(part)) for part in ("ways", "shots")]
    if "embedding" in a and "embedding" in b and a["embedding"]["probe"] == b["embedding"]["probe"]:
        return math.hypot(_embedding_distance(a["embedding"]["tasks"], b["embedding"]["tasks"]), *parts)
    source = _source_distance(a, b)
    ours, theirs = a.get("statistics", {}), b.get("statistics", {})
    if ours and theirs:
        parts += [_difference(ours.get(name), theirs.get(name)) for name in sorted(ours.keys() | theirs.keys())]
    else:
        parts += [float(a.get("source") != b.get("source"))] * _STATISTICS
    return math.hypot(math.sqrt(_SOURCE_WEIGHT) * source, *parts)


def similarity(d: float) -> float:
    """Compute exp(-d²), in [0, 1]: 1 for the same tasks, 0 for those of another kind."""
    return math.exp(-d * d)


def _source_distance(a: Signature, b: Signature) -> float:
    """Compute δ_source."""
    if a.get("source") != b.get("source"):
        return 1.0
    ours, theirs = a.get("settings", {}), b.get("settings", {})
    names = ours.keys() | theirs.keys()
    differing: int = sum(name not in ours or name not in theirs or ours[name] != theirs[name] for name in names)
    return 0.5 * differing / max(len(names), 1)


def _embedding_distance(a: list[list[float]], b: list[list[float]]) -> float:
    """Compute δ_embedding of the embeddings of tasks [T, M] of each."""
    ours, theirs = np.array(a), np.array(b)
    alone = [distances[np.triu_indices(len(distances), 1)].mean() for distances in map(task_distances, (ours, theirs))]
    within, between = float(np.mean(alone)), float(task_distances(ours, theirs).mean())
    if not within:
        return _MOST_APART if between else 0.0
    return min(max(0.0, between / within - 1), _MOST_APART)


def _log_ratio(a: float | None, b: float | None) -> float:
    """Compute δ_ways or δ_shots; tasks without ways agree in that."""
    if a is None or b is None:
        return float(a is not b)
    return min(1.0, abs(math.log(a / b)) / _LOG_RANGE)


def _difference(a: float | None, b: float | None) -> float:
    return 1.0 if a is None or b is None else min(1.0, abs(a - b))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _reduce_images(x: Tensor) -> Tensor:
    """Reduce images: [1, n, C, H, W] -> [1, n, C, h, w], h and w at most 14; return any other shape as it is."""
    if x.dim() != 5 or min(x.shape[-2:]) <= _SIDE:
        return x.float()
    return adaptive_avg_pool2d(x[0].float(), _SIDE)[None]


def _class_statistics(support: Tensor, query: Tensor, ways: int) -> dict[str, float]:
    """Compute six statistics of x standardised over all tasks; support: [T, N, …], query: [T, N·Q, …], ordered by
    class.

    skewness, edges, flatness, colour: of single images: ink on paper is skewed, has edges and one shade that is most of
    it; photographs have colours. classes: the share of a task's variance that lies between its classes. nearest:
    accuracy of the nearest support example above chance, (p - 1/N) / (1 - 1/N).
    """
    tasks = len(support)
    every = torch.cat([support, query], dim=1)
    x = (every - every.mean()) / every.std().clamp_min(1e-12)
    skewness = float((x**3).mean())
    grouped = torch.cat([_by_class(support, ways), _by_class(query, ways)], dim=2).flatten(3)
    within = float(grouped.var(dim=2, correction=0).mean())
    total = float(grouped.flatten(1, 2).var(dim=1, correction=0).mean())
    nearest = torch.cdist(query.flatten(2), support.flatten(2)).argmin(dim=2)
    labels = torch.arange(ways).repeat_interleave(query.shape[1] // ways).expand(tasks, -1)
    right = float((nearest == labels).float().mean())
    shades = torch.histc(x, _BINS, float(x.min()), float(x.max())) / x.numel()
    return {
        "skewness": skewness / (1 + abs(skewness)),
        "edges": 1 - _pixel_correlation(x),
        "flatness": float(shades.max()),
        "colour": _colour_share(x),
        "classes": 1 - within / max(total, 1e-12),
        "nearest": (right - 1 / ways) / (1 - 1 / ways),
    }


def _by_class(x: Tensor, ways: int) -> Tensor:
    """[T, N·n, …] -> [T, N, n, …]."""
    return x.reshape(len(x), ways, -1, *x.shape[2:])


def _pixel_correlation(x: Tensor) -> float:
    """Compute the correlation of neighbouring pixels in a row; 0 if x is no image."""
    if x.dim() != 5:
        return 0.0
    pairs = torch.stack([x[..., :-1].flatten(), x[..., 1:].flatten()])
    return float(torch.corrcoef(pairs)[0, 1].nan_to_num())


def _colour_share(x: Tensor) -> float:
    """Compute the share of the variance that averaging the channels removes; 0 for one channel."""
    if x.dim() != 5:
        return 0.0
    return 1 - float(x.mean(dim=2).var() / x.var().clamp_min(1e-12))


def _regression_statistics(support: Tensor, query: Tensor, seen: Tensor, wanted: Tensor) -> dict[str, float]:
    """Compute four statistics. support: [T, K, …], query: [T, Q, …]; seen, wanted: their targets.

    targets, points: ½ log₁₀ of the standard deviations of y and of x. tasks: the share of y's variance that lies
    between tasks. nearest: the share of it that the nearest support example explains, at least 0.
    """
    y = torch.cat([seen, wanted], dim=1).flatten(2).float()
    points = torch.cat([support, query], dim=1).float()
    total = float(y.var().clamp_min(1e-24))
    nearest = torch.cdist(query.flatten(2).float(), support.flatten(2).float()).argmin(dim=2)
    guess = torch.take_along_dim(seen.flatten(2).float(), nearest[..., None], dim=1)
    error = float(((guess - wanted.flatten(2)) ** 2).mean())
    return {
        "targets": 0.25 * math.log10(total),
        "points": 0.25 * math.log10(float(points.var().clamp_min(1e-24))),
        "tasks": float(y.mean(dim=1).var()) / total,
        "nearest": max(0.0, 1 - error / total),
    }
