"""The command line, and the one file of metatrain that imports `cluster`: everything is put together here."""

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import typer

from metatrain import runs
from metatrain.algorithms import ALGORITHMS
from metatrain.config import as_plain, as_yaml, flat, json_schema, load_config, overridden, read_config, resolved
from metatrain.driver import Outcome, Session, as_test_and_baselines, keep_results, new_run, run, test
from metatrain.evaluation import table
from metatrain.executor import InProcess
from metatrain.learner import best_params
from metatrain.models import ARCHITECTURES
from metatrain.outer import Diverged
from metatrain.progress import Progress, counter
from metatrain.recorders import JsonLines, Several
from metatrain.settings import Config
from metatrain.types import Executor, Recorder
from metatrain.worker import Worker, device_for
from tasks.catalogue import CATALOGUE
from tasks.types import Episode, EpisodeShape

app = typer.Typer(
    help="Models that learn to learn: meta-training in one process or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare and look at tasks.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.", metavar="KEY=VALUE…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]


@app.command("train")
def train_command(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, such as configs/strokes-protonet-5w1s.yaml.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Meta-train, test on held-out classes, and keep everything in a run folder."""
    if resume is not None:
        given = [*([config] if config else []), *(overrides or [])]
        if given:
            raise ValueError(f"--resume: a run goes on as it began; leave out {given[0]}, or train anew")
        home = runs.open_run(resume)
        settings = load_config(home.config)
    else:
        if config is None:
            raise ValueError("CONFIG: missing: give a YAML file, such as configs/strokes-protonet-5w1s.yaml")
        settings, home = load_config(Path(config), overrides or []), None
    with executing(settings) as executor:
        settings = resolved(settings, Worker(settings, torch.device("cpu")).engine.vectorize)
        home = home or new_run(settings)
        with runs.own(home):
            outcome, signalled = _train(settings, executor, home)
    _report(outcome, as_json)
    if signalled:
        print(
            f"interrupted at step {outcome.steps}: go on with `metatrain train --resume {home.path}`", file=sys.stderr
        )
        raise typer.Exit(128 + signalled)


def _train(settings: Config, executor: Executor, home: runs.Run) -> tuple[Outcome, int]:
    recorder = recorders(settings, home, Progress())
    with interruptible() as interruption:
        try:
            outcome = run(settings, executor, recorder, home, stop=interruption.is_set)
        except Diverged:
            recorder.close("failed")
            raise
        recorder.close("finished" if outcome.finished else "interrupted")
        return outcome, 0 if outcome.finished else interruption.signal


def _report(outcome: Outcome, as_json: bool) -> None:
    for line in table(outcome.results):
        print(line)
    print(f"{outcome.run_dir}: {outcome.steps} steps, {outcome.tasks_per_second:g} tasks/s, {outcome.seconds:.0f} s")
    for pid, tasks in outcome.executor.get("workers", {}).items():
        print(f"worker {pid}: {tasks} tasks")
    if as_json:
        print(json.dumps(outcome.as_dict()))


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Test a run's best parameters, on other tasks, ways and shots than it was trained on too."""
    home = runs.open_run(run_dir)
    trained = load_config(home.config)
    settings = read_config(overridden(as_plain(trained), overrides or []))
    params, _ = best_params(home)
    with executing(settings) as executor:
        recorder = recorders(settings, home, None)
        session = Session(settings, executor, recorder, home, Worker(settings, torch.device("cpu")))
        results = test(session, params)
        name = "test" if settings == trained else "-".join(["test", *map(_file_part, overrides or [])])
        keep_results(session, results, home.evaluations / f"{name}.json")
        recorder.close("finished")
    for line in table(results):
        print(line)
    if as_json:
        plain = {"run_id": home.run_id, "run_dir": str(home.path)} | as_test_and_baselines(results)
        print(json.dumps(plain))


@config_app.command("show")
def config_show(config: Annotated[Path, typer.Argument()], overrides: Overrides = None) -> None:
    """The configuration as it will be run: every setting, defaults included."""
    print(as_yaml(load_config(config, overrides or [])), end="")


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of a configuration, for editors."""
    print(json.dumps(json_schema(), indent=2))


@app.command("list")
def list_command() -> None:
    """What can be named in a configuration: algorithms, models, tasks."""
    for title, known in (("algorithms", ALGORITHMS), ("models", ARCHITECTURES), ("tasks", CATALOGUE)):
        print(f"{title}:")
        for name, kind in known.items():
            print(f"  {name:<12} {(kind.__doc__ or '').strip().splitlines()[0]}")


Name = Annotated[str, typer.Argument(help="A name from `metatrain list`, or package.module:Class of your own.")]


@data_app.command("prepare")
def data_prepare(name: Name, overrides: Overrides = None) -> None:
    """Decode once what is slow to read: root=FOLDER, and any other setting under `tasks.`."""
    source = _source(name, overrides)
    with counter(f"preparing {name}") as progress:
        print(source.prepare(progress))


@data_app.command("show")
def data_show(
    name: Name,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    index: Annotated[int, typer.Option(help="Which task.")] = 0,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("episode.png"),
) -> None:
    """Draw one task, support set and queries, as a PNG."""
    from tasks.gallery import save_episode  # pillow, which training does without

    if split not in ("train", "validation", "test"):
        raise ValueError(f"--split: no '{split}': choose train, validation or test")
    distribution = _source(name, overrides).distribution(split, EpisodeShape(ways, shots, queries), 0)
    batch = distribution.episodes([index])
    episode = Episode(*(type(part)(*(tensor[0] for tensor in part)) for part in batch))
    names = getattr(distribution, "class_names", None)
    save_episode(out, episode, f"{name}, {split} task {index}", names(index) if names else None)
    print(out)


def _source(name: str, overrides: Sequence[str] | None) -> Any:
    raw = {"tasks": {"name": name}, "model": {"name": "mlp"}, "algorithm": {"name": "protonet"}}
    return read_config(
        overridden(raw, [f"tasks.{o.removeprefix('tasks.')}" for o in overrides or []])
    ).tasks.source.settings


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
    from cluster.connection import connected
    from cluster.executor import RayExecutor

    with connected(settings.executor):
        executor = RayExecutor(settings)
        try:
            yield executor
        finally:
            executor.close()


def recorders(settings: Config, home: runs.Run, progress: Recorder | None) -> Recorder:
    """Where this run is recorded: the run folder, MLflow where asked for, the terminal."""
    chosen: list[Recorder] = [JsonLines(home.metrics)] if progress else []
    if settings.tracking.uri is not None:
        from metatrain.tracking import MLflowRecorder  # imports mlflow: seconds

        tags = {"algorithm": settings.algorithm.name, "tasks": settings.tasks.source.name, "model": settings.model.name}
        parameters = flat(as_plain(settings))
        chosen.append(
            MLflowRecorder(settings.tracking.uri, settings.tracking.experiment, home.run_id, parameters, tags)
        )
    return Several([*chosen, *([progress] if progress else [])])


class Interruption(threading.Event):
    """Set by SIGINT or SIGTERM; `signal` says which."""

    signal = 0


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within it the first SIGINT or SIGTERM is noted, to be honoured after the step; the second ends at once."""
    interruption = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.is_set():
            raise KeyboardInterrupt
        interruption.signal = number
        interruption.set()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point: exit code 2 where the request is wrong, 1 where the run failed, each with its one line."""
    try:
        app(standalone_mode=True)
    except Diverged as error:
        print(f"metatrain: {error}", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"metatrain: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
