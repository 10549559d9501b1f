"""Predict what a worker's memory will be, for `metatrain train` and its --dry-run."""

import json

from metatrain.config.room import machine_bytes, require_room, workers_here
from metatrain.training.memory import MIB, Memory, Unpredictable, predict_memory, total_bytes
from metatrain.training.worker import Worker

_MEANINGS = {
    "process": "Python, torch and what the tasks have read",
    "parameters": "θ and sums of gradients",
    "driver": "θ, its gradient and the optimizer's state",
    "tasks": "the tasks of a shard, and of the next one",
    "fast_weights": "those of every inner step but the last",
    "graph": "activations of one inner step or of the query loss",
}


def predict_with_room(worker: Worker) -> Memory | None:
    """Return the memory of a worker; None where it cannot be told. ValueError: this machine has too little."""
    try:
        predicted = predict_memory(worker)
    except Unpredictable:
        return None
    require_room(worker, predicted)
    return predicted


def show_predicted_memory(worker: Worker, as_json: bool) -> None:
    """Print the memory of a worker, part by part. ValueError: this machine has too little."""
    apart = worker.config.executor.has_driver
    try:
        predicted = predict_memory(worker)
    except Unpredictable as reason:
        print(f"memory of a worker: {reason}")
        return
    require_room(worker, predicted)
    total, count = total_bytes(predicted, apart), workers_here(worker.config)
    print(f"memory of a worker, predicted: {total / MIB:.0f} MiB")
    for name, size in predicted._asdict().items():
        elsewhere = " (in the driver's process)" if name == "driver" and apart else ""
        print(f"  {name.replace('_', ' '):13} {size / MIB:8.1f} MiB  {_MEANINGS[name]}{elsewhere}")
    shared = f"{count} of them on this machine, which has" if count else "workers are on a cluster; this machine has"
    print(f"{shared} {machine_bytes() / MIB:.0f} MiB")
    print("nothing was trained: this was a dry run")
    if as_json:
        print(json.dumps({"predicted_bytes": predicted._asdict() | {"total": total}, "workers_here": count}))
