"""Test algorithms that score themselves, and baselines that say why they do not apply."""

import json
from dataclasses import dataclass

import pytest
import torch

import metatrain
from metatrain.algorithms.baselines import BASELINES, NearestNeighbour
from metatrain.config.dry_run import dry_run
from metatrain.evaluation.evaluate import evaluate
from metatrain.report.page import write
from metatrain.runs.locations import open_run
from metatrain.session import Session
from metatrain.testing import score_test_tasks
from metatrain.trainer import _validate
from metatrain.training.in_process import InProcess
from metatrain.training.outer_loop import initial_state
from metatrain.training.worker import Worker
from metatrain.types import ShardRequest
from tests.configurations import tiny
from tune.execution.costs import measure_costs

OWN = "algorithm={name: 'tests.own_scores:SoftKMeans'}"
TEST = ShardRequest("score", "test", 0)


@pytest.mark.parametrize("vectorize", ["loop", "vmap"])
def test_an_algorithm_that_reads_support_and_query_together_scores_itself(vectorize):
    config = tiny(OWN, f"engine.vectorize={vectorize}")
    worker = dry_run(config, torch.device("cpu"))
    params = worker.initial()
    assert worker.is_transductive(TEST, params)
    found = evaluate(InProcess(worker), TEST, params, 12, 5, transductive=True)
    assert found.curve.steps == [0, 1, 2]
    protonet = Worker(tiny("algorithm={name: protonet}"), torch.device("cpu"))
    plain = evaluate(InProcess(protonet), TEST, params, 12, 5, transductive=True)
    assert found.metrics.keys() == plain.metrics.keys()
    assert found.value > 1 / 3
    assert measure_costs(worker, ["operations"])["operations"] > 0


WRONG = {
    "name_of_accuracy: top_one": "no metric top_one: use names of metatrain.metrics.METRICS",
    "left_out: inner_step": "returns no inner_step: return the inner steps before each point",
    "left_out: accuracy+log_likelihood": "do not say which learner is better: return one of accuracy, log_likelihood",
    "points: 2": r"accuracy has shape \(2,\): return \[points\], as many as of inner_step",
}


@pytest.mark.parametrize("setting", WRONG)
def test_scores_that_are_none_are_refused_before_training(setting):
    config = tiny(f"algorithm={{name: 'tests.own_scores:Renamed', {setting}}}")
    with pytest.raises(ValueError, match=rf"^algorithm\.name: [^\n]*{WRONG[setting]}"):
        dry_run(config, torch.device("cpu"))


def test_an_algorithm_without_predictions_trains_is_tested_and_reported_and_predicts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = metatrain.train(tiny(OWN, "outer.steps=2"))
    assert result.finished
    home = open_run(result.run_dir)
    tested = json.loads((home.evaluations / "test.json").read_text())
    assert tested["test"]["transductive"] is True and tested["test"]["metrics"]["ece"]["value"] >= 0
    assert not list(home.plots.glob("*-episode.png"))
    assert "trained" in write([home]).read_text()
    with pytest.raises(
        ValueError, match="SoftKMeans scores tasks as a whole and predicts no examples: use metatrain ev"
    ):
        metatrain.load(result.run_dir, trust=True)


@pytest.mark.parametrize(("metric", "best"), [("return", 2), ("mse", 3)])
def test_the_best_checkpoint_is_that_of_the_primary_metric_in_its_direction(metric, best):
    worker = Worker(tiny(f"algorithm={{name: 'tests.own_scores:Length', metric: {metric}}}"), torch.device("cpu"))
    recorder = Events()
    session = Session(worker, InProcess(worker), recorder, None)
    initial = worker.initial()
    state = initial_state(initial, worker.config.outer)
    for step, scale in ((1, 1.0), (2, 2.0), (3, 0.5), (4, 1.0)):
        state.step, state.params = step, {name: scale * value for name, value in initial.items()}
        _validate(session, state)
    assert state.best.step == best
    assert [set(found) for _, found in recorder.recorded] == [{f"validation/{metric}", "validation/ci95"}] * 4


@dataclass(frozen=True)
class Refuses(NearestNeighbour):
    def refusal(self, spec):
        return f"it wants {spec.ways + 1} ways"


class Events:
    def __init__(self):
        self.seen, self.recorded = [], []

    def record(self, step, metrics):
        self.recorded.append((step, metrics))

    def event(self, step, kind, text):
        self.seen.append((step, kind, text))

    def progress(self, stage, done, total):
        pass


def test_a_baseline_that_does_not_apply_says_so_in_one_line_and_is_left_out(monkeypatch):
    monkeypatch.setitem(BASELINES, "nearest_neighbour", Refuses())
    worker = Worker(tiny("evaluation={tasks: 2, from_scratch_tasks: 2}"), torch.device("cpu"))
    recorder = Events()
    results = list(score_test_tasks(Session(worker, InProcess(worker), recorder, None), worker.initial()))
    assert [result.learner for result in results] == ["trained", "trained", "untrained", "from_scratch"]
    (event,) = recorder.seen
    ways = worker.distribution("test").spec.ways
    text = f"nearest_neighbour: does not apply: it wants {ways + 1} ways"
    assert event == (worker.config.outer.steps, "left-out", text)


def test_the_baselines_apply_to_tasks_of_arrays():
    spec = Worker(tiny(), torch.device("cpu")).model.spec
    assert NearestNeighbour().refusal(spec) is None
