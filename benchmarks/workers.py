"""Measure tasks per second by executor and number of workers, and where the time of a step goes.

Each variant trains in its own process with the real outer loop and executor, without recording or validation; rounds
are interleaved, and a number is the median over rounds. Per step of T seconds:

    workers     W · T = adapt + sample + idle               (W workers, wall seconds of each)
    processors  C · T = workers + driver + Ray + others + stolen + unused      (C cores, CPU seconds)

The reference is "separate": as many independent processes that train at the same time. More than their speed is not
available on the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import results
from cluster.executors import open_executor
from metatrain.config.load import load_config
from metatrain.settings import Config
from metatrain.setup import prepare, set_up
from metatrain.training.outer_loop import initial_state, train
from metatrain.types import Executor, MetaGradient, Params, Shard, ShardRequest

_CONFIG = Path(__file__).parents[1] / "configs" / "omniglot-maml-5w1s.yaml"
_PARTS = ("adapt", "sample", "idle", "broadcast", "add", "outside")
"""Milliseconds per step: the first three are totals over workers, the others belong to the driver."""
_TICKS = os.sysconf("SC_CLK_TCK")
_CPUS = ("workers", "driver", "ray", "others", "stolen", "unused")


class Variant(NamedTuple):
    """One executor with its number of workers or separate processes."""

    kind: str
    workers: int

    @property
    def label(self) -> str:
        """Return the name in the table."""
        return self.kind if self.kind == "in_process" else f"{self.kind} {self.workers}"


class Measured(NamedTuple):
    """Measurement of one process: tasks per second, wall ms per step, and ms per step by part."""

    tasks_per_second: float
    step_ms: float
    task_ms: float
    """Computing and sampling per task; contention increases it."""
    parts: dict[str, float]
    cpu: dict[str, float]


class Cpu(NamedTuple):
    """CPU seconds so far of the workers, this process, Ray's processes, all others, and the hypervisor."""

    workers: float
    driver: float
    ray: float
    others: float
    stolen: float


class TimedExecutor:
    """Forward everything to an executor and add up the seconds in `sum`."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.seconds = 0.0

    def sum(self, request: ShardRequest, params: Params, shards: Sequence[Shard]) -> MetaGradient:
        began = time.perf_counter()
        try:
            return self.executor.sum(request, params, shards)
        finally:
            self.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


def main(argv: list[str]) -> None:
    """Measure, and write the part "workers"."""
    arguments = _parser().parse_args(argv)
    if arguments.child:
        print(json.dumps(_child(arguments)._asdict()))
        return
    found: dict[Variant, list[Measured]] = {variant: [] for variant in variants(max(2, arguments.most))}
    prepare(config_of(arguments, Variant("in_process", 1)))
    for number in range(arguments.rounds):
        for variant, measured in found.items():
            measured.append(_run(variant, argv))
            print(f"round {number + 1}: {variant.label}: {measured[-1].tasks_per_second:.1f} tasks/s", file=sys.stderr)
    middle = {variant: _median(measured) for variant, measured in found.items()}
    rows = [_row(variant, one, found[variant], middle) for variant, one in middle.items()]
    columns = ["executor", "tasks/s", "lowest", "highest", "× in_process", "of separate", "step ms", "compute ms/task"]
    extra = {variant.label: [one._asdict() for one in measured] for variant, measured in found.items()}
    about, time_notes = _notes(arguments, middle)
    results.write("workers", "Tasks per second by executor", columns, rows, about, extra)
    columns = ["executor", *(f"{part} ms" for part in _PARTS), *(f"CPU {name} ms" for name in _CPUS)]
    rows = [
        [variant.label, *(round(v, 1) for v in (*m.parts.values(), *m.cpu.values()))] for variant, m in middle.items()
    ]
    results.write("workers-time", "Where a step's time goes, by executor", columns, rows, time_notes, {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks workers", description="Measure tasks per second by executor and workers."
    )
    data = os.environ.get("METATRAIN_DATA")
    parser.add_argument("--root", default=data and str(Path(data) / "omniglot"), help="Omniglot's folder")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--most", type=int, default=max(2, os.cpu_count() or 1), help="maximum number of workers, 2 or more"
    )
    parser.add_argument("--compile", choices=["on", "off"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting to change")
    parser.add_argument("--child", nargs=2, metavar=("EXECUTOR", "WORKERS"), help=argparse.SUPPRESS)
    return parser


def variants(most: int) -> list[Variant]:
    """Return one process, then Ray and separate processes by powers of two up to `most`."""
    counts = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    alone = [Variant("separate", count) for count in counts if count > 1]
    return [Variant("in_process", 1), *(Variant("ray", count) for count in counts), *alone]


def config_of(arguments: argparse.Namespace, variant: Variant) -> Config:
    """Return the shipped configuration for `variant`, on strokes if there is no Omniglot."""
    where = f"tasks.root={arguments.root}" if arguments.root else "tasks.name=strokes"
    name = "ray" if variant.kind == "ray" else "in_process"
    overrides = [where, "tracking.uri=null", f"executor.name={name}", f"executor.workers={variant.workers}"]
    if arguments.compile:
        overrides.append(f'engine.compile="{arguments.compile}"')
    return load_config(_CONFIG, [*overrides, *arguments.set])


def _child(arguments: argparse.Namespace) -> Measured:
    """Train one variant: warm up, print "ready", wait for a line, and measure."""
    worker = set_up(config_of(arguments, Variant(arguments.child[0], int(arguments.child[1]))))
    config = worker.config
    with open_executor(worker) as real:
        executor = TimedExecutor(real)
        state = initial_state(worker.initial(), config.outer)
        steps = train(state, executor, config.outer, config.executor.shard_size)
        for _ in range(arguments.warmup):
            next(steps)
        workers = real.pids() if hasattr(real, "pids") else []
        print("ready", flush=True)
        sys.stdin.readline()
        executor.seconds, seconds, cpu = 0.0, real.report()["seconds"], cpu_seconds(workers)
        began = time.perf_counter()
        for _ in range(arguments.steps):
            next(steps)
        wall = time.perf_counter() - began
        cpu = Cpu(*(after - before for after, before in zip(cpu_seconds(workers), cpu, strict=True)))
        spent = {part: value - seconds.get(part, 0.0) for part, value in real.report()["seconds"].items()}
    return _measured(config, arguments.steps, wall, wall - executor.seconds, spent, cpu)


def _measured(
    config: Config, steps: int, wall: float, outside: float, spent: Mapping[str, float], cpu: Cpu
) -> Measured:
    """Compute the measurement from `spent`, seconds of all processes by part; in process there is one worker."""
    computed = spent["adapt"] + spent["sample"]
    many = config.executor.workers if config.executor.name == "ray" else 1
    parts = dict(spent) | {"idle": many * wall - computed, "outside": outside}
    unused = (os.cpu_count() or 1) * wall - sum(cpu)
    tasks = steps * config.outer.tasks_per_step
    milliseconds = 1e3 / steps
    return Measured(
        tasks_per_second=tasks / wall,
        step_ms=milliseconds * wall,
        task_ms=1e3 * computed / tasks,
        parts={part: milliseconds * parts.get(part, 0.0) for part in _PARTS},
        cpu={name: milliseconds * value for name, value in zip(_CPUS, (*cpu, unused), strict=True)},
    )


def cpu_seconds(workers: Sequence[int]) -> Cpu:
    """Read CPU seconds from /proc, all threads included; Ray's processes are our descendants except `workers`."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        seconds[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    own, mine = os.getpid(), {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    total = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, stolen = map(int, total)
    busy = (user + nice + system + irq + softirq) / _TICKS
    working = sum(seconds[pid] for pid in workers)
    ray = sum(seconds[pid] for pid in mine - {own, *workers})
    return Cpu(working, seconds[own], ray, busy - working - ray - seconds[own], stolen / _TICKS)


def _run(variant: Variant, argv: list[str]) -> Measured:
    """Run one process, or several separate ones that initial_state together when all are ready."""
    many, workers = (variant.workers, 1) if variant.kind == "separate" else (1, variant.workers)
    command = [sys.executable, "-m", "benchmarks.workers", *argv, "--child", variant.kind, str(workers)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(many)
    ]
    for child in children:
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"{variant.label} failed before it was ready, with status {child.wait()}: see above")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    found = [Measured(**json.loads(child.communicate()[0].splitlines()[-1])) for child in children]
    together = _median(found)
    return together._replace(tasks_per_second=sum(one.tasks_per_second for one in found))


def _median(found: Sequence[Measured]) -> Measured:
    """Return the median of each field and part."""
    parts = {name: median(one.parts[name] for one in found) for name in _PARTS}
    cpu = {name: median(one.cpu[name] for one in found) for name in _CPUS}
    pace, step = median(one.tasks_per_second for one in found), median(one.step_ms for one in found)
    return Measured(pace, step, median(one.task_ms for one in found), parts, cpu)


def _row(variant: Variant, one: Measured, found: Sequence[Measured], middle: Mapping[Variant, Measured]) -> list[Any]:
    paces = [each.tasks_per_second for each in found]
    yardstick = middle.get(Variant("separate", variant.workers), middle[Variant("in_process", 1)])
    against = [one.tasks_per_second / other.tasks_per_second for other in (middle[Variant("in_process", 1)], yardstick)]
    row = [variant.label, round(one.tasks_per_second, 1), round(min(paces), 1), round(max(paces), 1)]
    return row + [round(ratio, 3) for ratio in against] + [round(one.step_ms, 1), round(one.task_ms, 2)]


def _notes(arguments: argparse.Namespace, middle: Mapping[Variant, Measured]) -> tuple[list[str], list[str]]:
    """Return the notes of the table of speeds and of the table of times."""
    one, two = middle[Variant("in_process", 1)], middle[Variant("ray", 2)]
    config = config_of(arguments, Variant("in_process", 1))
    tasks, size = config.outer.tasks_per_step, config.executor.shard_size
    lost = two.step_ms - one.step_ms / 2
    contention = tasks * (two.task_ms - one.task_ms) / 2
    driver = two.parts["outside"] + two.parts["broadcast"]
    about = [
        f"{_CONFIG.name} on {'Omniglot' if arguments.root else 'strokes (no Omniglot)'}, {tasks} tasks a step in shards"
        f" of {size}; {arguments.steps} steps after {arguments.warmup}, {arguments.rounds} interleaved rounds, medians"
        f" of them; compile: {arguments.compile or 'as configured'}; changed: {', '.join(arguments.set) or 'nothing'}.",
        "'separate' processes train independently, each on one core, at the same time; their tasks/s are added up, and "
        "'of separate' is Ray's speed relative to theirs. compute is adapting and sampling.",
        f"A step of two workers takes {two.step_ms:.1f} ms; half a step of one process is {one.step_ms / 2:.1f}. Of "
        "the "
        f"{lost:.1f} ms difference, {contention:.1f} are slower computing of the same tasks (contention), and "
        f"{lost - contention:.1f} are waiting workers: {driver:.1f} while the driver broadcasts, checks and "
        f"optimises, minus half of what one process spends outside its tasks ({one.parts['idle'] / 2:.1f}), and the "
        "rest "
        "for messages and for the other worker.",
    ]
    itemised = [
        "Milliseconds per step. adapt, sample and idle: wall time of all workers together (in_process is a worker and "
        "its own driver); broadcast, add and outside (finite check, optimiser): wall time of the driver.",
        "CPU: time of the workers, the driver with all its threads, Ray's other processes, everything else on the "
        "machine "
        "(for 'separate', the other processes), time taken by the hypervisor, and unused time.",
    ]
    return about, itemised


if __name__ == "__main__":
    main(sys.argv[1:])
