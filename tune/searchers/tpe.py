"""Suggest by TPE: Optuna's multivariate tree-structured Parzen estimator (Bergstra et al. 2011; Akiba et al. 2019).

The best tenth of the observations make a density l(x), the others g(x); of some draws from l the one with the largest
l(x) / g(x) is suggested. Where parameters depend on others, those that always occur together are modelled together
(Optuna's `group`).
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from metatrain.validation import require_positive
from tasks.random import random_words, stream
from tune.history.trials import History
from tune.searchers.observations import Observed, observations, pending
from tune.space.distributions import Categorical, Distribution, Value
from tune.space.search_space import Configuration, Space

_UNIT = FloatDistribution(0.0, 1.0)


@dataclass(frozen=True)
class TPE:
    """Draw from the space until `startup` trials are completed; then suggest by the model, from `candidates` draws.

    Trials that a scheduler stopped early are ignored: the value of a small budget is not that of the whole one. Failed
    trials count as bad, and so do running ones (a constant liar). The model is built anew for each suggestion.
    """

    startup: int = 10
    candidates: int = 24

    def __post_init__(self) -> None:
        require_positive("search.method", startup=self.startup, candidates=self.candidates)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        completed = [trial for trial in history.trials if trial.status == "completed"]
        if len(completed) < self.startup:
            return space.sample(seed, number)
        budget = max(trial.budget for trial in completed)
        observed, running = observations(history, budget), pending(history, budget)
        return suggest_by_tpe(space, observed, running, self.candidates, (seed, number))


def suggest_by_tpe(
    space: Space,
    observed: Sequence[Observed],
    running: Sequence[Mapping[str, Value]],
    candidates: int,
    address: tuple[int, int],
) -> Configuration:
    """Return Optuna's suggestion from observations, the oldest first, and configurations that run.

    address: (seed, number of the suggestion).
    """
    seed, number = address
    with _silence_optuna():
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            n_ei_candidates=candidates,
            seed=int(random_words(seed, stream("search", "model"), [number], 1)[0, 0]),
            multivariate=True,
            group=space.conditional,
            constant_liar=True,
        )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        study.add_trials([_optuna_trial(space, configuration, loss) for configuration, loss in observed])
        study.add_trials([_optuna_trial(space, configuration, None) for configuration in running])
        trial = study.ask()
        found: Configuration = {}
        for parameter in space.parameters:
            if parameter.active(found):
                found[parameter.name] = _ask(trial, parameter.name, parameter.distribution)
    return found


def _optuna_trial(space: Space, configuration: Mapping[str, Value], loss: float | None) -> FrozenTrial:
    """Convert one trial to Optuna's; without a loss it is running."""
    present = [parameter for parameter in space.parameters if parameter.name in configuration]
    return optuna.trial.create_trial(
        state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
        value=loss,
        params={p.name: _to_optuna(p.distribution, configuration[p.name]) for p in present},
        distributions={p.name: _optuna_distribution(p.distribution) for p in present},
    )


def _optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """Describe numbers to Optuna by their quantile, which has no extreme values, and options by their index, because
    Optuna's categories cannot be sections.
    """
    if isinstance(distribution, Categorical):
        return CategoricalDistribution(range(len(distribution.options)))
    return _UNIT


def _to_optuna(distribution: Distribution, value: Value) -> Value:
    return distribution.index(value) if isinstance(distribution, Categorical) else distribution.quantile(value)


def _ask(trial: optuna.Trial, name: str, distribution: Distribution) -> Value:
    if isinstance(distribution, Categorical):
        count = len(distribution.options)
        return distribution.value_at((trial.suggest_categorical(name, range(count)) + 0.5) / count)
    return distribution.value_at(trial.suggest_float(name, _UNIT.low, _UNIT.high))


@contextmanager
def _silence_optuna() -> Iterator[None]:
    """Silence the log line for each study and the warning that `group` is experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
