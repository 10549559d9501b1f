"""Read everything that a report shows from the folder of a search, which may be running; write nothing."""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from metatrain.report.collect import read_environment, read_object, read_text
from metatrain.report.documents import Settings
from metatrain.runs import Run, find_owner
from metatrain.validation import require
from metatrain.yaml_config import flatten, parse_yaml
from tasks.io.files import read_document
from tasks.io.json_documents import check_json
from tasks.io.json_lines import parse_json_lines
from tune.history.journal import FORMAT, Event, check_header, replay
from tune.history.trials import History, Mode
from tune.settings import METRICS
from tune.space.search_space import Space, read_space

ELSEWHERE = "search in another folder"


class _Tick(TypedDict):
    """A line of clock.jsonl."""

    event: int
    seconds: float


_LONGEST = 1e10
"""Seconds that no search lasts."""


class _Source(TypedDict):
    name: str
    weight: float
    observations: list[Any]


class _Prior(TypedDict):
    """An experience.json."""

    sources: list[_Source]


class PriorStudy(NamedTuple):
    """An earlier search or run that this one began with, how much it counted, and how much was kept of it."""

    name: str
    weight: float
    observations: int


@dataclass(frozen=True)
class SearchRecord:
    """One search, as far as it has come."""

    where: str
    """What the search is called by: its folder, or a URI."""
    search_id: str
    created: str
    settings: dict[str, Any]
    """Flat: {"search.trials": 40, "outer.lr": 1e-3, …}."""
    document: str
    """Its config.yaml."""
    environment: dict[str, Any]
    space: Space
    metric: str
    method: str
    history: History
    seconds: tuple[float, ...]
    """When each of the history's arrivals came, by the search's own clock; nan where that does not tell."""
    spent: float
    """Seconds of the search up to the clock's last line, over all its sessions; nan before there is one."""
    best: str | None
    """Its best.yaml; None before there is one."""
    experience: tuple[PriorStudy, ...]
    owner: str | None
    """Who runs it at this moment."""

    @property
    def name(self) -> str:
        """What its owner called it."""
        return str(self.settings.get("runs.name") or self.search_id)


def collect(home: Run) -> SearchRecord:
    """Read everything but the trials' folders. ValueError names a file that is missing or damaged, and the remedy."""
    document = read_text(home.config, ELSEWHERE)
    plain = parse_yaml(document, str(home.config))
    if not isinstance(plain, dict) or not isinstance(plain.get("search"), dict):
        raise ValueError(f"{home.config}: search: is missing, so this is no search: use the folder of a search")
    journal = home.path / "journal.jsonl"
    header, events = _read_journal(journal, plain)
    history = replay(header["mode"], events, str(journal), tuple(header.get("objectives", ())))
    space = read_space(header["space"])
    for trial in history.trials:
        outside = f"{journal}: trial {trial.number} has values outside its space: restore that file or {ELSEWHERE}"
        require(space.contains(trial.configuration), outside)
    clock, spent = _read_clock(home.path / "clock.jsonl")
    best, method = home.path / "best.yaml", plain["search"].get("method")
    return SearchRecord(
        where=home.where,
        search_id=home.run_id,
        created=home.created,
        settings=check_json(flatten(plain), Settings, str(home.config), f"restore that file or {ELSEWHERE}"),
        document=document,
        environment=read_environment(home.environment),
        space=space,
        metric=str(header["metric"]),
        method=str(method.get("name", "") if isinstance(method, dict) else method or ""),
        history=history,
        seconds=_arrival_seconds(history, events, clock),
        spent=spent,
        best=read_text(best, ELSEWHERE) if best.exists() else None,
        experience=_read_prior_studies(home.path / "experience.json"),
        owner=find_owner(home),
    )


def read_json_lines(path: Path) -> list[Event]:
    """Read the JSON objects of a file that grows by lines; none where it is missing. A torn last line is left
    out. ValueError: another one is damaged."""
    try:
        lines = io.BytesIO(read_document(path, 2**30))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}): restore that file or {ELSEWHERE}") from error
    return [line for _, line in parse_json_lines(lines, str(path), f"restore that file or {ELSEWHERE}")]


def _read_journal(path: Path, plain: Mapping[str, Any]) -> tuple[Event, list[Event]]:
    """Read the header and the events of the journal. A search without one has just been made."""
    lines = read_json_lines(path)
    if not lines:
        metric = str(plain["search"].get("metric", "validation/accuracy"))
        mode: Mode = METRICS.get(metric, "min")
        return {"metric": metric, "mode": mode, "space": plain.get("space", {})}, []
    header, *events = lines
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: is not of format {FORMAT}: report with the metatrain that searched")
    check_header(header, str(path), f"restore that file or {ELSEWHERE}")
    return header, events


def _read_clock(path: Path) -> tuple[dict[int, float], float]:
    """Return when each event of the journal was written, in seconds of the search; and how long that has lasted."""
    found: dict[int, float] = {}
    spent = math.nan
    without = "remove that file, the page does without it"
    for line in read_json_lines(path):
        tick = check_json(line, _Tick, f"{path}: a line", without)
        event, seconds = tick["event"], tick["seconds"]
        require(0 <= seconds < _LONGEST, f"{path}: {seconds:g} seconds: {without}")
        spent = float(seconds)
        found.setdefault(event, spent)  # later lines of one event tell how time went on
    return found, spent


def _arrival_seconds(history: History, events: Iterable[Event], clock: Mapping[int, float]) -> tuple[float, ...]:
    """Return the seconds of each arrival: of its first event, since results count once."""
    seconds: dict[tuple[int, int], float] = {}
    for number, event in enumerate(events, 1):
        if event["event"] == "result":
            seconds.setdefault((event["trial"], event["budget"]), clock.get(number, math.nan))
    return tuple(seconds[arrival] for arrival in history.result_order)


def _read_prior_studies(path: Path) -> tuple[PriorStudy, ...]:
    """`path` is {"sources": [{"name": …, "weight": …, "observations": […]}, …]}."""
    if not path.exists():
        return ()
    try:
        rows = check_json(read_object(path), _Prior, str(path), "")["sources"]
        return tuple(PriorStudy(row["name"], float(row["weight"]), len(row["observations"])) for row in rows)
    except ValueError as error:
        what = "names no sources with weights and observations"
        raise ValueError(f"{path}: {what}: remove that file, the page does without it") from error
