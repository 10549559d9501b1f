"""TPE: Optuna's multivariate tree-structured Parzen estimator (Bergstra et al. 2011; Akiba et al. 2019).

The best tenth of the observations make a density l(x), the others g(x); of some draws from l the one is suggested that
has the largest l(x) / g(x). Where parameters depend on others, those that are always there together are modelled
together (Optuna's `group`).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from metatrain.validation import require_positive
from tasks.random import random_words, stream
from tune.history.trials import History
from tune.searchers.observations import awaited, observations
from tune.space.distributions import Choice, Domain, Value
from tune.space.search_space import Configuration, Space

_UNIT = FloatDistribution(0.0, 1.0)


@dataclass(frozen=True)
class TPE:
    """Random until `startup` trials are completed; then the best of `candidates` draws from the density of good ones.

    Trials that a schedule stopped early are left out: the value of a small budget is not that of the whole one. Those
    that failed are bad, as are those that still run (a constant liar). The study is built anew for each suggestion.
    """

    startup: int = 10
    candidates: int = 24

    def __post_init__(self) -> None:
        require_positive("search.method", startup=self.startup, candidates=self.candidates)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        completed = [trial for trial in history.trials if trial.status == "completed"]
        if len(completed) < self.startup:
            return space.sample(seed, number)
        return modelled(space, history, max(trial.budget for trial in completed), self.candidates, (seed, number))


def modelled(space: Space, history: History, budget: int, candidates: int, address: tuple[int, int]) -> Configuration:
    """What Optuna makes of the results at a budget; `address` is (seed, number)."""
    seed, number = address
    with _quiet():
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            n_ei_candidates=candidates,
            seed=int(random_words(seed, stream("search", "model"), [number], 1)[0, 0]),
            multivariate=True,
            group=space.conditional,
            constant_liar=True,
        )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        study.add_trials([_frozen(space, x, loss) for x, loss in observations(history, budget)])
        study.add_trials([_frozen(space, x, None) for x in awaited(history, budget)])
        trial = study.ask()
        found: Configuration = {}
        for parameter in space.parameters:
            if parameter.active(found):
                found[parameter.name] = _asked(trial, parameter.name, parameter.domain)
    return found


def _frozen(space: Space, configuration: Mapping[str, Value], loss: float | None) -> FrozenTrial:
    """A trial as Optuna keeps it; one without a loss is running."""
    there = [parameter for parameter in space.parameters if parameter.name in configuration]
    return optuna.trial.create_trial(
        state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
        value=loss,
        params={p.name: _internal(p.domain, configuration[p.name]) for p in there},
        distributions={p.name: _distribution(p.domain) for p in there},
    )


def _distribution(domain: Domain) -> BaseDistribution:
    """Numbers are known to Optuna by their quantile, which is as far from the ends of floats as can be, and options by
    their number: sections are no categories of its own.
    """
    return CategoricalDistribution(range(len(domain.options))) if isinstance(domain, Choice) else _UNIT


def _internal(domain: Domain, value: Value) -> Value:
    return domain.index(value) if isinstance(domain, Choice) else domain.quantile(value)


def _asked(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    if isinstance(domain, Choice):
        count = len(domain.options)
        return domain.at((trial.suggest_categorical(name, range(count)) + 0.5) / count)
    return domain.at(trial.suggest_float(name, _UNIT.low, _UNIT.high))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of every study it makes, and warns that groups may change in a later version."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
