"""Predict the driver's time per step, by a fitted model, for more workers and parameters than were measured.

P parameters are B = 4P/10⁶ megabytes; S shards per step; f(i) replies in flight when the i-th is awaited.

    T = a + b·S + c·B + d·S·B + Σᵢ q(f(i))        q(f) = u + v·f
        │   │     │     └ get, add: once per shard
        │   │     └ flatten, put, check, optimise: once per step
        │   └ submit, and the cost of a reply apart from its vector
        └ fixed cost of a step

q is the cost of waiting for one reply among f and assigning the next shard: `ray.wait` receives all calls in flight.
The six coefficients are non-negative and fitted by least squares of the relative errors to the measurements of
`driver.py`. The model contains no network, and only this machine's object store.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import results

WORKERS = (1, 4, 16, 64, 256)
MILLIONS = (0.1, 1.0, 10.0, 100.0)
IN_FLIGHT = 2
_GIGABITS = 10.0
_COLUMNS = ["workers", *(f"{millions:g} M parameters, ms" for millions in MILLIONS)]

Floats = NDArray[np.float64]


class Model(NamedTuple):
    """Coefficients of the equation above, in milliseconds."""

    a: float
    b: float
    c: float
    d: float
    u: float
    v: float

    def step_ms(self, millions: float, shards: int, workers: int) -> float:
        """Compute T, the milliseconds of a step."""
        flying = np.minimum(np.arange(shards, 0, -1), IN_FLIGHT * workers)
        messages = float((self.u + self.v * flying).sum())
        return float(terms(millions, shards) @ np.array(self[:4])) + messages


class Fit(NamedTuple):
    """A fitted model and its errors."""

    model: Model
    errors: list[float]
    """(predicted − measured) / measured, for each measurement."""
    typical: float
    """Root mean square of the errors."""


def terms(millions: float, shards: int) -> Floats:
    """Return the factors of a, b, c and d."""
    megabytes = 4 * millions
    return np.array([1.0, shards, megabytes, shards * megabytes])


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """Return argmin ‖matrix·x − target‖ over x >= 0, by trying every subset of the few columns."""
    best, least = np.zeros(matrix.shape[1]), float(np.linalg.norm(target))
    for count in range(1, matrix.shape[1] + 1):
        for columns in map(list, combinations(range(matrix.shape[1]), count)):
            x = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            rest = float(np.linalg.norm(matrix[:, columns] @ x - target))
            if (x >= 0).all() and rest < least:
                best, least = np.zeros(matrix.shape[1]), rest
                best[columns] = x
    return best


def fit(steps: Sequence[Sequence[float]], answers: Sequence[Sequence[float]], workers: int = 2) -> Fit:
    """Fit the model to measurements with `workers` workers.

    steps: rows [millions, shards, …, ms of all parts, ms of wait]; answers: rows [in flight, ms to wait, ms to assign].
    """
    queue = np.array([[1.0, flying] for flying, *_ in answers])
    per_answer = np.array([wait + hand_out for _, wait, hand_out in answers])
    u, v = non_negative_least_squares(queue / per_answer[:, None], np.ones(len(per_answer)))
    matrix = np.array([terms(millions, int(shards)) for millions, shards, *_ in steps])
    # The measured wait is the model's q: subtract it here; step_ms adds it again.
    rest = np.array([total - wait for *_, total, wait in steps])
    model = Model(*non_negative_least_squares(matrix / rest[:, None], np.ones(len(rest))), u, v)
    errors = [model.step_ms(row[0], int(row[1]), workers) / row[-2] - 1 for row in steps]
    return Fit(model, errors, float(np.sqrt(np.mean(np.square(errors)))))


def write(steps: Sequence[Sequence[float]], answers: Sequence[Sequence[float]]) -> None:
    """Fit, predict, and write the part "driver-model"; for `steps` and `answers` see `fit`."""
    fitted = fit(steps, answers)
    model = fitted.model
    rows = [[workers, *(round(model.step_ms(m, workers, workers), 2) for m in MILLIONS)] for workers in WORKERS]
    plot = {
        "file": "driver.png",
        "title": "The driver's part of a step, by a model",
        "x": "million parameters",
        "y": "ms per step",
        "log_x": True,
        "log_y": True,
        "series": _series(model, steps),
    }
    extra = {"model": model._asdict(), "errors": fitted.errors, "plots": [plot]}
    results.write(
        "driver-model", "The driver's part of a step, predicted", _COLUMNS, rows, _notes(fitted, steps), extra
    )


def _series(model: Model, steps: Sequence[Sequence[float]]) -> dict[str, list[list[float]]]:
    """Return lines of the model by number of workers, one shard each, and the measured points with the most shards."""
    lines = {f"{workers} workers": [[m, model.step_ms(m, workers, workers)] for m in MILLIONS] for workers in WORKERS}
    most = max(row[1] for row in steps)
    return lines | {f"measured, {most:g} shards": [[row[0], row[-2]] for row in steps if row[1] == most]}


def _notes(fitted: Fit, steps: Sequence[Sequence[float]]) -> list[str]:
    model = fitted.model
    worst = max(map(abs, fitted.errors))
    coefficients = ", ".join(f"{name} {value:.3g}" for name, value in model._asdict().items())
    hundred = 4e8 * 8 / (_GIGABITS * 1e9)
    return [
        "Predicted by a model, not measured: T = a + b·S + c·B + d·S·B + Σ (u + v·in flight) in ms, S shards, B "
        "megabytes of "
        f"parameters; {coefficients}. Relative error over {len(fitted.errors)} measured steps: {fitted.typical:.0%} "
        "root "
        f"mean square, {worst:.0%} at worst. Measured: up to {max(row[0] for row in steps):g} M parameters and "
        f"{max(row[1] for row in steps):g} shards with 2 workers; larger values are extrapolated.",
        "One shard per worker and step. If computing a shard takes longer than the entry, the workers take the "
        "larger part "
        "of a step; if it takes nine times as long, they take nine tenths.",
        "Recording and the network are not included: over "
        f"{_GIGABITS:g} Gbit/s a vector of 100 M parameters takes {hundred:.2f} s in each direction for every worker, "
        "which soon exceeds these values.",
    ]
