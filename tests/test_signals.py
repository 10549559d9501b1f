"""Signals: what is noted, deferred and left undone; modules of a user's that have the names of our packages."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metatrain import own_packages, signals
from metatrain.errors import StepAbandoned
from metatrain.training.in_process import InProcess
from metatrain.training.worker import Worker
from tests.configurations import tiny
from tests.faults import CPU, Run


def test_a_signal_that_comes_twice_at_once_counts_once_and_a_later_one_ends(monkeypatch):
    with signals.graceful_shutdown() as shutdown:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as `timeout` does it: to its command, and to the group
        assert shutdown.is_set()
        assert shutdown.signal == signal.SIGTERM
        shutdown.since -= 1.0
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            signal.raise_signal(signal.SIGTERM)


def test_deferred_signals_are_handled_after_the_block():
    with signals.graceful_shutdown(lambda number: None) as shutdown:
        with signals.deferred_signals():
            signal.raise_signal(signal.SIGINT)
            assert not shutdown.is_set()
        assert shutdown.signal == signal.SIGINT


def test_a_step_that_does_not_end_after_a_signal_is_left_undone_with_its_state():
    config = tiny("outer.steps=10", "outer.tasks_per_step=4", "executor.shard_size=1")
    run = Run(config, InProcess(Worker(config, CPU)))
    run.step()
    with signals.graceful_shutdown(lambda number: None) as shutdown:
        signal.raise_signal(signal.SIGTERM)
        run.step()
        shutdown.since -= signals.GRACE_S + 1
        with pytest.raises(StepAbandoned, match=r"were not computed 20 s after a signal$"):
            run.step()
    assert run.state.step == 2


def test_signals_while_nothing_is_kept_end_with_one_line_and_their_code(capsys):
    previous = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        signals.exit_on_signals()
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while that unwinds
        assert capsys.readouterr().err == "metatrain: ended by SIGTERM\n"
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("name", ["tasks.py", "cluster.py", "tune.py", "metatrain.py", "tasks/__init__.py"])
def test_a_users_module_with_the_name_of_a_package_of_ours_is_told(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (clash,) = own_packages.find_clashes(tmp_path)
    module = name.split("/")[0].removesuffix(".py")
    assert own_packages.describe_clash(clash.relative_to(tmp_path)) == (
        f"{name} has the name of a package of metatrain: it is not importable as '{module}'; rename it to use it"
    )


def test_a_checkout_and_a_folder_of_data_clash_with_nothing(tmp_path: Path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "train.csv").touch()
    assert not own_packages.find_clashes(tmp_path)
    assert not own_packages.find_clashes(own_packages.ROOT)


def test_python_m_metatrain_imports_our_packages_beside_modules_of_such_names(tmp_path: Path):
    for name in own_packages.PACKAGES[1:]:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')")
    ask = "import metatrain, tasks, cluster, tune; print(tasks.__file__, cluster.__file__, tune.__file__)"
    found = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == [str(own_packages.ROOT / name / "__init__.py") for name in own_packages.PACKAGES[1:]]


def test_a_module_of_such_a_name_that_is_imported_already_is_told(monkeypatch, tmp_path: Path):
    (tmp_path / "tasks.py").touch()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "tasks")
        patch.syspath_prepend(tmp_path)
        import tasks

        assert tasks.__file__ == str(tmp_path / "tasks.py")
        with pytest.raises(ImportError, match=r"tasks.py has the name of a package of metatrain.*rename it"):
            own_packages.claim()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["gcs_server", "raylet"])
def test_a_run_whose_local_ray_dies_keeps_its_state_and_says_so_in_a_line(tmp_path: Path, killed: str):
    from metatrain.runs import checkpoints
    from metatrain.runs.locations import open_run
    from tests.chaos.drivers import Driver
    from tests.chaos.local_ray import pids

    driver = Driver(tmp_path, ["chaos.yaml", "executor.name=ray", "checkpoint.every=10", "outer.steps=100000"], {})
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/checkpoints/*")):
            assert driver.process.poll() is None, driver.said()
            assert time.monotonic() < until
            time.sleep(0.1)
        began = time.monotonic()
        (pid,) = (pid for pid, name in pids(driver.process.pid) if name == killed)
        os.kill(pid, signal.SIGKILL)
        assert driver.wait(60) == 1
        assert time.monotonic() - began < 20
        lines = driver.said().splitlines()
        assert lines[-2].startswith(
            f"metatrain: Ray on this machine has failed ({killed} has ended): its logs are in /"
        )
        assert "metatrain train --resume" in lines[-1]
        assert not (tmp_path / "out").read_text(), "Ray prints nothing"
        (place,) = tmp_path.glob("runs/*")
        found = checkpoints.newest(open_run(str(place)).checkpoints)
        assert found is not None
        assert f"failed at step {found.snapshot['step']} of" in driver.said()
        assert not pids(driver.process.pid), "nothing of Ray is left"
    finally:
        driver.end()
