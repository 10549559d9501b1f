"""Train, validate, checkpoint and test one run: what `metatrain train` calls, and programs of your own may call.

The loop itself is `training.outer_loop.train`; here is what happens between its steps.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.algorithms.baselines import BASELINES
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_yaml
from metatrain.errors import TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import Evaluation, evaluate
from metatrain.report import figures
from metatrain.report.plots import draw_panels, save_png
from metatrain.report.series import read_series
from metatrain.report.test_task import draw_test_task
from metatrain.runs import Run, checkpoints, describe_environment, write_json
from metatrain.runs.locations import create_run
from metatrain.settings import Config
from metatrain.training.outer_loop import Best, TrainState, initial_state, restore, train
from metatrain.training.worker import Worker
from metatrain.types import URGENT, Executor, Metrics, Params, Recorder, ShardRequest
from tasks.io.files import refuse_links
from tasks.types import Split


@dataclass(frozen=True)
class RunResult:
    """The result of training a run. `seconds` and `tasks_per_second` cover this process only, not earlier ones."""

    run_id: str
    run_dir: str
    steps: int
    seconds: float
    tasks_per_second: float
    params_sha256: str
    finished: bool
    results: list[Evaluation] = field(default_factory=list)
    """On the test tasks: the trained learner first, then the baselines; empty if the run did not finish."""
    executor: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for --json: "test" is the trained learner's result, "baselines" are the others'."""
        plain = dict(vars(self))
        return plain | results_as_dict(plain.pop("results"))


def results_as_dict(results: Sequence[Evaluation]) -> dict[str, Any]:
    """Return results as plain values, under the keys of --json and evaluations/*.json."""
    plain = [result.as_dict() for result in results]
    return {"test": plain[0] if plain else None, "baselines": plain[1:]}


def new_run(config: Config) -> Run:
    """Create the folder of a run under `runs.root`, a local folder or s3://…, with the resolved `config` in it."""
    settings = config.runs
    return create_run(settings.root, settings.name, as_yaml(config), describe_environment(), settings.heartbeat)


def run(
    worker: Worker,
    executor: Executor,
    recorder: Recorder,
    home: Run | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train `worker.config` in the folder `home` (a new one by default), from its newest valid checkpoint on.

    `stop` is called after every step; when it returns True, a checkpoint is written and the result is not `finished`.
    Raises Diverged when the loss is not finite, WorkersLost when no worker answers, TaskFailed when a task raises.
    """
    began = time.monotonic()
    config = worker.config
    session = Session(worker, executor, recorder, home or new_run(config))
    state = start(session)
    first = state.step
    spent = sum(train_segments(session, state, stop))
    finished = state.step == config.outer.steps and not stop()
    return RunResult(
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
    """What the driver of a run works with. `worker` is the driver's own; those of the executor may be elsewhere."""

    worker: Worker
    executor: Executor
    recorder: Recorder
    home: Run

    @property
    def config(self) -> Config:
        """Return the resolved configuration."""
        return self.worker.config


def start(session: Session) -> TrainState:
    """Start recording, and return the state to continue from: that of the newest valid checkpoint, or step 0."""
    recorder, home = session.recorder, session.home
    refuse_links(home.path)
    state, damaged = _load_state(session)
    recorder.start(state.step, session.config.outer.steps)
    for reason in damaged:
        recorder.event(state.step, "warning", f"{reason}: going on from step {state.step}")
    recorder.artifact(home.config)
    recorder.artifact(home.environment)
    return state


def _load_state(session: Session) -> tuple[TrainState, list[str]]:
    """Return the state to continue from, and a reason for each damaged checkpoint that was skipped."""
    found = checkpoints.newest(session.home.checkpoints)
    if found is None:
        return initial_state(session.worker.initial(), session.config.outer), []
    require_same(found.snapshot["params"], session.worker)
    return restore(found.snapshot, session.config.outer), found.damaged


def train_segments(
    session: Session, state: TrainState, stop: Callable[[], bool], milestones: Collection[int] = ()
) -> Iterator[float]:
    """Train to the next milestone, the end or a stop, again and again; yield the seconds each segment's steps took.

    milestones: steps at which the state is validated and checkpointed, as it is at the end; these checkpoints are
    never pruned.
    """
    first = state.step
    try:
        yield from _train(session, state, stop, milestones)
    except (WorkersLost, TaskFailed):
        if state.step > first:  # keep what was computed since the last checkpoint
            _record_events(session, state)
            _checkpoint(session, state, milestones)
            session.home.commit()
        raise


def _train(
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
        urgent = _record_events(session, state)
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
    """Record the metrics, speed and worker counts of a step, every `tracking.every` steps and at the last."""
    config = session.config
    if state.step == config.outer.steps or state.step % config.tracking.every == 0:
        train_metrics = {f"train/{name}": value for name, value in metrics.items()}
        pace = {"time/tasks_per_second": config.outer.tasks_per_step / seconds}
        health = {f"cluster/{name}": value for name, value in session.executor.health().items()}
        session.recorder.record(state.step, train_metrics | pace | health)


def _record_events(session: Session, state: TrainState) -> bool:
    """Record what happened to the workers; return True if a checkpoint is due now for what they say."""
    events = session.executor.events()
    for event in events:
        session.recorder.event(state.step, event.kind, event.text)
    return any(event.kind in URGENT for event in events)


def _validate(session: Session, state: TrainState) -> bool:
    """Score the validation tasks and record the result; return True if this state is the best so far."""
    tasks = session.config.evaluation.validation_tasks
    result = _evaluate(session, "validation", "trained", state.params, tasks)
    named = {result.score: result.value, "ci95": result.ci95, "loss": result.loss}
    session.recorder.record(state.step, {f"validation/{name}": value for name, value in named.items()})
    score = result.value if result.score == "accuracy" else -result.value
    if score <= state.best.score:
        return False
    state.best = Best(state.step, score)
    return True


def _checkpoint(session: Session, state: TrainState, milestones: Collection[int] = ()) -> None:
    """Write a checkpoint, once everything recorded before it is durable, so that a resume finds no gap."""
    session.recorder.flush()
    extra = {"params_sha256": checkpoints.params_sha256(state.params), "spec": session.worker.model.spec._asdict()}
    checkpoints.save(session.home.checkpoints, state.step, state.snapshot(), extra)
    checkpoints.prune(session.home.checkpoints, session.config.checkpoint.keep, {state.best.step, *milestones})
    try:
        session.home.try_commit()
    except OSError as error:
        session.recorder.event(state.step, "unsent", f"{error}: it goes with the next checkpoint")


def _test(session: Session, state: TrainState) -> list[Evaluation]:
    """Test the best state by validation and the baselines, and record results, plots and checkpoints."""
    home = session.home
    best = state.best.step if state.best.step >= 0 else state.step
    params = checkpoints.load(home.checkpoints, best)["params"]
    results = score_test_tasks(session, params)
    for result in results:
        prefix = "test" if result.learner == "trained" else f"test/{result.learner}"
        named = {result.score: result.value, "ci95": result.ci95}
        session.recorder.record(state.step, {f"{prefix}/{name}": value for name, value in named.items()})
    save_results(session, params, results, home.evaluations / "test.json")
    if home.metrics.exists():
        curves = draw_panels(figures.training([(home.run_id, read_series(home.metrics))]))
        save_png(curves, home.plots / "curves.png")
        session.recorder.artifact(home.plots / "curves.png", "plots")
    for step in sorted({state.step, best}):
        for file in checkpoints.files(home.checkpoints, step):
            session.recorder.artifact(file, f"checkpoints/{step:08d}")
    return results


def score_test_tasks(session: Session, params: Params) -> list[Evaluation]:
    """Score the learner at `params` on the test tasks, then, if `evaluation.baselines`, the baselines."""
    settings = session.config.evaluation
    learners: dict[str, tuple[Params, int]] = {"trained": (params, settings.tasks)}
    if settings.baselines:
        learners["untrained"] = session.worker.initial(), settings.tasks
        learners |= {name: ({}, settings.tasks) for name in BASELINES}
        learners["from_scratch"] = {}, min(settings.tasks, settings.from_scratch_tasks)
    return [_evaluate(session, "test", name, given, tasks) for name, (given, tasks) in learners.items() if tasks]


def save_results(session: Session, params: Params, results: Sequence[Evaluation], path: Path) -> None:
    """Write and record results as JSON, a plot of the score by inner step, and a figure of one test task.

    params: those of the first result.
    """
    home, recorder = session.home, session.recorder
    write_json(path, results_as_dict(results))
    save_png(figures.adaptation_chart(results[0].as_dict()), home.plots / f"{path.stem}-adaptation.png")
    recorder.artifact(path, "evaluations")
    recorder.artifact(home.plots / f"{path.stem}-adaptation.png", "plots")
    picture = draw_test_task(session.worker, params, home.plots, path.stem)
    if picture is not None:
        recorder.artifact(picture, "plots")


def _evaluate(session: Session, split: Split, learner: str, params: Params, tasks: int) -> Evaluation:
    request = ShardRequest("score", split, 0, learner)
    transductive = session.worker.transductive(learner)
    return evaluate(session.executor, request, params, tasks, session.config.executor.shard_size, transductive)
