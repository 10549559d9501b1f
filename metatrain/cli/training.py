"""`metatrain train` and `evaluate`: settings, executor, recorders and run put together."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from metatrain import runs
from metatrain.config.dry_run import require_same
from metatrain.config.load import as_plain, load_config, read_config, resumed
from metatrain.errors import Diverged, RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.evaluation.evaluate import format_results, make_shards
from metatrain.inference import best_params
from metatrain.runs.checkpoints import params_sha256
from metatrain.runs.locations import is_search, open_run
from metatrain.runs.messages import failure_message, resume_command
from metatrain.settings import Config
from metatrain.setup import prepare, recorders, settled, tracked
from metatrain.signals import graceful_shutdown
from metatrain.tracking.console import ProgressRecorder
from metatrain.tracking.jsonl import CompositeRecorder
from metatrain.tracking.status_line import read_metrics_file
from metatrain.trainer import Outcome, Session, as_test_and_baselines, keep_results, new_run, run, test
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker, device_for
from metatrain.types import Executor
from metatrain.validation import require
from metatrain.yaml_config import apply_overrides


def train_command(config: str | None, overrides: list[str], resume: str | None, take_over: bool, as_json: bool) -> None:
    """Train a new or resumed run, test it and print its results."""
    home = open_run(resume) if resume is not None else None
    require(not take_over or home is not None, "--take-over: is for --resume alone: leave it out")
    if home is not None:
        require(not is_search(home), f"--resume: {resume} is a search: go on with `metatrain search --resume {resume}`")
        settings = resumed(load_config(home.config), [config, *overrides] if config else [])
    elif config is not None:
        settings = load_config(Path(config), overrides)
    else:
        raise ValueError("CONFIG: missing: give a YAML file, as in configs/, or --resume RUN")
    prepare_seconds = prepare(settings)
    settings = settled(settings)
    with executing(settings) as executor:
        compile_seconds = compile_ahead(settings, executor)
        home = home or new_run(settings)
        print(f"run {home.where}", file=sys.stderr)
        with runs.lock_run(home, take_over, heartbeat_s=settings.runs.heartbeat):
            outcome, signalled = _train(settings, executor, home)
    _report(outcome, as_json, {"prepare_seconds": prepare_seconds, "compile_seconds": compile_seconds})
    if signalled:
        print(f"interrupted at step {outcome.steps}: {resume_command(home)}", file=sys.stderr)
        raise typer.Exit(128 + signalled)


def _train(settings: Config, executor: Executor, home: runs.Run) -> tuple[Outcome, int]:
    known = read_metrics_file(home.metrics, settings.outer.steps)
    progress = ProgressRecorder(known=known.metrics if known else None)
    recorder = recorders(settings, home, progress)
    with graceful_shutdown() as shutdown:
        try:
            outcome = run(settings, executor, recorder, home, stop=shutdown.is_set)
            recorder.close("finished" if outcome.finished else "interrupted")
            home.commit()
        except RunLost:
            progress.close("interrupted")  # the other recorders are the new owner's now
            raise
        except (Diverged, WorkersLost, TaskFailed, OSError) as error:
            with suppress(OSError):  # the recorder may be what failed
                recorder.close("failed")
            raise RunFailed(failure_message(error, home)) from error
        return outcome, 0 if outcome.finished else shutdown.signal


def compile_ahead(settings: Config, executor: Executor) -> float:
    """Compile the inner loop on every worker, where the engine does, saying so; returns the seconds it took."""
    if settings.engine.compile != "on":
        return 0.0
    print("compiling the inner loop: a minute or so, seconds when it was compiled here before", file=sys.stderr)
    began = time.monotonic()
    executor.compile(make_shards(0, settings.outer.tasks_per_step, settings.executor.shard_size))
    seconds = round(time.monotonic() - began, 3)
    print(f"compiled in {seconds:.0f} s", file=sys.stderr)
    return seconds


def _report(outcome: Outcome, as_json: bool, also: dict[str, Any]) -> None:
    for line in format_results(outcome.results):
        print(line)
    print(f"{outcome.run_dir}: {outcome.steps} steps, {outcome.tasks_per_second:g} tasks/s, {outcome.seconds:.0f} s")
    for pid, tasks in outcome.executor.get("workers", {}).items():
        print(f"worker {pid}: {tasks} tasks, {outcome.executor['peak_mib'].get(pid, 0):.0f} MiB at most")
    parts = [f"{part} {seconds:.1f}" for part, seconds in outcome.executor.get("seconds", {}).items()]
    print(f"seconds by part, all processes together: {', '.join(parts)}")
    if as_json:
        print(json.dumps(outcome.as_dict() | also))


def evaluate_command(run_dir: str, overrides: list[str], as_json: bool) -> None:
    """Test the best parameters of the run at `run_dir` and print the results."""
    began = time.monotonic()
    home = open_run(run_dir)
    trained = load_config(home.config)
    settings = settled(read_config(apply_overrides(as_plain(trained), overrides)))
    params, newest, _ = best_params(home)
    worker = Worker(settings, torch.device("cpu"))
    require_same(params, worker)
    with executing(settings) as executor, runs.lock_run(home, guest=True):
        recorder = CompositeRecorder(tracked(trained, home))
        recorder.start(newest, trained.outer.steps)
        session = Session(settings, executor, recorder, home, worker)
        results = test(session, params)
        name = "-".join(["test", *map(_file_part, overrides)])
        keep_results(session, params, results, home.evaluations / f"{name}.json")
        recorder.close("finished" if newest == trained.outer.steps else "interrupted")
        home.commit()
    for line in format_results(results):
        print(line)
    if as_json:
        seconds = time.monotonic() - began
        plain = {
            "run_id": home.run_id,
            "run_dir": home.where,
            "steps": newest,
            "seconds": round(seconds, 3),
            "tasks_per_second": round(sum(result.tasks for result in results) / seconds, 3),
            "params_sha256": params_sha256(params),
        }
        print(json.dumps(plain | as_test_and_baselines(results)))


def _file_part(override: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in override)


@contextmanager
def executing(settings: Config) -> Iterator[Executor]:
    """The executor that `settings` name, closed afterwards."""
    if settings.executor.name == "in_process":
        device = device_for(settings.executor.gpus_per_worker)
        yield InProcess(Worker(settings, device))
        return
    # Ray takes seconds to import; what does not need it should not wait for it.
    from cluster.connection import connect_ray
    from cluster.executor import RayExecutor

    with connect_ray(settings.executor):
        executor = RayExecutor(settings, say=partial(print, file=sys.stderr, flush=True))
        try:
            yield executor
        finally:
            executor.close()
