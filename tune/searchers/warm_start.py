"""Warm-start a searcher with the observations of prior studies, trusted less as the present study learns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metatrain.validation import require_not_negative, require_positive
from tasks.random import stream, uniforms
from tune.history.trials import History
from tune.searchers import Searcher
from tune.searchers.bohb import BOHB
from tune.searchers.observations import Observed, pairwise_signs, trials_with_outcome
from tune.space.distributions import Categorical, Value, is_same
from tune.space.search_space import Configuration, Space, draw_uniforms
from tune.transfer.prior_studies import PriorStudies, PriorStudy, thin

Floats = NDArray[np.float64]

_LEAST = 6
"""Observations of a prior study that make a model; fewer give an initial configuration at most."""
_FAINT = 0.1
"""Smallest weight of a study that is used."""
_JUDGES = 50
"""Number of own trials that judge prior studies: the first ones, because later ones follow what was learned."""


@dataclass(frozen=True)
class WarmStart:
    """Wrap another searcher so that half of its trials use prior studies.

    Of trials 2i and 2i + 1 one, drawn at random, uses prior studies; the other is the searcher's own suggestion. So
    prior studies that mislead spoil half of the trials at most, and fewer the longer the study.

    The first trials that use them are the best configuration of each prior study, the most similar first, `initial` at
    most; parameters that a prior study lacks are drawn from the space. After that BOHB's model also has the prior
    observations at their quantiles; a searcher without such a model goes on alone. Of study s the share

        v_s = w_s · max(0, (k + m τ_s) / (k + m)) · k / (k + n)

    of its observations is used, taken evenly by rank. w_s: similarity of its tasks. n: own trials with a result or a
    failure; m: the first 50 of them. τ_s in [-1, 1]: Kendall's rank correlation of the study's prediction with how
    those m compare; k = `trust`. So a study counts by its similarity at first and by its agreement later, as in RGPE
    (Feurer et al. 2018), and fades in any case: own observations are better ones.
    """

    searcher: Searcher
    prior_studies: PriorStudies = field(metadata={"journal": "experience"})
    initial: int = field(default=5, metadata={"journal": "firsts"})
    trust: float = 10.0

    def __post_init__(self) -> None:
        require_not_negative("warm", initial=self.initial)
        require_positive("warm", trust=self.trust)

    def suggest(self, space: Space, history: History, number: int, seed: int) -> Configuration:
        if not self.uses_prior_studies(seed, number):
            return self.searcher.suggest(space, history, number, seed)
        initial, turn = self.initial_configurations(), number // 2
        if turn < len(initial):
            return space.complete(initial[turn], draw_uniforms(seed, "first", number, len(space.parameters)))
        if isinstance(self.searcher, BOHB):
            observed = self.prior_observations(space, history, seed)
            return self.searcher.suggest(space, history, number, seed, observed)
        return self.searcher.suggest(space, history, number, seed)

    def uses_prior_studies(self, seed: int, number: int) -> bool:
        """Return whether a trial uses prior studies: one of each pair, drawn so that no bracket gets all of them."""
        (u,) = draw_uniforms(seed, "heeds", number // 2, 1)
        return (number % 2 == 1) == (u < 0.5)

    def initial_configurations(self) -> list[Mapping[str, Value]]:
        """Return the best configuration of each similar study, without duplicates."""
        found: list[Mapping[str, Value]] = []
        for study in self.prior_studies.sources:
            best = study.best().configuration
            if study.weight >= _FAINT and not any(is_same(dict(best), dict(other)) for other in found):
                found.append(best)
        return found[: self.initial]

    def prior_observations(self, space: Space, history: History, seed: int) -> list[Observed]:
        """Return (configuration, quantile) of each study's share v_s of observations, missing parameters drawn."""
        found: list[Observed] = []
        for number, (study, weight) in enumerate(
            zip(self.prior_studies.sources, self.weights(space, history), strict=True)
        ):
            if weight < _FAINT:
                continue
            kept = thin(study.observations, math.ceil(weight * len(study.observations)))
            drawn = uniforms(seed, stream("search", "prior", str(number)), range(len(kept)), len(space.parameters))
            found += [
                (space.complete(one.configuration, quantiles), one.quantile)
                for one, quantiles in zip(kept, drawn.tolist(), strict=True)
            ]
        return found

    def weights(self, space: Space, history: History) -> list[float]:
        """Compute v_s of each study."""
        own, studies = trials_with_outcome(history), self.prior_studies.sources
        fading = self.trust / (self.trust + len(own))
        most = [study.weight * fading if len(study.observations) >= _LEAST else 0.0 for study in studies]
        if max(most, default=0.0) < _FAINT:
            return [0.0 for _ in most]
        judges = own[:_JUDGES]
        signs, tried = pairwise_signs(history, judges), [trial.configuration for trial in judges]
        taus = [rank_correlation(-predict_quantiles(space, study, tried), signs) for study in studies]
        return [
            weight * max(0.0, (self.trust + len(judges) * tau) / (self.trust + len(judges)))
            for weight, tau in zip(most, taus, strict=True)
        ]


def rank_correlation(scores: Floats, signs: Floats) -> float:
    """Compute Kendall's τ = Σ sign(pᵢ - pⱼ) c_ij / Σ |c_ij| over the pairs that differ; 0 where none does.

    scores: p, [n], larger for what is expected to be better. signs: c, [n, n], 1 where the row was better.
    """
    differing = np.abs(signs).sum()
    if differing == 0:
        return 0.0
    return float((np.sign(scores[:, None] - scores[None, :]) * signs).sum() / differing)


def predict_quantiles(space: Space, study: PriorStudy, configurations: Sequence[Mapping[str, Value]]) -> Floats:
    """Predict the quantile of configurations by kernel regression on a prior study (Nadaraya 1964; Watson 1964), [n].

    q(x) = Σᵢ K(x, xᵢ) qᵢ / Σᵢ K(x, xᵢ), K(x, x') = exp(-d² / 2h²). d² sums the squared differences of quantiles, and 1
    for each option that differs, over the parameters that both have. h: Scott's rule for uniform quantiles.
    """
    x, known = (_points(space, found) for found in (configurations, [one.configuration for one in study.observations]))
    categorical = np.array([isinstance(parameter.distribution, Categorical) for parameter in space.parameters])
    apart = x[:, None, :] - known[None, :, :]
    squares = np.nan_to_num(np.where(categorical & ~np.isnan(apart), apart != 0, apart**2)).sum(axis=2)
    width = 12**-0.5 * len(known) ** (-1 / (len(space.parameters) + 4))
    kernel = np.exp((squares.min(axis=1, keepdims=True) - squares) / (2 * width**2))
    return np.asarray(kernel @ np.array([one.quantile for one in study.observations]) / kernel.sum(axis=1))


def _points(space: Space, configurations: Sequence[Mapping[str, Value]]) -> Floats:
    """Return quantiles of each parameter, nan where it is missing: [n, d]."""
    rows = [
        [
            p.distribution.quantile(configuration[p.name]) if p.name in configuration else np.nan
            for p in space.parameters
        ]
        for configuration in configurations
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(space.parameters))
