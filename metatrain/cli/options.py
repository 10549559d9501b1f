"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.", metavar="KEY=VALUE…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
