"""Define the arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tasks.io.home import expand_home


def expand_paths(given: Any) -> Any:
    """Replace a leading `~` in a path, or in each of several: shells leave it alone in `--out=~/x` and in quotes."""
    if isinstance(given, list | tuple):
        return [expand_paths(one) for one in given]
    return given if given is None else type(given)(expand_home(given))


def is_override(given: str) -> bool:
    """Return whether an argument is key=value, not the place of a run, whose folders may have "=" in their names."""
    key, equals, _ = given.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))


ConfigFile = Annotated[
    str | None,
    typer.Argument(
        help="A YAML file, or a name of `metatrain config list`.", metavar="[CONFIG]", callback=expand_paths
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.", metavar="KEY=VALUE…")]
ComparedSplit = Annotated[
    Literal["test", "validation"],
    typer.Option(help="Whose classes the tasks are drawn from: validation to choose, test to report."),
]
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
