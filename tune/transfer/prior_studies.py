"""What earlier searches and runs saw, told to a new one: meta-learning applied to the search itself.

    source s:  weight w_s in [0, 1] from the distance of its tasks, and observations (configuration, share, quantile)

Losses of different tasks have different scales, so each source tells only what was better than what (Feurer et al.
2018, "Practical transfer learning for Bayesian optimization"). Among its n trials that have a result or broke,

    quantile_i = ½ (1 - Σⱼ≠ᵢ c_ij / (n - 1)),  c_ij = 1 where i is better than j, -1 where worse, 0 where equal

each pair being compared at the highest budget that both reached: 0 beat everybody, 1 lost to everybody. `share` is the
budget that it reached, of the whole.

A configuration of another search is read off the whole document that it made, at the fields of the present space: what
was fixed there may be searched here, and the other way round. One with a value outside a domain is dropped. A field
that the other document lacks is left out, and stays the prior's: kernels compare by what is shared, and a first
configuration draws it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metatrain.tracking.mlflow_history import Recorded, recorded
from metatrain.yaml_config import parse_yaml
from tune.history.journal import read_journal, replay
from tune.history.trials import History, Mode, Trial
from tune.searchers.observations import pairwise_signs, trials_with_outcome
from tune.settings import METRICS
from tune.space.distributions import Categorical, Value
from tune.space.search_space import Configuration, Space, apply_configuration, matches
from tune.transfer.task_similarity import Signature, distance, signature_from_settings, weight

MOST = 100
"""Observations kept of one source, evenly by rank: beyond that they only cost time."""
FILES = ("config.yaml", "journal.jsonl", "tasks.json")
_NOT_SETTINGS = ("search", "space")


@dataclass(frozen=True)
class Observation:
    """A configuration of the present space, perhaps not whole, and how it fared: see the equation above."""

    configuration: Mapping[str, Value]
    share: float
    quantile: float


@dataclass(frozen=True)
class PriorStudy:
    """An earlier search, or the runs of one experiment on the same tasks; observations with the best first."""

    name: str
    weight: float
    observations: tuple[Observation, ...]

    def best(self) -> Observation:
        """The best of those that went furthest."""
        most = max(one.share for one in self.observations)
        return next(one for one in self.observations if one.share == most)


@dataclass(frozen=True)
class PriorStudies:
    """All that is known from elsewhere, the most alike first. It is kept with the search, whose function it is part of:
    a search that goes on must not suggest otherwise because others have ended meanwhile.
    """

    sources: tuple[PriorStudy, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def digest(self) -> str:
        """SHA-256 of its JSON: equal for equal experience, so that a journal's header need not hold it whole."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


def read_prior_studies(plain: Mapping[str, Any]) -> PriorStudies:
    """What `plain()` told. ValueError: it did not."""
    try:
        return PriorStudies(
            tuple(
                PriorStudy(
                    source["name"], source["weight"], tuple(Observation(**one) for one in source["observations"])
                )
                for source in plain["sources"]
            )
        )
    except (KeyError, TypeError) as error:
        wrong = f"experience: not what was kept ({error!r})"
        raise ValueError(f"{wrong}: restore experience.json, or search in another folder") from error


def summarize_study(
    name: str, weight: float, history: History, whole: int, space: Space, document: Mapping[str, Any]
) -> PriorStudy | None:
    """What a history tells a search over `space`; None where nothing of it fits.

    whole: steps of its whole budget. document: the plain configuration over which its configurations were put.
    """
    trials = trials_with_outcome(history)
    if not any(trial.results for trial in trials):
        return None
    ranks = _quantiles(pairwise_signs(history, trials))
    order = np.argsort(ranks, kind="stable").tolist()
    projected = ((i, _projected(space, document, trials[i])) for i in order)
    fitting = [
        Observation(configuration, min(trials[i].budget / whole, 1.0), float(ranks[i]))
        for i, configuration in projected
        if configuration
    ]
    return PriorStudy(name, weight, thin(fitting, MOST)) if fitting else None


def project_configuration(space: Space, document: Mapping[str, Any]) -> Configuration | None:
    """The fields of `space` as a whole configuration has them, those left out that it lacks; None: one has a value
    outside its domain.
    """
    found: Configuration = {}
    for parameter in space.parameters:
        there, value = _field(document, parameter.name)
        if not (there and parameter.active(found)):
            continue
        if isinstance(parameter.distribution, Categorical) and isinstance(value, dict):
            # A section stands for the option whose settings it has, the most of them.
            fitting = [option for option in parameter.distribution.options if matches(value, option)]
            value = max(fitting, key=len, default=value)
        if not parameter.distribution.contains(value):
            return None
        found[parameter.name] = value
    return found


def gather_prior_studies(
    uri: str, experiments: Sequence[str], space: Space, metric: str, signature: Signature
) -> tuple[PriorStudies, list[str]]:
    """What the searches and finished runs of some MLflow experiments tell a search for `metric` over `space` on tasks
    of this signature, and a line for each that tells nothing. ValueError: there is no such experiment.
    """
    sources: list[PriorStudy] = []
    notes: list[str] = []
    for experiment in experiments:
        runs = list(recorded(uri, experiment, FILES, tuple(METRICS)))
        searches = [run for run in runs if run.search]
        found = [_told(run, lambda run: _searched(run, space, signature)) for run in searches]
        alone = [run for run in runs if not run.search]
        entries = [_told(run, lambda run: _trained(run, metric)) for run in alone]
        kept = [one for one in entries if isinstance(one, _Trained)]
        notes += [one for one in (*found, *entries) if isinstance(one, str)]
        fitting = [one for one in found if isinstance(one, PriorStudy)]
        fitting += _grouped(experiment, kept, space, METRICS[metric], signature)
        if not fitting:
            notes.append(f"search.warm_start: '{experiment}' has no search or finished run that fits: nothing is taken")
        sources += fitting
    ordered = sorted(sources, key=lambda source: -source.weight)
    notes += [f"{source.name}: other tasks altogether: passed over" for source in ordered if source.weight == 0]
    return PriorStudies(tuple(source for source in ordered if source.weight > 0)), notes


class _Trained(NamedTuple):
    """A run that was no trial: its plain configuration, and its best value."""

    document: Mapping[str, Any]
    value: float


def _told(run: Recorded, read: Any) -> Any:
    """What is read of a run, or a line that says why nothing is."""
    try:
        return read(run)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else f"is damaged ({error!r})"
        return f"{run.name}: {reason}: passed over"


def _searched(run: Recorded, space: Space, signature: Signature) -> PriorStudy:
    """An earlier search. ValueError: it tells nothing."""
    if "journal.jsonl" not in run.files or "config.yaml" not in run.files:
        raise ValueError(run.problem or "a search without journal and configuration")
    header, events = read_journal(run.files["journal.jsonl"], "journal.jsonl")
    objectives = tuple(header.get("objectives", ()))
    history = replay(header["mode"], events, "journal.jsonl", objectives)
    document = _without_search(_document(run))
    theirs = (
        json.loads(run.files["tasks.json"]) if "tasks.json" in run.files else signature_from_settings(document["tasks"])
    )
    likeness = weight(distance(signature, theirs))
    whole = max([header["schedule"].get("max_budget", 1), *(budget for _, budget in history.result_order)])
    found = summarize_study(run.name, likeness, history, whole, space, document)
    if found is None:
        raise ValueError("a search without a result that fits this space")
    return found


def _trained(run: Recorded, metric: str) -> _Trained:
    """An earlier run. ValueError: it tells nothing."""
    if not run.finished:
        raise ValueError("a run that did not finish")
    if "config.yaml" not in run.files:
        raise ValueError(run.problem or "a run without its configuration")
    if not run.metrics.get(metric):
        raise ValueError(f"a run that reports no {metric}")
    best = max if METRICS[metric] == "max" else min
    return _Trained(_document(run), best(run.metrics[metric]))


def _grouped(
    experiment: str, runs: Iterable[_Trained], space: Space, mode: Mode, signature: Signature
) -> list[PriorStudy]:
    """Runs that learned and were judged on the same tasks, ranked among each other: a source for each kind of task."""

    def tasks(run: _Trained) -> str:
        section = run.document["tasks"]
        return json.dumps([signature_from_settings(section), section.get("test")], sort_keys=True)

    sources = []
    for number, (key, group) in enumerate(groupby(sorted(runs, key=tasks), tasks)):
        history = History(mode)
        for run in group:
            # All have had what was theirs to have: they are compared at their ends.
            trial = Trial(len(history.trials), dict(run.document))
            history = (
                history.with_trial(trial).with_result(trial.number, 1, run.value).with_end(trial.number, "completed")
            )
        likeness = weight(distance(signature, json.loads(key)[0]))
        found = summarize_study(f"{experiment}, runs {number}", likeness, history, 1, space, {})
        sources += [found] if found is not None else []
    return sources


def _document(run: Recorded) -> dict[str, Any]:
    document: dict[str, Any] = parse_yaml(run.files["config.yaml"], "config.yaml")
    return document


def _without_search(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in _NOT_SETTINGS}


def _projected(space: Space, document: Mapping[str, Any], trial: Trial) -> Configuration | None:
    try:
        return project_configuration(space, apply_configuration(document, trial.configuration))
    except ValueError:  # a field below what is a value in this document: it made no run either
        return None


def _field(document: Mapping[str, Any], name: str) -> tuple[bool, Value]:
    """Whether a dotted name is there, and its value. A space without sections has its names as they are."""
    place: Any = document
    for section in name.split("."):
        if not isinstance(place, Mapping) or section not in place:
            return False, None
        place = place[section]
    return True, place


def _quantiles(signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, n] comparisons to [n] quantiles; one trial alone is in the middle."""
    return np.asarray(0.5 * (1 - signs.sum(axis=1) / max(len(signs) - 1, 1)))


def thin(observations: Sequence[Observation], most: int) -> tuple[Observation, ...]:
    """Return at most `most` of some observations, evenly by rank, the best first."""
    count = len(observations)
    if count <= most:
        return tuple(observations)
    kept = sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})
    return tuple(observations[i] for i in kept)
