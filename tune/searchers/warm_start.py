"""A search that begins with what earlier ones found, and goes on to trust its own eyes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metatrain.validation import require_not_negative, require_positive
from tune.history.trials import History
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB, LEAST_GOOD, Advice
from tune.searchers.kde import fitted, quantiles
from tune.searchers.observations import comparable, comparisons
from tune.space.distributions import Value, same
from tune.space.search_space import Configuration, Space, draws
from tune.transfer.prior_studies import Experience, Source

Floats = NDArray[np.float64]

_LEAST = 6
"""Observations of a source that make a model; fewer give a first configuration at most."""
_FAINT = 0.1
"""Advice that weighs less is none."""
_JUDGES = 50
"""The first trials alone judge the sources: they are spread over the space, and later ones told by what was learnt."""


@dataclass(frozen=True)
class Warm:
    """Another searcher, with experience.

    Of trials 2i and 2i + 1 one heeds experience, which is drawn. The other is what the searcher itself suggests, as if
    there were none: experience that misleads where likeness promised otherwise spoils half of the trials at most, and
    the fewer the longer the search.

    The first heeding trials are the best configuration of each source, the most alike first and `firsts` at most. What
    a source lacks of them is drawn from the prior. After that a searcher without a model of observations goes on alone;
    BOHB's densities have those of the sources too, each observation of source s with the weight

        v_s = w_s · max(0, (k + m τ_s) / (k + m)) · k / (k + n)

    w_s: how alike its tasks are. n: own trials that have a result or broke; m: the first 50 of them. τ_s in
    [-1, 1]: Kendall's rank correlation of the source's l(x) / g(x) with how those m compare; k = `trust`. So a source
    counts by its likeness at first, and by its agreement the more has been seen, as in RGPE (Feurer et al. 2018), and
    fades in any case, for the present search's own observations are the better ones.
    """

    searcher: Searcher
    experience: Experience
    firsts: int = 5
    trust: float = 10.0

    def __post_init__(self) -> None:
        require_not_negative("warm", firsts=self.firsts)
        require_positive("warm", trust=self.trust)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        if not self.heeds(seed, number):
            return self.searcher.suggest(space, history, number, seed)
        begin, turn = self.first_configurations(space), number // 2
        if turn < len(begin):
            return space.completed(begin[turn], draws(seed, "first", number, len(space.parameters)))
        if isinstance(self.searcher, BOHB):
            return self.searcher.advised(space, history, number, seed, self.advice(space, history))
        return self.searcher.suggest(space, history, number, seed)

    def heeds(self, seed: int, number: int) -> bool:
        """Whether a trial knows of the experience: one of each pair, drawn lest a bracket of trials has all of them."""
        (u,) = draws(seed, "heeds", number // 2, 1)
        return (number % 2 == 1) == (u < 0.5)

    def first_configurations(self, space: Space) -> list[Mapping[str, Value]]:
        """The best of each source, none twice."""
        found: list[Mapping[str, Value]] = []
        for source in self.experience.sources:
            best = source.best().configuration
            if source.weight >= _FAINT and not any(same(dict(best), dict(other)) for other in found):
                found.append(best)
        return found[: self.firsts]

    def advice(self, space: Space, history: History) -> Advice:
        """Good and bad configurations of all sources that are alike and agree."""
        good, bad = [], []
        for source, weight in zip(self.experience.sources, self.weights(space, history), strict=True):
            if weight >= _FAINT:
                best, others = _split(source)
                good += [(configuration, weight) for configuration in best]
                bad += [(configuration, weight) for configuration in others]
        return Advice(good, bad)

    def weights(self, space: Space, history: History) -> list[float]:
        """v_s of each source."""
        own = comparable(history)
        fading = self.trust / (self.trust + len(own))
        most = [one.weight * fading if len(one.observations) >= _LEAST else 0.0 for one in self.experience.sources]
        if max(most, default=0.0) < _FAINT:
            return [0.0 for _ in most]
        judges = own[:_JUDGES]
        signs, x = comparisons(history, judges), quantiles(space, [trial.configuration for trial in judges])
        promises = [_promise(space, source, x) for source in self.experience.sources]
        return [weight * self._trusted(promise, signs) for weight, promise in zip(most, promises, strict=True)]

    def _trusted(self, promise: Floats, signs: Floats) -> float:
        return max(0.0, (self.trust + len(signs) * agreement(promise, signs)) / (self.trust + len(signs)))


def agreement(promise: Floats, signs: Floats) -> float:
    """Kendall's τ = Σ sign(pᵢ - pⱼ) c_ij / Σ |c_ij| over pairs that were told apart; 0 where none was.

    promise: [n], larger for what is expected to be better. signs: c, [n, n], 1 where the row was better.
    """
    told_apart = np.abs(signs).sum()
    if told_apart == 0:
        return 0.0
    return float((np.sign(promise[:, None] - promise[None, :]) * signs).sum() / told_apart)


def _promise(space: Space, source: Source, x: Floats) -> Floats:
    """log l(x) / g(x) of the source's own observations: [n, d] -> [n]."""
    good, bad = _split(source)
    return np.asarray(fitted(space, good).log(x) - fitted(space, bad).log(x))


def _split(source: Source) -> tuple[list[Mapping[str, Value]], list[Mapping[str, Value]]]:
    """The best tenth, and the others."""
    configurations = [one.configuration for one in source.observations]
    count = max(len(configurations) // 10, min(LEAST_GOOD, len(configurations) // 2))
    return configurations[:count], configurations[count:]
