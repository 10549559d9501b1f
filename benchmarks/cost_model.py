"""A MODEL of the driver's seconds per step, for more workers and parameters than were measured.

P parameters are B = 4P/10⁶ megabytes; S shards a step; f(i) answers in flight when the i-th is waited for.

    T = a + b·S + c·B + d·S·B + Σᵢ q(f(i))        q(f) = u + v·f
        │   │     │     └ get, add: each shard's vector, once each
        │   │     └ flatten, put, check, optimise: once a step, whatever the workers
        │   └ submit, and what an answer costs besides its vector
        └ a step's fixed cost

q is what waiting for one answer among f and handing out the next shard costs: `ray.wait` is given all that fly. All
six are not negative, and fitted by least squares of the relative errors to what `driver.py` measured. No network is in
it, and no object store but this machine's.
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
    """Milliseconds: see the equation above."""

    a: float
    b: float
    c: float
    d: float
    u: float
    v: float

    def step_ms(self, millions: float, shards: int, workers: int) -> float:
        """T of a step."""
        flying = np.minimum(np.arange(shards, 0, -1), IN_FLIGHT * workers)
        messages = float((self.u + self.v * flying).sum())
        return float(terms(millions, shards) @ np.array(self[:4])) + messages


class Fit(NamedTuple):
    """A model, and how far it is from what it was fitted to."""

    model: Model
    errors: list[float]
    """(predicted − measured) / measured, for each measurement."""
    typical: float
    """The root of their mean square."""


def terms(millions: float, shards: int) -> Floats:
    """What a, b, c and d are multiplied by."""
    megabytes = 4 * millions
    return np.array([1.0, shards, megabytes, shards * megabytes])


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """argmin ‖matrix·x − target‖ over x >= 0, by trying every set of columns: there are few."""
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
    """steps: rows [millions, shards, …, ms of all parts, ms of wait] measured with `workers`; answers: rows
    [in flight, ms to wait, ms to hand out].
    """
    queue = np.array([[1.0, flying] for flying, *_ in answers])
    per_answer = np.array([wait + hand_out for _, wait, hand_out in answers])
    u, v = non_negative_least_squares(queue / per_answer[:, None], np.ones(len(per_answer)))
    matrix = np.array([terms(millions, int(shards)) for millions, shards, *_ in steps])
    # The wait that was measured is the model's q, so it is taken out here and put back by step_ms.
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
    """Lines of the model by workers, one shard each, and the measured points of the most shards."""
    lines = {f"{workers} workers": [[m, model.step_ms(m, workers, workers)] for m in MILLIONS] for workers in WORKERS}
    most = max(row[1] for row in steps)
    return lines | {f"measured, {most:g} shards": [[row[0], row[-2]] for row in steps if row[1] == most]}


def _notes(fitted: Fit, steps: Sequence[Sequence[float]]) -> list[str]:
    model = fitted.model
    worst = max(map(abs, fitted.errors))
    terms_told = ", ".join(f"{name} {value:.3g}" for name, value in model._asdict().items())
    hundred = 4e8 * 8 / (_GIGABITS * 1e9)
    return [
        "A MODEL, not a measurement: T = a + b·S + c·B + d·S·B + Σ (u + v·in flight) in ms, S shards, B megabytes of "
        f"parameters; {terms_told}. Relative error over {len(fitted.errors)} measured steps: {fitted.typical:.0%} root "
        f"mean square, {worst:.0%} at worst. Measured were up to {max(row[0] for row in steps):g} M parameters and "
        f"{max(row[1] for row in steps):g} shards with 2 workers; what lies beyond is extrapolated.",
        "One shard for each worker and step. An entry is also the bound: where a shard's computing takes longer than "
        "that, the workers are the larger part of a step, and with nine times as long they are nine tenths of it.",
        "Recording is not in it, nor a network: over one of "
        f"{_GIGABITS:g} Gbit/s a vector of 100 M parameters takes {hundred:.2f} s in each direction for every worker, "
        "which soon exceeds what stands here.",
    ]
