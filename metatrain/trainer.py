"""Train, validate, checkpoint and test one run: what `metatrain train` calls, and programs of your own may call.

The loop itself is `training.outer_loop.train`; here is what happens between its steps.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from metatrain.algorithms.updates import update_of
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_yaml
from metatrain.config.run_data import data_of, require_training_classes
from metatrain.errors import EvaluationStopped, StepAbandoned, TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import Evaluation
from metatrain.metrics import METRICS
from metatrain.report import figures
from metatrain.report.plots import draw_panels, save_png
from metatrain.report.series import read_series
from metatrain.runs import Run, checkpoints, describe_environment
from metatrain.runs.data_record import data_files, find_overlap, read_data
from metatrain.runs.locations import create_run
from metatrain.session import Once, Session, here, never
from metatrain.settings import Config
from metatrain.testing import (
    evaluation_name,
    results_as_dict,
    score_learner,
    score_test_tasks,
    write_results,
)
from metatrain.training.initial import Initial, save_initial
from metatrain.training.outer_loop import Best, TrainState, initial_state, restore, set_statistics, train
from metatrain.training.snapshots import check_snapshot
from metatrain.training.worker import Worker
from metatrain.types import URGENT, Executor, Metrics, Params, Recorder, ShardRequest
from tasks.io.files import refuse_links


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
    """On the test tasks: the trained learner first, then the baselines; those that were done before a stop."""
    executor: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for --json: "test" is the trained learner's result, "baselines" are the others'."""
        plain = dict(vars(self))
        return plain | results_as_dict(plain.pop("results"))


def new_run(config: Config, initial: Initial | None = None) -> Run:
    """Create the folder of a run under `runs.root`, a local folder or s3://…, with the resolved `config` in it.

    initial: the parameters it begins with, unless they are random.
    ValueError: there are no classes to train on, or the folder cannot be made.
    """
    settings, data = config.runs, data_of(config)
    require_training_classes(data)
    place = settings.root, settings.name
    files, fill = data_files(data), partial(save_initial, initial)
    return create_run(*place, as_yaml(config), describe_environment(), settings.heartbeat, files, fill)


def run(
    worker: Worker,
    executor: Executor,
    recorder: Recorder,
    home: Run | None = None,
    stop: Callable[[], bool] = never,
    tested: Callable[[Sequence[Evaluation]], None] = lambda results: None,
    events: Sequence[tuple[str, str]] = (),
    once: Once = here,
) -> RunResult:
    """Train `worker.config` in the folder `home` (a new one by default), from its newest valid checkpoint on.

    `stop` is called after every step and between the shards of a validation or test; when it returns True, a checkpoint
    is written and the result is not `finished`. `tested` is called with the results before anything is done with them.
    events: (kind, text) to record before the first step. once: see `Session`, of ranks that each call this.
    Raises Diverged when the loss is not finite, WorkersLost when no worker answers, TaskFailed when a task raises.
    """
    began = time.monotonic()
    config = worker.config
    session = Session(worker, executor, recorder, home or new_run(config, worker.given), stop, once)
    state = start(session)
    for kind, text in events:
        recorder.event(state.step, kind, text)
    first = state.step
    spent = sum(train_segments(session, state))
    trained = state.step == config.outer.steps and not state.validation_due and not stop()
    results, complete = _test(session, state, tested) if trained else ([], False)
    return RunResult(
        run_id=session.home.run_id,
        run_dir=session.home.where,
        steps=state.step,
        tasks_per_second=round((state.step - first) * config.outer.tasks_per_step / spent, 3) if spent else 0.0,
        params_sha256=checkpoints.params_sha256(state.params),
        finished=complete,
        results=results,
        executor=dict(executor.report()),
        seconds=round(time.monotonic() - began, 3),
    )


def start(session: Session) -> TrainState:
    """Start recording, and return the state to continue from: that of the newest valid checkpoint, or step 0."""
    recorder, home = session.recorder, session.home
    session.once(partial(refuse_links, home.path))
    state, damaged = _load_state(session)
    recorder.start(state.step, session.config.outer.steps)
    for reason in damaged:
        recorder.event(state.step, "warning", f"{reason}: going on from step {state.step}")
    if state.step == 0 and session.worker.given is not None:
        for note in session.worker.given.notes:
            recorder.event(0, "initialized", note)
    recorder.artifact(home.config)
    recorder.artifact(home.environment)
    return state


def _load_state(session: Session) -> tuple[TrainState, list[str]]:
    """Return the state to continue from, and a reason for each damaged checkpoint that was skipped."""
    found = session.once(partial(_newest, session.home))
    if found is None:
        return initial_state(session.worker.initial(), session.config.outer), []
    snapshot, step, damaged = found
    require_same(check_snapshot(snapshot, step)["params"], session.worker)
    return restore(snapshot, session.config.outer), damaged


def _newest(home: Run) -> tuple[dict[str, Any], int, list[str]] | None:
    """Return the newest valid checkpoint, its step, and why newer ones were skipped, as plain values."""
    found = checkpoints.newest(home.checkpoints)
    return None if found is None else (found.snapshot, found.step, found.damaged)


def train_segments(session: Session, state: TrainState, milestones: Collection[int] = ()) -> Iterator[float]:
    """Train to the next milestone, the end or a stop, again and again; yield the seconds each segment's steps took.

    milestones: steps at which the state is validated and checkpointed, as it is at the end; these checkpoints are
    never pruned. A validation that a stop cut short is `validation_due`, and the first thing that a resume does.
    """
    first = state.step
    try:
        if not session.stop():
            yield from _train(session, state, milestones)
    except (WorkersLost, TaskFailed, StepAbandoned) as error:
        if state.step > first:  # keep what was computed since the last checkpoint
            _record_events(session, state)
            _checkpoint(session, state, milestones)
            session.once(session.home.commit)
        if isinstance(error, TaskFailed) or not session.stop():
            raise
        session.recorder.event(state.step, "stopped", f"the next step could not end: {error}")


def _train(session: Session, state: TrainState, milestones: Collection[int]) -> Iterator[float]:
    config = session.config
    session.home.check_ownership()
    if state.validation_due:
        _validate(session, state)
        _checkpoint(session, state, milestones)
        if _has_reached(session, state, milestones) or state.validation_due:
            yield 0.0
        if state.validation_due:
            return
    spent, began = 0.0, time.monotonic()
    update = update_of(config.algorithm)
    for metrics in train(state, session.executor, config.outer, config.executor.shard_size, update):
        seconds = time.monotonic() - began
        spent += seconds
        session.home.check_ownership()
        _record(session, state, metrics, seconds)
        reached, urgent = _has_reached(session, state, milestones), _record_events(session, state)
        state.validation_due = reached or state.step % config.evaluation.every == 0
        improved = state.validation_due and _validate(session, state)
        stopping = state.validation_due or session.stop()
        if reached or stopping or urgent or improved or state.step % config.checkpoint.every == 0:
            _checkpoint(session, state, milestones)
        if reached or stopping:
            yield spent
            spent = 0.0
        if stopping:
            return
        began = time.monotonic()


def _has_reached(session: Session, state: TrainState, milestones: Collection[int]) -> bool:
    return state.step == session.config.outer.steps or state.step in milestones


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
    """Score the validation tasks and record the result; return True if this state is the best so far.

    A stop leaves the validation due.
    """
    config = session.config
    try:
        set_statistics(state, config.algorithm, session.executor, config.executor.shard_size)
        request = ShardRequest("score", "validation", 0)
        result = score_learner(session, request, state.params, config.evaluation.validation_tasks)
    except EvaluationStopped:
        return False
    state.validation_due = False
    session.recorder.record(state.step, {f"validation/{name}": value for name, value in _named(result).items()})
    score = METRICS[result.score].sign * result.value
    if score <= state.best.score:
        return False
    state.best = Best(state.step, score)
    return True


def _named(result: Evaluation) -> Metrics:
    """Return every metric of a result by its name, with the interval of the primary one as "ci95"."""
    return {name: found.value for name, found in result.metrics.items()} | {"ci95": result.ci95}


def _checkpoint(session: Session, state: TrainState, milestones: Collection[int] = ()) -> None:
    """Write a checkpoint, once everything recorded before it is durable, so that a resume finds no gap."""
    session.once(partial(_save, session, state, milestones))


def _save(session: Session, state: TrainState, milestones: Collection[int]) -> None:
    session.recorder.flush()
    extra = {"params_sha256": checkpoints.params_sha256(state.params), "spec": session.worker.model.spec.as_plain()}
    checkpoints.save(session.home.checkpoints, state.step, state.snapshot(), extra)
    checkpoints.prune(session.home.checkpoints, session.config.checkpoint.keep, {state.best.step, *milestones})
    try:
        session.home.try_commit()
    except OSError as error:
        session.recorder.event(state.step, "unsent", f"{error}: it goes with the next checkpoint")


def _test(
    session: Session, state: TrainState, tested: Callable[[Sequence[Evaluation]], None]
) -> tuple[list[Evaluation], bool]:
    """Test the best state by validation and the baselines; return the results, and whether all learners were tested.

    Results, plots and checkpoints are recorded; after a stop, the results are only kept with the run, and a resume
    tests anew. tested: called with the results before anything can fail that is done with them.
    """
    home = session.home
    best = state.best.step if state.best.step >= 0 else state.step
    params: Params = session.once(lambda: check_snapshot(checkpoints.load(home.checkpoints, best), best)["params"])
    require_same(params, session.worker)
    results: list[Evaluation] = []
    kept = read_data(home)
    try:
        for result in score_test_tasks(session, params, kept and find_overlap(kept, kept)):
            results.append(result)
    except EvaluationStopped as stopped:
        session.recorder.event(state.step, "stopped", f"{stopped}: a resume tests anew")
        if results:
            tested(results)
            session.once(lambda: write_results(session, params, results, evaluation_name(())) and None)
        return results, False
    tested(results)
    session.once(partial(_record_test, session, state, best, params, results))
    return results, True


def _record_test(session: Session, state: TrainState, best: int, params: Params, results: Sequence[Evaluation]) -> None:
    """Record the results on the test tasks, their plots and the curves of training, and the checkpoints they are of."""
    home = session.home
    for number, result in enumerate(results):
        prefix = "test" if number == 0 else f"test/{result.kind if result.learner == 'trained' else result.learner}"
        named = _named(result)
        if result.ci95_classes is not None:
            named["ci95_classes"] = result.ci95_classes
        session.recorder.record(state.step, {f"{prefix}/{name}": value for name, value in named.items()})
    for file, folder in write_results(session, params, results, evaluation_name(())):
        session.recorder.artifact(file, folder)
    if home.metrics.exists():
        curves = draw_panels(figures.training([(home.run_id, read_series(home.metrics))]))
        save_png(curves, home.plots / "curves.png")
        session.recorder.artifact(home.plots / "curves.png", "plots")
    for step in sorted({state.step, best}):
        for file in checkpoints.files(home.checkpoints, step):
            session.recorder.artifact(file, f"checkpoints/{step:08d}")
