"""A project of one's own on a cluster: its run lies in S3 and with an MLflow on PostgreSQL, is stopped and goes on."""

import getpass
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from cluster.events import COUNTED, prometheus_name
from tests.browsing import browse, logged_in
from tests.person import Person, a_person, result_in, until
from tests.ray_head import RayHead
from tests.tracking_stack import TrackingStack, tracking_stack

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[1] / "examples" / "tones"
BRIEFLY = ("outer.steps=30", "evaluation.tasks=20", "evaluation.from_scratch_tasks=0", "evaluation.every=5")


class Story(NamedTuple):
    """What was seen of a job that was stopped and of the one that went on with its run."""

    jobs: list[str]
    status: dict[str, Any]
    metrics: str
    result: dict[str, Any]
    here: dict[str, Any]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingStack]:
    with tracking_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def person(head: RayHead, stack: TrackingStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(head, tmp_path_factory.mktemp("records")) as person:
        shutil.copytree(
            EXAMPLE, person.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "runs")
        )
        team = {
            "address": head.address,
            "token": "${LAB_TOKEN}",
            "settings": {
                "runs": {"root": "s3://runs/team", "heartbeat": 1.0},
                "tracking": {"uri": stack.uri, "experiment": "team"},
                "executor": {"name": "ray", "workers": 2},
            },
            "env": stack.s3.environment() | stack.environment(),
        }
        (person.folder / "profiles.yaml").write_text(yaml.safe_dump({"default": "team", "profiles": {"team": team}}))
        (person.folder / "profiles.yaml").chmod(0o600)  # it has passwords in it
        yield person


@pytest.fixture(scope="module")
def story(person: Person, head: RayHead) -> Story:
    alone = ("tracking.uri=null", "executor.name=in_process", "evaluation.validation_tasks=2")
    here = person("train", "tones.yaml", *BRIEFLY, *alone, "--json")
    assert here.code == 0, here.err
    done = person("submit", "--", "train", "tones.yaml", *BRIEFLY, "evaluation.validation_tasks=200")
    assert done.code == 0, done.err
    first = done.out.strip()
    status = until(lambda: (told := json.loads(person("status", first, "--json").out)).get("step", 0) > 4 and told)
    metrics = until(lambda: "ray_metatrain_step" in (text := _fetched(head)) and text)
    stopped = person("stop", first)
    place = re.search(r"--resume (s3://runs/team/\S+)`", stopped.out)[1]
    followed = person("submit", "--follow", "--", "train", "--resume", place, "--json")
    assert followed.code == 0, followed.out
    second = re.search(r"^job (\S+) at", followed.err, re.MULTILINE)[1]
    return Story([first, second], status, metrics, result_in(followed.out), result_in(here.out))


def _fetched(head: RayHead) -> str:
    time.sleep(0.5)
    with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_it_ends_as_it_would_have_here_in_one_piece(story: Story) -> None:
    assert story.status["status"] == "RUNNING"
    assert story.status["cluster/workers"] == 2
    assert story.result["steps"] == 30
    assert story.result["params_sha256"] == story.here["params_sha256"]
    assert story.result["run_dir"].startswith("s3://runs/team/")


def test_the_run_stands_once_in_postgresql_with_every_step(story: Story, stack: TrackingStack) -> None:
    runs = stack.rows(
        "SELECT runs.run_uuid, runs.status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE tags.key = 'metatrain.run_id' AND tags.value = %s",
        story.result["run_id"],
    )
    assert [status for _, status in runs] == ["FINISHED"]
    steps = stack.rows("SELECT step FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step", runs[0][0])
    assert [step for (step,) in steps] == list(range(1, 31))
    tags = dict(stack.rows("SELECT key, value FROM tags WHERE run_uuid = %s", runs[0][0]))
    assert (tags["metatrain.job_id"], tags["mlflow.user"]) == (story.jobs[0], getpass.getuser())


def test_artifacts_and_the_run_itself_lie_in_s3(story: Story, stack: TrackingStack) -> None:
    assert any(key.endswith("evaluations/test.json") for key in stack.s3.keys("mlflow"))
    name = story.result["run_id"]
    assert f"team/{name}/head.json" in stack.s3.keys("runs", f"team/{name}/")


def test_the_running_job_s_metrics_endpoint_shows_ours(story: Story) -> None:
    of_this_job = rf'^ray_(metatrain_\w+)\{{[^}}]*driver="{story.jobs[0]}"'
    shown = set(re.findall(of_this_job, story.metrics, re.MULTILINE))
    always = {"metatrain_step", "metatrain_workers", "metatrain_tasks_per_second", "metatrain_tasks_total"}
    assert always | {"metatrain_seconds_total", prometheus_name("bytes")} <= shown
    assert shown <= always | {"metatrain_seconds_total"} | {prometheus_name(kind) for kind in COUNTED}


def test_a_browser_shows_the_run(story: Story, stack: TrackingStack, browser: str, tmp_path: Path) -> None:
    ((run, experiment),) = stack.rows(
        "SELECT run_uuid, experiment_id FROM runs WHERE name = %s", story.result["run_id"]
    )
    wait, picture = "--virtual-time-budget=30000", tmp_path / "run.png"
    with logged_in(stack.uri, stack.user, stack.password) as address:
        page = f"{address}/#/experiments/{experiment}/runs/{run}"
        shown = browse(browser, page, tmp_path / "profile", "--dump-dom", wait).stdout
        browse(browser, page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1500,1100", wait)
    assert story.result["run_id"] in shown
    assert "validation/accuracy" in shown and "outer.tasks_per_step" in shown
    with Image.open(picture) as opened:
        assert len(np.unique(np.asarray(opened.convert("L")))) > 50
