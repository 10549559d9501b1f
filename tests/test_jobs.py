"""Jobs on a real Ray cluster with a token, from a folder that is not the repository: `metatrain submit` and its kin."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metatrain.standing import parsed
from tests.person import Person, a_person, result_in, until
from tests.ray_head import Line, RayHead

pytestmark = pytest.mark.ray

SLOW = ("outer.steps=2000", "evaluation.every=1", "evaluation.validation_tasks=1000")
"""Each step takes seconds: more than Ray gives a job that is to end."""


@pytest.fixture(scope="module")
def person(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(head, tmp_path_factory.mktemp("person")) as person:
        yield person


@pytest.fixture(scope="module")
def undisturbed(person: Person) -> str:
    done = person("train", "tiny.yaml", "--json", f"runs.root={person.runs.parent}/here", "outer.steps=40")
    return result_in(done.out)["params_sha256"]


def test_the_log_is_followed_as_it_comes_and_the_exit_code_is_the_job_s(person: Person, undisturbed: str) -> None:
    arguments = ["--json", "outer.steps=40", "executor.name=ray", "executor.workers=2", "evaluation.every=10"]
    with person.process("submit", "--follow", "--", "train", "tiny.yaml", *arguments) as process:
        came = [(time.monotonic(), line) for line in process.stdout]
    assert process.returncode == 0
    standings = [(moment, found) for moment, line in came if (found := parsed(line.rstrip())) is not None]
    assert [found.step for _, found in standings if "validation/accuracy" in found.metrics][-1] == 40
    assert came[-1][0] - standings[0][0] > 0.5  # it was not told at the end
    result = result_in("".join(line for _, line in came))
    assert result["params_sha256"] == undisturbed  # two workers of the cluster, or one process here
    assert result["run_dir"].startswith(str(person.runs))
    assert sum(result["executor"]["workers"].values()) == 240
    environment = json.loads((Path(result["run_dir"]) / "environment.json").read_text())
    assert environment["job"] in person.jobs()


def test_what_goes_wrong_there_comes_through(person: Person) -> None:
    diverging = person.job("algorithm.inner_lr=1e18", "outer.lr=1e18")
    wrong = person.submit("tasks={name: image_folder, root: /nowhere/at/all}", follow=True)
    assert wrong.code == 2
    assert "metatrain: " in wrong.out and "/nowhere/at/all" in wrong.out
    followed = person("logs", diverging, "--follow")
    assert followed.code == 1
    assert "metatrain train --resume" in followed.out
    assert person.jobs()[diverging]["exit_code"] == 1
    assert person("logs", diverging).out == followed.out


def test_a_stopped_job_s_run_goes_on_to_what_it_would_have_been(person: Person, undisturbed: str) -> None:
    slowly = ("evaluation.every=1", "evaluation.validation_tasks=40", "executor.name=ray", "executor.workers=2")
    job = person.job("outer.steps=40", *slowly)
    status = until(lambda: (told := json.loads(person("status", job, "--json").out)).get("step", 0) > 0 and told)
    assert (status["status"], status["steps"], status["cluster/workers"]) == ("RUNNING", 40, 2)
    assert status["time/tasks_per_second"] > 0
    assert 0 < status["best/accuracy"] <= 1
    line = rf"^{job}  RUNNING  \d+/40  .* left · train .* · best .* tasks/s · 2 workers  {status['run']}$"
    assert re.search(line, person("status").out, re.MULTILINE)
    stopped = person("stop", job[:-2])  # as much of its id as tells it from others
    assert stopped.code == 0
    place = re.search(r"go on with `metatrain submit -- train --resume (\S+)`", stopped.out)[1]
    newest = max(int(folder.name) for folder in (Path(place) / "checkpoints").iterdir())
    assert newest < 40
    followed = person("logs", job, "--follow")
    assert (followed.code, f"interrupted at step {newest}: " in followed.out) == (143, True)
    assert person.jobs()[job]["status"] == "STOPPED"
    assert "had ended already" in person("stop", job).out
    done = person("submit", "--follow", "--", "train", "--resume", place, "--json")
    assert done.code == 0, done.out
    assert result_in(done.out)["params_sha256"] == undisturbed
    told = json.loads(person("status", place, "--json").out)
    assert (told["status"], told["step"], told["best/step"] > 0) == ("FINISHED", 40, True)


def test_a_connection_that_breaks_is_made_again(person: Person) -> None:
    line = Line(person.head.address)
    try:
        job = person.job("outer.steps=30", "evaluation.every=1")
        with person.process("logs", job, "--follow", "--profile", "lab", "--address", line.address) as process:
            came = [process.stdout.readline() for _ in range(2)]
            line.down, cut = True, line.cut()
            time.sleep(1.5)
            line.down = False
            came += process.stdout.readlines()
        assert process.returncode == 0
        assert cut > 0
        assert "".join(came) == person("logs", job).out
    finally:
        line.close()


def test_who_follows_may_leave_and_the_job_goes_on(person: Person) -> None:
    job = person.job(*SLOW)
    with person.process("logs", job, "--follow") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert f"metatrain stop {job}" in told
    assert person.jobs()[job]["status"] in ("PENDING", "RUNNING")
    until(lambda: "training 1/2000" in person("logs", job).out)
    assert "go on with `metatrain submit -- train --resume" in person("stop", job).out


def test_a_driver_that_is_lost_with_its_node_leaves_a_run_to_go_on_with(person: Person) -> None:
    job = person.job(*SLOW, "checkpoint.every=1")
    with person.process("logs", job, "--follow") as process:
        until(lambda: "training 1/2000" in person("logs", job).out)
        (supervisor,) = [pid for pid in processes_of(job) if "JobSuper" in Path(f"/proc/{pid}/comm").read_text()]
        os.kill(supervisor, signal.SIGKILL)
        _, told = process.communicate()
    assert process.returncode == 1
    assert "its driver was lost on the cluster" in told
    place = re.search(r"go on with `metatrain submit -- train --resume (\S+)`", told)[1]
    assert (Path(place) / "checkpoints").is_dir()
    until(lambda: not processes_of(job), seconds=60)


def processes_of(job: str) -> list[int]:
    """Those that have the job's id in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += [int(environ.parent.name)] if f"METATRAIN_JOB_ID={job}" in environ.read_text() else []
    return found
