"""Define the `metatrain` command: its subcommands and the exit codes.

Importing this package imports nothing heavy, so that `--help` is fast: each command imports what does its work when it
is called. Arguments, options and help are in `learning_commands.py` and `cluster_commands.py`, with what they share in
`arguments.py`, and here for what looks at runs, configurations and data. Reading order of the work: `training.py`
(train), `evaluation.py`, `comparison.py`, `prediction.py`, `search.py`, `ablation.py`, `submission.py` and `jobs.py`
(the same on a cluster, with `profiles.py`), `inspect.py` (report, config, list), `data.py`, `embedding.py`,
`similarity.py`.
`metatrain.cli` is the one package of metatrain that imports `cluster` and `tune`.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from metatrain.cli.arguments import AsJson, Overrides, TasksName, Trust, expand_paths
from metatrain.cli.cluster_commands import jobs, logs, status, stop, submit
from metatrain.cli.learning_commands import ablate, compare, evaluate, predict, search, train
from metatrain.errors import RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.job_secrets import take_secrets
from metatrain.own_packages import describe_clash, find_clashes
from metatrain.redact import mask
from metatrain.signals import exit_on_signals

app = typer.Typer(
    help="Models that learn to learn: meta-training in one process or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare and look at tasks.", no_args_is_help=True)


for command in (train, evaluate, compare, predict, search, ablate, submit, jobs, status, logs, stop):
    app.command()(command)


@app.command()
def report(
    run_dirs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Run folders, or s3://….", callback=expand_paths)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; RUN/report.html, or report.html for several.", callback=expand_paths),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the page in MLflow too, where the run is.")] = False,
    trust: Trust = False,
) -> None:
    """Write one HTML page about one or several runs (results, curves, a task, how to resume), or about a search."""
    from metatrain.cli.inspect import report_command

    report_command(run_dirs, out, record, trust)


app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")


@config_app.command("show")
def config_show(
    config: Annotated[Path, typer.Argument(callback=expand_paths)], overrides: Overrides = None, trust: Trust = False
) -> None:
    """Print the configuration as it will be run: every setting, defaults included."""
    from metatrain.config.load import as_yaml, load_config

    print(as_yaml(load_config(config, overrides or [], trust)), end="")


@config_app.command("list")
def config_list() -> None:
    """List the configurations and searches that come with metatrain: `metatrain train NAME`."""
    from metatrain.config.shipped import describe_config, shipped_configs

    for name, path in (found := shipped_configs()).items():
        print(f"{name:<{max(map(len, found))}}  {describe_config(path)}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from metatrain.cli.inspect import schema_command

    schema_command()


@data_app.command("prepare")
def data_prepare(name: TasksName, overrides: Overrides = None) -> None:
    """Decode once what is slow to read: root=FOLDER, and any other setting under `tasks.`."""
    from metatrain.cli.data import prepare_command

    prepare_command(name, overrides or [])


@data_app.command("show")
def data_show(
    name: TasksName,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    index: Annotated[int, typer.Option(help="Which task.")] = 0,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    out: Annotated[Path, typer.Option(help="The PNG to write.", callback=expand_paths)] = Path("episode.png"),
) -> None:
    """Draw one task, support set and queries, as a PNG."""
    from metatrain.cli.data import show_command

    show_command(name, overrides or [], split, index, (ways, shots, queries), out)


@data_app.command("embed")
def data_embed(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or a name of `metatrain config list`.", callback=expand_paths)
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", callback=expand_paths)] = Path(
        "embeddings.parquet"
    ),
    per_class: Annotated[
        int | None, typer.Option(metavar="N", help="At most so many examples of each class, the first ones; all.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Write the features that a configuration's network gives every example, for tasks.name=features."""
    from metatrain.cli.embedding import embed_command

    embed_command(config, overrides or [], out, per_class, trust)


@data_app.command("similarity")
def data_similarity(
    probe: Annotated[
        str,
        typer.Argument(
            metavar="PROBE",
            help="The run whose network tasks are embedded by: a folder, or s3://….",
            callback=expand_paths,
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Files with `tasks:`, such as configurations; one size of task.",
            callback=expand_paths,
        ),
    ],
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run that was evaluated with tasks=SOURCE on each: does distance predict its loss? Repeatable.",
            callback=expand_paths,
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(help="How many tasks of each source, the first ones.")] = 32,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Whose classes the tasks are drawn from.")
    ] = "test",
    out: Annotated[
        Path, typer.Option(help="The folder for similarity.json and similarity.png.", callback=expand_paths)
    ] = Path("similarity"),
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far sources of tasks are apart, by the Fisher information of a trained network (Task2Vec)."""
    from metatrain.cli.similarity import similarity_command
    from metatrain.similarity.measure import Request

    similarity_command(Request(probe, files, runs or [], split, tasks, trust), out, as_json)


@app.command("list")
def list_names() -> None:
    """List what can be named in a configuration: algorithms, models, tasks."""
    from metatrain.cli.inspect import list_command

    list_command()


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as one line: where in our code it was given is of no use to a person at a terminal."""
    return f"metatrain: warning: {' '.join(str(message).split())}\n"


def main() -> None:
    """Run the command line. Exit with 2 where the request is wrong, 1 where the run failed, each with its one line."""
    exit_on_signals()
    take_secrets()
    warnings.formatwarning = _format_warning
    sys.path.insert(0, str(Path.cwd()))  # a user's own tasks, models and algorithms lie beside their configuration
    for path in find_clashes(Path.cwd()):
        print(f"metatrain: {describe_clash(path.relative_to(Path.cwd()))}", file=sys.stderr)
    try:
        app(standalone_mode=True)
    except (RunFailed, RunLost, WorkersLost, TaskFailed) as error:
        print(f"metatrain: {mask(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        print(f"metatrain: {mask(str(error))}", file=sys.stderr)
        sys.exit(2)
