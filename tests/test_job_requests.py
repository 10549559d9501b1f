"""Wrong requests to a cluster: each prints one line with the remedy and exits with 2; no job starts."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cluster.jobs.dashboard import Dashboard, Token, Unavailable
from tests.command_line import Done
from tests.object_store import free_port
from tests.person import Person, a_person, result_in, until
from tests.ray_head import RayHead

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def person(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with a_person(head, tmp_path_factory.mktemp("requests")) as person:
        yield person


def profiles(person: Person, tmp_path: Path, **one: object) -> tuple[str, str]:
    """Write a file with one profile, and return the option that names it."""
    path = tmp_path / "profiles.yaml"
    plain = {"address": person.head.address, "settings": {"runs.root": str(person.runs)}, **one}
    path.write_text(yaml.safe_dump({"default": "one", "profiles": {"one": plain}}))
    path.chmod(0o600)
    return "--profiles", str(path)


def refused(done: Done, *parts: str, code: int = 2) -> None:
    assert done.code == code, done
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("metatrain: "), done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in line


def one_line(done: Done, *parts: str) -> None:
    refused(done, *parts)
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.out == ""


@contextmanager
def answering(code: int) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """Yield the address of a server that answers with `code`, and its requests: method, path, authorization."""
    asked: list[tuple[str, str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            self.send_response(code)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
            self.end_headers()

        do_CONNECT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, asked


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_job_s_log_is_followed_and_its_result_is_that_of_a_run_here(person: Person) -> None:
    few = ("--json", "outer.steps=2", "evaluation.baselines=false", "executor.name=in_process")
    done = person("submit", "--follow", "--", "train", "tiny.yaml", *few)
    assert done.code == 0, done.out + done.err
    assert "training 2/2 " in done.out
    here = person("train", "tiny.yaml", f"runs.root={person.runs.parent}/here", *few)
    assert result_in(done.out)["params_sha256"] == result_in(here.out)["params_sha256"]
    (job,) = person.jobs().values()
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)


def test_an_address_where_nothing_answers(person: Person) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = person("jobs", "--address", nowhere)
    refused(done, f"no Ray cluster answers at {nowhere}")
    assert "profile 'lab' of profiles.yaml is set aside" in done.err
    for command in (["submit", "--", "train", "tiny.yaml"], ["stop", "a"]):
        at = command.index("--") if "--" in command else len(command)
        done = person(*command[:at], "--profile", "lab", "--address", nowhere, *command[at:])
        one_line(done, f"no Ray cluster answers at {nowhere}", "Connection refused", "tunnel", "docs/cluster.md")
        assert done.seconds < 20


def test_an_address_of_something_else(person: Person) -> None:
    with serving(http.server.SimpleHTTPRequestHandler) as address:
        other = address.removeprefix("http://")  # for which it is taken
        refused(person("jobs", "--address", other), "is not a Ray dashboard", "8265")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        threading.Thread(target=lambda: mute.accept()[0].close(), daemon=True).start()
        refused(person("jobs", "--address", f"http://127.0.0.1:{mute.getsockname()[1]}"), "no Ray cluster answers")
    for wrong in ("ray://127.0.0.1:10001", "ftp://x", "http://"):
        one_line(person("jobs", "--profile", "lab", "--address", wrong), "http")


def test_a_redirect_is_told_and_gets_no_token(person: Person, tmp_path: Path) -> None:
    with answering(302) as (address, asked):
        one = profiles(person, tmp_path, token="${LAB_TOKEN}", address=address)
        one_line(person("jobs", *one), "redirects to http://localhost", "if you trust that")
    assert asked == [("GET", "/api/version", f"Bearer {person.head.token}")]


def test_a_server_that_takes_no_token_of_ours(person: Person, tmp_path: Path) -> None:
    with answering(401) as (address, _):
        one = profiles(person, tmp_path, token="${LAB_TOKEN}", address=address)
        one_line(person("jobs", *one), "does not accept the token from the profile")
    with answering(403) as (address, _):
        one_line(person("jobs", *profiles(person, tmp_path, address=address)), "asks for a token, and none was found")


ASK = """
import sys
from cluster.jobs.dashboard import Dashboard, Token, Unavailable

for address in sys.argv[1:]:
    try:
        Dashboard(address, Token("secret", "the test")).get("/api/version")
    except (Unavailable, ValueError) as error:
        print(error)
"""


def test_no_proxy_is_shown_a_token() -> None:
    with answering(403) as (proxy, shown), answering(401) as (address, asked):
        there = [address, f"https://127.0.0.1:{free_port()}", "http://lab.invalid:8265", "https://lab.invalid:8265"]
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        kept = {name: value for name, value in os.environ.items() if name.lower() not in names}
        environment = {**kept, "http_proxy": proxy, "https_proxy": proxy}
        command = [sys.executable, "-c", ASK, *there]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        taken, *rest = done.stdout.splitlines()
    assert asked == [("GET", "/api/version", "Bearer secret")]
    assert shown == [("CONNECT", "lab.invalid:8265", None)]
    assert "does not accept the token" in taken
    assert [f"no Ray cluster answers at {where}" in line for where, line in zip(there[1:], rest, strict=True)] == [
        True
    ] * 3


def test_a_name_that_hides_one_of_ours_is_refused(person: Person) -> None:
    (person.folder / "tasks.py").write_text("")
    try:
        refused(person.submit(), "'tasks'", "has the name of a package of metatrain", "rename it")
    finally:
        (person.folder / "tasks.py").unlink()


def test_other_people_s_jobs_disturb_nobody(person: Person) -> None:
    dashboard = Dashboard(person.head.address, Token(person.head.token, "the test"))
    odd = {"odd id": "true # don't", "bytes": "printf '\\377\\n'; exit 3", "blank": "' '"}
    for job_id, entrypoint in odd.items():
        metadata = {"id": "not it", "command": "two\nlines"}
        job = {"submission_id": job_id, "entrypoint": entrypoint, "metadata": metadata, "runtime_env": {}}
        until(lambda job=job: _submitted(dashboard, job))
    until(lambda: all(job["ended"] for job_id, job in person.jobs().items() if job_id in odd))
    assert person.jobs()["odd id"]["exit_code"] == 0
    listed = person("jobs")
    assert (listed.code, len(listed.out.splitlines())) == (0, 1 + len(person.jobs()))
    assert person("status").code == 0
    assert person("logs", "odd id").code == 0
    unreadable = person("logs", "bytes")
    assert (unreadable.code, "cannot be read" in unreadable.err) == (1, True)
    followed = person("logs", "bytes", "--follow")
    assert (followed.code, followed.seconds < 60) == (3, True)
    assert person("logs", "blank", "--follow").code == 127


def _submitted(dashboard: Dashboard, job: dict) -> bool:
    try:
        dashboard.request("POST", "/api/jobs/", job)
    except Unavailable:  # a cluster that has just started has nobody yet to run it
        return False
    return True


def test_no_token_a_wrong_token_and_one_that_cannot_be_read(person: Person, tmp_path: Path) -> None:
    one_line(person("jobs", *profiles(person, tmp_path)), "asks for a token, and none was found", "auth_token")
    wrong = tmp_path / "token"
    wrong.write_text("0123456789abcdef0123456789abcdef\n")
    one_line(
        person("jobs", *profiles(person, tmp_path, token_file=str(wrong))), "does not accept the token", str(wrong)
    )
    wrong.write_text(person.head.token + "\n")
    assert person("jobs", *profiles(person, tmp_path, token_file=str(wrong))).code == 0
    missing = profiles(person, tmp_path, token_file=str(tmp_path / "none"))
    one_line(person("jobs", *missing), "no token can be read", "No such file")


def test_a_token_that_everybody_can_read(person: Person, tmp_path: Path) -> None:
    option, path = profiles(person, tmp_path, token=person.head.token)
    assert person("jobs", option, path).code == 0
    Path(path).chmod(0o644)
    one_line(person("jobs", option, path), "everybody can read it", "chmod o-r")


@pytest.mark.parametrize(
    ("one", "parts"),
    [
        ({"adress": "http://x"}, ["profiles.one.adress", "did you mean address"]),
        ({"env": {"A": 1}}, ["profiles.one.env", "string"]),
        ({"token": "${NOT_SET_ANYWHERE}"}, ["${NOT_SET_ANYWHERE} is not set here", "export"]),
        ({"token": "${A}", "token_file": "b"}, ["remove one of them"]),
        ({"stop_wait": 0}, ["stop_wait"]),
    ],
)
def test_a_profile_that_is_wrong(person: Person, tmp_path: Path, one: dict, parts: list[str]) -> None:
    one_line(person("jobs", *profiles(person, tmp_path, **one)), *parts)


def test_a_profile_that_is_not_there(person: Person, tmp_path: Path) -> None:
    one_line(person("jobs", "--profile", "lap"), "has no profile 'lap'", "did you mean lab")
    one_line(person("jobs", "--profiles", str(tmp_path / "none.yaml")), "No such file")
    (tmp_path / "empty.yaml").write_text("")
    one_line(person("jobs", "--profiles", str(tmp_path / "empty.yaml")), "holds no settings")


def test_a_job_that_is_not_there(person: Person) -> None:
    for command in ("logs", "stop", "status"):
        one_line(person(command, "tiny-20200101"), "no such job", "metatrain jobs")


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["train", "tiny.yaml", "runs.root=runs"], ["runs.root", "goes with it", "s3://BUCKET/FOLDER"]),
        (["train", "tiny.yaml", "tracking.uri=sqlite:///mlflow.db"], ["tracking.uri", "goes with it", "http://"]),
        (["train", "tiny.yaml", "outer.stepz=3"], ["outer.stepz", "did you mean steps"]),
        (["train", "none.yaml"], ["none.yaml", "No such file"]),
        (["train", "../tiny.yaml"], ["lies outside the folder that is sent"]),
        (["train", "left.yaml"], ["is not sent", ".rayignore"]),
        (["train", "--resume", "runs/20261121-a"], ["runs/20261121-a", "s3://"]),
        (["evaluate", "runs/20261121-a"], ["runs/20261121-a", "s3://"]),
        (["train"], ["CONFIG: missing"]),
        (["training", "tiny.yaml"], ["COMMAND", "train"]),
    ],
)
def test_a_command_that_cannot_be_sent(person: Person, command: list[str], parts: list[str]) -> None:
    text = (person.folder / "tiny.yaml").read_text()
    (person.folder / "left.yaml").write_text(text)
    (person.folder.parent / "tiny.yaml").write_text(text)
    (person.folder / ".rayignore").write_text("left.yaml\n")
    before = len(person.jobs())
    one_line(person("submit", "--", *command), *parts)
    assert len(person.jobs()) == before


def test_options_that_are_wrong(person: Person, tmp_path: Path) -> None:
    train = ["--", "train", "tiny.yaml"]
    one_line(person("submit", "--env", "NOT_SET_ANYWHERE", *train), "--env", "is not set here")
    one_line(person("submit", "--env", "1=2", *train), "--env", "NAME=VALUE")
    one_line(person("submit", "--name", "a b", *train), "--name", "letters")
    one_line(person("submit", "--working-dir", str(tmp_path / "none"), *train), "--working-dir", "there is no folder")


def test_a_working_directory_that_is_too_large(person: Person) -> None:
    with (person.folder / "birds.zip").open("wb") as file:
        file.truncate(600 * 2**20)
    try:
        done = person.submit()
        one_line(done, "too large", "600 MiB in", "100 MiB can be sent", "birds.zip (600 MiB)", ".rayignore")
    finally:
        (person.folder / "birds.zip").unlink()


@pytest.mark.slow
def test_a_cluster_without_our_package(person: Person, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    token = {"token": "${LAB_TOKEN}"}
    option = profiles(person, tmp_path, python="/no/such/python", **token)
    elsewhere = person("submit", *option, "--", "train", "tiny.yaml").out.strip()
    option = profiles(person, tmp_path, python=str(bare / "bin" / "python"), **token)
    done = person("submit", *option, "--follow", "--name", "bare", "--", "train", "tiny.yaml")
    refused(done, "has no metatrain", "install it there", "image")
    refused(person("logs", "bare"), "has no metatrain")
    refused(person("logs", elsewhere, "--follow"), "/no/such/python is not there", "profile")
