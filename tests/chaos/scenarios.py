"""Run the chaos scenarios, and check parameters against an undisturbed run bit by bit, and every step once."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from tests.chaos.drivers import LOCAL_RAY, STEPS, Driver, recorded
from tests.chaos.local_ray import members, session
from tests.chaos.monkey import Monkey, Nodes, Table
from tests.fault_proxy import FaultProxy, Faults
from tests.object_store import ObjectStore, object_store

RPC = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": -1,
        "req_failure_prob": 25,
        "resp_failure_prob": 25,
        "in_flight_failure_prob": 0,
    }
}
"""Loses a quarter of the requests to compute, and a quarter of the replies."""
FAULTY = Faults(refuse=0.1, lose=0.05, cut=0.05)
FAKETIME = [
    Path(folder) / "faketime/libfaketime.so.1"
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
]
SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"
"""libfaketime 0.9.10 cannot sleep until a moment (EINVAL), which is how Python sleeps."""
_PATIENCE_S = 240.0


class Truth(NamedTuple):
    """Result of the undisturbed run."""

    sha256: str
    losses: dict[int, float]


class Setting(NamedTuple):
    """Settings shared by all scenarios."""

    scratch: Path
    table: Table
    seed: int
    store: ObjectStore
    proxy: FaultProxy
    truth: Truth

    def environment(self) -> dict[str, str]:
        return self.store.environment(self.proxy.url)


@contextmanager
def setting(scratch: Path, table: Table, seed: int) -> Iterator[Setting]:
    """Yield an S3 server that fails one request in five, and the undisturbed result."""
    undisturbed = Driver(scratch / "undisturbed", ["chaos.yaml"], {})
    assert undisturbed.wait(_PATIENCE_S) == 0, undisturbed.said()
    outcome = undisturbed.outcome()
    truth = Truth(outcome["params_sha256"], recorded(str(undisturbed.folder / outcome["run_dir"])))
    table.note(outcome["steps"], "undisturbed", f"params_sha256 {truth.sha256[:16]}")
    with object_store(scratch) as store, FaultProxy(store.url, FAULTY, seed) as proxy:
        store.make_bucket("runs")
        yield Setting(scratch, table, seed, store, proxy, truth)


def deaths(given: Setting, kills: int) -> str:
    """Kill workers, nodes and drivers, lose calls and replies of Ray, fail S3 requests: until so many kills."""
    rng = random.Random(given.seed)
    nodes = Nodes(3)
    monkey = Monkey(nodes, given.table, rng)
    runs = lives = 0
    try:
        while given.table.kills() < kills or runs == 0:
            lives += _one_life_after_another(given, nodes, monkey, rng, kills, f"deaths-{runs}")
            runs += 1
    finally:
        nodes.close()
    requests = given.proxy.requests()
    failed = f"{sum(bool(request.fault) for request in requests)} of {len(requests)} S3 requests failed"
    return f"{runs} runs, {lives} drivers, {given.table.kills()} kills, {failed}"


def _one_life_after_another(
    given: Setting, nodes: Nodes, monkey: Monkey, rng: random.Random, kills: int, name: str
) -> int:
    """Run to the end, driver after driver, each with an empty disk; return how many drivers there were."""
    environment = given.environment() | {"RAY_testing_rpc_failure": json.dumps(RPC)}
    on_ray = ["executor.name=ray", f"executor.address={nodes.address}", "executor.workers={min: 1, max: 3}"]
    first = ["chaos.yaml", f"runs.root=s3://runs/{name}", *on_ray]
    lives, place = 1, ""
    driver = Driver(given.scratch / name / "0", first, environment)

    def kill_driver() -> int:
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
        return driver.process.pid

    try:
        while driver.process.poll() is None:
            moved = driver.advance(rng.randint(1, 3), _PATIENCE_S)
            monkey.tidy(driver.step())
            place = place or _place(given, name)
            if moved and given.table.kills() < kills:
                time.sleep(rng.uniform(0, 1))
                monkey.act(driver.step(), kill_driver)
            if driver.process.poll() == -signal.SIGKILL:
                shutil.rmtree(driver.folder)
                resumed = ["--resume", place, f"executor.address={nodes.address}"]
                driver = Driver(given.scratch / name / str(lives), resumed, environment)
                lives += 1
        assert driver.wait(_PATIENCE_S) == 0, driver.said()
        _require_the_truth(given, driver)
        workers = driver.outcome()["executor"]["events"]
        given.table.note(STEPS, "finished", f"{name}: last driver's account {workers}")
    finally:
        monkey.tidy(0, all_of_it=True)
        driver.end()
    return lives


def _place(given: Setting, name: str) -> str:
    """Return the place of the only run under `name`."""
    keys = given.store.keys("runs", f"{name}/")
    return f"s3://runs/{name}/{keys[0].split('/')[1]}" if keys else ""


def presumed_dead(given: Setting) -> str:
    """Stop a driver, let another take its run over and finish it; check that the first, resumed, can write nothing."""
    first = Driver(
        given.scratch / "sleeper",
        ["chaos.yaml", "runs.root=s3://runs/sleeper", "runs.heartbeat=1"],
        given.environment(),
    )
    try:
        assert first.advance(60, _PATIENCE_S), first.said()
        place = _place(given, "sleeper")
        refused = Driver(given.scratch / "refused", ["--resume", place], given.environment())
        assert refused.wait(_PATIENCE_S) == 2, refused.said()
        assert "trained by another process" in refused.said()
        given.table.note(first.step(), "second driver", "refused: " + refused.said().strip().splitlines()[-1][:90])
        first.process.send_signal(signal.SIGSTOP)
        given.table.note(first.step(), "stop driver", str(first.process.pid))
        time.sleep(6)
        heir = Driver(given.scratch / "heir", ["--resume", place, "runs.heartbeat=1"], given.environment())
        assert heir.wait(_PATIENCE_S) == 0, heir.said()
        _require_the_truth(given, heir)
        before = given.store.keys("runs", "sleeper/")
        first.process.send_signal(signal.SIGCONT)
        given.table.note(first.step(), "go on", str(first.process.pid))
        assert first.wait(_PATIENCE_S) == 1, first.said()
        assert "taken over" in first.said(), first.said()
        assert given.store.keys("runs", "sleeper/") == before, "the sleeper wrote something"
        assert _recorded(given, place) == given.truth.losses
        return "the one that woke up left with 1: " + first.said().strip().splitlines()[-1][:90]
    finally:
        first.process.send_signal(signal.SIGCONT)
        first.end()


def full_disk(given: Setting) -> str:
    """Limit file sizes by a quota: the run fails with 1 and says so; without the quota it resumes."""
    cramped = Driver(given.scratch / "cramped", ["chaos.yaml"], {}, largest_file=20_000)
    assert cramped.wait(_PATIENCE_S) == 1, cramped.said()
    line = cramped.said().strip().splitlines()[-2]
    (place,) = (cramped.folder / "runs").iterdir()
    given.table.note(cramped.step(), "disk full", line[:100])
    roomy = Driver(cramped.folder, ["--resume", str(place)], {})
    assert roomy.wait(_PATIENCE_S) == 0, roomy.said()
    _require_the_truth(given, roomy)
    return f"failed with 1 at a quota of 20 kB, went on to the same end: {line[:80]}"


def jumping_clock(given: Setting) -> str:
    """Let the clock jump by days, forth and back, during a run on S3."""
    library = next((path for path in FAKETIME if path.exists()), None)
    if library is None:
        return "SKIPPED: libfaketime is not installed (apt-get install faketime)"
    clock, patched = given.scratch / "clock", given.scratch / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(SLEEP)
    clock.write_text("+0\n")
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(patched),
    }
    driver = Driver(
        given.scratch / "clock-run",
        ["chaos.yaml", "runs.root=s3://runs/clock", "runs.heartbeat=1"],
        given.environment() | fake,
    )
    try:
        for jump in ("+2d", "-3d", "+0"):
            assert driver.advance(40, _PATIENCE_S), driver.said()
            clock.write_text(f"{jump}\n")
            given.table.note(driver.step(), "clock jumps", jump)
            other = Driver(given.scratch / "clock-refused", ["--resume", _place(given, "clock")], given.environment())
            assert other.wait(_PATIENCE_S) == 2, f"a run whose driver lives was taken: {other.said()}"
        assert driver.wait(_PATIENCE_S) == 0, driver.said()
        _require_the_truth(given, driver)
        return "the run went on, and nobody else got hold of it"
    finally:
        driver.end()


INSTANTS_S = 0.5
"""Between two instants at which a life is interrupted."""


def signals(given: Setting) -> str:
    """Send SIGTERM or SIGINT, to the driver or to its group, at 0.5, 1, … s of a life with Ray of its own.

    Each driver ends with 128 + the signal and one line, nothing of Ray is left, and a run that was made ends as if
    undisturbed.
    """
    kinds = [(number, group) for number in (signal.SIGTERM, signal.SIGINT) for group in (True, False)]
    resumed = lives = 0
    while True:
        number, group = kinds[lives % len(kinds)]
        lives += 1
        folder = given.scratch / f"signals-{lives}"
        driver = Driver(folder, ["chaos.yaml", *LOCAL_RAY], {}, group=True)
        code, leader = _interrupt(driver, number, group, lives * INSTANTS_S)
        what = f"{signal.Signals(number).name} at {lives * INSTANTS_S} s"
        if code == 0:
            _require_the_truth(given, driver)
            return f"{lives} instants, {resumed} runs resumed"
        given.table.note(driver.step(), what, f"{'group' if group else 'driver'}: {code}")
        said = driver.said().strip().splitlines()
        if code == -number and not list(folder.glob("runs/*")):
            shutil.rmtree(folder)
            continue  # Python itself was starting: a shell calls it 128 + the signal, too
        assert code == 128 + number, f"{what}: exit {code}: {said[-3:]}"
        assert not any("Traceback" in line for line in said), f"{what}: {said[-3:]}"
        assert leader is None or not members(leader), f"{what}: {members(leader)} are left"
        for place in folder.glob("runs/*"):
            assert "metatrain train --resume" in said[-1], f"{what}: {said[-3:]}"
            heir = Driver(folder, ["--resume", str(place), "executor.name=in_process"], {})
            assert heir.wait(_PATIENCE_S) == 0, heir.said()
            _require_the_truth(given, heir)
            resumed += 1
        assert said, f"{what}: no line"
        shutil.rmtree(folder)


def _interrupt(driver: Driver, number: int, group: bool, after: float) -> tuple[int, int | None]:
    """Send a signal after so many seconds; return the exit code, and the session of the driver's Ray."""
    until, leader = time.monotonic() + after, None
    while time.monotonic() < until and driver.process.poll() is None:
        leader = leader or session(driver.process.pid)
        time.sleep(0.05)
    if driver.process.poll() is None:
        (os.killpg if group else os.kill)(driver.process.pid, number)
    try:
        code = driver.wait(_PATIENCE_S)
    finally:
        driver.end()
    time.sleep(0.5)
    return code, leader


def _require_the_truth(given: Setting, driver: Driver) -> None:
    outcome = driver.outcome()
    assert outcome["params_sha256"] == given.truth.sha256, "other parameters than the undisturbed run's"
    place = outcome["run_dir"]
    losses = _recorded(given, place if "://" in place else str(driver.folder / place))
    assert losses == given.truth.losses, "other losses than the undisturbed run's"


def _recorded(given: Setting, place: str) -> dict[int, float]:
    with patch.dict(os.environ, given.environment() | {"METATRAIN_CACHE": str(given.scratch / "reader")}):
        return recorded(place)


SCENARIOS: dict[str, Callable[[Setting, int], str]] = {
    "full disk": lambda given, kills: full_disk(given),
    "presumed dead": lambda given, kills: presumed_dead(given),
    "signals": lambda given, kills: signals(given),
    "jumping clock": lambda given, kills: jumping_clock(given),
    "deaths": deaths,
}
