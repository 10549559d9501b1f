"""Score a run's learner and the baselines on held-out tasks; write and draw the results."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metatrain.algorithms.base import is_offered, refusal_of
from metatrain.algorithms.baselines import BASELINES
from metatrain.errors import EvaluationStopped
from metatrain.evaluation.evaluate import Evaluation, evaluate
from metatrain.report import figures
from metatrain.report.plots import save_png
from metatrain.report.test_task import draw_test_task
from metatrain.runs import write_json
from metatrain.runs.data_record import Overlap
from metatrain.session import Session
from metatrain.training.outer_loop import with_statistics
from metatrain.types import Params, ShardRequest


def results_as_dict(results: Sequence[Evaluation]) -> dict[str, Any]:
    """Return results as plain values, under the keys of --json and evaluations/*.json.

    "test": the trained learner as the run normalises; "test_inductive" or "test_transductive": normalised the other
    way, where it can be; "baselines".
    """
    named: dict[str, Any] = {"test": None}
    baselines = []
    for result in results:
        if result.learner != "trained":
            baselines.append(result.as_dict())
        else:
            key = "test" if named["test"] is None else f"test_{result.kind}"
            named[key] = result.as_dict()
    return {**named, "baselines": baselines}


def score_test_tasks(session: Session, params: Params, overlap: Overlap | None = None) -> Iterator[Evaluation]:
    """Score the learner at `params` on the test tasks, in both ways of normalising if it has them, then the baselines.

    Yield each learner's result when its tasks are done. Baselines are left out unless `evaluation.baselines`, and those
    that do not apply. overlap: of the classes tested with those trained on, which results then tell.
    EvaluationStopped: `session.stop` said so before the end.
    """
    settings, worker = session.config.evaluation, session.worker
    trained = ShardRequest("score", "test", 0)
    learners = [(trained, params, settings.tasks)]
    if (other := worker.other_normalization) is not None:
        learners.append((trained._replace(normalization=other), params, settings.tasks))
    if settings.baselines:
        size = session.config.executor.shard_size
        untrained = worker.initial()
        if worker.samples_training_tasks:
            untrained = with_statistics(worker.algorithm, session.executor, untrained, size)
        learners.append((trained._replace(learner="untrained"), untrained, settings.tasks))
        for name in applicable_baselines(session):
            most = settings.from_scratch_tasks if name == "from_scratch" else settings.tasks
            learners.append((trained._replace(learner=name), {}, min(settings.tasks, most)))
    for request, given, tasks in learners:
        if tasks:
            yield _with_overlap(score_learner(session, request, given, tasks), overlap)


def applicable_baselines(session: Session) -> list[str]:
    """Return the names of the baselines that apply to the test tasks, and record of each other one why not."""
    spec, step = session.worker.distribution("test").spec, session.config.outer.steps
    known = {name: baseline for name, baseline in BASELINES.items() if is_offered(baseline, spec)}
    refused = {name: refusal_of(baseline, spec) for name, baseline in known.items()}
    for name, reason in refused.items():
        if reason is not None:
            session.recorder.event(step, "left-out", f"{name}: does not apply: {reason}")
    return [name for name, reason in refused.items() if reason is None]


def _with_overlap(result: Evaluation, found: Overlap | None) -> Evaluation:
    """Return the result with how many classes were tested, and of these trained on."""
    if found is None:
        return result
    return replace(result, test_classes=found.test, test_classes_trained_on=found.trained_on)


def score_learner(session: Session, request: ShardRequest, params: Params, tasks: int) -> Evaluation:
    """Score one learner on tasks 0, 1, … of a split, recording the progress. EvaluationStopped: see `Session.stop`."""
    worker = session.worker
    testing = request.split == "test"
    stage = f"testing {_describe(request.learner, request.normalization)}" if testing else "validating"

    def progress(done: int, total: int) -> None:
        session.recorder.progress(stage, done, total)
        if done < total and session.stop():
            raise EvaluationStopped(f"{stage} after {done} of {total} tasks")

    return evaluate(
        session.executor,
        request,
        params,
        tasks,
        session.config.executor.shard_size,
        worker.is_transductive(request, params) if testing else worker.model.normalization == "transductive",
        worker.task_classes(request.split, tasks) if testing else None,
        progress,
        worker.task_sources(request.split, tasks) if testing else (),
    )


def _describe(learner: str, normalization: str | None) -> str:
    return learner if normalization is None else f"{learner}, {normalization}"


def write_results(
    session: Session, params: Params, results: Sequence[Evaluation], name: str, overrides: Sequence[str] = ()
) -> list[tuple[Path, str]]:
    """Write results as JSON, a plot of the score by inner step and of calibration, and pictures of one test task.

    params: those of the first result. name: of the files, without suffix. overrides: the settings that were changed for
    this evaluation. Return the files, each with the folder that recorders keep it in.
    """
    home = session.home
    path, chart = home.evaluations / f"{name}.json", home.plots / f"{name}-scores.png"
    write_json(path, ({"overrides": list(overrides)} if overrides else {}) | results_as_dict(results))
    save_png(figures.evaluation_chart(results[0].as_dict()), chart)
    pictures = draw_test_task(session.worker, params, home.plots, name)
    return [(path, "evaluations"), (chart, "plots"), *((picture, "plots") for picture in pictures)]


def evaluation_name(overrides: Sequence[str]) -> str:
    """Return the name of the files of an evaluation with these overrides: short, and another for other ones."""
    if not overrides:
        return "test"
    return f"test-{hashlib.sha256(chr(0).join(overrides).encode()).hexdigest()[:8]}"
