"""A trial's life, lived in this process: from rung to rung, and from another's checkpoint."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from metatrain.config.dry_run import dry_run
from metatrain.config.load import as_plain, as_yaml
from metatrain.runs import checkpoints, describe_environment
from metatrain.runs.locations import create_run_at, release_run
from metatrain.training.outer_loop import Best
from tests.configurations import tiny
from tune.execution.trial import TrialReport, run_trial
from tune.execution.trial_spec import TrialSpec

RUNGS = (2, 4)
KEPT = ("executor.shard_size=6", "checkpoint.keep=9")


def assignment(place: Path, *overrides: str, **others: Any) -> TrialSpec:
    plain = as_plain(tiny("outer.steps=4", *KEPT, *overrides))
    return TrialSpec(0, place.name, str(place), plain, RUNGS, "validation/accuracy", {}, **others)


def whole(given: TrialSpec) -> list[TrialReport]:
    return list(run_trial(given, threading.Event()))


@pytest.fixture
def parent(tmp_path):
    """One that learns nothing, so that its first result stays its best."""
    place = tmp_path / "parent"
    assert [report.step for report in whole(assignment(place, "outer.lr=1e-30"))] == [2, 4]
    assert checkpoints.load(place / "checkpoints", 4)["best"]["step"] == 2
    return place


def begun(parent: Path, place: Path, **others: Any) -> TrialSpec:
    """A copy of the parent at its end, that learns."""
    return assignment(place, "outer.steps=6", "outer.lr=0.1", parent=(str(parent), 4), **others)._replace(rungs=(6,))


def test_a_copy_goes_on_from_parameters_optimisers_and_best(parent, tmp_path):
    assert [report.step for report in whole(begun(parent, tmp_path / "copy"))] == [6]
    mine, theirs = (place / "checkpoints" for place in (tmp_path / "copy", parent))
    for step in (2, 4):
        ours, other = (checkpoints.load(folder, step) for folder in (mine, theirs))
        torch.testing.assert_close(ours, other, rtol=0, atol=0)
    start, end = (checkpoints.load(mine, step)["params"] for step in (4, 6))
    assert not any(torch.equal(start[name], end[name]) for name in start)


def test_a_copy_whose_process_ended_between_the_two_checkpoints_ends_as_one_undisturbed(parent, tmp_path):
    whole(begun(parent, tmp_path / "copy"))
    cut = begun(parent, tmp_path / "cut")
    settings = dry_run(tiny("outer.steps=6", "outer.lr=0.1", *KEPT), torch.device("cpu")).config
    home = create_run_at(cut.place, cut.run_id, as_yaml(settings), describe_environment(), None)
    best = checkpoints.load(parent / "checkpoints", 2)
    checkpoints.save(home.checkpoints, 2, best, checkpoints.manifest(parent / "checkpoints", 2)["extra"])
    release_run(home)
    whole(cut)
    found = [checkpoints.manifest(tmp_path / name / "checkpoints", 6)["extra"] for name in ("cut", "copy")]
    assert found[0]["params_sha256"] == found[1]["params_sha256"]


def test_a_best_that_its_run_has_tidied_away_is_done_without(parent, tmp_path):
    shutil.rmtree(parent / "checkpoints" / "00000002")
    copy = begun(parent, tmp_path / "copy")
    assert whole(copy)[-1].step == 6
    assert checkpoints.load(tmp_path / "copy" / "checkpoints", 4)["best"] == vars(Best())


def test_a_copy_with_another_network_is_unfit(parent, tmp_path):
    copy = begun(parent, tmp_path / "copy")
    wider = {**copy.config, "model": {**copy.config["model"], "width": 9}}
    (report,) = whole(copy._replace(config=wider))
    assert report.status == "unfit" and "model" in report.reason
