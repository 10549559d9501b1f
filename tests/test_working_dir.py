"""The working directory that a job is sent: what is left out, what is too large."""

import os
import zipfile
from pathlib import Path

import pytest

import cluster.jobs.working_dir
from cluster.jobs.working_dir import scan_working_dir


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    files = {
        "tones.yaml": "a: 1",
        "mine/net.py": "x = 1",
        "mine/__pycache__/net.pyc": "…",
        "mine/notes.txt": "not for a cluster",
        "mine/.rayignore": "notes.txt",
        ".gitignore": "*.log\n/data/\n!keep.log\n",
        "a.log": "…",
        "keep.log": "…",
        "data/big.bin": "…",
        "mine/data/small.bin": "…",
        "runs/20260101/metrics.jsonl": "{}",
        "mine/runs/ours.txt": "a folder of one's own that has the name",
        ".git/HEAD": "ref",
        ".venv/bin/python": "…",
        "mlflow.db": "…",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_sources_are_sent_and_what_runs_leave_is_not(project: Path) -> None:
    assert list(scan_working_dir(project).files) == [
        ".gitignore",
        "keep.log",
        "mine/.rayignore",
        "mine/data/small.bin",
        "mine/net.py",
        "mine/runs/ours.txt",
        "tones.yaml",
    ]


SECRETS = (
    *("auth_token", "mine/auth_token", ".env", ".env.local", ".envrc", "mine/head.pem", "profiles.yaml", "server.KEY"),
    *(".ssh/id_ed25519", ".ssh/config", "mine/.aws/credentials", ".aws/config", ".kube/config", ".netrc", ".pgpass"),
    *("id_rsa", "id_ed25519.old", ".docker/config.json", ".config/gcloud/credentials.db", ".git-credentials"),
    *("service-account-lab.json", "mine/client_secret_1.json", ".ray/auth_token", "secrets.yaml", "kubeconfig.yaml"),
)


def test_secrets_stay_here_by_their_usual_names_and_those_that_are_named(project: Path, tmp_path: Path) -> None:
    sent = set(scan_working_dir(project).files)
    for name in SECRETS:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("secret")
    (project / "login.txt").write_text("\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl…")
    (project / "robot.json").write_text('{"type": "service_account", "private_key": "x"}')
    (project / "mine" / "dotenv.txt").symlink_to(project / ".env")
    (project / "team.yaml").write_text("secret")
    (project / "mine" / "token").write_text("secret")
    (project / "mine" / "link.yaml").symlink_to(project / "team.yaml")
    assert scan_working_dir(project).files.keys() - sent == {"team.yaml", "mine/token", "mine/link.yaml"}
    keep = [project / "team.yaml", tmp_path / "project" / "mine" / ".." / "mine" / "token", project / "none"]
    found = scan_working_dir(project, keep)
    assert set(found.files) == sent
    assert {"team.yaml", "login.txt", "robot.json", "mine/dotenv.txt", ".ssh/", "mine/.aws/"} <= set(found.secrets)
    assert (found.describe_left_out() or "").startswith(
        "not sent: secrets may be in .aws/, .config/gcloud/, .docker/, .env, "
    )


def test_names_that_only_look_like_those_of_secrets_are_sent(project: Path) -> None:
    names = ("keys.py", "id_map.json", "tokens.txt", "credentials.py", "environment.yaml", "secrets.py", ".env.example")
    for name in names:
        (project / name).write_text("x")
    found = scan_working_dir(project)
    assert set(names) <= set(found.files) and found.describe_left_out() is None


def test_the_zip_holds_them_and_depends_on_nothing_else(project: Path, tmp_path: Path) -> None:
    (project / "mine" / "run.sh").write_text("#!/bin/sh\n")
    (project / "mine" / "run.sh").chmod(0o755)
    first = scan_working_dir(project).write_zip(tmp_path / "first.zip").read_bytes()
    os.utime(project / "tones.yaml", (1, 1))
    assert scan_working_dir(project).write_zip(tmp_path / "second.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        assert archive.read("mine/net.py") == b"x = 1"
        assert archive.getinfo("mine/run.sh").external_attr >> 16 == 0o755
        assert archive.testzip() is None


def test_a_link_is_sent_as_what_it_leads_to_within_the_folder_alone(project: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.txt").write_text("a token of another cluster")
    (project / "linked.py").symlink_to("mine/net.py")
    (project / "out.txt").symlink_to(tmp_path / "elsewhere.txt")
    (project / "dead.py").symlink_to(tmp_path / "nowhere.py")
    (project / "loop").symlink_to(project)
    found = scan_working_dir(project)
    assert found.files["linked.py"] == 5
    assert not {"dead.py", "loop", "out.txt"} & found.files.keys()
    assert not any(name.startswith("loop/") for name in found.files)
    assert found.describe_left_out() == "not sent: links lead out of the folder from out.txt"


def test_too_large_says_what_makes_it_so(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.jobs.working_dir, "MAX_BYTES", 3 * 2**20)
    (project / "weights").mkdir()
    for number in range(3):
        (project / "weights" / f"{number}.bin").write_bytes(os.urandom(2**20))
    (project / "one.bin").write_bytes(os.urandom(2**20))
    with pytest.raises(ValueError, match=r"4 MiB in 11 files.* most of it is weights/ \(3 MiB\), one.bin \(1 MiB\)"):
        scan_working_dir(project).write_zip(tmp_path / "p.zip")
    (project / ".rayignore").write_text("weights/\n")
    scan_working_dir(project).write_zip(tmp_path / "p.zip")


def test_far_too_large_is_refused_before_it_is_packed(project: Path, tmp_path: Path) -> None:
    with (project / "sparse.bin").open("wb") as file:
        file.truncate(5 * cluster.jobs.working_dir.MAX_BYTES)
    with pytest.raises(ValueError, match=r"sparse\.bin"):
        scan_working_dir(project).write_zip(tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()
