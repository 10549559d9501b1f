"""Measure seconds from a command to its first training step, and of `metatrain --help`, for one or two checkouts.

Each command runs in its own process, as from a shell: Python starts, imports, reads the configuration, does its dry
run, starts Ray where options and computes one step. The time is that of the first training line of metrics.jsonl
minus the time just before the process was started. One round is not counted: it fills the caches (bytecode, stores,
compiled code). In each further round all commands run once, for both checkouts in turn, so that load on the machine
affects both alike.

    python -m benchmarks startup --root FOLDER --rounds 5
    python -m benchmarks startup --metatrain .venv/bin/metatrain --against ../before/.venv/bin/metatrain
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results

_CONFIGS = Path(__file__).parents[1] / "configs"
_EXECUTORS = {
    "in_process": ["executor.name=in_process"],
    "ray, 2 workers": ["executor.name=ray", "executor.workers=2"],
}
_STEPS = 2
_SMALL = [
    *("evaluation.tasks=20", "evaluation.validation_tasks=20", "evaluation.from_scratch_tasks=2"),
    *(f"outer.steps={_STEPS}", "tracking.every=1"),
]
"""Keep what follows the first step short: it is not measured."""
COLUMNS = ["command", "executor", "checkout", "median s", "lowest s", "highest s"]
Key = tuple[str, str, str]
"""Command, executor, checkout."""


def main(argv: list[str]) -> None:
    """Measure, and write the part "startup"."""
    options = _parser().parse_args(argv)
    checkouts = {"this": _executable(options.metatrain)}
    if options.against:
        checkouts["against"] = _executable(options.against)
    seconds: dict[Key, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in checkouts}
        for folder in folders.values():
            folder.mkdir()
        for number in range(options.rounds + 1):
            for (name, executor), words in commands(options.root).items():
                for checkout, program in checkouts.items():
                    found = first_step(program, words, folders[checkout]) if words else help_text(program)
                    print(f"round {number}: {name}, {executor or '-'}, {checkout}: {found:.2f} s", flush=True)
                    if number:
                        seconds.setdefault((name, executor, checkout), []).append(found)
    rows = [[*key, *(round(f(found), 2) for f in (median, min, max))] for key, found in seconds.items()]
    extra = {"seconds": [[*key, found] for key, found in seconds.items()]}
    results.write("startup", "From command to first step", COLUMNS, rows, _notes(options), extra)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("METATRAIN_DATA")
    parser.add_argument("--root", default=data and str(Path(data) / "omniglot"), help="folder of Omniglot")
    parser.add_argument("--rounds", type=int, default=5)
    default = Path(sys.executable).parent / "metatrain"
    parser.add_argument("--metatrain", default=str(default), help="executable to measure; that of this interpreter")
    parser.add_argument("--against", help="executable of another checkout, measured in turn with the first")
    return parser


def _executable(path: str) -> str:
    """Return the absolute path, links kept, since the process starts in another folder."""
    absolute = Path(path).absolute()
    if not absolute.is_file():
        sys.exit(f"{path}: no such file: set --metatrain and --against to executables, such as .venv/bin/metatrain")
    return str(absolute)


def commands(root: str | None) -> dict[tuple[str, str], list[str]]:
    """Return the arguments of `metatrain train` by (command, executor); none stand for `metatrain --help`.

    The Omniglot command is omitted without its folder.
    """
    trained = {"strokes, ProtoNet": [str(_CONFIGS / "strokes-protonet-5w1s.yaml")]}
    if root:
        trained["Omniglot, MAML"] = [str(_CONFIGS / "omniglot-maml-5w1s.yaml"), f"tasks.root={Path(root).absolute()}"]
    found = {
        (name, executor): [*words, *overrides]
        for name, words in trained.items()
        for executor, overrides in _EXECUTORS.items()
    }
    return {**found, ("metatrain --help", ""): []}


def first_step(program: str, words: list[str], folder: Path) -> float:
    """Return the seconds until the first step of `program train`, run in `folder`."""
    began = time.time()
    output = _output([program, "train", *words, *_SMALL, "runs.root=runs", "--json"], folder)
    result = json.loads(output.splitlines()[-1])
    for line in (folder / result["run_dir"] / "metrics.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if "train/loss" in record:
            return float(record["time"]) - began
    sys.exit(f"{result['run_dir']}: metrics.jsonl has no training step")


def help_text(program: str) -> float:
    """Return the seconds of `program --help`."""
    began = time.time()
    _output([program, "--help"], Path.cwd())
    return time.time() - began


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _notes(options: argparse.Namespace) -> list[str]:
    notes = [
        f"Medians, lowest and highest of {options.rounds} rounds after one that filled the caches; all commands once "
        "per "
        "round. Until the first training line of metrics.jsonl, so Python's start, imports, the dry run, Ray's start "
        "and one step are included. MLflow records into SQLite.",
    ]
    if options.against:
        notes.append(
            "'against' is another checkout, measured in turn with 'this', both with the configurations of 'this'."
        )
    return [*notes, *([] if options.root else ["Omniglot was not measured: set --root to its folder."])]
