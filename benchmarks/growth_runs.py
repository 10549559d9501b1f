"""Measure the commands that read runs where a folder has many: one real run, copied under other names and ids."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.commands import measure_command
from benchmarks.growth_steps import CHEAP, CONFIG
from metatrain.runs.signature import sign_config

STEPS = 20
COMPARED = 10
COLUMNS = ["command", "runs in the folder", "runs read", "s", "CPU s", "peak MiB"]
_LINKED = ("environment.json", "metrics.jsonl", "data.json")


def train_one(folder: Path) -> Path:
    """Train a short run in `folder`, recorded in its own folder alone."""
    short = [f"outer.steps={STEPS}", "evaluation.validation_tasks=10", "tracking.uri=null"]
    measure_command(["train", str(CONFIG), *CHEAP, "executor.shard_size=4", *short], folder)
    (made,) = (folder / "runs").iterdir()
    return made


def copy_run(source: Path, number: int) -> Path:
    """Copy a run under another name, id and learning rate. What is the same in all is linked, to save disk space."""
    target = source.with_name(f"20260101-{number:06d}-copy-{number:06x}")
    for folder in (path for path in source.rglob("*") if path.is_dir()):
        (target / folder.relative_to(source)).mkdir(parents=True)
    for path in (path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        if path.parent != source or path.name in _LINKED:
            place.hardlink_to(path)
        else:
            shutil.copyfile(path, place)
    header = json.loads((source / "run.json").read_text())
    (target / "run.json").write_text(json.dumps(header | {"run_id": target.name}))
    config = (source / "config.yaml").read_text()
    other = config.replace("name: sinusoid-maml", f"name: copy-{number:06d}")
    assert other != config, "the run has another name"
    (target / "config.yaml").write_text(other)
    sign_config(target)
    return target


def commands(runs: list[Path]) -> dict[str, tuple[list[str], int]]:
    """Return the words of each command by its name, with the number of runs it reads."""
    places = [f"runs/{path.name}" for path in runs]
    few = places[-COMPARED:]
    return {
        "list": (["list"], 0),
        "status RUN": (["status", places[-1]], 1),
        "status FOLDER": (["status", "runs"], min(20, len(places))),
        "report RUN": (["report", places[-1]], 1),
        f"report, {len(few)} of them": (["report", *few, "--out=few.html"], len(few)),
        "report, all": (["report", *places, "--out=all.html"], len(places)),
        f"compare, {len(few)} of them": (["compare", *few, "evaluation.tasks=10"], len(few)),
    }


def measure(folder: Path, count: int) -> list[list[Any]]:
    """Return a row for each command, in a folder of `count` runs."""
    first = train_one(folder)
    runs = [first, *(copy_run(first, number) for number in range(1, count))]
    rows = []
    for name, (words, read) in commands(runs).items():
        try:
            found = measure_command(words, folder)
        except (RuntimeError, OSError) as error:
            print(f"{name}: {error}", flush=True)
            rows.append([name, count, read, "fails", None, None])
            continue
        rows.append([name, count, read, round(found.seconds, 2), round(found.cpu, 2), round(found.mib)])
        print(rows[-1], flush=True)
    return rows
