"""The command line, where everything is put together: the one part of metatrain that imports `cluster` and `tune`.

Reading order: `training.py` (train, evaluate), `search.py`, `submission.py` and `jobs.py` (the same on a cluster, with
`profiles.py`), `looking.py` (report, config, list), `data.py`.
"""

import os
import signal
import sys
from pathlib import Path

import typer

from metatrain import runs
from metatrain.cli.data import data_app
from metatrain.cli.inspect import config_app, list_command, report_command
from metatrain.cli.jobs import jobs_command, logs_command, status_command, stop_command
from metatrain.cli.search import search_command
from metatrain.cli.submission import submit_command
from metatrain.cli.training import evaluate_command, train_command
from metatrain.errors import RunFailed
from metatrain.signals import leave_at_once
from metatrain.types import TaskFailed, WorkersLost

app = typer.Typer(
    help="Models that learn to learn: meta-training in one process or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("search")(search_command)
app.command("submit")(submit_command)
app.command("jobs")(jobs_command)
app.command("status")(status_command)
app.command("logs")(logs_command)
app.command("stop")(stop_command)
app.command("report")(report_command)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.command("list")(list_command)


def main() -> None:
    """Entry point: exit code 2 where the request is wrong, 1 where the run failed, each with its one line."""
    leave_at_once()
    sys.path.insert(0, str(Path.cwd()))  # a user's own tasks, models and algorithms lie beside their configuration
    try:
        app(standalone_mode=True)
    except (RunFailed, runs.RunLost, WorkersLost, TaskFailed) as error:
        print(f"metatrain: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output has what they wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        print(f"metatrain: {error}", file=sys.stderr)
        sys.exit(2)
