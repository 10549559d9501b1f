"""Which parameters matter for being among the best, by PED-ANOVA (Watanabe et al. 2023), in optuna's implementation.

The importance of a parameter is how far its density among the best trials lies from that among all of them: the Pearson
divergence ∫ p_all(x) (p_best(x) / p_all(x) - 1)² dx, of densities by kernels. One that is not always there counts where
it is. A few trials have such a distance by chance: what chance gives is measured, by shuffling who had which value.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tune.history.trials import History
from tune.space.distributions import Categorical, Value
from tune.space.search_space import Parameter, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

Floats = NDArray[np.float64]

LEAST = 10
"""With fewer observations no importance is measured."""
_SHUFFLES = 40
_CHANCE = 0.95


class Importance(NamedTuple):
    """A parameter's part of the sum of all divergences, and what chance stays below in 95 of 100 cases, of that sum.

    observations: those that had the parameter.
    """

    name: str
    share: float
    chance: float
    observations: int

    @property
    def clear(self) -> bool:
        """Whether it is more than chance gives, seen often enough."""
        return self.share > self.chance and self.observations >= LEAST


class Importances(NamedTuple):
    """The largest first. budget: whose values were looked at; best: how many of the observations are the best."""

    budget: int
    observations: int
    best: int
    parameters: tuple[Importance, ...]


def importances(space: Space, history: History) -> Importances | None:
    """Measure the importances from the values at `level`. None: fewer than LEAST, or all of them equal."""
    budget = level(history)
    seen = [(trial.configuration, value) for trial in history.trials if (value := trial.value_at(budget)) is not None]
    if len(seen) < LEAST:
        return None
    configurations = [configuration for configuration, _ in seen]
    losses = [history.loss(value) for _, value in seen]
    if min(losses) == max(losses):
        return None
    # Places instead of values: only their order counts, and so many are the best even where some are equal.
    places = np.argsort(np.argsort(losses, kind="stable")).astype(float)
    # A tenth are the best, at least five, as the authors advise; of few a third.
    best = max(math.ceil(len(seen) / 10), min(5, len(seen) // 3))
    study = _study(space, configurations)
    measured = _divergences(study, places, best)
    shuffle = np.random.default_rng(0)
    shuffled = [_divergences(study, shuffle.permutation(places), best) for _ in range(_SHUFFLES)]
    total = sum(measured.values()) or 1.0
    found = [
        Importance(
            name,
            share=divergence / total,
            chance=float(np.quantile([each[name] for each in shuffled], _CHANCE)) / total,
            observations=sum(name in configuration for configuration in configurations),
        )
        for name, divergence in measured.items()
    ]
    return Importances(budget, len(seen), best, tuple(sorted(found, key=lambda one: -one.share)))


def level(history: History) -> int:
    """Return the budget that has most values, the higher of equals; 0 before there is one.

    Those that came further were chosen by their values: they agree in what matters most, which then seems not to.
    """
    counts = Counter(budget for _, budget in history.result_order)
    return max(counts, key=lambda budget: (counts[budget], budget), default=0)


def _divergences(study: "Study", places: Floats, best: int) -> dict[str, float]:
    """Return the divergences of the parameters of any trial. places: [n] by the trial's number, 0 for the best."""
    from optuna.importance import PedAnovaImportanceEvaluator

    # Half a trial less, so that rounding up gives `best` of them.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(best - 0.5) / len(places))
    with warnings.catch_warnings():
        # That small targets are the better ones, and that a parameter is there, or absent, in one trial only.
        warnings.simplefilter("ignore")
        return evaluator.evaluate(study, target=lambda trial: float(places[trial.number]))


def _seen(parameter: Parameter, configuration: Mapping[str, Value]) -> tuple[Any, "BaseDistribution"]:
    """Translate a value for optuna: an option by its number, a number by its quantile, on its own scale."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    value, distribution = configuration[parameter.name], parameter.distribution
    if isinstance(distribution, Categorical):
        return distribution.index(value), CategoricalDistribution(range(len(distribution.options)))
    return distribution.quantile(value), FloatDistribution(0.0, 1.0)


def _study(space: Space, configurations: Sequence[Mapping[str, Value]]) -> "Study":
    """Make an in-memory optuna study of the observations, without optuna's log line for each study."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    for configuration in configurations:
        known = {one.name: _seen(one, configuration) for one in space.parameters if one.name in configuration}
        params = {name: at for name, (at, _) in known.items()}
        kinds = {name: kind for name, (_, kind) in known.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=0.0))
    return study
