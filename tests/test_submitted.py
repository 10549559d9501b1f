"""What a team has, whole: a run on a cluster with a token, stopped and gone on with, in MLflow on PostgreSQL and S3."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.browsing import browse
from tests.person import a_person, result_in, until
from tests.ray_head import RayHead
from tests.tracking_stack import TrackingStack, tracking_stack

pytestmark = pytest.mark.ray
STEPS = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingStack]:
    with tracking_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def submitted(head: RayHead, stack: TrackingStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that was stopped on its way, and `undisturbed`: the parameters of one that was not.

    Its folder is in S3, its records in MLflow, and both come from a profile.
    """
    settings = {"runs.root": "s3://runs/team", "tracking.uri": stack.uri, "tracking.experiment": "team"}
    env = stack.environment() | stack.s3.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():  # the person looks at the run in S3, too
            patch.setenv(name, value)
        room = tmp_path_factory.mktemp("person")
        with a_person(head, room, settings=settings, env={name: f"${{{name}}}" for name in env}) as person:
            here = person("train", "tiny.yaml", "--json", f"runs.root={room}/here", f"outer.steps={STEPS}")
            job = person.job(f"outer.steps={STEPS}", "evaluation.every=1", "evaluation.validation_tasks=40")
            until(lambda: json.loads(person("status", job, "--json").out).get("step", 0) > 0)
            stopped = person("stop", job)
            place = re.search(r"go on with `metatrain submit -- train --resume (\S+)`", stopped.out)[1]
            assert "interrupted at step" in person("logs", job).out
            done = person("submit", "--follow", "--", "train", "--resume", place, "--json")
            assert done.code == 0, done.out + done.err
    return result_in(done.out) | {"undisturbed": result_in(here.out)["params_sha256"], "place": place}


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(submitted):
    assert submitted["place"].startswith("s3://runs/team/")
    assert submitted["params_sha256"] == submitted["undisturbed"]


def test_postgresql_has_one_run_with_each_step_once_and_who_submitted_it(stack, submitted):
    tagged = (
        "SELECT runs.run_uuid, runs.status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid WHERE tags.key = %s"
    )
    ((run, status),) = stack.rows(f"{tagged} AND t.value = %s", "metatrain.run_id", submitted["run_id"])
    assert status == "FINISHED"
    steps = stack.rows("SELECT step FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step", run)
    assert steps == [(step,) for step in range(1, STEPS + 1)]
    tags = dict(stack.rows("SELECT key, value FROM tags WHERE run_uuid = %s", run))
    assert {"metatrain.job_id", "mlflow.user"} <= tags.keys()


def test_s3_has_its_artifacts_and_its_checkpoints(stack, submitted):
    names = {key.rpartition("/artifacts/")[2] for key in stack.s3.keys("mlflow")}
    assert names >= {"config.yaml", "environment.json", "plots/curves.png", "report.html"}
    assert any("checkpoints" in key for key in stack.s3.keys("runs", "team/"))


def test_a_browser_shows_the_run(stack, submitted, browser, tmp_path):
    ((experiment,),) = stack.rows("SELECT experiment_id FROM runs WHERE name = %s", submitted["run_id"])
    ((run,),) = stack.rows("SELECT run_uuid FROM runs WHERE name = %s", submitted["run_id"])
    page = f"{stack.user}:{stack.password}@{urlsplit(stack.uri).netloc}/#/experiments/{experiment}/runs/{run}"
    shown = browse(browser, f"http://{page}", tmp_path / "profile", "--dump-dom", "--virtual-time-budget=30000").stdout
    assert submitted["run_id"] in shown
    assert "validation/accuracy" in shown and "params_sha256" in shown
    picture = tmp_path / "run.png"
    options = (f"--screenshot={picture}", "--window-size=1500,1100", "--virtual-time-budget=30000")
    browse(browser, f"http://{page}", tmp_path / "profile", *options)
    _looks_like_something(picture)


def _looks_like_something(picture: Path) -> None:
    with Image.open(picture) as opened:
        assert len(np.unique(np.asarray(opened.convert("L")))) > 50
