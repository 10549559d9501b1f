"""Define the `metatrain` command: every subcommand's arguments, options and help, and the exit codes.

This module imports nothing heavy, so that `--help` is fast: each command imports what does its work when it is called.
Reading order: `training.py` (train), `evaluation.py`, `comparison.py`, `prediction.py`, `search.py`, `ablation.py`,
`submission.py` and `jobs.py` (the same on a cluster, with `profiles.py`), `inspect.py` (report, config, list),
`data.py`. `metatrain.cli` is the one package of metatrain that imports `cluster` and `tune`.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from metatrain.errors import RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.job_secrets import take_secrets
from metatrain.own_packages import describe_clash, find_clashes
from metatrain.redact import mask
from metatrain.signals import exit_on_signals
from tasks.io.home import expand_home

app = typer.Typer(
    help="Models that learn to learn: meta-training in one process or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare and look at tasks.", no_args_is_help=True)


def expand_paths(given: Any) -> Any:
    """Replace a leading `~` in a path, or in each of several: shells leave it alone in `--out=~/x` and in quotes."""
    if isinstance(given, list | tuple):
        return [expand_paths(one) for one in given]
    return given if given is None else type(given)(expand_home(given))


def is_override(given: str) -> bool:
    """Return whether an argument is key=value, not the place of a run, whose folders may have "=" in their names."""
    key, equals, _ = given.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))


Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.", metavar="KEY=VALUE…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or s3://….", callback=expand_paths)]
TasksName = Annotated[str, typer.Argument(help="A name from `metatrain list`, or package.module:Class of your own.")]
Address = Annotated[
    str | None, typer.Option("--address", help="The cluster's dashboard, http://HOST:8265.", metavar="URL")
]
ProfileName = Annotated[str | None, typer.Option("--profile", help="Which profile of the file of profiles.")]
Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles",
        help="The file of profiles; profiles.yaml, here or in ~/.config/metatrain.",
        callback=expand_paths,
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import the code and use the addresses that a run of somebody else names.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or its unambiguous beginning.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME[=VALUE]", help="A variable for the job; its value from here if not given."),
]


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or a name of `metatrain config list`.", metavar="[CONFIG]", callback=expand_paths
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Resume the run in this folder, or s3://….", callback=expand_paths),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="With --resume: take the run over from a driver presumed dead.")
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Meta-train, test on held-out classes, and keep everything in a run folder."""
    from metatrain.cli.training import train_command

    train_command(config, overrides or [], resume, take_over, as_json, trust)


@app.command()
def evaluate(run_dir: RunDir, overrides: Overrides = None, trust: Trust = False, as_json: AsJson = False) -> None:
    """Test a run's best parameters, also on other tasks, ways and shots than it was trained on."""
    from metatrain.cli.evaluation import evaluate_command

    evaluate_command(run_dir, overrides or [], as_json, trust)


@app.command()
def compare(
    run_dirs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN… [KEY=VALUE…]",
            help="Run folders, or s3://…, then settings to change, as key=value.",
            callback=expand_paths,
        ),
    ],
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Further tasks, a column each: settings such as 'tasks.test.ways=20', or a configuration's file.",
            metavar="KEY=VALUE|FILE",
            callback=expand_paths,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; compare.html in this folder.", callback=expand_paths)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Score runs on the same tasks: paired differences with intervals, other tasks, speed, what chance may explain."""
    from metatrain.cli.comparison import compare_command

    places = [given for given in run_dirs if not is_override(given)]
    overrides = [given for given in run_dirs if is_override(given)]
    compare_command(places, overrides, also or [], out, as_json, trust)


@app.command()
def predict(
    run_dir: RunDir,
    support: Annotated[
        str, typer.Option(help="A folder with a folder of images for each class.", callback=expand_paths)
    ],
    query: Annotated[str, typer.Option(help="A folder of images to tell apart.", callback=expand_paths)],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the predictions to this CSV file.", callback=expand_paths)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the images with their predictions: a PNG.", callback=expand_paths)
    ] = None,
    normalization: Annotated[
        str | None, typer.Option(help="inductive (an image at a time, unless it cannot be) or transductive.")
    ] = None,
    as_json: AsJson = False,
    trust: Trust = False,
) -> None:
    """Learn classes from a folder of a few images each, with a run's best parameters, and tell other images apart."""
    from metatrain.cli.prediction import predict_command

    predict_command(run_dir, support, query, csv, out, normalization, as_json, trust)


@app.command()
def search(
    file: Annotated[
        str | None,
        typer.Argument(help="A YAML file, as configs/search-*.yaml.", metavar="[SEARCH]", callback=expand_paths),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Resume the search in this folder, or s3://….", callback=expand_paths),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="With --resume: take the search over from a driver presumed dead.")
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Search for learning rates, networks, any setting: many runs side by side, most of them stopped early."""
    from metatrain.cli.search import search_command

    search_command(file, overrides or [], resume, take_over, as_json, trust)


@app.command()
def ablate(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or a name of `metatrain config list`.", metavar="[CONFIG]", callback=expand_paths
        ),
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings to change, one at a time, with the values to try.", metavar="[AXIS=VALUE,VALUE…]…"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of all runs, the base's too.", metavar="KEY=VALUE")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Train everything with each of these seeds: 0,1.", metavar="SEED,SEED…")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="All combinations of the values, not one change at a time.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Go on with the ablation in this folder, or s3://….", callback=expand_paths),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="With --resume: take it over from a driver presumed dead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; FOLDER/ablation.html.", callback=expand_paths)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Train a configuration and changes of it, and compare each with the unchanged one on the same tasks."""
    from metatrain.cli.ablation import ablate_command

    ablate_command(config, axes or [], settings or [], seeds, grid, resume, take_over, out, as_json, trust)


@app.command()
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="`train CONFIG key=value…`, say.")],
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log, and leave with its exit code.")] = False,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="The folder that is sent along.", callback=expand_paths)
    ] = Path(),
    env: Env = None,
    name: Annotated[str | None, typer.Option("--name", help="What its id begins with.")] = None,
) -> None:
    """Run a command on a cluster: this folder is sent there, with your own modules in it."""
    from metatrain.cli.submission import submit_command

    submit_command(command, address, profile, profiles, follow, working_dir, env or [], name)


@app.command()
def jobs(
    address: Address = None, profile: ProfileName = None, profiles: Profiles = None, as_json: AsJson = False
) -> None:
    """List the jobs of a cluster, the newest first."""
    from metatrain.cli.jobs import jobs_command

    jobs_command(address, profile, profiles, as_json)


@app.command()
def status(
    which: Annotated[
        str | None, typer.Argument(metavar="[ID|RUN]", help="A job's id, or a run's folder.", callback=expand_paths)
    ] = None,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs are doing: step, tasks a second, workers, best so far, time left. Without ID: all running jobs."""
    from metatrain.cli.jobs import status_command

    status_command(which, address, profile, profiles, as_json)


@app.command()
def logs(
    job_id: JobId,
    address: Address = None,
    profile: ProfileName = None,
    profiles: Profiles = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; leave with its exit code.")] = False,
) -> None:
    """Print a job's log."""
    from metatrain.cli.jobs import logs_command

    logs_command(job_id, address, profile, profiles, follow)


@app.command()
def stop(job_id: JobId, address: Address = None, profile: ProfileName = None, profiles: Profiles = None) -> None:
    """Stop a job after its step and a checkpoint, and print the command that resumes its run."""
    from metatrain.cli.jobs import stop_command

    stop_command(job_id, address, profile, profiles)


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
