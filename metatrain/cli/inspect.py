"""`metatrain report`, `config` and `list`: what was done, what would be, what there is."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from metatrain.algorithms import ALGORITHMS
from metatrain.cli.options import Overrides
from metatrain.config.json_schema import json_schema
from metatrain.config.load import as_yaml, load_config
from metatrain.models import ARCHITECTURES
from metatrain.runs import Run
from metatrain.runs.locations import is_search, open_home
from metatrain.setup import tracked
from metatrain.validation import require
from tasks.registry import TASK_SOURCES

config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)


def report_command(
    run_dirs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Run folders, or s3://….")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; RUN/report.html, or report.html for several.")
    ] = None,
) -> None:
    """Write one HTML page about one or several runs (results, curves, a task, how to go on), or about a search."""
    from metatrain import report  # jinja2, which training does without

    homes = [open_home(place) for place in run_dirs]
    if any(map(is_search, homes)):
        _report_search(homes, out)
        return
    print(page := report.write(homes, out))
    for home in homes:
        if why_not := report.record(home, page, tracked):
            print(why_not, file=sys.stderr)


def _report_search(homes: Sequence[Run], out: Path | None) -> None:
    require(len(homes) == 1, "RUN…: a search is reported by itself: give its folder alone")
    from tune.report import write

    print(write(homes[0], out))


@config_app.command("show")
def config_show(config: Annotated[Path, typer.Argument()], overrides: Overrides = None) -> None:
    """The configuration as it will be run: every setting, defaults included."""
    print(as_yaml(load_config(config, overrides or [])), end="")


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of a configuration, for editors."""
    print(json.dumps(json_schema(), indent=2))


def list_command() -> None:
    """What can be named in a configuration: algorithms, models, tasks."""
    width = max(map(len, [*ALGORITHMS, *ARCHITECTURES, *TASK_SOURCES]))
    for title, known in (("algorithms", ALGORITHMS), ("models", ARCHITECTURES), ("tasks", TASK_SOURCES)):
        print(f"{title}:")
        for name, kind in known.items():
            # A file that is about one thing introduces it better than its class, whose docstring is the equation.
            described = kind if title == "models" else sys.modules[kind.__module__]
            print(f"  {name:<{width}} {(described.__doc__ or '').strip().splitlines()[0]}")
