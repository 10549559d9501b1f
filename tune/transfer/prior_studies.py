"""Gather what prior searches and runs observed, for a new study to learn from.

    study s:  weight w_s in [0, 1] from the similarity of its tasks, and observations (configuration, share, quantile)

Losses of different tasks have different scales, so each study only says what was better than what (Feurer et al. 2018,
"Practical transfer learning for Bayesian optimization"). Among its n trials that have a result or have failed,

    quantile_i = ½ (1 - Σⱼ≠ᵢ c_ij / (n - 1)),  c_ij = 1 where i is better than j, -1 where worse, 0 where equal

each pair being compared at the highest budget that both reached: 0 is better than all, 1 is worse than all. `share` is
the part of the whole budget that it reached.

A configuration of another search is read from the whole configuration of its run, at the fields of the present space:
what was fixed there may be searched here, and the reverse. One with a value outside a distribution is dropped. A field
that the other configuration lacks is omitted, to be drawn from the space (`tune.searchers.warm_start`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from metatrain.tracking.mlflow_history import MlflowRecord, read_records
from metatrain.yaml_config import parse_yaml
from tasks.io.json_documents import check_json, parse_json
from tune.history.journal import read_journal, replay
from tune.history.trials import History, Mode, Trial
from tune.searchers.observations import pairwise_signs, trials_with_outcome
from tune.settings import METRICS
from tune.space.distributions import Categorical, Value
from tune.space.search_space import Configuration, Space, apply_configuration, matches
from tune.transfer.task_similarity import Signature, signature_from_settings, similarity, task_distance

MAX_OBSERVATIONS = 100
"""Observations kept of one study, evenly by rank: more cost time only."""
FILES = ("config.yaml", "journal.jsonl", "tasks.json")
_NOT_SETTINGS = ("search", "space")


@dataclass(frozen=True)
class Observation:
    """A configuration of the present space, perhaps incomplete, and how good it was: see the equation above."""

    configuration: Mapping[str, Value]
    share: float
    quantile: float


@dataclass(frozen=True)
class PriorStudy:
    """A prior search, or the runs of one experiment on the same tasks; observations with the best first."""

    name: str
    weight: float
    observations: tuple[Observation, ...]

    def best(self) -> Observation:
        """Return the best observation of those with the largest share of the budget."""
        most = max(one.share for one in self.observations)
        return next(one for one in self.observations if one.share == most)


class _PlainObservation(TypedDict):
    configuration: dict[str, Any]
    share: float
    quantile: float


class _PlainStudy(TypedDict):
    name: str
    weight: float
    observations: list[_PlainObservation]


class _PlainStudies(TypedDict):
    """An experience.json."""

    sources: list[_PlainStudy]


@dataclass(frozen=True)
class PriorStudies:
    """All prior studies, the most similar first. They are saved with the search: a resumed search must not suggest
    otherwise because others have ended meanwhile.
    """

    sources: tuple[PriorStudy, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON keeps it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def digest(self) -> str:
        """Compute the SHA-256 of its JSON, so that a journal's header need not hold it whole."""
        return hashlib.sha256(json.dumps(self.to_plain(), sort_keys=True).encode()).hexdigest()


def read_prior_studies(plain: Mapping[str, Any]) -> PriorStudies:
    """Read what `PriorStudies.to_plain` returned. ValueError: it is something else."""
    where, remedy = (
        "experience.json: not a list of prior studies",
        "restore experience.json, or search in another folder",
    )
    found = check_json(plain, _PlainStudies, where, remedy)
    return PriorStudies(
        tuple(
            PriorStudy(
                source["name"],
                source["weight"],
                tuple(
                    Observation(one["configuration"], one["share"], one["quantile"]) for one in source["observations"]
                ),
            )
            for source in found["sources"]
        )
    )


def summarize_study(
    name: str, weight: float, history: History, whole: int, space: Space, config: Mapping[str, Any]
) -> PriorStudy | None:
    """Return what a history says to a study over `space`; None if nothing fits.

    whole: steps of its whole budget. document: the plain configuration into which its configurations were put.
    """
    trials = trials_with_outcome(history)
    if not any(trial.results for trial in trials):
        return None
    ranks = _quantiles(pairwise_signs(history, trials))
    order = np.argsort(ranks, kind="stable").tolist()
    projected = ((i, _project_trial(space, config, trials[i])) for i in order)
    fitting = [
        Observation(configuration, min(trials[i].budget / whole, 1.0), float(ranks[i]))
        for i, configuration in projected
        if configuration
    ]
    return PriorStudy(name, weight, thin(fitting, MAX_OBSERVATIONS)) if fitting else None


def project_configuration(space: Space, config: Mapping[str, Any]) -> Configuration | None:
    """Return the fields of `space` that a whole configuration has; None: one has a value outside its distribution."""
    found: Configuration = {}
    for parameter in space.parameters:
        there, value = _look_up(config, parameter.name)
        if not (there and parameter.active(found)):
            continue
        if isinstance(parameter.distribution, Categorical) and isinstance(value, dict):
            # A section matches the option with the most settings that it has.
            fitting = [option for option in parameter.distribution.options if matches(value, option)]
            value = max(fitting, key=len, default=value)
        if not parameter.distribution.contains(value):
            return None
        found[parameter.name] = value
    return found


def gather_prior_studies(
    uri: str, experiments: Sequence[str], space: Space, metric: str, signature: Signature
) -> tuple[PriorStudies, list[str]]:
    """Read the searches and finished runs of some MLflow experiments, for a search for `metric` over `space` on tasks
    of this signature; return them and a line for each that says nothing. ValueError: there is no such experiment.
    """
    sources: list[PriorStudy] = []
    notes: list[str] = []
    for experiment in experiments:
        runs = list(read_records(uri, experiment, FILES, (metric,)))
        searches = [run for run in runs if run.search]
        found = [_try_read(run, lambda run: _read_search(run, space, signature)) for run in searches]
        alone = [run for run in runs if not run.search]
        entries = [_try_read(run, lambda run: _read_run(run, metric)) for run in alone]
        kept = [one for one in entries if isinstance(one, _Run)]
        notes += [one for one in (*found, *entries) if isinstance(one, str)]
        fitting = [one for one in found if isinstance(one, PriorStudy)]
        fitting += _group_runs(experiment, kept, space, METRICS[metric], signature)
        if not fitting:
            notes.append(f"search.warm_start: '{experiment}' has no search or finished run that fits: ignored")
        sources += fitting
    ordered = sorted(sources, key=lambda source: -source.weight)
    notes += [f"{source.name}: other tasks altogether: ignored" for source in ordered if source.weight == 0]
    return PriorStudies(tuple(source for source in ordered if source.weight > 0)), notes


class _Run(NamedTuple):
    """A run that was no trial: its plain configuration and its best value."""

    config: Mapping[str, Any]
    value: float


def _try_read(run: MlflowRecord, read: Any) -> Any:
    """Read a run; return a line that says why if that fails."""
    try:
        return read(run)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else f"is damaged ({error!r})"
        return f"{run.name}: {reason}: ignored"


def _read_search(run: MlflowRecord, space: Space, signature: Signature) -> PriorStudy:
    """Read a prior search. ValueError: it says nothing."""
    if "journal.jsonl" not in run.files or "config.yaml" not in run.files:
        raise ValueError(run.problem or "a search without journal and configuration")
    header, events = read_journal(run.files["journal.jsonl"], "journal.jsonl")
    objectives = tuple(header.get("objectives", ()))
    history = replay(header["mode"], events, "journal.jsonl", objectives)
    config = _training_part(_read_config(run))
    kept = run.files.get("tasks.json")
    theirs = signature_from_settings(config["tasks"]) if kept is None else parse_json(kept, "tasks.json", "restore it")
    weight = similarity(task_distance(signature, theirs))
    whole = max([header["schedule"].get("max_budget", 1), *(budget for _, budget in history.result_order)])
    found = summarize_study(run.name, weight, history, whole, space, config)
    if found is None:
        raise ValueError("a search without a result that fits this space")
    return found


def _read_run(run: MlflowRecord, metric: str) -> _Run:
    """Read a prior run. ValueError: it says nothing."""
    if not run.finished:
        raise ValueError("a run that did not finish")
    if "config.yaml" not in run.files:
        raise ValueError(run.problem or "a run without its configuration")
    if not run.metrics.get(metric):
        raise ValueError(f"a run that reports no {metric}")
    best = max if METRICS[metric] == "max" else min
    return _Run(_read_config(run), best(run.metrics[metric]))


def _group_runs(
    experiment: str, runs: Iterable[_Run], space: Space, mode: Mode, signature: Signature
) -> list[PriorStudy]:
    """Rank runs that learned and were judged on the same tasks against each other: one study for each kind of task."""

    def tasks(run: _Run) -> str:
        section = run.config["tasks"]
        return json.dumps([signature_from_settings(section), section.get("test")], sort_keys=True)

    sources = []
    for number, (key, group) in enumerate(groupby(sorted(runs, key=tasks), tasks)):
        history = History(mode)
        for run in group:
            # All have used their whole budget: they are compared at their ends.
            trial = Trial(len(history.trials), dict(run.config))
            history = (
                history.with_trial(trial).with_result(trial.number, 1, run.value).with_end(trial.number, "completed")
            )
        weight = similarity(task_distance(signature, json.loads(key)[0]))
        found = summarize_study(f"{experiment}, runs {number}", weight, history, 1, space, {})
        sources += [found] if found is not None else []
    return sources


def _read_config(run: MlflowRecord) -> dict[str, Any]:
    config: dict[str, Any] = parse_yaml(run.files["config.yaml"], "config.yaml")
    return config


def _training_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_SETTINGS}


def _project_trial(space: Space, config: Mapping[str, Any], trial: Trial) -> Configuration | None:
    try:
        return project_configuration(space, apply_configuration(config, trial.configuration))
    except ValueError:  # a field below a plain value of this configuration: it made no run either
        return None


def _look_up(config: Mapping[str, Any], name: str) -> tuple[bool, Value]:
    """Return whether a dotted name exists, and its value."""
    place: Any = config
    for section in name.split("."):
        if not isinstance(place, Mapping) or section not in place:
            return False, None
        place = place[section]
    return True, place


def _quantiles(signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert [n, n] comparisons to [n] quantiles; one trial alone is in the middle."""
    return np.asarray(0.5 * (1 - signs.sum(axis=1) / max(len(signs) - 1, 1)))


def thin(observations: Sequence[Observation], most: int) -> tuple[Observation, ...]:
    """Return at most `most` of some observations, evenly by rank, the best first."""
    count = len(observations)
    if count <= most:
        return tuple(observations)
    kept = sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})
    return tuple(observations[i] for i in kept)
