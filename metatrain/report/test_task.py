"""Draw a test task with the predictions of a learner: images with their predicted classes, or a fitted curve."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metatrain.algorithms.base import predicts
from metatrain.evaluation.predictions import TaskPredictions, predict_task
from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.report import figures
from metatrain.report.attention_figure import draw_attention
from metatrain.report.completion_figure import SEEN, draw_completions
from metatrain.report.density_figure import draw_densities
from metatrain.report.episode_figure import draw_episode
from metatrain.report.plots import Chart, save_png
from metatrain.report.trajectory_figure import draw_trajectories
from metatrain.training.worker import Worker
from metatrain.types import Context, Params
from tasks.environments.navigation_2d import PointNavigation
from tasks.ragged import sample_batches
from tasks.types import Episode, TaskDistribution, TaskSpec, is_shape, members

TASK = 0
"""Index of the task that is shown, in the test split."""
TASKS = 4
"""Tasks whose predicted densities are shown, from the first on, or from which one is chosen."""
FINE = 200
"""Queries on a fitted curve, whatever number of them the run is judged on."""


def draw_test_task(worker: Worker, params: Params, folder: Path, name: str) -> list[Path]:
    """Draw the first test tasks, and return the PNGs: of an algorithm that scores itself only what acts in the plane.

    `folder`/`name`-episode.png for images [1 or 3, H, W] in classes; `folder`/`name`-completions.png for images of
    which some pixels are seen, if densities are predicted; for one number of one number
    `folder`/`name`-fit.png, or `folder`/`name`-densities.png if densities are predicted;
    `folder`/`name`-attention.png if the algorithm tells what queries attend to; and `folder`/`name`-trajectories.png
    for policies that move a point in the plane.
    """
    if predicts(worker.evaluated):
        charts = {**_draw_predictions(worker, params), **_draw_attention(worker, params)}
    else:
        charts = _draw_trajectories(worker, params)
    for kind, chart in charts.items():
        save_png(chart, folder / f"{name}-{kind}.png")
    return [folder / f"{name}-{kind}.png" for kind in charts]


def _draw_predictions(worker: Worker, params: Params) -> dict[str, Chart]:
    """Return the chart of what is predicted, by its kind; none for tasks that are neither images nor curves."""
    distribution: Any = worker.distribution("test")
    spec, title = distribution.spec, f"{worker.config.names.tasks}, test task {TASK}"
    if spec.support is not None or not is_shape(spec.x):
        return {}
    if spec.kind == "classification" and len(spec.x) == 3 and spec.x[0] in (1, 3):
        return {"episode": _draw_images(worker, params, distribution, title)}
    if hasattr(distribution, "completion"):
        completed = _complete_images(worker, params, distribution)
        if completed is None:
            return {}
        return {"completions": draw_completions(completed, distribution.image_shape, worker.config.names.tasks)}
    if spec.kind != "regression" or not spec.x == spec.y == (1,):
        return {}
    with suppress(ValueError):  # a source may have no more queries than it was asked for
        distribution = worker.distribution("test", queries=FINE)
    shown = _predict(worker, params, distribution)
    if isinstance(shown.predictions, Tensor):
        return {"fit": figures.fit(shown, title)}
    others = [_predict(worker, params, distribution, task) for task in range(1, TASKS)]
    return {"densities": draw_densities([shown, *others], worker.config.names.tasks)}


def _draw_trajectories(worker: Worker, params: Params) -> dict[str, Chart]:
    """Return the chart of where a policy goes in the first `TASKS` tasks; none if they are not in the plane."""
    algorithm: Any = worker.evaluated
    distribution = worker.distribution("test")
    if not isinstance(distribution.spec.environment, PointNavigation) or not hasattr(algorithm, "behaviour"):
        return {}
    model, params = worker.model.for_tasks(distribution.spec, params), worker.to_device(params)
    shown = []
    for number in range(TASKS):
        task: Any = _task(worker, distribution, number)[0]
        with torch.no_grad():
            shown.append((task.parameters, algorithm.behaviour(model, params, task)))
    return {"trajectories": draw_trajectories(shown, worker.config.names.tasks, algorithm.adapts_by)}


def _draw_attention(worker: Worker, params: Params) -> dict[str, Chart]:
    """Return the chart of what queries attend to, of the first of `TASKS` tasks with a support set that is not empty.

    None where the algorithm does not tell it, or where inputs are trees.
    """
    algorithm: Any = worker.evaluated
    distribution = worker.distribution("test")
    if not hasattr(algorithm, "attention") or not is_shape(distribution.spec.x):
        return {}
    drawn = (_task(worker, distribution, number) for number in range(TASKS))
    found = next(((number, *one) for number, one in enumerate(drawn) if members(one[0].support).any()), None)
    if found is None:
        return {}
    task, episode, spec = found
    context, model, params = _at_rest(worker, spec, params)
    with torch.no_grad():
        *_, adapted = algorithm.trajectory(model, params, episode.support, context)
        weights = algorithm.attention(model, params, adapted, episode.query.x, context)
    title = f"Attention of queries to the support set, {worker.config.names.tasks}, test task {task}"
    return {"attention": draw_attention(weights, episode, title)}


def _draw_images(worker: Worker, params: Params, distribution: TaskDistribution[Episode], title: str) -> Chart:
    shown = _predict(worker, params, distribution)
    episode: Any = shown.episode
    denormalize = getattr(distribution, "denormalize", None)  # of sources that deliver images normalised
    if denormalize is not None:
        episode = Episode(*(part._replace(x=denormalize(part.x)) for part in episode))
    names = getattr(distribution, "class_names", None)
    return draw_episode(episode, title, names(TASK) if names else None, shown.classes)


def _complete_images(worker: Worker, params: Params, distribution: Any) -> list[list[TaskPredictions]] | None:
    """Return the first test images, completed from several numbers of pixels; None if no densities are predicted."""
    most = math.prod(distribution.image_shape[1:])
    images: list[list[TaskPredictions]] = []
    for task in range(TASKS):
        images.append([])
        for seen in (count for count in SEEN if count <= most):
            episode = tree_map(lambda leaf: leaf[0].to(worker.device), distribution.completion(task, seen))
            shown = _predict_task(worker, params, distribution.spec, episode)
            if isinstance(shown.predictions, Tensor):
                return None
            images[-1].append(shown)
    return images


def _predict(
    worker: Worker, params: Params, distribution: TaskDistribution[Episode], index: int = TASK
) -> TaskPredictions:
    episode, spec = _task(worker, distribution, index)
    return _predict_task(worker, params, spec, episode)


def _task(worker: Worker, distribution: TaskDistribution[Episode], index: int) -> tuple[Episode, TaskSpec]:
    """Return one task without a batch dimension, and its spec."""
    (batch,) = sample_batches(distribution, [index])
    return tree_map(lambda leaf: leaf[0].to(worker.device), batch.tasks), batch.spec


def _predict_task(worker: Worker, params: Params, spec: TaskSpec, task: Episode) -> TaskPredictions:
    context, model, params = _at_rest(worker, spec, params)
    return predict_task(worker.evaluated, model, params, task, context)


def _at_rest(worker: Worker, spec: TaskSpec, params: Params) -> tuple[Context, Model, Params]:
    """Return what tasks of `spec` are predicted with, without dropout or other noise."""
    context = Context(torch.tensor(0, device=worker.device), torch.tensor(NO_NOISE, device=worker.device))
    return context, worker.model.for_tasks(spec, params), worker.to_device(params)
