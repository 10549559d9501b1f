"""Tasks per second by executor and number of workers, and where the rest of a second worker's second goes.

Each configuration trains in a process of its own, by the real outer loop on the real executor, with nothing recorded
and nothing validated; rounds are interleaved, and a number is the median over rounds. Per step of T seconds:

    seats       W · T = adapt + sample + idle               (W workers, wall seconds of each)
    processors  C · T = workers + driver + Ray + others + stolen + unused      (C cores, processor seconds)

"separate" is the yardstick: that many processes that know nothing of each other, each training alone, at once. What
they do not reach the machine does not have.
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

import torch

from benchmarks import results
from metatrain.cli.training import executing
from metatrain.config.load import load_config
from metatrain.settings import Config
from metatrain.setup import prepare, settled
from metatrain.training.outer_loop import begin, train
from metatrain.training.worker import Worker
from metatrain.types import Executor, MetaGradient, Params, Shard, ShardRequest

_CONFIG = Path(__file__).parents[1] / "configs" / "omniglot-maml-5w1s.yaml"
_PARTS = ("adapt", "sample", "idle", "broadcast", "add", "outside")
"""Milliseconds a step: the first three of all workers together, the others of the driver."""
_TICKS = os.sysconf("SC_CLK_TCK")
_CPUS = ("workers", "driver", "ray", "others", "stolen", "unused")


class Seat(NamedTuple):
    """One way of computing: its executor, and how many workers or separate processes there are."""

    kind: str
    workers: int

    @property
    def label(self) -> str:
        """What the table calls it."""
        return self.kind if self.kind == "in_process" else f"{self.kind} {self.workers}"


class Measured(NamedTuple):
    """One process's part: tasks per second, wall ms per step, and ms per step by part of it."""

    tasks_per_second: float
    step_ms: float
    task_ms: float
    """Computing and sampling, per task: what contention makes longer."""
    parts: dict[str, float]
    cpu: dict[str, float]


class Cpu(NamedTuple):
    """Processor seconds so far: of the workers, this process, Ray's own processes, all others, and the hypervisor."""

    workers: float
    driver: float
    ray: float
    others: float
    stolen: float


class Outside:
    """An executor that passes everything on, and adds up the seconds within `sum`."""

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
    found: dict[Seat, list[Measured]] = {seat: [] for seat in seats(max(2, arguments.most))}
    prepare(config_of(arguments, Seat("in_process", 1)))
    for number in range(arguments.rounds):
        for seat, measured in found.items():
            measured.append(_run(seat, argv))
            print(f"round {number + 1}: {seat.label}: {measured[-1].tasks_per_second:.1f} tasks/s", file=sys.stderr)
    middle = {seat: _median(measured) for seat, measured in found.items()}
    rows = [_row(seat, one, found[seat], middle) for seat, one in middle.items()]
    columns = ["executor", "tasks/s", "lowest", "highest", "× in_process", "of separate", "step ms", "compute ms/task"]
    extra = {seat.label: [one._asdict() for one in measured] for seat, measured in found.items()}
    about, time_notes = _notes(arguments, middle)
    results.write("workers", "Tasks per second by executor", columns, rows, about, extra)
    columns = ["executor", *(f"{part} ms" for part in _PARTS), *(f"CPU {name} ms" for name in _CPUS)]
    rows = [[seat.label, *(round(v, 1) for v in (*m.parts.values(), *m.cpu.values()))] for seat, m in middle.items()]
    results.write("workers-time", "Where a step's time goes, by executor", columns, rows, time_notes, {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks workers", description="Tasks/s by executor and workers.")
    data = os.environ.get("METATRAIN_DATA")
    parser.add_argument("--root", default=data and str(Path(data) / "omniglot"), help="Omniglot's folder")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=max(2, os.cpu_count() or 1), help="workers at most, 2 or more")
    parser.add_argument("--compile", choices=["on", "off"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting to change")
    parser.add_argument("--child", nargs=2, metavar=("EXECUTOR", "WORKERS"), help=argparse.SUPPRESS)
    return parser


def seats(most: int) -> list[Seat]:
    """One process, then Ray and separate processes by powers of two, as many as `most`."""
    counts = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    alone = [Seat("separate", count) for count in counts if count > 1]
    return [Seat("in_process", 1), *(Seat("ray", count) for count in counts), *alone]


def config_of(arguments: argparse.Namespace, seat: Seat) -> Config:
    """The shipped configuration for `seat`; on strokes where there is no Omniglot."""
    where = f"tasks.root={arguments.root}" if arguments.root else "tasks.name=strokes"
    name = "ray" if seat.kind == "ray" else "in_process"
    overrides = [where, "tracking.uri=null", f"executor.name={name}", f"executor.workers={seat.workers}"]
    if arguments.compile:
        overrides.append(f'engine.compile="{arguments.compile}"')
    return load_config(_CONFIG, [*overrides, *arguments.set])


def _child(arguments: argparse.Namespace) -> Measured:
    """Train as one configuration says: warm up, say so, wait for the word, and measure."""
    config = settled(config_of(arguments, Seat(arguments.child[0], int(arguments.child[1]))))
    torch.set_num_threads(config.engine.threads)
    with executing(config) as real:
        executor = Outside(real)
        state = begin(Worker(config, torch.device("cpu")).initial(), config.outer)
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
    """`spent`: seconds of all processes by part. An in_process worker is the driver: its seats are one."""
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
    """From /proc, all threads of each process; Ray's processes are those that this one started but for `workers`."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
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


def _run(seat: Seat, argv: list[str]) -> Measured:
    """One process, or for separate ones as many, which begin together once all are ready."""
    many, workers = (seat.workers, 1) if seat.kind == "separate" else (1, seat.workers)
    command = [sys.executable, "-m", "benchmarks.workers", *argv, "--child", seat.kind, str(workers)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(many)
    ]
    for child in children:
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"{seat.label} failed before it was ready, with status {child.wait()}: see above")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    found = [Measured(**json.loads(child.communicate()[0].splitlines()[-1])) for child in children]
    together = _median(found)
    return together._replace(tasks_per_second=sum(one.tasks_per_second for one in found))


def _median(found: Sequence[Measured]) -> Measured:
    """Field by field, and part by part."""
    parts = {name: median(one.parts[name] for one in found) for name in _PARTS}
    cpu = {name: median(one.cpu[name] for one in found) for name in _CPUS}
    pace, step = median(one.tasks_per_second for one in found), median(one.step_ms for one in found)
    return Measured(pace, step, median(one.task_ms for one in found), parts, cpu)


def _row(seat: Seat, one: Measured, found: Sequence[Measured], middle: Mapping[Seat, Measured]) -> list[Any]:
    paces = [each.tasks_per_second for each in found]
    yardstick = middle.get(Seat("separate", seat.workers), middle[Seat("in_process", 1)])
    against = [one.tasks_per_second / other.tasks_per_second for other in (middle[Seat("in_process", 1)], yardstick)]
    row = [seat.label, round(one.tasks_per_second, 1), round(min(paces), 1), round(max(paces), 1)]
    return row + [round(ratio, 3) for ratio in against] + [round(one.step_ms, 1), round(one.task_ms, 2)]


def _notes(arguments: argparse.Namespace, middle: Mapping[Seat, Measured]) -> tuple[list[str], list[str]]:
    """Those of the paces, and those of the times."""
    one, two = middle[Seat("in_process", 1)], middle[Seat("ray", 2)]
    config = config_of(arguments, Seat("in_process", 1))
    tasks, size = config.outer.tasks_per_step, config.executor.shard_size
    lost = two.step_ms - one.step_ms / 2
    contention = tasks * (two.task_ms - one.task_ms) / 2
    driver = two.parts["outside"] + two.parts["broadcast"]
    about = [
        f"{_CONFIG.name} on {'Omniglot' if arguments.root else 'strokes (no Omniglot)'}, {tasks} tasks a step in shards"
        f" of {size}; {arguments.steps} steps after {arguments.warmup}, {arguments.rounds} interleaved rounds, medians"
        f" of them; compile: {arguments.compile or 'as configured'}; changed: {', '.join(arguments.set) or 'nothing'}.",
        "'separate' processes train alone, each on one core, at once: what the machine has to give; their tasks/s are "
        "added up, and 'of separate' holds Ray's against theirs. compute is adapting and sampling.",
        f"Two workers' step is {two.step_ms:.1f} ms; half of one process's would be {one.step_ms / 2:.1f}. Of the "
        f"{lost:.1f} ms between, {contention:.1f} are slower computing of the same tasks (contention), and "
        f"{lost - contention:.1f} are workers that wait: {driver:.1f} while the driver broadcasts, checks and "
        f"optimises, less half of what one process does outside its tasks ({one.parts['idle'] / 2:.1f}), and the rest "
        "for messages and for the other worker to finish.",
    ]
    itemised = [
        "Milliseconds a step. adapt, sample and idle: wall time of all workers together (in_process is a worker that "
        "is its own driver); broadcast, add and outside (finite check, optimiser): wall time of the driver.",
        "CPU: processor time of the workers, the driver with all its threads, Ray's other processes, everything else "
        "on the machine (for 'separate', the companions), what the hypervisor gave to others, and what was unused.",
    ]
    return about, itemised


if __name__ == "__main__":
    main(sys.argv[1:])
