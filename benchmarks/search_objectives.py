"""Define cheap multi-fidelity objectives with known optima, on which searches are compared.

A budget b of R steps is the fidelity z = b / R of Kandasamy et al. (2017, "Multi-fidelity Bayesian optimisation with
continuous approximations", section 5 and appendix), at the price b; for counting ones it is the number of samples
(Falkner et al. 2018, "BOHB", section 5.1). All are losses: what the papers maximise is negated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from tasks.random import stream, uniforms
from tune.schedulers.asha import ASHA
from tune.space.search_space import Space, read_space

Values = Mapping[str, float]


@dataclass(frozen=True)
class Objective:
    """Objective loss(configuration, fidelity z, address of the noise) with its minimiser and minimum at z = 1."""

    name: str
    space: Space
    schedule: ASHA
    loss: Callable[[Values, float, tuple[int, int]], float]
    true_loss: Callable[[Values], float]
    minimiser: Values
    minimum: float

    def observed(self, configuration: Values, budget: int, address: tuple[int, int]) -> float:
        """Return the loss that a trial reports after `budget` steps; address: (seed, trial)."""
        return self.loss(configuration, budget / self.schedule.max_budget, address)

    def regret(self, configuration: Values) -> float:
        """Return the true loss of a configuration minus the minimum."""
        return self.true_loss(configuration) - self.minimum


_SAMPLES = 729
_CATEGORICAL = [f"category_{i}" for i in range(8)]
_CONTINUOUS = [f"probability_{i}" for i in range(8)]


def counting_ones() -> Objective:
    """f(x) = -(Σ xᵢ of 8 categories in {0, 1} + Σ of 8 means of b draws from Bernoulli(xⱼ)), b up to 729: -16 at ones.

    Falkner et al. (2018), section 5.1.
    """

    def loss(x: Values, z: float, address: tuple[int, int]) -> float:
        seed, trial = address
        count = round(z * _SAMPLES)
        # The first draws of an index do not depend on their number, so a longer trial continues a shorter one.
        drawn = uniforms(seed, stream("counting-ones"), [trial], 8 * count).reshape(count, 8)
        ones = drawn < np.array([x[name] for name in _CONTINUOUS])
        return -float(sum(x[name] for name in _CATEGORICAL) + ones.mean(axis=0).sum())

    space = dict.fromkeys(_CATEGORICAL, "choice(0, 1)") | dict.fromkeys(_CONTINUOUS, "uniform(0, 1)")
    return Objective(
        "counting ones 8+8",
        read_space(space),
        ASHA(_SAMPLES // 27, _SAMPLES),
        loss,
        lambda x: -float(sum(x[name] for name in (*_CATEGORICAL, *_CONTINUOUS))),
        dict.fromkeys((*_CATEGORICAL, *_CONTINUOUS), 1),
        -16.0,
    )


def currin() -> Objective:
    """f(x) = (1 - α(z) exp(-1 / 2x₂)) (2300x₁³ + 1900x₁² + 2092x₁ + 60) / (100x₁³ + 500x₁² + 4x₁ + 20) on [0, 1]².

    α(z) = 1 - 0.1 (1 - z). Currin et al. (1991); fidelity: Kandasamy et al. (2017). The maximum is at x₂ = 0, where the
    first factor is 1, and at a zero of the derivative of the second.
    """

    def loss(x: Values, z: float, address: tuple[int, int] = (0, 0)) -> float:
        a, b = x["x1"], x["x2"]
        first = 1 - (1 - 0.1 * (1 - z)) * (math.exp(-1 / (2 * b)) if b > 0 else 0.0)
        return -first * (2300 * a**3 + 1900 * a**2 + 2092 * a + 60) / (100 * a**3 + 500 * a**2 + 4 * a + 20)

    space = read_space({"x1": "uniform(0, 1)", "x2": "uniform(0, 1)"})
    best = {"x1": 0.2166666, "x2": 0.0}
    return Objective("Currin", space, ASHA(1, 27), loss, lambda x: loss(x, 1.0), best, -13.798722044728)


_BOREHOLE = {
    "rw": (0.05, 0.15),
    "r": (100, 50000),
    "Tu": (63070, 115600),
    "Hu": (990, 1110),
    "Tl": (63.1, 116),
    "Hl": (700, 820),
    "L": (1120, 1680),
    "Kw": (9855, 12045),
}


def borehole() -> Objective:
    """Compute the flow through a borehole in m³ per year: f = z·high + (1 - z)·low in 8 variables.

    high = 2πTu (Hu - Hl) / (ln(r/rw) (1 + q)), low = 5 Tu (Hu - Hl) / (ln(r/rw) (1.5 + q)),
    q = 2 L Tu / (ln(r/rw) rw² Kw) + Tu / Tl. Morris et al. (1993); low: Xiong et al. (2013); the mixture: Kandasamy et
    al. (2017). high is monotone in each variable, so that its maximum is at a corner.
    """

    def loss(x: Values, z: float, address: tuple[int, int] = (0, 0)) -> float:
        ratio = math.log(x["r"] / x["rw"])
        head = x["Tu"] * (x["Hu"] - x["Hl"]) / ratio
        q = 2 * x["L"] * x["Tu"] / (ratio * x["rw"] ** 2 * x["Kw"]) + x["Tu"] / x["Tl"]
        return -(z * 2 * math.pi * head / (1 + q) + (1 - z) * 5 * head / (1.5 + q))

    space = read_space({name: f"uniform({low}, {high})" for name, (low, high) in _BOREHOLE.items()})
    corners = [dict(zip(_BOREHOLE, corner, strict=True)) for corner in product(*_BOREHOLE.values())]
    best = min(corners, key=lambda x: loss(x, 1.0))
    return Objective("Borehole", space, ASHA(1, 27), loss, lambda x: loss(x, 1.0), best, loss(best, 1.0))


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN = [f"x{i}" for i in range(1, 7)]


def hartmann6() -> Objective:
    """f(x) = Σᵢ αᵢ(z) exp(-Σⱼ Aᵢⱼ (xⱼ - Pᵢⱼ)²) on [0, 1]⁶, αᵢ(z) = αᵢ - 0.1 (1 - z): 3.32237 at most.

    Dixon and Szegő (1978); fidelity: Kandasamy et al. (2017), whose z has a component for each α.
    """

    def loss(x: Values, z: float, address: tuple[int, int] = (0, 0)) -> float:
        point = np.array([x[name] for name in _HARTMANN])
        return -float((_ALPHA - 0.1 * (1 - z)) @ np.exp(-(_A * (point - _P) ** 2).sum(axis=1)))

    best = dict(zip(_HARTMANN, (0.20168952, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.65730053), strict=True))
    space = read_space(dict.fromkeys(_HARTMANN, "uniform(0, 1)"))
    return Objective("Hartmann-6", space, ASHA(1, 27), loss, lambda x: loss(x, 1.0), best, -3.3223680114155)


OBJECTIVES = (counting_ones(), currin(), borehole(), hartmann6())
