"""Submit, follow, stop and resume jobs on a Ray cluster with a token, from a folder outside the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from metatrain.tracking.status_line import JSON_PREFIX
from tests.command_line import Done
from tests.fault_proxy import Answer, FaultProxy, Faults
from tests.person import Person, a_person, result_in, until
from tests.ray_head import Line, RayHead

pytestmark = pytest.mark.ray

STEPS = 24
SLOW = ("outer.steps=100", "evaluation.every=1", "evaluation.validation_tasks=400")
"""Each step takes seconds, longer than Ray waits for a stopped job by default."""


class WithoutWebsockets(FaultProxy):
    """As many a company has one on the way; `lost`, it has no log either, as that of a node that is gone."""

    lost = False

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        return Answer(500, [], b"") if self.lost and "/logs" in path else super().forward(method, path, headers, body)


@pytest.fixture(scope="module")
def person(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(head, tmp_path_factory.mktemp("person")) as person:
        yield person


@pytest.fixture(scope="module")
def undisturbed(person: Person) -> str:
    done = person("train", "tiny.yaml", "--json", f"runs.root={person.runs.parent}/here", f"outer.steps={STEPS}")
    return result_in(done.out)["params_sha256"]


@pytest.mark.slow
def test_the_log_is_followed_as_it_comes_and_the_exit_code_is_the_job_s(person: Person, undisturbed: str) -> None:
    arguments = ["--json", f"outer.steps={STEPS}", "executor.name=ray", "executor.workers=2", "evaluation.every=8"]
    with person.process("submit", "--follow", "--", "train", "tiny.yaml", *arguments) as process:
        came = [(time.monotonic(), line) for line in process.stdout]
    assert process.returncode == 0
    trained = [(moment, line) for moment, line in came if line.startswith("training ")]
    assert [line for _, line in trained if " · validation " in line][-1].startswith(f"training {STEPS}/{STEPS} ")
    assert came[-1][0] - trained[0][0] > 0.5  # printed as it came
    assert not any(line.startswith(JSON_PREFIX) for _, line in came)
    result = result_in("".join(line for _, line in came))
    assert result["params_sha256"] == undisturbed  # two workers of the cluster, or one process here
    assert result["run_dir"].startswith(str(person.runs))
    assert sum(result["executor"]["workers"].values()) == 6 * STEPS
    environment = json.loads((Path(result["run_dir"]) / "environment.json").read_text())
    assert environment["job"] in person.jobs()


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_stopped_job_s_run_goes_on_to_what_it_would_have_been(person: Person, undisturbed: str) -> None:
    """Follow the job through a connection that breaks and is made again."""
    slowly = ("evaluation.every=1", "evaluation.validation_tasks=60", "executor.name=ray", "executor.workers=2")
    job = person.job(f"outer.steps={STEPS}", *slowly)
    with closing(Line(person.head.address)) as line, follower(person, job, line.address) as process:
        came = [process.stdout.readline() for _ in range(2)]
        line.down, cut = True, line.cut()
        time.sleep(1.5)
        line.down = False
        stopped = stopped_while_running(person, job, until(lambda: _both_work(person, job)))
        came += process.stdout.readlines()
    assert (process.returncode, cut > 0) == (143, True)
    assert "".join(came) == person("logs", job).out
    place = re.search(r"go on with `metatrain submit -- train --resume (\S+)`", stopped.out)[1]
    newest = max(int(folder.name) for folder in (Path(place) / "checkpoints").iterdir())
    assert newest < STEPS
    assert f"interrupted at step {newest}: " in "".join(came)
    assert person.jobs()[job]["status"] == "STOPPED"
    assert "had ended already" in person("stop", job).out
    done = person("submit", "--follow", "--", "train", "--resume", place, "--json")
    assert done.code == 0, done.out
    assert result_in(done.out)["params_sha256"] == undisturbed
    told = json.loads(person("status", place, "--json").out)
    assert (told["status"], told["step"], told["best/step"] > 0) == ("FINISHED", STEPS, True)


def _both_work(person: Person, job: str) -> dict | None:
    """The status of a job, once its run has been validated and both workers have joined it."""
    told = json.loads(person("status", job, "--json").out)
    return told if "best/step" in told and told["cluster/workers"] == 2 else None


def stopped_while_running(person: Person, job: str, status: dict) -> Done:
    """Check the status of a running job, and stop it."""
    assert (status["status"], status["steps"], status["cluster/workers"]) == ("RUNNING", STEPS, 2)
    assert status["time/tasks_per_second"] > 0
    assert 0 < status["best/accuracy"] <= 1
    line = rf"^{job}  RUNNING  \d+/{STEPS}  .* left · train .* · best .* tasks/s · 2 workers  {status['run']}$"
    assert re.search(line, person("status").out, re.MULTILINE)
    stopped = person("stop", job[:-2])  # as much of its id as tells it from others
    assert stopped.code == 0
    return stopped


def follower(person: Person, job: str, address: str) -> subprocess.Popen[str]:
    """Follow a job under another address of the cluster."""
    return person.process("logs", job, "--follow", "--profile", "lab", "--address", address)


@pytest.mark.slow
def test_who_follows_may_leave_and_the_job_goes_on(person: Person) -> None:
    shutil.copy(person.folder / "profiles.yaml", person.folder / "team.yaml")
    done = person("submit", "--profiles", "team.yaml", "--", "train", "tiny.yaml", *SLOW)
    job = done.out.strip()
    with person.process("logs", job, "--follow") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert f"metatrain stop {job}" in told
    assert person.jobs()[job]["status"] in ("PENDING", "RUNNING")
    until(lambda: "training 1/100" in person("logs", job).out)
    assert {tuple(sent_for(pid)) for pid in processes_of(job)} == {("tiny.yaml",)}  # and no profile, of any name
    assert "go on with `metatrain submit -- train --resume" in person("stop", job).out


@pytest.mark.slow
def test_a_driver_that_is_lost_with_its_node_leaves_a_run_to_go_on_with(person: Person) -> None:
    job = person.job(*SLOW, "checkpoint.every=1")
    with WithoutWebsockets(person.head.address, Faults(), 0) as proxy, follower(person, job, proxy.url) as process:
        assert any(line.startswith("training 1/100") for line in process.stdout)
        assert person.jobs()[job]["status"] == "RUNNING"  # printed as it came
        proxy.lost = True
        (supervisor,) = [pid for pid in processes_of(job) if "JobSuper" in Path(f"/proc/{pid}/comm").read_text()]
        os.kill(supervisor, signal.SIGKILL)
        _, told = process.communicate()
        late = person("logs", job, "--follow", "--profile", "lab", "--address", proxy.url)
    found = person("logs", job, "--follow")
    assert (process.returncode, late.code, found.code) == (1, 1, 1)
    for said in (told, late.err, found.err):
        assert "its driver was lost on the cluster" in said
    for said in (told, found.err):  # of the first the log was gone in the end, but it had heard of the run
        place = re.search(r"go on with `metatrain submit -- train --resume (\S+)`", said)[1]
        assert (Path(place) / "checkpoints").is_dir()
    until(lambda: not processes_of(job), seconds=60)


def sent_for(pid: int) -> list[str]:
    """List a process's working directory without caches of Python."""
    return sorted(path.name for path in Path(f"/proc/{pid}/cwd").iterdir() if path.name != "__pycache__")


def processes_of(job: str) -> list[int]:
    """Return the processes that have the job's id in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += [int(environ.parent.name)] if f"METATRAIN_JOB_ID={job}" in environ.read_text() else []
    return found


OF_THE_JOB = """
import os
from dataclasses import dataclass
from tasks.sources.strokes import Strokes

@dataclass(frozen=True)
class Private(Strokes):
    def distribution(self, split, shape, seed):
        assert len(os.environ["DB_PASSWORD"]) == 32 and os.environ["PLAIN"] == "seen"
        return super().distribution(split, shape, seed)
"""


@pytest.mark.slow
def test_a_secret_variable_reaches_driver_and_workers_and_no_log_of_ray(person: Person) -> None:
    secret = os.urandom(16).hex()
    (person.folder / "private.py").write_text(OF_THE_JOB)
    variables = ("--env", f"DB_PASSWORD={secret}", "--env", "PLAIN=seen")
    few = ("outer.steps=2", "executor.name=ray", "executor.workers=1", "tasks.name=private:Private")
    done = person("submit", "--follow", *variables, "--", "train", "tiny.yaml", *few)
    assert done.code == 0, done.out + done.err
    assert secret not in done.out + done.err + person("jobs", "--json").out
    files = [path for path in Path("/tmp").glob("ray-*/**/*") if path.is_file()]
    assert any(b"PLAIN" in path.read_bytes() for path in files if "runtime_env" in path.name)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
