"""A run from its first step to its report: what `metatrain train` does, and what a program of one's own may call.

The loop is `outer.train`; everything here is what happens between its steps: record, validate, checkpoint, stop.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import metatrain.report.plots as plots
from metatrain.algorithms.baselines import BASELINES
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_yaml
from metatrain.errors import TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import Evaluation, evaluate
from metatrain.report.test_task import exhibit
from metatrain.runs import Run, checkpoints, describe_environment, write_json
from metatrain.runs.locations import create_run
from metatrain.settings import Config
from metatrain.training.outer_loop import Best, TrainState, begin, restore, train
from metatrain.training.worker import Worker
from metatrain.types import DRIVER_NODE_LEAVING, Executor, Metrics, Params, Recorder, ShardRequest
from tasks.types import Split


@dataclass(frozen=True)
class Outcome:
    """What came of a run. `steps` counts from 0; `seconds` and `tasks_per_second` are of this process alone."""

    run_id: str
    run_dir: str
    steps: int
    seconds: float
    tasks_per_second: float
    params_sha256: str
    finished: bool
    results: list[Evaluation] = field(default_factory=list)
    """The trained learner's on the test tasks first, then the baselines'; empty where the run did not finish."""
    executor: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for --json: "test" is the trained learner's result, "baselines" are the others'."""
        plain = dict(vars(self))
        return plain | as_test_and_baselines(plain.pop("results"))


def as_test_and_baselines(results: Sequence[Evaluation]) -> dict[str, Any]:
    """Results as plain values under the names that --json and evaluations/*.json use."""
    plain = [result.as_dict() for result in results]
    return {"test": plain[0] if plain else None, "baselines": plain[1:]}


def new_run(config: Config) -> Run:
    """A folder for a run of `config`, which is kept in it, resolved; `runs.root` may be in object storage."""
    settings = config.runs
    return create_run(settings.root, settings.name, as_yaml(config), describe_environment(), settings.heartbeat)


def run(
    config: Config,
    executor: Executor,
    recorder: Recorder,
    home: Run | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train `config` in the folder `home` (a new one by default), going on from its newest valid checkpoint.

    `stop` is asked after every step; when it says so, the state is kept and the outcome is not `finished`.
    Raises `outer.Diverged` when the loss is no longer a number.
    """
    began = time.monotonic()
    session, state = opened(config, executor, recorder, home or new_run(config))
    first = state.step
    spent = sum(stretches(session, state, stop))
    finished = state.step == config.outer.steps and not stop()
    return Outcome(
        run_id=session.home.run_id,
        run_dir=session.home.where,
        steps=state.step,
        tasks_per_second=round((state.step - first) * config.outer.tasks_per_step / spent, 3) if spent else 0.0,
        params_sha256=checkpoints.params_sha256(state.params),
        finished=finished,
        results=_test(session, state) if finished else [],
        executor=dict(executor.report()),
        seconds=round(time.monotonic() - began, 3),
    )


class Session(NamedTuple):
    """What one process's part of a run works with."""

    config: Config
    executor: Executor
    recorder: Recorder
    home: Run
    worker: Worker


def opened(config: Config, executor: Executor, recorder: Recorder, home: Run) -> tuple[Session, TrainState]:
    """What a run works with, and the state that it goes on from; recording has begun."""
    torch.set_num_threads(config.engine.threads)
    session = Session(config, executor, recorder, home, Worker(config, torch.device("cpu")))
    state, damaged = _opening_state(session)
    recorder.start(state.step, config.outer.steps)
    for reason in damaged:
        recorder.event(state.step, "warning", f"{reason}: going on from step {state.step}")
    recorder.artifact(home.config)
    recorder.artifact(home.environment)
    return session, state


def _opening_state(session: Session) -> tuple[TrainState, list[str]]:
    """The newest valid checkpoint's state, or the beginning; and what was damaged on the way."""
    found = checkpoints.newest(session.home.checkpoints)
    if found is None:
        return begin(session.worker.initial(), session.config.outer), []
    require_same(found.snapshot["params"], session.worker)
    return restore(found.snapshot, session.config.outer), found.damaged


def stretches(
    session: Session, state: TrainState, stop: Callable[[], bool], milestones: Collection[int] = ()
) -> Iterator[float]:
    """Train from milestone to milestone, to the end or until told to stop; yields the seconds that were spent in the
    steps of each stretch.

    At each of `milestones`, as at the end, the state is validated and kept, also from being pruned.
    """
    first = state.step
    try:
        yield from _trained(session, state, stop, milestones)
    except (WorkersLost, TaskFailed):
        if state.step > first:  # what was computed since the last checkpoint is not lost with the workers
            _note_events(session, state)
            _checkpoint(session, state, milestones)
            session.home.commit()
        raise


def _trained(
    session: Session, state: TrainState, stop: Callable[[], bool], milestones: Collection[int]
) -> Iterator[float]:
    config = session.config
    spent, began = 0.0, time.monotonic()
    session.home.check_ownership()
    for metrics in train(state, session.executor, config.outer, config.executor.shard_size):
        seconds = time.monotonic() - began
        spent += seconds
        session.home.check_ownership()
        _record(session, state, metrics, seconds)
        reached, stopping = state.step == config.outer.steps or state.step in milestones, stop()
        urgent = _note_events(session, state)
        improved = (reached or state.step % config.evaluation.every == 0) and _validate(session, state)
        if reached or stopping or urgent or improved or state.step % config.checkpoint.every == 0:
            _checkpoint(session, state, milestones)
        if reached or stopping:
            yield spent
            spent = 0.0
        if stopping:
            return
        began = time.monotonic()


def _record(session: Session, state: TrainState, metrics: Metrics, seconds: float) -> None:
    """A step's own numbers, how fast it was, and how the workers are; of the last step always."""
    config = session.config
    if state.step == config.outer.steps or state.step % config.tracking.every == 0:
        named = {f"train/{name}": value for name, value in metrics.items()}
        pace = {"time/tasks_per_second": config.outer.tasks_per_step / seconds}
        health = {f"cluster/{name}": value for name, value in session.executor.health().items()}
        session.recorder.record(state.step, named | pace | health)


def _note_events(session: Session, state: TrainState) -> bool:
    """Records what happened to the workers; whether the state had better be kept now."""
    events = session.executor.events()
    for event in events:
        session.recorder.event(state.step, event.kind, event.text)
    return any(event.kind == DRIVER_NODE_LEAVING for event in events)


def _validate(session: Session, state: TrainState) -> bool:
    """Scores the validation tasks; whether they say that this state is the best so far."""
    tasks = session.config.evaluation.validation_tasks
    result = _evaluated(session, "validation", "trained", state.params, tasks)
    named = {result.score: result.value, "ci95": result.ci95, "loss": result.loss}
    session.recorder.record(state.step, {f"validation/{name}": value for name, value in named.items()})
    score = result.value if result.score == "accuracy" else -result.value
    if score <= state.best.score:
        return False
    state.best = Best(state.step, score)
    return True


def _checkpoint(session: Session, state: TrainState, milestones: Collection[int] = ()) -> None:
    """Keeps the state, after everything recorded before it is durable, so that a resume finds no gap."""
    session.recorder.flush()
    extra = {"params_sha256": checkpoints.params_sha256(state.params), "spec": session.worker.model.spec._asdict()}
    checkpoints.save(session.home.checkpoints, state.step, state.snapshot(), extra)
    checkpoints.prune(session.home.checkpoints, session.config.checkpoint.keep, {state.best.step, *milestones})
    try:
        session.home.try_commit()
    except OSError as error:
        session.recorder.event(state.step, "unsent", f"{error}: it goes with the next checkpoint")


def _test(session: Session, state: TrainState) -> list[Evaluation]:
    """The best state by validation on the test tasks, then the baselines on the same ones."""
    home = session.home
    best = state.best.step if state.best.step >= 0 else state.step
    params = checkpoints.load(home.checkpoints, best)["params"]
    results = test(session, params)
    for result in results:
        prefix = "test" if result.learner == "trained" else f"test/{result.learner}"
        named = {result.score: result.value, "ci95": result.ci95}
        session.recorder.record(state.step, {f"{prefix}/{name}": value for name, value in named.items()})
    keep_results(session, params, results, home.evaluations / "test.json")
    if home.metrics.exists():
        plots.curves(home.metrics, home.plots / "curves.png")
        session.recorder.artifact(home.plots / "curves.png", "plots")
    for step in sorted({state.step, best}):
        for file in checkpoints.files(home.checkpoints, step):
            session.recorder.artifact(file, f"checkpoints/{step:08d}")
    return results


def test(session: Session, params: Params) -> list[Evaluation]:
    """Results on the test tasks: of the learner at `params` and, where asked for, of what learned nothing."""
    settings = session.config.evaluation
    learners: dict[str, tuple[Params, int]] = {"trained": (params, settings.tasks)}
    if settings.baselines:
        learners["untrained"] = session.worker.initial(), settings.tasks
        learners |= {name: ({}, settings.tasks) for name in BASELINES}
        learners["from_scratch"] = {}, min(settings.tasks, settings.from_scratch_tasks)
    return [_evaluated(session, "test", name, given, tasks) for name, (given, tasks) in learners.items() if tasks]


def keep_results(session: Session, params: Params, results: Sequence[Evaluation], path: Path) -> None:
    """Results as JSON, the score after each inner step and one task as pictures; in the run folder and where it is
    recorded. `params` are those of the first result.
    """
    home, recorder = session.home, session.recorder
    write_json(path, as_test_and_baselines(results))
    plots.adaptation(results[0].as_dict(), home.plots / f"{path.stem}-adaptation.png")
    recorder.artifact(path, "evaluations")
    recorder.artifact(home.plots / f"{path.stem}-adaptation.png", "plots")
    picture = exhibit(session.worker, params, home.plots, path.stem)
    if picture is not None:
        recorder.artifact(picture, "plots")


def _evaluated(session: Session, split: Split, learner: str, params: Params, tasks: int) -> Evaluation:
    request = ShardRequest("score", split, 0, learner)
    transductive = session.worker.transductive(learner)
    return evaluate(session.executor, request, params, tasks, session.config.executor.shard_size, transductive)
