"""Test the predictions for one task: they equal the scored ones, and the figure shows the right task."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metatrain.evaluation.predictions import TaskPredictions, predict_task
from metatrain.models.dropout import NO_NOISE
from metatrain.report import figures, test_task
from metatrain.report.episode_figure import draw_episode
from metatrain.report.plots import Chart, save_png
from metatrain.report.test_task import draw_test_task
from metatrain.session import Session
from metatrain.settings import Config
from metatrain.testing import score_test_tasks, write_results
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.trainer import new_run
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from metatrain.types import Context, Shard, ShardRequest
from tasks.sources.strokes import Strokes
from tasks.types import Episode, EpisodeShape, Examples, Split, TaskSpec
from tests.configurations import tiny

CPU = torch.device("cpu")
SILENTLY = Context(torch.tensor(0), torch.tensor(NO_NOISE))
REGRESSION = (
    "tasks={name: 'tests.test_predictions:Waves', train: {ways: null}, test: {ways: null, shots: 5, queries: 7}}",
    "model={name: mlp, width: 8}",
    "evaluation.inner_steps=12",
    "evaluation.baselines=false",
)


@dataclass(frozen=True)
class WaveTasks:
    """a·sin(x − p): row r of task i is drawn by itself, so that more queries leave the rest as it was."""

    shots: int
    queries: int
    inputs: int = 1
    outputs: int = 1

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("regression", None, (self.inputs,), (self.outputs,))

    def episodes(self, indices: list[int]) -> Episode:
        rows = torch.arange(self.shots + self.queries)
        x = torch.stack([torch.frac((rows + 1) * 0.618 + index * 0.1) * 6 - 3 for index in indices])
        scale = torch.tensor([1.0 + index for index in indices])[:, None]
        y = (scale * torch.sin(x - scale))[..., None].repeat(1, 1, self.outputs)
        x = x[..., None].repeat(1, 1, self.inputs)
        return Episode(*(Examples(x[:, part], y[:, part]) for part in (slice(self.shots), slice(self.shots, None))))


@dataclass(frozen=True)
class Waves:
    """Of one number or several; with at most `most` queries, as a data set would have it."""

    inputs: int = 1
    outputs: int = 1
    most: int = 1000

    def prepare(self, progress: object) -> str:
        return "waves"

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> WaveTasks:
        if episode.queries > self.most:
            raise ValueError(f"tasks.test.queries: there are {self.most}: lower it")
        return WaveTasks(episode.shots, episode.queries, self.inputs, self.outputs)


@dataclass(frozen=True)
class Negative(Strokes):
    """Strokes delivered as −1 … 1, with the way back to what a person may see."""

    def distribution(self, split: Split, episode: EpisodeShape, seed: int) -> "NegativeTasks":
        return NegativeTasks(super().distribution(split, episode, seed))


@dataclass(frozen=True)
class NegativeTasks:
    inner: object

    @property
    def spec(self) -> TaskSpec:
        return self.inner.spec

    def episodes(self, indices: list[int]) -> Episode:
        return Episode(*(part._replace(x=2 * part.x - 1) for part in self.inner.episodes(indices)))

    def class_names(self, index: int) -> list[str]:
        return self.inner.class_names(index)

    def denormalize(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


def shown(config: Config) -> tuple[Worker, TaskPredictions]:
    worker = Worker(config, CPU)
    task = Episode(*(Examples(*(leaf[0] for leaf in part)) for part in worker.distribution("test").episodes([0])))
    return worker, predict_task(worker.evaluated, worker.model, worker.initial(), task, SILENTLY)


@pytest.mark.parametrize("overrides", [("algorithm={name: maml}",), ("algorithm={name: protonet}",), REGRESSION])
def test_predictions_equal_the_scored_ones(overrides: tuple[str, ...]) -> None:
    worker, demonstration = shown(tiny(*overrides))
    scores = worker.score(ShardRequest("score", "test", 0), worker.initial(), Shard(0, (0,))).values
    query, predictions = demonstration.episode.query.y, demonstration.predictions
    if "accuracy" in scores:
        found = [(logits.argmax(1) == query).float().mean() for logits in predictions]
        assert demonstration.classes.tolist() == predictions[-1].argmax(1).tolist()
    else:
        assert len(predictions) == 13
        found = [(values - query).square().mean() for values in predictions]
    expected = scores["accuracy" if "accuracy" in scores else "mse"][0]
    assert [float(found[0]), float(found[-1])] == pytest.approx([float(expected[0]), float(expected[-1])], rel=1e-5)


def test_images_are_drawn_with_predicted_classes(tmp_path: Path) -> None:
    worker, demonstration = shown(tiny())
    (path,) = draw_test_task(worker, worker.initial(), tmp_path, "test")
    assert path == tmp_path / "test-episode.png"
    episode, classes = demonstration.episode, demonstration.classes
    names = worker.distribution("test").class_names(0)
    save_png(draw_episode(episode, "strokes, test task 0", names, classes), tmp_path / "expected.png")
    with Image.open(path) as picture, Image.open(tmp_path / "expected.png") as expected:
        assert (np.asarray(picture) == np.asarray(expected)).all()
        right = int((classes == episode.query.y).sum())
        assert f"{right} of 9 queries right" in picture.text["Description"]


def test_normalised_images_are_drawn_denormalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same drawings, whatever form the learner is given them in."""
    charts: list[Chart] = []
    monkeypatch.setattr(test_task, "draw_episode", lambda *given: charts.append(draw_episode(*given)) or charts[-1])
    for name in ("strokes", "tests.test_predictions:Negative"):
        worker = Worker(tiny(f"tasks.name={name}"), CPU)
        draw_test_task(worker, worker.initial(), tmp_path, "test")
    plain, negative = (np.stack([image.get_array() for image in chart.figure.axes[0].images]) for chart in charts)
    assert plain.max() > 0.9, "ink"
    assert abs(plain - negative).max() < 0.01


def test_a_curve_is_drawn_through_many_queries_of_the_same_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[TaskPredictions] = []
    fit = figures.fit
    monkeypatch.setattr(figures, "fit", lambda found, title: drawn.append(found) or fit(found, title))
    worker, demonstration = shown(tiny(*REGRESSION))
    assert draw_test_task(worker, worker.initial(), tmp_path, "test") == [tmp_path / "test-fit.png"]
    assert len(drawn[0].episode.query.x) == 200
    assert torch.equal(drawn[0].episode.support.x, demonstration.episode.support.x)
    assert len(drawn[0].predictions) == 13

    few = Worker(tiny(*REGRESSION, "tasks.most=50", "tasks.train.queries=7"), CPU)
    draw_test_task(few, few.initial(), tmp_path, "test")
    assert len(drawn[1].episode.query.x) == 7, "a source may have no more"


@pytest.mark.parametrize("several", ["tasks.inputs=2", "tasks.outputs=2"])
def test_unsupported_tasks_are_not_drawn_and_nothing_fails(tmp_path: Path, several: str) -> None:
    worker = Worker(tiny(*REGRESSION, several), CPU)
    assert draw_test_task(worker, worker.initial(), tmp_path, "test") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("overrides", "picture"), [((), "test-episode.png"), (REGRESSION, "test-fit.png")])
def test_the_figure_is_stored_with_the_results(tmp_path: Path, overrides: tuple[str, ...], picture: str) -> None:
    config = tiny(f"runs.root={tmp_path}", *overrides)
    home, worker = new_run(config), Worker(config, CPU)
    session = Session(worker, InProcess(worker), CompositeRecorder(), home)
    params = worker.initial()
    files = write_results(session, params, list(score_test_tasks(session, params)), "test")
    assert (home.plots / picture, "plots") in files
    with Image.open(home.plots / picture) as image:
        image.load()
