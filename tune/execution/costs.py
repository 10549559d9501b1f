"""Measure what a configuration costs before it is trained: parameters, operations, seconds of adaptation.

Costs are of ONE task of the shape of the test tasks, drawn from validation, so that a search uses no test class:
adapting to its support set with the evaluation's inner steps, and predicting its queries, by the algorithm's own
functions of one task, eagerly, on the CPU and with a worker's threads. They do not depend on the values of parameters.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from metatrain.algorithms.base import predicts
from metatrain.engine.precision import matmul_precision
from metatrain.models import Model
from metatrain.models.dropout import NO_NOISE
from metatrain.training.worker import Worker
from metatrain.types import Context, Params, ShardRequest
from metatrain.validation import require
from tasks.types import Episode, Tree

REPETITIONS = 5
"""Timed repetitions, after one that is not counted."""


def measure_costs(worker: Worker, names: Sequence[str]) -> dict[str, float]:
    """Measure {name: number} of the costs asked for. ValueError: a name is not a cost."""
    for name in names:
        known = ", ".join(COSTS)
        require(name in COSTS, f"search.objectives: no cost '{name}': choose among {known}")
    return {name: COSTS[name](worker) for name in names}


def count_parameters(worker: Worker) -> float:
    """Count the numbers in the initial meta-parameters: the network's and others that are meta-learned (Meta-SGD's
    rates).
    """
    return float(sum(value.numel() for value in worker.initial().values()))


def count_operations(worker: Worker) -> float:
    """Count the multiplications and additions of matrix products, convolutions and attention, forwards and backwards.

    As torch's FlopCounterMode counts them: [n, a] times [a, b] takes 2nab. Activations, normalisation, pooling, losses
    and the update itself are ignored: they are few in comparison, but may take as long.
    """
    once = build_adaptation(worker)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneTotal()  # type: ignore[assignment]
    with counter:
        once()
    return float(counter.get_total_flops())


class _OneTotal:
    """Track no modules: the hooks that torch's own puts on their inputs fail within `torch.func.grad`."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "_OneTotal":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def time_adaptation(worker: Worker) -> float:
    """Time one adaptation and prediction: the median over REPETITIONS, which depends on the machine and its load."""
    once = build_adaptation(worker)
    once()
    return median(_time(once) for _ in range(REPETITIONS))


COSTS: dict[str, Callable[[Worker], float]] = {
    "parameters": count_parameters,
    "operations": count_operations,
    "adaptation_seconds": time_adaptation,
}


def build_adaptation(worker: Worker) -> Callable[[], Tree]:
    """Build () -> predictions for the queries of one task, [n, …], after adapting to its support set."""
    device, engine = worker.device, worker.engine
    task, spec = worker.task(ShardRequest("score", "validation", 0), 0)
    params = {name: value.to(device) for name, value in worker.initial().items()}
    model = worker.model.for_tasks(spec, params)
    context = Context(torch.tensor(0, device=device), torch.tensor(NO_NOISE, device=device))

    def once() -> Tree:
        with torch.no_grad(), matmul_precision(engine.precision, device):
            predicted = _adapt_and_predict(worker.evaluated, model, params, task, context)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return predicted

    return once


def _adapt_and_predict(algorithm: Any, model: Model, params: Params, task: Episode, context: Context) -> Tree:
    """Return the predictions for a task's queries, or the scores of an algorithm that predicts no examples."""
    if not predicts(algorithm):
        return algorithm.score(model, params, task, context)
    *_, adapted = algorithm.trajectory(model, params, task.support, context)
    return algorithm.predict(model, params, adapted, task.query.x, context)


def _time(once: Callable[[], Tree]) -> float:
    began = time.perf_counter()
    once()
    return time.perf_counter() - began
