"""Searches on a real Ray: who copies whom, what ends a search, what is refused."""

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metatrain.config.load import load_config
from metatrain.runs import checkpoints
from tests.searches import journal, tiny_search
from tune.runner import SearchResult, search
from tune.search_dir import create_search, open_search

pytestmark = pytest.mark.ray


def found(tmp_path: Path, *overrides: str, **sections: object) -> SearchResult:
    return search(tiny_search(f"runs.root={tmp_path}/runs", *overrides, **sections))


def trial(outcome: SearchResult, number: int) -> Path:
    return Path(outcome.place) / "trials" / f"{number:04d}"


POPULATION = "search.method={name: pbt, members: 4, interval: 9, quantile: 0.5}"


@pytest.mark.slow
def test_a_population_copies_parameters_and_optimisers(local_ray, tmp_path):
    sections = {"space": {"algorithm.inner_lr": "loguniform(1e-4, 1e-1)", "outer.lr": "loguniform(1e-4, 1e-1)"}}
    outcome = found(tmp_path, POPULATION, "search.trials=null", "search.minutes=5", "search.at_once=4", **sections)
    assert "have ended" in outcome.ended and not outcome.failed
    copies = [event["copy"] for event in journal(Path(outcome.place)) if "copy" in event]
    assert copies
    for copy in copies:
        child, parent = (trial(outcome, copy[who]) / "checkpoints" for who in ("trial", "parent"))
        begun, given = (checkpoints.load(folder, copy["start"]) for folder in (child, parent))
        assert begun["step"] == given["step"] == copy["start"] and begun["next_task"] == given["next_task"]
        assert_equal(begun["params"], given["params"])
        assert_equal(begun["optimizers"], given["optimizers"])
        assert begun["optimizers"]["rest"]["state"], "Adam's moments"
        settings = load_config(trial(outcome, copy["trial"]) / "config.yaml")
        assert settings.outer.lr == copy["configuration"]["outer.lr"]
        assert settings.algorithm.inner_lr == copy["configuration"]["algorithm.inner_lr"]
        steps = [json.loads(line)["step"] for line in (child.parent / "metrics.jsonl").read_text().splitlines()]
        assert min(steps) == copy["start"] + 1


def assert_equal(left: object, right: object) -> None:
    """Trees, to the bit."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor) and torch.equal(left, right)
    elif isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple) and len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


@pytest.mark.slow
def test_evolution_mutates_architectures(local_ray, tmp_path):
    sections = {
        "space": {"model.width": "logint(4, 32)", "model.depth": "int(1, 3)", "outer.lr": "loguniform(1e-3, 1e-2)"}
    }
    method = "search.method={name: evolution, population: 3, tournament: 2}"
    outcome = found(tmp_path, method, "search.trials=8", "search.at_once=2", "outer.steps=9", **sections)
    begun = [event["configuration"] for event in journal(Path(outcome.place)) if event["event"] == "began"]
    assert len(begun) == 8
    for late in begun[5:]:
        assert any(sum(late[key] != early[key] for key in late) == 1 for early in begun), "one change from a parent"
    widths = {load_config(trial(outcome, n) / "config.yaml").model.width for n in range(8)}
    assert widths == {configuration["model.width"] for configuration in begun}


@pytest.mark.slow
def test_several_objectives_have_a_front(local_ray, tmp_path):
    sections = {"space": {"model.width": "logint(4, 64)", "outer.lr": "loguniform(1e-3, 1e-2)"}}
    outcome = found(
        tmp_path,
        "search.objectives=[parameters, adaptation_seconds]",
        "search.method=random",
        "search.at_once=2",
        **sections,
    )
    results = [event for event in journal(Path(outcome.place)) if event["event"] == "result"]
    assert results and all(event["costs"]["parameters"] > 0 < event["costs"]["adaptation_seconds"] for event in results)
    page = (Path(outcome.place) / "report.html").read_text()
    assert "Trade-offs" in page and (Path(outcome.place) / "plots" / "pareto.png").exists()


@pytest.mark.slow
def test_trials_have_workers_of_their_own(local_ray, tmp_path):
    """Within the trial's placement group, and with the same parameters as in process."""
    both = [
        found(tmp_path / name, f"executor.name={name}", "executor.workers=2", "search.trials=2", "search.method=random")
        for name in ("ray", "in_process")
    ]
    first, second = ([checkpoints.load(trial(one, n) / "checkpoints", 27)["params"] for n in (0, 1)] for one in both)
    assert_equal(first, second)
    assert "cluster/workers" in (trial(both[0], 0) / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_trials_that_always_fail_end_the_search(local_ray, tmp_path):
    sections = {"space": {"outer.lr": "uniform(1e30, 1e37)"}}
    optimizer = ("outer.optimizer=sgd", "algorithm.inner_lr=1e30")
    outcome = found(tmp_path, "search.trials=50", "search.failures=3", "search.at_once=2", *optimizer, **sections)
    assert outcome.failed and outcome.trials <= 5
    assert "3 trials failed one after the other" in outcome.ended or "trials failed one after" in outcome.ended
    assert "lower outer.lr" in outcome.ended


@pytest.mark.slow
def test_what_a_node_lacks_ends_the_session_and_not_the_trial(local_ray, tmp_path):
    document = tiny_search(f"runs.root={tmp_path}", "search.retries=0", "search.trials=2", "search.method=random")
    home = create_search(document, {})
    (home.path / "trials").write_text("in the way")
    outcome = search(document, home)
    assert outcome.failed and re.fullmatch(r"no run can be made in .*: set runs.root .* \(1 times\)", outcome.ended)
    assert [event["event"] for event in journal(home.path)] == ["began"], "nothing is held against its configuration"
    (home.path / "trials").unlink()
    again = search(document, home)
    assert not again.failed and again.trials == 2


@pytest.mark.slow
def test_settings_that_do_not_go_together_fail_and_are_learned_from(local_ray, tmp_path):
    sections = {"space": {"outer.optimizer": "choice(sgd, adam)", "outer.momentum": "choice(0.0, 0.9)"}}
    outcome = found(tmp_path, "search.trials=8", "search.failures=8", "search.method=random", **sections)
    assert not outcome.failed and outcome.trials == 8
    ends = [event for event in journal(Path(outcome.place)) if event["event"] == "ended"]
    assert ends and all("momentum" in event["reason"] and event["status"] == "unfit" for event in ends)
    assert sum(event["event"] == "result" for event in journal(Path(outcome.place))) == 8 - len(ends)


@pytest.mark.slow
def test_time_is_up(local_ray, tmp_path):
    outcome = found(tmp_path, "search.trials=1000", "search.minutes=0.15", "search.at_once=2")
    assert outcome.ended == "its 0.15 minutes are over" and not outcome.failed
    assert 0 < outcome.trials < 1000 and 9 <= outcome.seconds < 60
    home, document = open_search(outcome.place)
    more = replace(document, search=replace(document.search, minutes=5.0, trials=outcome.trials))
    again = search(more, home)
    assert again.trials == outcome.trials and "have begun" in again.ended


@pytest.mark.slow
def test_a_trial_whose_process_dies_is_gone_on_with(local_ray, tmp_path):
    """killed twice, by signal; nothing is computed twice, and nothing is lost."""
    killed: list[int] = []

    def kill() -> None:
        """The owner of whichever trial is being lived, once it has written something."""
        while len(killed) < 2:
            for lock in tmp_path.glob("killed/runs/*/trials/*/owner.lock"):
                pid = int(lock.read_text() or 0)
                if pid and pid not in killed and (lock.parent / "metrics.jsonl").exists() and len(killed) < 2:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    assassin = threading.Thread(target=kill, daemon=True)
    assassin.start()
    outcome = found(tmp_path / "killed", "search.retries=5", "search.trials=3")
    assassin.join()
    calm = found(tmp_path / "calm", "search.trials=3")
    assert len(killed) == 2
    assert journal(Path(outcome.place)) == journal(Path(calm.place))


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused(local_ray, tmp_path):
    for override in ("executor.gpus_per_worker=1", "search.cpus=64"):
        with pytest.raises(ValueError, match=r"lower .*, or search on a larger cluster|executor.gpus_per_worker"):
            found(tmp_path, override)
    assert not (tmp_path / "runs").exists()
