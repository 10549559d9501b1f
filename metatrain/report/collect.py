"""Read everything that a report shows from a run folder, as plain values, without the run's own code."""

import io
import re
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metatrain.redact import mask
from metatrain.report.documents import Environment, Settings, check_results
from metatrain.report.series import Series, collect_series
from metatrain.runs import Run
from metatrain.tracking.jsonl import read_lines
from metatrain.yaml_config import flatten, parse_yaml
from tasks.io.files import read_document, read_document_text
from tasks.io.json_documents import check_json, parse_json

AS_TRAINED = "as trained"
"""The name of the evaluation that ends every run."""
_DRAWN_BY_PAGE = re.compile("^curves$|-scores$|-adaptation$")
"""Pictures of what the page draws itself; "-adaptation" was the name of "-scores" before there was calibration."""
_UNDRAWN = ("validation/", "time/")
"""Metrics of a run that a page without its curves is made from: the best step, the pace, how far it came."""
LARGE = 100_000
"""Bytes of a PNG from which a page carries it as WebP, a fifth as large."""


class Evaluation(NamedTuple):
    """One file of evaluations/: what was changed for it, and a row for each learner, the run's own first."""

    name: str
    rows: list[dict[str, Any]]


class Picture(NamedTuple):
    """A picture to put into a page: what it is of, what it shows in words, itself as a data: URI, and whether it is
    too wide to be read when it is fitted to a telephone.
    """

    title: str
    description: str
    uri: str
    wide: bool


class Event(NamedTuple):
    """Something that happened at an outer step."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it has come."""

    where: str
    """What the run is called by: its folder, or a URI."""
    run_id: str
    created: str
    settings: dict[str, Any]
    """Flat: {"outer.lr": 1e-3, …}."""
    config_text: str
    environment: dict[str, Any]
    series: dict[str, Series]
    events: list[Event]
    clock: tuple[float, float] | None
    """When the first and the last metrics were recorded, in unix seconds."""
    evaluations: list[Evaluation]
    pictures: list[Picture]
    kept: int
    """The step of the newest checkpoint; 0 where there is none."""

    @property
    def name(self) -> str:
        """What its owner called it."""
        return str(self.settings.get("runs.name", self.run_id))

    @property
    def steps(self) -> int:
        """Outer steps that were recorded."""
        return max((series.steps[-1] for series in self.series.values() if series.steps), default=0)

    @property
    def total(self) -> int:
        """Outer steps that it is to take."""
        return int(self.settings.get("outer.steps", 0))

    @property
    def finished(self) -> bool:
        """Whether its last step is kept, so that nothing is left to train."""
        return 0 < self.total <= self.kept


def collect(home: Run, drawn: bool = True) -> RunRecord:
    """Read everything but the parameters. ValueError names a file that is missing or damaged, and the remedy.

    drawn: with the curves of training and the pictures, which of many runs few need.
    """
    settings = read_settings(home)
    evaluations = {path.stem: _read_evaluation(path, settings) for path in _results(home)}
    names = {stem: evaluation.name for stem, evaluation in evaluations.items()}
    series, events, clock = read_metrics(home.metrics, ("",) if drawn else _UNDRAWN)
    return RunRecord(
        where=home.where,
        run_id=home.run_id,
        created=home.created,
        settings=settings,
        config_text=read_text(home.config),
        environment=read_environment(home.environment),
        series=series,
        events=events,
        clock=clock,
        evaluations=list(evaluations.values()),
        pictures=_read_pictures(home, names) if drawn else [],
        kept=newest_step(home),
    )


def read_metrics(
    path: Path, prefixes: tuple[str, ...] = ("",)
) -> tuple[dict[str, Series], list[Event], tuple[float, float] | None]:
    """Return the metrics whose keys begin with one of `prefixes`, the events and the clock of a metrics.jsonl.

    Its lines are not kept beside them.
    """
    events: list[Event] = []
    clock: tuple[float, float] | None = None

    def metrics() -> Iterator[dict[str, Any]]:
        nonlocal clock
        for line in read_lines(path):
            if "event" in line:
                events.append(Event(line["step"], str(line["event"]), str(line.get("text", ""))))
                continue
            if "time" in line:
                clock = (line["time"] if clock is None else clock[0], line["time"])
            yield line

    return collect_series(metrics(), prefixes) if path.exists() else {}, events, clock


def _results(home: Run) -> list[Path]:
    return _in_order(home.evaluations, ".json")


def _read_pictures(home: Run, names: Mapping[str, str]) -> list[Picture]:
    return [
        _read_picture(path, names) for path in _in_order(home.plots, ".png") if not _DRAWN_BY_PAGE.search(path.stem)
    ]


def newest_step(home: Run) -> int:
    """Return the step of the newest checkpoint that was finished; 0 where there is none."""
    finished = (manifest.parent.name for manifest in home.checkpoints.glob("*/manifest.json"))
    return max((int(name) for name in finished if re.fullmatch("[0-9]{8,16}", name)), default=0)


def read_settings(home: Run) -> dict[str, Any]:
    """Read the run's own configuration, flat; not validated, since what it names may not be importable here."""
    plain = parse_yaml(read_text(home.config), str(home.config))
    if not isinstance(plain, dict):
        raise ValueError(f"{home.config}: holds no settings: restore that file or train a new run")
    remedy = "restore that file or train a new run"
    settings: dict[str, Any] = check_json(flatten(plain), Settings, str(home.config), remedy)
    return settings


def read_text(path: Path, instead: str = "train a new run") -> str:
    """Read a file of the run, without the user and password that an address in it may carry: pages are passed on.
    ValueError: it cannot be read; to restore it, or what to do `instead`, is the remedy.
    """
    try:
        return mask(read_document_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): restore that file or {instead}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file of the run that holds one JSON object, without logins in addresses, as `read_text` does."""
    remedy = "restore that file or remove the run"
    found: dict[str, Any] = check_json(
        parse_json(read_text(path), str(path), remedy), dict[str, Any], str(path), remedy
    )
    return found


def read_environment(path: Path) -> dict[str, Any]:
    """Read an environment.json."""
    found: dict[str, Any] = check_json(read_object(path), Environment, str(path), "restore that file or remove the run")
    return found


def _read_evaluation(path: Path, settings: dict[str, Any]) -> Evaluation:
    found = read_object(path)
    rows = check_results(found, path)
    overrides = found.get("overrides")
    return Evaluation(", ".join(map(str, overrides)) if overrides else _changes(path.stem, settings), rows)


def _changes(stem: str, settings: dict[str, Any]) -> str:
    """ "test-tasks.test.ways_20-seed_1" → "tasks.test.ways=20, seed=1": how version 0.1 named its files."""
    sections = {".".join(key.split(".")[:depth]) for key in settings for depth in range(1, key.count(".") + 2)}
    changes = []
    for part in stem.split("-")[1:]:
        key = max((known for known in sections if part.startswith(f"{known}_")), key=len, default=None)
        changes.append(part if key is None else f"{key}={part[len(key) + 1 :]}")
    return ", ".join(changes) or AS_TRAINED


def _in_order(folder: Path, suffix: str) -> list[Path]:
    """List the evaluation or pictures of the run itself before those that were asked for later."""
    files = [path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")]
    return sorted(files, key=lambda path: (path.stem.count("-"), path.name))


def _read_picture(path: Path, names: Mapping[str, str]) -> Picture:
    """`path` with the text that its writer put into it. names: of evaluations, by the names of their files."""
    from PIL import Image

    stem, _, kind = path.stem.rpartition("-")
    titles = {
        "episode": "Images of a test task",
        "fit": "Curve of a test task",
        "densities": "Densities of test tasks",
        "trajectories": "Trajectories in test tasks",
        "completions": "Images of test tasks, completed",
        "attention": "Attention of queries to the support set",
    }
    title = f"{titles[kind]}, {names.get(stem, stem)}" if kind in titles else path.stem
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        content = read_document(path)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            described = str(image.info.get("Description", path.stem))
            wide = image.width > 1000
            encoded, kind = content, "png"
            if len(encoded) > LARGE:
                smaller = io.BytesIO()
                image.convert("RGB").save(smaller, format="WEBP", quality=85)
                encoded, kind = smaller.getvalue(), "webp"
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, *bombs) as error:
        raise ValueError(f"{path}: no picture: remove that file and run `metatrain evaluate` again") from error
    return Picture(title, described, f"data:image/{kind};base64,{b64encode(encoded).decode()}", wide)
