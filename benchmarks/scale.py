"""Predict the efficiency of 16 to 1,024 workers from costs measured on one to four local nodes, and check the model.

`scale_costs.py` measures, `scale_simulation.py` simulates. Every measured step is simulated twice: with the costs of as
many nodes, and with those of the fewest, which is how larger clusters are predicted. Error: simulated / measured − 1.
"""

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

from benchmarks import cases, driver, results, scale_costs
from benchmarks.scale_model import Costs, Machines, Step, Work, binds, draw_seconds, driver_limit
from benchmarks.scale_simulation import simulate
from metatrain.training.devices import keep_freed_memory

WORKERS = (16, 64, 256, 1024)
AIM = 0.9
_INLINE = 0.01
"""Million parameters that travel in messages."""
_TASKS_EACH = _SHARDS_EACH = (1, 2, 4, 8, 16, 32, 64)
_MOST_SHARDS = 2**14
"""Shards of a step that are simulated: more take minutes."""
_CHECK_TASKS = 4


class Setup(NamedTuple):
    """A configuration: its parameters, and recorded seconds per task."""

    name: str
    parameters: int
    task_seconds: list[float]

    def work(self, workers: int, tasks_each: int, shard_size: int) -> Work:
        """Return the work of a step with `tasks_each` tasks per worker."""
        return Work(4.0 * self.parameters, workers * tasks_each, shard_size, self.task_seconds)


class Chosen(NamedTuple):
    """What to set for a number of workers, and the step that it gives."""

    tasks_each: int
    shard_size: int
    step: Step


def main(argv: list[str]) -> None:
    """Record, measure, simulate; write the parts "scale", "scale-check" and "scale-costs"."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    setups = record_setups(arguments)
    costs, checks = {}, []
    for nodes in arguments.nodes:
        costs[nodes], found = measure(nodes, setups, arguments)
        checks += [(nodes, *row) for row in found]
    _write_costs(costs)
    _write_checks(costs, checks, arguments)
    machines = Machines(1, 8, arguments.slow_share, arguments.slow_factor, arguments.lost_per_hour, 5.0, 60.0)
    rows = predict(setups, over_network(costs[min(costs)], arguments), machines, arguments.workers)
    results.write("scale", "Efficiency of large clusters, simulated", COLUMNS, rows, _notes(setups, arguments), {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks scale", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--per-node", type=int, default=2, help="workers on each local node")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS), help="of the simulated clusters")
    parser.add_argument("--steps", type=int, default=10, help="measured at each point")
    parser.add_argument("--repeats", type=int, default=20, help="of each measured cost")
    parser.add_argument("--record-seconds", type=float, default=30.0, help="of recording tasks, per configuration")
    parser.add_argument("--check-seconds", type=float, default=0.25, help="mean of the sleeping workers' tasks")
    parser.add_argument("--gpu-seconds", type=float, default=0.2, help="assumed for a task of ResNet-12 on a GPU")
    parser.add_argument("--gigabits", type=float, default=10.0, help="of every node's link")
    parser.add_argument("--network-latency", type=float, default=1e-4, help="seconds, one way")
    parser.add_argument("--slow-share", type=float, default=0.05)
    parser.add_argument("--slow-factor", type=float, default=1.5)
    parser.add_argument("--lost-per-hour", type=float, default=0.05, help="of each worker, as spot machines are")
    return parser


def record_setups(arguments: argparse.Namespace) -> list[Setup]:
    """Return the configurations, their tasks recorded on one core of this machine; a GPU's are assumed."""
    found = []
    eager = {"compile": "off", "threads": 1}
    for name, case, algorithm in _CONFIGURATIONS:
        config = cases.config_of(cases.find_case(case), engine=eager, **algorithm)
        count = sum(value.numel() for value in cases.params_of(cases.find_case(case)).values())
        found.append(Setup(name, count, scale_costs.record_tasks(config, arguments.record_seconds)))
    *_, last = found
    on_gpu = _scaled(last.task_seconds, arguments.gpu_seconds)
    return [*found, Setup("ResNet-12 MAML, GPU (assumed)", last.parameters, on_gpu)]


_CONFIGURATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Omniglot conv4 MAML", "omniglot-1-32", {}),
    ("ResNet-12 ProtoNet", "resnet12-1-4", {"algorithm": {"name": "protonet"}}),
    ("ResNet-12 MAML", "resnet12-1-4", {}),
)


def measure(
    nodes: int, setups: Sequence[Setup], arguments: argparse.Namespace
) -> tuple[Costs, list[tuple[Work, float]]]:
    """Return the costs on so many nodes, and rows (work, seconds of a measured step)."""
    sizes = sorted({_INLINE, *(setup.parameters / 1e6 for setup in setups)})
    recorded = _scaled(setups[0].task_seconds, arguments.check_seconds)
    workers = nodes * arguments.per_node
    rows = []
    # The workers take as long for every task as the simulation says, so that the error is not that of a sample.
    works = [Work(4e6 * millions, workers * _CHECK_TASKS, 1, recorded) for millions in sizes]
    drawn = [float(value) for step in range(arguments.steps + 1) for value in draw_seconds(works[0], step)]
    with scale_costs.local_nodes(nodes, arguments.per_node):
        with scale_costs.open_sleepers(workers, [0.0]) as executor:
            costs = scale_costs.measure_costs(executor, sizes, arguments.repeats)
        with scale_costs.open_sleepers(workers, drawn) as executor:
            for millions, work in zip(sizes, works, strict=True):
                params = driver.parameters(millions)
                rows.append((work, scale_costs.measure_step(executor, params, work.tasks_per_step, arguments.steps)))
    return costs, rows


def over_network(costs: Costs, arguments: argparse.Namespace) -> Costs:
    """Return measured costs with the stated network between nodes; a link is no faster than copying was here."""
    link = min(costs.driver_link, arguments.gigabits * 1e9 / 8)
    latency = arguments.network_latency
    return costs._replace(
        driver_link=link, node_link=link, latency=costs.latency + latency, pull=costs.pull + 2 * latency
    )


def predict(setups: Sequence[Setup], costs: Costs, machines: Machines, workers: Sequence[int]) -> list[list[Any]]:
    """Return a row per configuration and number of workers."""
    rows = []
    for setup in setups:
        for many in workers:
            cluster = machines._replace(workers=many)
            plain = mean_step(simulate(costs, cluster, setup.work(many, _CHECK_TASKS, 1), 2))
            best = choose(setup, costs, cluster)
            step, limit = best.step, driver_limit(costs, setup.work(many, 1, 1), best.tasks_each)
            row = [setup.name, many, round(plain.efficiency, 3), binds(plain), best.tasks_each, best.shard_size]
            row += [round(step.efficiency, 3), binds(step), round(step.seconds, 2)]
            rows.append([*row, round(sum(step.busy.values()) / step.seconds, 3), round(limit)])
    return rows


COLUMNS = [
    *("configuration", "workers", f"{_CHECK_TASKS} tasks each, shard_size 1", "bound by"),
    *("set: tasks each", "shard_size", "efficiency", "bound by ", "step s", "driver busy", "driver's limit, workers"),
]


def choose(setup: Setup, costs: Costs, machines: Machines) -> Chosen:
    """Return the fewest tasks per worker with which AIM is reached, else the most efficient settings tried.

    Settings for which the driver alone would need too long, by `driver_limit`, are not simulated.
    """
    best = None
    for tasks in _TASKS_EACH:
        for shards in (each for each in _SHARDS_EACH if each <= tasks and each * machines.workers <= _MOST_SHARDS):
            work = setup.work(machines.workers, tasks, tasks // shards)
            replies = shards.bit_length()  # of each worker: half of what is left, each time
            hopeless = driver_limit(costs, work, tasks) / replies < AIM * machines.workers
            if hopeless and not (tasks == _TASKS_EACH[-1] and shards == 1):
                continue
            step = mean_step(simulate(costs, machines, work, 2))
            if best is None or step.efficiency > best.step.efficiency:
                best = Chosen(tasks, tasks // shards, step)
        if best is not None and best.step.efficiency >= AIM:
            break
    assert best is not None, "the last setting is always tried"
    return best


def mean_step(steps: Sequence[Step]) -> Step:
    """Return the means over steps; messages and blocks are the last one's."""
    last = steps[-1]
    shares = {cause: fmean(step.shares[cause] for step in steps) for cause in last.shares}
    busy = {kind: fmean(step.busy[kind] for step in steps) for kind in last.busy}
    seconds, efficiency = fmean(step.seconds for step in steps), fmean(step.efficiency for step in steps)
    return Step(seconds, efficiency, shares, last.messages, busy, last.blocks)


def _scaled(seconds: Sequence[float], mean: float) -> list[float]:
    """Return a sample scaled to another mean."""
    factor = mean / fmean(seconds)
    return [factor * value for value in seconds]


def _write_costs(costs: Mapping[int, Costs]) -> None:
    per_byte = [name for name in Costs._fields if name.endswith("_byte")]
    rows: list[list[Any]] = []
    for name in Costs._fields:
        unit, factor = ("ns/byte", 1e9) if name in per_byte else ("ms", 1e3)
        if name.endswith("_link"):
            unit, factor = "GB/s", 1e-9
        rows.append([name, unit, *(round(factor * getattr(one, name), 5) for one in costs.values())])
    notes = ["Nodes are processes of this machine and share its cores; link: between their object stores."]
    columns = ["cost", "unit", *(f"{nodes} nodes" for nodes in costs)]
    extra = {"costs": {str(nodes): one._asdict() for nodes, one in costs.items()}}
    results.write("scale-costs", "Costs of a step on local nodes", columns, rows, notes, extra)


def _write_checks(
    costs: Mapping[int, Costs], checks: Sequence[tuple[int, Work, float]], arguments: argparse.Namespace
) -> None:
    rows = []
    for nodes, work, measured in checks:
        machines = scale_costs.machines_of(nodes, arguments.per_node)
        own, fewest = (
            mean_step(simulate(costs[which], machines, work, arguments.steps)) for which in (nodes, min(costs))
        )
        tasks = own.seconds * own.efficiency
        row = [nodes, machines.workers, round(work.vector_bytes / 4e6, 3), round(measured, 4), round(own.seconds, 4)]
        row += [round(own.seconds / measured - 1, 4), round(fewest.seconds / measured - 1, 4)]
        rows.append([*row, round(tasks / measured, 3), round(own.efficiency, 3)])
    columns = ["nodes", "workers", "million parameters", "measured s", "simulated s", "error"]
    columns += ["error, fewest nodes' costs", "efficiency, measured", "efficiency, simulated"]
    notes = [
        f"Median steps of sleeping workers: {_CHECK_TASKS} tasks each of {arguments.check_seconds:g} s on average, "
        "with the recorded spread of Omniglot's, in shards of one."
    ]
    results.write("scale-check", "The simulation against measured steps", columns, rows, notes, {})


def _notes(setups: Sequence[Setup], arguments: argparse.Namespace) -> list[str]:
    """Say where the numbers come from, and what to set."""
    each = "; ".join(
        f"{setup.name} {setup.parameters / 1e6:.3g} M parameters, {fmean(setup.task_seconds):.3g} s a task"
        for setup in setups
    )
    return [
        f"Simulated, not measured: no cluster of this size was there. {each}. Seconds are recorded on one core of this "
        "machine, eagerly, on noise in the shape of the data; the GPU's are assumed.",
        f"Network: {arguments.gigabits:g} Gbit/s per node, or what local copying reached if less; "
        f"{arguments.slow_share:.0%} of the workers take {arguments.slow_factor:g} times as long; each is lost "
        f"{arguments.lost_per_hour:g} times an hour. Eight workers per node.",
        f"What to set: outer.tasks_per_step = workers × tasks each, executor.shard_size as listed: the fewest tasks "
        f"with which {AIM:.0%} is reached, else the best of up to {_TASKS_EACH[-1]} each. Efficiency: task seconds "
        "over worker seconds.",
        "Driver's limit: the number of workers at which their replies, one each per step, keep the driver as busy as "
        "they are.",
    ]
