"""Measure whether time and memory stay flat as runs, folders of runs, searches and stores grow.

    python -m benchmarks growth                                  all four parts: about half an hour
    python -m benchmarks growth steps --steps 1000 --ray-steps 300

steps      a run of 100,000 steps in process and a shorter one on Ray: time of a step and memory, by step
runs       a folder of 10,000 runs: the commands that read one, several or all of them
trials     a search of 1,000 trials: suggestions, decisions, memory, and the commands that read it
images     a store of 10 million small images against one of 100,000
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import growth_images, growth_runs, growth_steps, growth_trials, results

PARTS = ("steps", "runs", "trials", "images")


def main(argv: list[str]) -> None:
    """Measure the chosen parts, and write a part of the page for each."""
    options = _parser().parse_args(argv)
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
            _MEASURE[part](Path(scratch), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{', '.join(PARTS)}; all")
    parser.add_argument("--steps", type=int, default=100_000, help="outer steps in process; 0 for none")
    parser.add_argument("--ray-steps", type=int, default=10_000, help="outer steps with two workers; 0 for none")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--note", help="what else the machine did meanwhile, for the page")
    return parser


def _noted(options: argparse.Namespace, *notes: str) -> list[str]:
    return [*notes, *([options.note] if options.note else [])]


def _steps(scratch: Path, options: argparse.Namespace) -> None:
    rows = []
    read = []
    for executor, steps in zip(growth_steps.EXECUTORS, (options.steps, options.ray_steps), strict=True):
        folder = scratch / executor
        folder.mkdir()
        # A short run beside the long one shows what a command takes without any steps.
        for count in (100, steps) if executor == "in process" and steps > 100 else (steps,) if steps else ():
            trained = growth_steps.train(folder, count, executor)
            rows += growth_steps.rows_of(executor, trained) if count == steps else []
            for row in rows:
                print(row, flush=True)
            if executor == "in process":
                read += growth_steps.measure_commands(trained.run_dir, count, folder)
    notes = _noted(
        options,
        "configs/sinusoid-maml.yaml made cheap (first-order, one hidden layer, 4 tasks a step); metrics of every step "
        "to metrics.jsonl and to MLflow on SQLite, 1,000 validation tasks and a checkpoint every 5,000 steps. Median "
        f"over {growth_steps.WINDOW} steps before and after; CPU ms: of all threads of the driver. MiB: anonymous "
        "memory in RAM (RssAnon), which leaves out libraries and Ray's shared store.",
    )
    results.write("growth-steps", "A run's steps: time and memory", growth_steps.COLUMNS, rows, notes, {})
    again = _noted(options, "Whole commands, Python's start and imports included; peak: maximum resident size.")
    columns = growth_steps.COMMAND_COLUMNS
    results.write("growth-long-run", "Looking at a long run, and going on with it", columns, read, again, {})


def _runs(scratch: Path, options: argparse.Namespace) -> None:
    rows = growth_runs.measure(scratch, options.runs)
    notes = _noted(
        options,
        f"One run of {growth_runs.STEPS} steps, copied under other names, ids and configurations. Whole commands, "
        "Python's start and imports included; peak: maximum resident size. All files were in the page cache.",
    )
    results.write("growth-runs", "Many runs in a folder", growth_runs.COLUMNS, rows, notes, {})


def _trials(scratch: Path, options: argparse.Namespace) -> None:
    rows, read = growth_trials.measure(scratch, options.trials)
    notes = _noted(
        options,
        "BOHB under ASHA on configs/search-sinusoid-lr.yaml, trials being a cheap function and one at a time; the "
        "journal is written to disk before each decision. Medians of the last 50. reopen: a resume's replay of the "
        "journal. MiB: anonymous memory in RAM.",
    )
    results.write("growth-trials", "A search's trials", growth_trials.COLUMNS, rows, notes, {})
    again = _noted(options, "Whole commands, Python's start and imports included; peak: maximum resident size.")
    columns = growth_trials.COMMAND_COLUMNS
    results.write("growth-search", "Looking at a search of many trials", columns, read, again, {})


def _images(scratch: Path, options: argparse.Namespace) -> None:
    counts = sorted({min(100_000, options.images), options.images})
    rows = [growth_images.measure(scratch, count) for count in counts]
    notes = _noted(
        options,
        f"Noise of 1×8×8 pixels, {growth_images.PER_CLASS} images a class; 5 ways, 1 shot, 15 queries, batches of "
        f"{growth_images.BATCH}; the file is in the page cache. Opening checks the SHA-256 of all images, once per "
        "process. MiB: growth of anonymous memory, which leaves the mapped file out; resident: everything.",
    )
    results.write("growth-images", "Images of a store", growth_images.COLUMNS, rows, notes, {})


_MEASURE = {"steps": _steps, "runs": _runs, "trials": _trials, "images": _images}
