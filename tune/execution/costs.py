"""What a configuration costs, whatever it learns: known before its first step, since nothing of it depends on values.

Of ONE task of the shape of the test tasks, drawn from validation, so that a search looks at no test class: adapting to
its support set with the evaluation's inner steps, and predicting its queries, by the algorithm's own functions of one
task, eagerly, on the CPU and with a worker's threads.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from metatrain.engine.precision import matmul_precision
from metatrain.models.dropout import NO_NOISE
from metatrain.training.worker import Worker
from metatrain.types import Context, Shard, ShardRequest
from metatrain.validation import require

REPETITIONS = 5
"""Of which the median is taken, after one that counts for nothing."""


def costs(worker: Worker, names: Sequence[str]) -> dict[str, float]:
    """{name: number} of those asked for. ValueError: a name that is no cost."""
    for name in names:
        known = ", ".join(COSTS)
        require(name in COSTS, f"search.objectives: no cost '{name}': choose among {known}")
    return {name: COSTS[name](worker) for name in names}


def parameters(worker: Worker) -> float:
    """Numbers in the initial meta-parameters: the network's, and what else is meta-learned (Meta-SGD's rates)."""
    return float(sum(value.numel() for value in worker.initial().values()))


def operations(worker: Worker) -> float:
    """Multiplications and additions of matrix products, convolutions and attention, forwards and backwards.

    As torch's FlopCounterMode counts them: [n, a] times [a, b] takes 2nab. All else is left out: activations,
    normalisation, pooling, losses, the update itself. They are few beside those, but may take as long.
    """
    once = adaptation(worker)
    with FlopCounterMode(display=False) as counter:
        once()
    return float(counter.get_total_flops())


def adaptation_seconds(worker: Worker) -> float:
    """Median over REPETITIONS: it depends on the machine, and on what else that has to do."""
    once = adaptation(worker)
    once()
    return median(_seconds(once) for _ in range(REPETITIONS))


COSTS: dict[str, Callable[[Worker], float]] = {
    "parameters": parameters,
    "operations": operations,
    "adaptation_seconds": adaptation_seconds,
}


def adaptation(worker: Worker) -> Callable[[], Tensor]:
    """() -> predictions for the queries of one task, [n, …], after adapting to its support set."""
    device, engine = worker.device, worker.engine
    request, shard = ShardRequest("score", "validation", 0), Shard(0, (0,))
    task = tree_map(lambda leaf: leaf[0], worker.tasks(request, shard))
    params = {name: value.to(device) for name, value in worker.initial().items()}
    model = worker.model.for_tasks(worker.distribution("validation").spec, params)
    context = Context(torch.tensor(0, device=device), torch.tensor(NO_NOISE, device=device))

    def once() -> Tensor:
        with torch.no_grad(), matmul_precision(engine.precision, device):
            *_, adapted = worker.evaluated.trajectory(model, params, task.support, context)
            predicted = worker.evaluated.predict(model, params, adapted, task.query.x, context)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return predicted

    return once


def _seconds(once: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    once()
    return time.perf_counter() - began
