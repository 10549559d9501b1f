"""Run `metatrain report`, `config schema` and `list`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from metatrain.algorithms import ALGORITHMS
from metatrain.config.json_schema import json_schema
from metatrain.models import ARCHITECTURES
from metatrain.runs import Run
from metatrain.runs.locations import is_search, open_run
from metatrain.setup import tracked_as
from metatrain.validation import require
from tasks.registry import TASK_SOURCES


def report_command(run_dirs: list[str], out: Path | None, keep: bool = False, trust: bool = False) -> None:
    """Write one HTML page about one or several runs, or about a search, and print its path; `keep` it in MLflow too."""
    from metatrain import report  # jinja2, which training does without

    homes = [open_run(place) for place in run_dirs]
    if any(map(is_search, homes)):
        require(not keep, "--record: a search keeps its page in MLflow itself: remove it")
        _report_search(homes, out)
        return
    print(page := report.write(homes, out))
    for home in homes if keep else ():
        if why_not := report.record(home, page, tracked_as, trust):
            print(why_not, file=sys.stderr)


def _report_search(homes: Sequence[Run], out: Path | None) -> None:
    require(len(homes) == 1, "RUN…: a search is reported by itself: name its folder alone")
    from tune.report import write

    print(write(homes[0], out))


def schema_command() -> None:
    """Print the JSON schema of a configuration."""
    print(json.dumps(json_schema(), indent=2))


def list_command() -> None:
    """Print what can be named in a configuration, with a line on each."""
    width = max(map(len, [*ALGORITHMS, *ARCHITECTURES, *TASK_SOURCES]))
    for title, known in (("algorithms", ALGORITHMS), ("models", ARCHITECTURES), ("tasks", TASK_SOURCES)):
        print(f"{title}:")
        for name, kind in known.items():
            # A file that is about one thing introduces it better than its class, whose docstring is the equation.
            described = kind if title == "models" else sys.modules[kind.__module__]
            print(f"  {name:<{width}} {(described.__doc__ or '').strip().splitlines()[0]}")
