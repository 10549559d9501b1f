"""Define the commands that train, test, compare, predict and search: their arguments, options and help."""

from pathlib import Path
from typing import Annotated

import typer

from metatrain.cli.arguments import (
    AsJson,
    ComparedSplit,
    ConfigFile,
    Overrides,
    RunDir,
    Trust,
    expand_paths,
    is_override,
)


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Resume the run in this folder, or s3://….", callback=expand_paths),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="With --resume: take the run over from a driver presumed dead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the memory a worker will use, and train nothing.")
    ] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Meta-train, test on held-out classes, and keep everything in a run folder."""
    from metatrain.cli.training import train_command

    train_command(config, overrides or [], resume, take_over, as_json, trust, dry_run)


def evaluate(run_dir: RunDir, overrides: Overrides = None, trust: Trust = False, as_json: AsJson = False) -> None:
    """Test a run's best parameters, also on other tasks, ways and shots than it was trained on."""
    from metatrain.cli.evaluation import evaluate_command

    evaluate_command(run_dir, overrides or [], as_json, trust)


def compare(
    run_dirs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN… [KEY=VALUE…]",
            help="Run folders, or s3://…, each alone or with settings of its own "
            "(RUN,algorithm.name=nearest_centroid), then settings of all, as key=value.",
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
    split: ComparedSplit = "test",
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
    compare_command(places, overrides, also or [], split, out, as_json, trust)


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


def ablate(
    config: ConfigFile = None,
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
    split: ComparedSplit = "test",
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; FOLDER/ablation.html.", callback=expand_paths)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Train a configuration and changes of it, and compare each with the unchanged one on the same tasks."""
    from metatrain.cli.ablation import ablate_command

    ablate_command(config, axes or [], settings or [], seeds, grid, resume, take_over, split, out, as_json, trust)
