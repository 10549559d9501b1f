"""Damage runs and searches, one file at a time, and do with each what a person would do with it.

Whatever a file holds, the outcome is success or an error of one line; see `tests/test_fuzz_runs.py`.
"""

import contextlib
import copy
import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import metatrain
from metatrain.cli.evaluation import evaluate_command
from metatrain.cli.inspect import report_command
from metatrain.cli.jobs import status_command
from metatrain.cli.training import train_command
from metatrain.errors import RunFailed, RunLost, TaskFailed, WorkersLost
from metatrain.runs.checkpoints import FORMAT, _fingerprint

SINUSOID: dict[str, Any] = {
    "tasks": {
        "name": "sinusoid",
        "train": {"ways": None, "shots": 3, "queries": 3},
        "test": {"ways": None, "shots": 3, "queries": 3},
    },
    "model": {"name": "mlp", "width": 4, "depth": 1},
    "algorithm": {"name": "maml", "inner_lr": 0.01, "inner_steps": 1},
    "outer": {"steps": 4, "tasks_per_step": 2, "lr": 1e-3},
    "evaluation": {"every": 2, "tasks": 3, "validation_tasks": 2, "baselines": False},
    "checkpoint": {"every": 2, "keep": 2},
    "tracking": {"uri": None},
}
EXPECTED_ERRORS = (ValueError, OSError, RunFailed, RunLost, TaskFailed, WorkersLost)
"""What the command line turns into one line and an exit code."""

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    -(10**400),
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "a\0b",
    "1" * 5000,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    "2024-01-01",
]


class Case(NamedTuple):
    """A file that was damaged, how, and what was done with the run then."""

    file: str
    how: str
    act: str


def nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of dicts and lists, the root first."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def damage_tree(tree: Any, draw: random.Random, odd: list[Any]) -> tuple[Any, str]:
    """Replace, remove or add one value of a tree."""
    tree = copy.deepcopy(tree)
    path = draw.choice(places(tree))
    value = draw.choice(odd)
    if not path:
        return value, f"all: {value!r:.40}"
    within = tree
    for key in path[:-1]:
        within = within[key]
    how = draw.choice(["replace", "replace", "remove", "add", "repeat"])
    if how == "remove":
        del within[path[-1]]
    elif how == "add" and isinstance(within, dict):
        within[draw.choice(["", "x", "event", "test", "a.b", "\ud800", "<b>"])] = value
    elif how == "repeat" and isinstance(within, list):
        within += [within[path[-1]]] * draw.choice([1, 50])
    else:
        within[path[-1]] = value
    return tree, f"{how} {'.'.join(map(str, path))}: {value!r:.40}"


def damage_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    how = draw.choice(["cut", "flip", "empty", "junk", "double", "nest", "nul"])
    at = draw.randrange(len(content) + 1)
    if how == "cut":
        return content[:at], f"cut at {at}"
    if how == "flip" and content:
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :], f"flip at {at}"
    changed = {
        "empty": b"",
        "junk": draw.randbytes(200),
        "nest": b"[" * 50_000,
        "nul": content[:at] + b"\0" + content[at:],
    }
    return changed.get(how, content + content), how


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file by what it holds. Return how."""
    kind = draw.choice(["tree", "tree", "tree", "bytes", "gone", "folder"])
    if kind == "gone":
        path.unlink()
        return "gone"
    if kind == "folder":
        path.unlink()
        path.mkdir()
        return "a folder"
    if kind == "bytes" or path.suffix in (".png", ".lock", ""):
        content, how = damage_bytes(path.read_bytes(), draw)
        path.write_bytes(content)
    elif path.name == "state.pt":
        how = damage_state(path, draw)
    elif path.suffix == ".yaml":
        tree, how = damage_tree(yaml.safe_load(path.read_text()), draw, [*ODD, nest(60), nest(20)])
        path.write_text(yaml.safe_dump(tree))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        tree, how = damage_tree(json.loads(lines[at]), draw, [*ODD, nest(900), nest(90)])
        path.write_text("\n".join([*lines[:at], dump(tree), *lines[at + 1 :], ""]))
        how = f"line {at + 1}, {how}"
    else:
        tree, how = damage_tree(json.loads(path.read_text()), draw, [*ODD, nest(900), nest(90)])
        path.write_text(dump(tree))
    if path.name == "state.pt":
        seal(path.parent)
    return how


def dump(tree: Any) -> str:
    return json.dumps(tree).replace("1e400", "1e999")


TENSORS: list[Callable[[], Any]] = [
    lambda: torch.zeros(3),
    lambda: torch.zeros(()),
    lambda: torch.zeros(1).expand(10**9),
    lambda: torch.zeros(4, 1, dtype=torch.float64),
    lambda: torch.zeros(4, 1, dtype=torch.int64),
    lambda: torch.full((4, 1), float("nan")),
    lambda: torch.zeros(2, 2).to_sparse(),
    lambda: torch.zeros(4, 1, device="meta"),
    lambda: torch.nn.Parameter(torch.zeros(4, 1)),
    lambda: torch.zeros(0),
    lambda: torch.zeros(4, 1, dtype=torch.complex64),
]


def damage_state(path: Path, draw: random.Random) -> str:
    tree, how = damage_tree(torch.load(path), draw, [*ODD[:-1], *(make() for make in TENSORS)])
    torch.save(tree, path)
    return how


def seal(folder: Path) -> None:
    """Write the checksum of state.pt into its manifest, as whoever made it on purpose would."""
    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(found | {"format": FORMAT} | _fingerprint(folder / "state.pt")))


def act(name: str, run: Path) -> None:
    """Do one thing with a run, as the command line does."""
    place = str(run)
    match name:
        case "status":
            status_command(place, None, None, None, False)
        case "report":
            report_command([place], None)
        case "evaluate":
            evaluate_command(place, [], False)
        case "resume":
            train_command(None, [], place, False, False)
        case "load":
            learner = metatrain.load(place)
            learner.adapt(([[0.1], [0.2]], [[0.3], [0.4]])).predict([[0.5]])


ACTS = {
    "run.json": ("status", "report", "load"),
    "environment.json": ("report",),
    "metrics.jsonl": ("status", "report", "resume"),
    "config.yaml": ("status", "report", "evaluate", "resume", "load"),
    "test.json": ("report",),
    "manifest.json": ("load", "evaluate", "resume", "report"),
    "state.pt": ("load", "evaluate", "resume"),
    "owner.lock": ("status", "evaluate"),
}
IN_SEARCH = ("status", "report")


def try_case(whole: Path, folder: Path, seed: int) -> Case:
    """Damage a copy of a run or search in `folder`, and do something with it. AssertionError: a traceback, say."""
    draw = random.Random(seed)
    run = Path(shutil.copytree(whole, folder / f"{whole.name}-{seed}"))
    search = (run / "journal.jsonl").exists()
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != "report.html")
    by_kind: dict[str, list[Path]] = {}
    for path in files:
        by_kind.setdefault(path.name if path.name in ACTS else path.suffix, []).append(path)
    path = draw.choice(by_kind[draw.choice(sorted(by_kind))])
    how = damage(path, draw)
    acts = IN_SEARCH if search else ACTS.get(path.name, ("report",))
    case = Case(str(path.relative_to(run)), how, draw.choice(acts))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        try:
            act(case.act, run)
        except EXPECTED_ERRORS as error:
            text = str(error)
            lines = text.splitlines()
            assert len(lines) <= (3 if isinstance(error, RunFailed) else 1), f"several lines: {text}"
            assert all(line.isprintable() for line in lines) and text, f"unprintable: {text!r}"
            assert len(text) < 1500, f"too long: {text}"
    shutil.rmtree(run)
    return case
