"""Implement `metatrain train`."""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import typer

from cluster.executors import open_executor
from metatrain import runs
from metatrain.cli.memory import predict_with_room, show_predicted_memory
from metatrain.cli.notes import show_notes
from metatrain.config.extension import EXTENDED, extend_run
from metatrain.config.load import as_plain, load_config, override_for_resume
from metatrain.config.run_data import data_of, require_training_classes, split_as_before
from metatrain.config.shipped import find_config
from metatrain.errors import Diverged, RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import Evaluation, format_results, make_shards
from metatrain.report.collect import newest_step
from metatrain.runs.data_record import describe_overlap, find_overlap, read_data, require_unchanged
from metatrain.runs.locations import is_search, open_run
from metatrain.runs.messages import failure_message, resume_command
from metatrain.settings import Config
from metatrain.setup import prepare, recorders, set_up
from metatrain.signals import ShutdownRequest, graceful_shutdown
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.status_line import read_metrics_file
from metatrain.trainer import RunResult, new_run, run
from metatrain.training.memory import MEMORY, Memory, compare_memory
from metatrain.training.worker import Worker
from metatrain.trust import require_chosen_places
from metatrain.types import Executor
from metatrain.validation import require
from metatrain.yaml_config import flatten


def train_command(
    path: str | None,
    overrides: list[str],
    resume: str | None,
    take_over: bool,
    as_json: bool,
    trust: bool = False,
    only_check: bool = False,
) -> None:
    """Train a new or resumed run, test it and print its results; `only_check`: only what can be told before it."""
    home = open_run(resume) if resume is not None else None
    require(not take_over or home is not None, "--take-over: works only with --resume: remove it")
    if home is not None:
        config = load_resumed(home, [path, *overrides] if path else [], trust)
    elif path is not None:
        config = load_config(path, overrides, trust)
        require_chosen_places(find_config(path), flatten(as_plain(config)), overrides, trust)
    else:
        raise ValueError("CONFIG: missing: name a YAML file, as in configs/, or --resume RUN")
    if only_check:
        show_predicted_memory(set_up(_prepare_data(config, home)[0], home), as_json)
        return
    trained = train_run(config, home, take_over, _print_table)
    _print_result(trained.result, as_json, trained.seconds)
    if trained.signal:
        print(f"interrupted at step {trained.result.steps}: {resume_command(trained.home)}", file=sys.stderr)
        raise typer.Exit(128 + trained.signal)


def load_resumed(home: runs.Run, overrides: Sequence[str], trust: bool) -> Config:
    """Return the configuration with which a run goes on."""
    where = home.where
    require(not is_search(home), f"--resume: {where} is a search: go on with `metatrain search --resume {where}`")
    config = override_for_resume(load_config(home.config, trust=trust), overrides, newest_step(home))
    require_chosen_places(home.config, flatten(as_plain(config)), overrides, trust)
    return config


class Trained(NamedTuple):
    """A run that was trained here; the signal that interrupted it, 0 for none; seconds of what came before."""

    home: runs.Run
    result: RunResult
    signal: int
    seconds: dict[str, float]


Tested = Callable[[runs.Run, ProgressRecorder, Sequence[Evaluation]], None]


def train_run(
    config: Config,
    home: runs.Run | None,
    take_over: bool,
    tested: Tested = lambda home, progress, results: progress.release(),
    show: bool = True,
) -> Trained:
    """Train a new run or one that is resumed. tested: called with the results. show: the progress."""
    config, prepare_seconds = _prepare_data(config, home)
    worker = set_up(config, home)
    predicted = predict_with_room(worker)
    if config.executor.name == "ray_train":
        trained = _train_on_ranks(worker, predicted, home, take_over, tested, show)
        return trained._replace(seconds={"prepare_seconds": prepare_seconds} | trained.seconds)
    with open_executor(worker) as executor:
        compile_seconds = compile_ahead(worker.config, executor)
        with graceful_shutdown() as shutdown:
            home = _begin(worker, home, show)
            with runs.lock_run(home, take_over, heartbeat_s=config.runs.heartbeat):
                extended = extend_run(home, config, newest_step(home))
                events = [(EXTENDED, extended)] if extended else []
                opened = _Opened(worker, executor, home, shutdown, events, predicted)
                result = _train(opened, tested, show)
            signal = 0 if result.finished else shutdown.signal
    return Trained(home, result, signal, {"prepare_seconds": prepare_seconds, "compile_seconds": compile_seconds})


def _begin(worker: Worker, home: runs.Run | None, show: bool) -> runs.Run:
    """Return the run that goes on, or a new one, and show where it is."""
    home = home or new_run(worker.config, worker.given)
    if show:
        print(f"run {home.where}", file=sys.stderr)
    return home


def _train_on_ranks(
    worker: Worker, predicted: Memory | None, home: runs.Run | None, take_over: bool, tested: Tested, show: bool
) -> Trained:
    """Train on ranks of Ray Train, whose rank 0 owns the run."""
    from cluster.connection import connect_ray  # takes seconds: not for runs that do without
    from metatrain.cli.ray_train import train_on_ranks

    with connect_ray(worker.config.executor), graceful_shutdown() as shutdown:
        home = _begin(worker, home, show)
        progress = _progress(worker.config, home, show)
        results = partial(tested, home, progress)
        try:
            outcome = train_on_ranks(worker, predicted, home, take_over, shutdown.is_set, progress, results)
        except (RunLost, SystemExit):
            progress.close("interrupted")
            raise
    signal = 0 if outcome.result.finished else shutdown.signal
    return Trained(home, outcome.result, signal, {"compile_seconds": outcome.compile_seconds})


def _progress(config: Config, home: runs.Run, show: bool) -> ProgressRecorder:
    """Return what shows the run on standard error, or nowhere."""
    known = read_metrics_file(home.metrics, config.outer.steps)
    return ProgressRecorder(None if show else io.StringIO(), known=known.metrics if known else None)


def _prepare_data(config: Config, home: runs.Run | None) -> tuple[Config, float]:
    """Prepare the data, and return the configuration and the seconds that took.

    ValueError: there is nothing to train on, or the run `home` began with other data.
    """
    kept = None if home is None else read_data(home)
    if home is not None and kept is None:
        config = split_as_before(config)
    seconds = prepare(config)
    data = data_of(config)
    if kept is not None and data is not None and home is not None:
        require_unchanged(home, kept, data)
    elif home is not None and data is not None:
        version = f"{home.where} is of a version that kept no record of its data"
        print(f"{version}: whether they have changed is unknown", file=sys.stderr)
    show_notes(data)
    require_training_classes(data)
    return config, seconds


class _Opened(NamedTuple):
    """What a run is trained with, once it is there."""

    worker: Worker
    executor: Executor
    home: runs.Run
    shutdown: ShutdownRequest
    events: Sequence[tuple[str, str]]
    predicted: Memory | None


def _train(opened: _Opened, tested: Tested, show: bool) -> RunResult:
    worker, executor, home, shutdown, events, predicted = opened
    progress = _progress(worker.config, home, show)
    recorder = recorders(worker.config, home, progress)
    try:
        result = run(worker, executor, recorder, home, shutdown.is_set, partial(tested, home, progress), events)
        used = result.executor.get("peak_mib", {})
        recorder.event(result.steps, MEMORY, compare_memory(predicted, worker.config.executor.has_driver, used))
        recorder.close("finished" if result.finished else "interrupted")
        home.commit()
    except (RunLost, SystemExit):  # the other recorders are the new owner's now; or a second signal came
        progress.close("interrupted")
        raise
    except (Diverged, WorkersLost, TaskFailed, OSError) as error:
        with suppress(OSError):  # the recorder may be what failed
            recorder.close("failed")
        raise RunFailed(failure_message(error, home)) from error
    return result


def compile_ahead(config: Config, executor: Executor) -> float:
    """Compile the inner loop on every worker, if the engine compiles, with a message; return the seconds it took."""
    if config.engine.compile != "on":
        return 0.0
    print("compiling the inner loop: half a minute or more, or seconds where this was done before", file=sys.stderr)
    began = time.monotonic()
    executor.compile(make_shards(0, config.outer.tasks_per_step, config.executor.shard_size))
    seconds = round(time.monotonic() - began, 3)
    print(f"compiled in {seconds:.0f} s", file=sys.stderr)
    return seconds


def _print_table(home: runs.Run, progress: ProgressRecorder, results: Sequence[Evaluation]) -> None:
    """Print the results before they are saved, which may fail."""
    progress.release()
    data = read_data(home)
    tested = describe_overlap(find_overlap(data, data)) if data is not None else []
    for line in (*format_results(results), *tested):
        print(line, flush=True)


def _print_result(result: RunResult, as_json: bool, also: dict[str, Any]) -> None:
    print(f"{result.run_dir}: {result.steps} steps, {result.tasks_per_second:g} tasks/s, {result.seconds:.0f} s")
    for pid, tasks in result.executor.get("workers", {}).items():
        print(f"worker {pid}: {tasks} tasks, {result.executor['peak_mib'].get(pid, 0):.0f} MiB at most")
    parts = [f"{part} {seconds:.1f}" for part, seconds in result.executor.get("seconds", {}).items()]
    print(f"seconds by part, all processes together: {', '.join(parts)}")
    if as_json:
        print(json.dumps(result.as_dict() | also))
